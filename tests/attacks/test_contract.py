"""What every attack owes to the harness, whatever the images and the model."""

from __future__ import annotations

import math
import random
import tomllib
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bench.errors import BadInput
from bench.judging.norms import to_ball
from bench.judging.target import Target, is_correct
from bench.questions import registry
from bench.questions.budgets import PLANS
from bench.questions.spec import Spec
from tests.attacks.linear import (
    TINY,
    Linear,
    Problem,
    Wrapped,
    candidates,
    many_classes,
    two_classes,
)

EPS = {"linf": 0.02, "l2": 0.1, "l1": 0.3, "l0": 2.0}
L0 = ("onepixel", "pixle")  # for this norm only
PAIRS = [
    (name, norm)
    for name in TINY
    for norm in sorted({"linf", "l2", "l1", "l0"})
    if norm in ("linf", "l2")
    or name not in ("boundary", "hopskipjump", "geoda", "spsa", "nes", "deepfool")
]
PAIRS = [
    (name, norm)
    for name, norm in PAIRS
    if not (name in L0 and norm != "l0")
    and not (name == "cw" and norm != "l2")
    and not (name in ("apgd", "apgd-eot", "autoattack", "square", "fab") and norm == "l0")
]
KINDS: dict[str, Problem] = {
    "one example": many_classes(4, batch=1),
    "two classes": two_classes(batch=5),
    "three classes": many_classes(3, batch=5),
    "28x28": many_classes(10, batch=3, channels=1, size=28),
    "colour": many_classes(10, batch=4, channels=3, size=8),
}
WRONG = KINDS["colour"]
KINDS["all misclassified"] = Problem(WRONG.model, WRONG.x, (WRONG.y + 1) % 10, {})
KINDS["one label"] = Problem(
    Linear(torch.zeros(3, 64), torch.tensor([1.0, 0, 0])),
    torch.rand(4, 1, 8, 8),
    torch.zeros(4, dtype=torch.long),
    {},
)
BLACK = KINDS["two classes"]
KINDS["corners of the box"] = Problem(
    BLACK.model, BLACK.x.round(), right_labels := BLACK.model(BLACK.x.round()).argmax(1), {}
)


def coin(problem: Problem, p: float = 0.7) -> nn.Module:
    """Right with probability `p`, whatever the image."""

    def flip(logits: Tensor, x: Tensor) -> Tensor:
        return torch.where(torch.rand(len(x), 1) < p, logits, logits.flip(1))

    return Wrapped(problem.model, flip)


def test_the_table_of_this_test_is_whole() -> None:
    ours = {
        entry.name: entry
        for entry in registry.attacks
        if entry.make.__module__.startswith("bench.attacks.")
    }
    assert set(ours) == set(TINY)
    assert {(name, norm) for name, entry in ours.items() for norm in entry.facts.norms} == set(
        PAIRS
    )


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize(("name", "norm"), PAIRS)
@pytest.mark.parametrize("stochastic", [False, True], ids=["deterministic", "coin"])
def test_returns_finite_images_near_the_ball_and_stays_in_its_budget(
    name: str, norm: str, kind: str, stochastic: bool
) -> None:
    problem, entry = KINDS[kind], registry.attacks.get(name)
    model = coin(problem) if stochastic else problem.model
    target = Target(
        model, access=entry.facts.access, stochastic=stochastic, classes=problem.classes
    )
    before = problem.x.clone()
    made = candidates(problem, name, norm, EPS[norm], target, **TINY[name])
    assert made.shape[1:] == problem.x.shape
    assert made.isfinite().all()
    assert made.min() >= -1e-6
    assert made.max() <= 1 + 1e-6
    assert torch.equal(problem.x, before)
    knobs = entry.resolve(TINY[name])
    assert target.forwards + 2 * target.backwards <= entry.facts.calls(knobs, stochastic) * len(
        problem.x
    )
    if not entry.facts.minimum_norm:  # those report what they found, in the ball or not
        inside = torch.stack([to_ball(one, problem.x, norm, EPS[norm]) for one in made])
        assert (
            inside - made
        ).abs().max() < 1e-4  # the library's l1 projection is good to the fifth digit


# What TINY's knobs allow an attack without gradients to ask on a deterministic defence; 35 is the start, ten bisections and two queries a step.
QUERIES = {
    "noise": 12,
    "gaussian-noise": 12,
    "square": 15,
    "spsa": 33,
    "nes": 33,
    "onepixel": 32,
    "pixle": 16,
    "hopskipjump": 120,
    "geoda": 120,
    "boundary": 35,
}
COUNT_DRAWS = (
    "hopskipjump",
    "geoda",
)  # of these `queries` is the number of draws, of the others that of questions, each of `eot` draws


def test_every_attack_without_gradients_has_a_budget_that_is_tested_here() -> None:
    ours = [
        entry
        for entry in registry.attacks
        if entry.make.__module__.startswith(("bench.attacks.", "bench.checks."))
    ]
    assert {entry.name for entry in ours if entry.facts.access in ("score", "decision")} == {
        *QUERIES,
        "none",
    }


@pytest.mark.parametrize(("name", "queries"), QUERIES.items())
def test_a_budget_of_queries_is_spent_to_the_last(name: str, queries: int) -> None:
    """At an eps that nothing reaches, so that no example leaves; where the defence is called stochastic every draw counts."""
    problem, entry = two_classes(gap=1.0), registry.attacks.get(name)
    knobs = entry.resolve(TINY[name])
    for stochastic in (False, True):
        target = problem.target(entry.facts.access, stochastic)
        candidates(
            problem,
            name,
            "l0" if name in L0 else "linf",
            1.0 if name in L0 else 1e-4,
            target,
            **TINY[name],
        )
        draws = 1 if name in COUNT_DRAWS or not stochastic else knobs.get("eot", 1)
        assert target.forwards == queries * draws * len(problem.x)
        assert target.backwards == 0


@pytest.mark.parametrize(("name", "norm"), PAIRS)
def test_equal_seeds_give_equal_candidates_and_others_do_not(name: str, norm: str) -> None:
    problem = two_classes(batch=4)
    state = random.getstate(), np.random.get_state()[1].tolist()
    one, two, three = (
        candidates(problem, name, norm, EPS[norm], seed=seed, **TINY[name]) for seed in (0, 0, 1)
    )
    assert torch.equal(one, two)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == state, (
        "all randomness is torch's"
    )
    if name not in (
        "none",
        "fgsm",
        "pgd",
        "pgd-eot",
        "deepfool",
        "cw",
        "fab",
        "apgd",
        "apgd-eot",
        "autoattack",
        "transfer",
        "adaptive",
        "eight-bit",
    ):  # those end at the same optimum
        assert not torch.equal(one, three)


@pytest.mark.parametrize(("name", "norm"), PAIRS)
def test_parameters_gradients_and_modes_are_left_alone(name: str, norm: str) -> None:
    net = (
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 4))
        .eval()
        .requires_grad_(False)
    )
    problem = Problem(net, torch.rand(4, 1, 8, 8), torch.arange(4), {})
    before = {key: value.clone() for key, value in net.state_dict().items()}
    candidates(problem, name, norm, EPS[norm], **TINY[name])
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert not any(module.training for module in net.modules())
    assert all(
        parameter.grad is None and not parameter.requires_grad for parameter in net.parameters()
    )


@pytest.mark.parametrize("name", ["fgsm", "pgd", "apgd", "autoattack", "transfer"])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_no_step_is_taken_on_a_gradient_that_is_not_a_number(name: str, norm: str) -> None:
    problem = two_classes(batch=4)
    half = torch.tensor([True, False, True, False])

    def poison(logits: Tensor, x: Tensor) -> Tensor:
        ill = (
            half[torch.cdist(x.detach().flatten(1), problem.x.flatten(1)).argmin(1)]
            .nonzero()
            .squeeze(1)
        )
        return logits.index_add(
            0,
            ill,
            0 * ((x[ill] - x[ill].detach()) ** 2).sum((1, 2, 3)).sqrt().unsqueeze(1).expand(-1, 2),
        )

    eps = 2 * float(problem.optimum[norm][0])
    sick = Problem(Wrapped(problem.model, poison), problem.x, problem.y, {})
    knobs = {"from_x": True} if name == "pgd" else {}
    target = sick.target()
    made = candidates(sick, name, norm, eps, target, **TINY[name], **knobs)
    assert made.isfinite().all()
    assert target.nonfinite > 0, "the harness still hears of it"
    if name in ("fgsm", "pgd"):
        first = made[:3] if name == "pgd" else made
        assert torch.equal(first[:, half], problem.x[half].expand_as(first[:, half])), (
            "it stays where it began"
        )
        assert (~is_correct(problem.model(first[0]), problem.y))[~half].all(), (
            "its neighbours are attacked as ever"
        )


def test_a_graph_that_does_not_reach_the_image_is_no_crash() -> None:
    problem = two_classes(batch=4)
    cut = Problem(
        Wrapped(problem.model, lambda logits, x: logits.detach()), problem.x, problem.y, {}
    )
    for name in ("fgsm", "pgd", "apgd", "autoattack", "transfer"):
        assert candidates(cut, name, "linf", 0.02, **TINY[name]).isfinite().all()


def test_a_single_nan_answer_is_no_crash_for_those_that_see_labels() -> None:
    problem = two_classes(batch=4)
    holes = Problem(
        Wrapped(
            problem.model,
            lambda logits, x: torch.where(
                (x.sum((1, 2, 3)) * 1e3 % 3 < 1).unsqueeze(1), torch.nan, logits
            ),
        ),
        problem.x,
        problem.y,
        {},
    )
    for name in (
        "boundary",
        "hopskipjump",
        "geoda",
        "onepixel",
        "pixle",
        "spsa",
        "nes",
        "noise",
        "gaussian-noise",
        "pgd",
        "apgd",
    ):
        norm = "l0" if name in L0 else "l2"
        assert candidates(holes, name, norm, EPS[norm], **TINY[name]).isfinite().all()


def test_losses_that_do_not_exist_are_bad_input() -> None:
    with pytest.raises(BadInput, match="did you mean 'margin'"):
        candidates(two_classes(batch=2), "pgd", "linf", 0.1, loss="ce+margn")
    for name, knob in (
        ("autoattack", "version"),
        ("pgd", "loss"),
        ("apgd", "loss"),
        ("fgsm", "loss"),
        ("transfer", "loss"),
    ):
        with pytest.raises(BadInput, match=f"attack '{name}': {knob}='minus' is unknown"):
            registry.attacks.get(name).resolve({knob: "minus"})


@pytest.mark.parametrize(
    "name",
    [
        "pgd",
        "pgd-eot",
        "apgd",
        "apgd-eot",
        "autoattack",
        "onepixel",
        "pixle",
        "spsa",
        "nes",
        "hopskipjump",
        "geoda",
    ],
)
def test_a_stochastic_defence_is_given_several_candidates(name: str) -> None:
    """And none of them is the clean image, which one lucky draw would have made of it."""
    problem = many_classes(4, batch=6)
    entry = registry.attacks.get(name)
    norm = "l0" if name in L0 else "linf"
    target = Target(coin(problem, 0.5), access=entry.facts.access, stochastic=True, classes=4)
    made = candidates(problem, name, norm, EPS[norm], target, **TINY[name])
    assert len(made) >= 2
    if name in ("pgd", "pgd-eot", "apgd", "apgd-eot", "autoattack"):
        assert ((made - problem.x).abs().flatten(2).amax(2) > 0).all()


def test_eot_averages_away_what_single_draws_hide() -> None:
    """Gradient noise of thirty times the signal: with one draw per step the attack fails where with many it works."""
    problem = two_classes(gap=0.1, batch=20)

    def shake(logits: Tensor, x: Tensor) -> Tensor:
        return logits + (
            (x - x.detach()).flatten(1).unsqueeze(1) @ torch.randn(len(x), 64, 2) * 2
        ).squeeze(1)

    noisy = Problem(Wrapped(problem.model, shake), problem.x, problem.y, {})
    eps = 2 * float(problem.optimum["linf"][0])
    rates = []
    for eot in (1, 200):
        made = candidates(
            noisy, "pgd-eot", "linf", eps, noisy.target(stochastic=True), steps=5, eot=eot
        )
        rates.append(
            float(
                torch.stack([~is_correct(problem.model(one), problem.y) for one in made])
                .any(0)
                .float()
                .mean()
            )
        )
    assert rates[0] < 0.5
    assert rates[1] == 1


@pytest.mark.parametrize("budget", ["quick", "standard", "full"])
def test_budgets_name_attacks_and_knobs_that_exist(budget: str) -> None:
    table: dict[str, Any] = tomllib.loads((PLANS / "budgets.toml").read_text())[budget]
    assert {"draws", "select", "batch", "attacks"} <= set(table)
    listed = {Spec.parse(text).name for text in table["attacks"]}
    attacks = {name for name in listed if name in registry.attacks}
    assert budget != "full" or attacks | {"none"} == set(TINY), "full is every attack there is"
    for name, knobs in table.items():
        if isinstance(knobs, dict):
            entry = registry.find_question(name)
            assert entry.resolve(knobs) != entry.resolve({}), f"[{budget}.{name}] says nothing new"
    for text in table["attacks"]:
        entry = registry.find_question(Spec.parse(text).name)
        for stochastic in (False, True):
            calls = entry.facts.calls(entry.resolve(table.get(entry.name, {})), stochastic)
            assert math.isfinite(calls)
