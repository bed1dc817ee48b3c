"""The battery that every registered defence and attack goes through."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from bench.data.sample import Dataset, load
from bench.judging.evaluate import evaluate
from bench.judging.norms import NORMS
from bench.judging.randomness import random_stream
from bench.judging.target import PARTS, Target, predict_draws
from bench.questions import registry
from bench.questions.discover import discover
from bench.questions.plan import plan
from bench.questions.registry import Entry
from bench.questions.request import Request
from bench.questions.spec import Cell, Spec, ThreatModel
from tests.conftest import TOYS

discover((TOYS,))
CPU = torch.device("cpu")
# A planted fault: the logits are infinite on most images. Such logits say nothing of
# the randomness either.
INFINITE = {"gallery-peel-naive"}
SAMPLE = Spec.of("digits", {"n": 12})
PACKAGES = ("bench.", "baselines.", "carso.")


def names_of_ours(entries: Iterable[Entry]) -> list[str]:
    """What the project registers, and no plug-in of the tests."""
    return sorted(entry.name for entry in entries if entry.make.__module__.startswith(PACKAGES))


DEFENCES = names_of_ours(registry.defences)
ATTACKS = names_of_ours(registry.attacks)
CHECKS = sorted(entry.name for entry in registry.checks)
# A few steps of everything: the battery asks whether an attack keeps the rules. The attack's own
# tests ask whether it is strong.
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


def finite_form(spec: Spec, module: nn.Module) -> Callable[[Tensor], Tensor]:
    """The defence; where its logits are infinite, its surrogate of the same draws."""
    return module.surrogates["lse"] if spec.name in INFINITE else module


def near(logits: Tensor, expected: Tensor, tolerance: float) -> bool:
    """Whether logits agree to `tolerance` of their size, or of 1 where they are smaller."""
    return bool(((logits - expected).abs() <= tolerance * expected.abs().clamp_min(1)).all())


def test_logits_are_float32_finite_and_of_the_right_shape(
    built: tuple[Spec, nn.Module], data: Dataset
) -> None:
    spec, module = built
    logits = answer(module, data.x)
    assert logits.shape == (len(data.x), data.classes)
    assert logits.dtype == torch.float32
    assert bool(logits.isfinite().all()) != (spec.name in INFINITE)
    uniform = torch.stack([torch.full_like(data.x[0], level) for level in (0.0, 1.0, 0.5)])
    assert not answer(module, uniform).isnan().any()
    assert answer(module, uniform).isfinite().all() or spec.name in INFINITE


def test_a_defence_is_as_random_as_declared(built: tuple[Spec, nn.Module], data: Dataset) -> None:
    spec, module = built
    defence = finite_form(spec, module)
    logits = answer(defence, data.x, seed=0)
    assert torch.equal(logits, answer(defence, data.x, seed=0))
    same = torch.equal(logits, answer(defence, data.x, seed=1))
    assert same != registry.is_stochastic(spec)


def test_randomness_is_fresh_for_each_example_and_call(
    built: tuple[Spec, nn.Module], data: Dataset
) -> None:
    spec, module = built
    copies = data.x[:1].expand(4, -1, -1, -1).contiguous()
    defence = finite_form(spec, module)
    with random_stream(CPU, 0), torch.no_grad():
        calls = torch.cat([defence(copies), defence(copies)])  # (8,K)
        draws = predict_draws(defence, data.x[:3], 4)
    assert draws.shape == (3, 4, data.classes)
    if registry.is_stochastic(spec):
        assert len({tuple(row.tolist()) for row in calls}) == 8
        assert len({tuple(row.tolist()) for row in draws.flatten(0, 1)}) == 12
    else:
        assert near(calls, calls[:1], 1e-4)
        assert near(draws, draws[:, :1], 1e-4)


def test_draws_have_the_same_distribution_as_calls(
    built: tuple[Spec, nn.Module], data: Dataset
) -> None:
    spec, module = built
    if not registry.is_stochastic(spec):
        assert near(predict_draws(module, data.x, 2)[:, 0], answer(module, data.x), 1e-4)
        return
    defence = finite_form(spec, module)
    with random_stream(CPU, 3), torch.no_grad():
        draws = predict_draws(defence, data.x, 64)
        calls = torch.stack([defence(data.x) for _ in range(64)], 1)
    error = (draws.var(1) / 64 + calls.var(1) / 64).sqrt()
    assert ((draws.mean(1) - calls.mean(1)).abs() < 6 * error + 1e-4).all()


def test_one_image_does_not_see_the_others(built: tuple[Spec, nn.Module], data: Dataset) -> None:
    spec, module = built
    if not registry.is_stochastic(spec):
        alone = torch.cat([answer(module, image[None]) for image in data.x])
        assert near(alone, answer(module, data.x), 1e-3)


def test_an_empty_batch_gets_an_empty_answer(built: tuple[Spec, nn.Module], data: Dataset) -> None:
    with torch.no_grad():
        assert built[1](data.x[:0]).shape == (0, data.classes)
        assert predict_draws(built[1], data.x[:0], 3).shape == (0, 3, data.classes)


def test_a_prediction_changes_neither_input_weights_nor_random_state(
    built: tuple[Spec, nn.Module], data: Dataset
) -> None:
    spec, module = built
    before = {name: value.clone() for name, value in module.state_dict().items()}
    x = data.x.clone()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    module(x)
    assert torch.equal(x, data.x)
    assert not x.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert registry.is_stochastic(spec) or torch.equal(torch.get_rng_state(), state)
    assert not any(parameter.requires_grad for parameter in module.parameters())


def test_a_gradient_reaches_the_image_or_a_surrogate_is_declared(
    built: tuple[Spec, nn.Module], data: Dataset
) -> None:
    _, module = built
    x = data.x.clone().requires_grad_()
    surrogates = getattr(module, "surrogates", {}).values()
    through_surrogates = [has_gradient(surrogate, x) for surrogate in surrogates]
    assert all(through_surrogates)
    assert through_surrogates or has_gradient(module, x)


def has_gradient(model: Callable[[Tensor], Tensor], x: Tensor) -> bool:
    """Whether the gradient of the margin is finite, and not zero on over 90% of the images."""
    with random_stream(CPU, 0):
        logits = model(x)
    if not logits.requires_grad:
        return False
    top = logits.topk(2).values
    (grad,) = torch.autograd.grad((top[:, 0] - top[:, 1]).sum(), x, allow_unused=True)
    if grad is None or not grad.isfinite().all():
        return False
    return bool((grad.flatten(1) != 0).any(1).float().mean() > 0.9)


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
    """The attack or the check at a few steps."""
    params = registry.find_question(attack).resolve({})
    for knob, value in params.items():
        if knob in SHORT:
            params[knob] = min(value, SHORT[knob])
        elif knob == "attack":
            params[knob] = str(short_of(value))
        elif value == "@standard":
            params[knob] = "own:digits-standard"
    return Spec.of(attack, params)


def short_cell(attack: str, norm: str, defence: str) -> Cell:
    eps = Fraction(registry.datasets.get("digits").facts.eps[norm])
    spec = resolved(defence)
    access = registry.find_question(attack).facts.access
    count = 3 if registry.is_stochastic(spec) else 1
    return Cell(SAMPLE, spec, short_of(attack), ThreatModel(norm, eps, access), 0, count, count, 12)


def cases() -> Iterator[tuple[str, str, str]]:
    for name in (*ATTACKS, *CHECKS):
        facts = registry.find_question(name).facts
        defences = ("carso",) if facts.stochastic_only else ("undefended", "carso")
        for norm, defence in product(sorted(facts.norms), defences):
            yield name, norm, defence


@pytest.mark.parametrize(("attack", "norm", "defence"), list(cases()))
def test_an_attack_keeps_the_rules_and_repeats_its_answer(
    attack: str, norm: str, defence: str
) -> None:
    cell = short_cell(attack, norm, defence)
    record = evaluate(cell)
    assert max(record.strayed) <= 0.0, "an attack of ours proposes inside the ball and the box"
    assert -1.0 not in record.strayed, "an attack of ours proposes finite images"
    assert max(record.distance) <= float(cell.threat.eps) * (1 + 1e-5) + 1e-6
    again = evaluate(cell)
    assert again.correct == record.correct
    assert again.margin == record.margin
    assert again.cost.forwards == record.cost.forwards
    if attack == "none":
        assert record.cost.forwards == 0
    else:
        assert record.cost.forwards > 0


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_costs_no_more_than_declared(attack: str) -> None:
    entry = registry.attacks.get(attack)
    spec = short_of(attack)
    data = load(SAMPLE)
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
        calls = (target.forwards + 2 * target.backwards) / len(data.x)
        assert calls <= entry.facts.calls(spec.params, stochastic) + 1e-9


def test_every_attack_breaks_some_image_of_the_undefended_classifier() -> None:
    """At the budget `quick`, on the images that the classifier gets right."""
    idle = []
    for name in ATTACKS:
        if name == "none" or registry.attacks.get(name).facts.stochastic_only:
            continue
        request = Request(defences=("undefended",), attacks=(name,), n=12, budget="quick")
        clean, cell = plan([request]).cells
        if evaluate(cell).accuracy >= evaluate(clean).accuracy:
            idle.append(name)
    assert not idle


def test_norms_are_complete() -> None:
    assert set(NORMS) == {"linf", "l2", "l1", "l0"}
