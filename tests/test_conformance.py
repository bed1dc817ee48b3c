"""The battery that every registered defence and attack goes through; registering is enough to be in it."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn

from bench.data.sample import Dataset, load
from bench.judging.evaluate import evaluate
from bench.judging.norms import NORMS
from bench.judging.randomness import random_stream
from bench.judging.target import PARTS, Target, predict_draws
from bench.questions import registry
from bench.questions.plan import Request, plan
from bench.questions.spec import Cell, Spec, ThreatModel
from tests.conftest import TOYS

registry.discover((TOYS,))
CPU = torch.device("cpu")
# The fault that is planted in it: its logits are infinite on most images, and then say nothing of its randomness either.
INFINITE = {"gallery-peel-naive"}
SAMPLE = Spec.of("digits", {"n": 12})
DEFENCES = sorted(entry.name for entry in registry.defences if not entry.name.startswith("toy"))
ATTACKS = sorted(
    entry.name for entry in registry.attacks if not entry.name.startswith(("toy", "liar", "spy"))
)
CHECKS = sorted(entry.name for entry in registry.checks)
# a few steps of everything: the battery asks whether an attack keeps the rules, the attack's own tests whether it is strong
SHORT = {
    "examples": 2,
    "steps": 3,
    "queries": 20,
    "restarts": 1,
    "popsize": 8,
    "eot": 2,
    "tries": 4,
    "samples": 8,
    "init": 5,
    "evaluations": 8,
    "classes": 2,
    "points": 29,
    "directions": 20,
}


@pytest.fixture(scope="module")
def data() -> Dataset:
    return load(SAMPLE)


def resolved(name: str) -> Spec:
    (cell, *_) = plan([Request(defences=(name,), attacks=("none",))]).cells
    return cell.defence


@pytest.fixture(params=DEFENCES)
def built(request: pytest.FixtureRequest) -> tuple[Spec, nn.Module]:
    spec = resolved(request.param)
    module = registry.defences.get(spec.name).make(**spec.params)
    return spec, module.eval().requires_grad_(False)


def answer(module: Callable[[Tensor], Tensor], x: Tensor, seed: int = 0) -> Tensor:
    with random_stream(CPU, seed), torch.no_grad():
        logits: Tensor = module(x)
    return logits


def audible(spec: Spec, module: nn.Module) -> Callable[[Tensor], Tensor]:
    """The defence, or what draws and decides as it does where its own logits drown that in infinities."""
    return module.surrogates["lse"] if spec.name in INFINITE else module


def near(one: Tensor, other: Tensor, within: float) -> bool:
    """Whether logits agree to `within` of their size, or of 1 where they are smaller."""
    return bool(((one - other).abs() <= within * other.abs().clamp_min(1)).all())


def test_logits_have_the_right_shape_type_and_are_finite(
    built: tuple[Spec, nn.Module], data: Dataset
) -> None:
    spec, module = built
    logits = answer(module, data.x)
    assert logits.shape == (len(data.x), data.classes)
    assert logits.dtype == torch.float32
    assert bool(logits.isfinite().all()) != (spec.name in INFINITE)
    edges = torch.stack(
        [torch.zeros_like(data.x[0]), torch.ones_like(data.x[0]), torch.full_like(data.x[0], 0.5)]
    )
    assert not answer(module, edges).isnan().any()
    assert answer(module, edges).isfinite().all() or spec.name in INFINITE


def test_it_is_as_random_as_it_says(built: tuple[Spec, nn.Module], data: Dataset) -> None:
    spec, module = built
    one, again, other = (answer(audible(spec, module), data.x, seed) for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert torch.equal(one, other) != registry.is_stochastic(spec)


def test_randomness_is_fresh_for_each_example_and_call(
    built: tuple[Spec, nn.Module], data: Dataset
) -> None:
    spec, module = built
    same, heard = data.x[:1].expand(4, -1, -1, -1).contiguous(), audible(spec, module)
    with random_stream(CPU, 0), torch.no_grad():
        first, second = heard(same), heard(same)
        several = predict_draws(heard, data.x[:3], 4)
    assert several.shape == (3, 4, data.classes)
    distinct = {tuple(row.tolist()) for row in torch.cat([first, second])}
    if registry.is_stochastic(spec):
        assert len(distinct) == 8
        assert len({tuple(row.tolist()) for row in several.flatten(0, 1)}) == 12
    else:
        assert near(torch.cat([first, second]), first[:1], 1e-4)
        assert near(several, several[:, :1], 1e-4)


def test_draws_have_the_same_distribution_as_calls(
    built: tuple[Spec, nn.Module], data: Dataset
) -> None:
    spec, module = built
    if not registry.is_stochastic(spec):
        assert near(predict_draws(module, data.x, 2)[:, 0], answer(module, data.x), 1e-4)
        return
    heard = audible(spec, module)
    with random_stream(CPU, 3), torch.no_grad():
        shared = predict_draws(heard, data.x, 64)
        calls = torch.stack([heard(data.x) for _ in range(64)], 1)
    spread = (shared.var(1) / 64 + calls.var(1) / 64).sqrt()
    assert ((shared.mean(1) - calls.mean(1)).abs() < 6 * spread + 1e-4).all()


def test_one_image_does_not_see_the_others(built: tuple[Spec, nn.Module], data: Dataset) -> None:
    spec, module = built
    if not registry.is_stochastic(spec):
        alone = torch.cat([answer(module, image[None]) for image in data.x])
        assert near(alone, answer(module, data.x), 1e-3)


def test_an_empty_batch_gets_an_empty_answer(built: tuple[Spec, nn.Module], data: Dataset) -> None:
    with torch.no_grad():
        assert built[1](data.x[:0]).shape == (0, data.classes)
        assert predict_draws(built[1], data.x[:0], 3).shape == (0, 3, data.classes)


def test_it_leaves_its_input_its_weights_and_the_random_state_alone(
    built: tuple[Spec, nn.Module], data: Dataset
) -> None:
    spec, module = built
    before = {name: value.clone() for name, value in module.state_dict().items()}
    x, given = data.x.clone(), data.x.clone()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    module(given)
    assert torch.equal(given, x)
    assert not given.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert registry.is_stochastic(spec) or torch.equal(torch.get_rng_state(), state)
    assert not any(parameter.requires_grad for parameter in module.parameters())


def test_its_gradient_lives_or_a_surrogate_is_declared(
    built: tuple[Spec, nn.Module], data: Dataset
) -> None:
    _, module = built
    x = data.x.clone().requires_grad_()
    ways = [module, *getattr(module, "surrogates", {}).values()]
    alive = []
    for way in ways:
        with random_stream(CPU, 0):
            logits = way(x)
        gap = logits.topk(2).values
        grad = (
            torch.autograd.grad((gap[:, 0] - gap[:, 1]).sum(), x, allow_unused=True)[0]
            if logits.requires_grad
            else None
        )
        alive.append(
            grad is not None
            and bool(grad.isfinite().all())
            and bool((grad.flatten(1) != 0).any(1).float().mean() > 0.9)
        )
    assert any(alive)
    assert all(alive[1:])


def test_declared_parts_are_what_the_contract_says(
    built: tuple[Spec, nn.Module], data: Dataset
) -> None:
    _, module = built
    parts = [name for name in PARTS if getattr(module, name, None) is not None]
    with random_stream(CPU, 0), torch.no_grad():
        if "base" in parts:
            assert module.base(data.x).shape == (12, data.classes)
        if {"purify", "classify"} <= set(parts):
            cleaned = module.purify(data.x)
            assert cleaned.shape == data.x.shape
            assert ((cleaned >= 0) & (cleaned <= 1)).all()
            assert module.classify(cleaned).shape == (12, data.classes)
        for name, surrogate in getattr(module, "surrogates", {}).items():
            assert surrogate(data.x).shape == (12, data.classes), name
        if "per_draw" in parts:
            assert module.per_draw(data.x).shape[0::2] == (12, data.classes)


def short_of(attack: str) -> Spec:
    params = {
        knob: min(value, SHORT[knob]) if knob in SHORT else value
        for knob, value in registry.find_question(attack).resolve({}).items()
    }
    if "attack" in params:
        params["attack"] = str(short_of(params["attack"]))
    return Spec.of(
        attack,
        {
            knob: "own:digits-standard" if value == "@standard" else value
            for knob, value in params.items()
        },
    )


def short_cell(attack: str, norm: str, defence: str) -> Cell:
    eps = Fraction(registry.datasets.get("digits").facts.eps[norm])
    spec = resolved(defence)
    access = registry.find_question(attack).facts.access
    count = 3 if registry.is_stochastic(spec) else 1
    return Cell(SAMPLE, spec, short_of(attack), ThreatModel(norm, eps, access), 0, count, count, 12)


CASES = [
    (name, norm, defence)
    for name in (*ATTACKS, *CHECKS)
    for norm in sorted(registry.find_question(name).facts.norms)
    for defence in ("undefended", "carso")
    if defence == "carso" or not registry.find_question(name).facts.stochastic_only
]


@pytest.mark.parametrize(("attack", "norm", "defence"), CASES)
def test_an_attack_answers_within_the_rules_and_again_the_same(
    attack: str, norm: str, defence: str
) -> None:
    cell = short_cell(attack, norm, defence)
    record = evaluate(cell)
    assert max(record.strayed) <= 0.0, "an attack of ours proposes inside the ball and the box"
    assert -1.0 not in record.strayed, "an attack of ours proposes finite images"
    assert max(record.distance) <= float(cell.threat.eps) * (1 + 1e-5) + 1e-6
    again = evaluate(cell)
    assert (again.correct, again.margin, again.cost.forwards) == (
        record.correct,
        record.margin,
        record.cost.forwards,
    )
    if attack == "none":
        assert record.cost.forwards == 0
    else:
        assert record.cost.forwards > 0


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_says_what_it_costs_and_keeps_to_it(attack: str) -> None:
    entry = registry.attacks.get(attack)
    spec, data = short_of(attack), load(SAMPLE)
    for stochastic in (True,) if entry.facts.stochastic_only else (False, True):
        model = registry.build_classifier("own:digits-standard")
        target = Target(
            model,
            access=entry.facts.access.replace("transfer", "white-box"),
            stochastic=stochastic,
            classes=data.classes,
        )
        norm = "linf" if "linf" in entry.facts.norms else min(entry.facts.norms)
        threat = ThreatModel(norm, Fraction(registry.datasets.get("digits").facts.eps[norm]))
        with random_stream(CPU, 0):
            entry.make(target, data.x.clone(), data.y.clone(), threat, **spec.params)
        spent = (target.forwards + 2 * target.backwards) / len(data.x)
        assert spent <= entry.facts.calls(spec.params, stochastic) + 1e-9


def test_every_attack_beats_doing_nothing_on_the_undefended_classifier() -> None:
    """At the budget `quick`, on the images that it gets right: an attack that breaks none of them is not one."""
    idle = []
    for name in ATTACKS:
        if name == "none" or registry.attacks.get(name).facts.stochastic_only:
            continue
        clean, cell = plan(
            [Request(defences=("undefended",), attacks=(name,), n=12, budget="quick")]
        ).cells
        if evaluate(cell).accuracy >= evaluate(clean).accuracy:
            idle.append(name)
    assert not idle


def test_norms_are_complete() -> None:
    assert set(NORMS) == {"linf", "l2", "l1", "l0"}
