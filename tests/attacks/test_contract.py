"""What every attack owes to the harness, whatever the images and the model."""

from __future__ import annotations

import math
import random
import subprocess
import sys
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
from bench.questions.facts import AttackFacts
from bench.questions.registry import Entry
from bench.questions.spec import Spec
from tests.attacks.linear import (
    TINY,
    Linear,
    Problem,
    Wrapped,
    candidates,
    many_classes,
    misclassified,
    nan_gradients,
    nan_here_and_there,
    two_classes,
)

EPS = {"linf": 0.02, "l2": 0.1, "l1": 0.3, "l0": 2.0}
L0 = ("onepixel", "pixle")  # for this norm only
# The norms of each attack; all four where nothing else is said.
NORMS_OF = {
    **dict.fromkeys(L0, ("l0",)),
    **dict.fromkeys(("boundary", "hopskipjump", "geoda", "spsa", "nes"), ("l2", "linf")),
    **dict.fromkeys(("apgd", "apgd-eot", "autoattack", "square", "fab"), ("l1", "l2", "linf")),
    "deepfool": ("l2", "linf"),
    "cw": ("l2",),
}
PAIRS = [(name, norm) for name in TINY for norm in NORMS_OF.get(name, ("l0", "l1", "l2", "linf"))]
# Attacks whose seeds matter little: they end at the same optimum.
CONVERGENT = {
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
}
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
    BLACK.model, BLACK.x.round(), BLACK.model(BLACK.x.round()).argmax(1), {}
)


def coin(problem: Problem, p: float = 0.7) -> nn.Module:
    """Right with probability `p`, whatever the image."""

    def flip(logits: Tensor, x: Tensor) -> Tensor:
        return torch.where(torch.rand(len(x), 1) < p, logits, logits.flip(1))

    return Wrapped(problem.model, flip)


def own_attacks() -> list[Entry[AttackFacts]]:
    """The attacks of the package, less those of plug-ins."""
    return [
        entry for entry in registry.attacks if entry.make.__module__.startswith("bench.attacks.")
    ]


def test_the_table_of_this_test_is_whole() -> None:
    assert {entry.name for entry in own_attacks()} == set(TINY)
    pairs = {(entry.name, norm) for entry in own_attacks() for norm in entry.facts.norms}
    assert pairs == set(PAIRS)


def test_importing_the_attacks_loads_no_heavy_library() -> None:
    """`--list` imports them all."""
    code = (
        "import importlib, pkgutil, sys, bench.attacks as room\n"
        "for module in pkgutil.iter_modules(room.__path__):\n"
        "    importlib.import_module(f'bench.attacks.{module.name}')\n"
        "heavy = {'scipy', 'sklearn', 'pyautoattack', 'pandas', 'matplotlib', 'torchvision'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize(("name", "norm"), PAIRS)
@pytest.mark.parametrize("stochastic", [False, True], ids=["deterministic", "coin"])
def test_returns_finite_images_near_the_ball_and_stays_in_its_budget(
    name: str, norm: str, kind: str, stochastic: bool
) -> None:
    problem = KINDS[kind]
    entry = registry.attacks.get(name)
    model = coin(problem) if stochastic else problem.model
    target = Target(
        model, access=entry.facts.access, stochastic=stochastic, classes=problem.classes
    )
    before = problem.x.clone()
    x_adv = candidates(problem, name, norm, EPS[norm], target, **TINY[name])
    assert x_adv.shape[1:] == problem.x.shape
    assert x_adv.isfinite().all()
    assert x_adv.min() >= -1e-6
    assert x_adv.max() <= 1 + 1e-6
    assert torch.equal(problem.x, before)
    knobs = entry.resolve(TINY[name])
    assert target.forwards + 2 * target.backwards <= entry.facts.calls(knobs, stochastic) * len(
        problem.x
    )
    if not entry.facts.minimum_norm:  # those report what they found, in the ball or not
        inside = torch.stack([to_ball(images, problem.x, norm, EPS[norm]) for images in x_adv])
        # the library's l1 projection is good to the fifth digit
        assert (inside - x_adv).abs().max() < 1e-4


# What TINY's knobs allow an attack without gradients to query on a deterministic defence; 35 is the
# start, ten bisections and two queries a step.
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
# Of these `queries` is the number of draws, of the others that of queries, each of `eot` draws.
COUNT_DRAWS = ("hopskipjump", "geoda")


def test_every_attack_without_gradients_has_a_budget_that_is_tested_here() -> None:
    black_box = {
        entry.name for entry in own_attacks() if entry.facts.access in ("score", "decision")
    }
    assert black_box == {*QUERIES, "none"}


@pytest.mark.parametrize(("name", "queries"), QUERIES.items())
def test_a_budget_of_queries_is_spent_to_the_last(name: str, queries: int) -> None:
    """At an eps that nothing reaches, so that no example leaves.

    Where the defence is called stochastic, every draw counts.
    """
    problem = two_classes(gap=1.0)
    entry = registry.attacks.get(name)
    knobs = entry.resolve(TINY[name])
    for stochastic in (False, True):
        target = problem.target(entry.facts.access, stochastic)
        norm, eps = ("l0", 1.0) if name in L0 else ("linf", 1e-4)
        candidates(problem, name, norm, eps, target, **TINY[name])
        draws = 1 if name in COUNT_DRAWS or not stochastic else knobs.get("eot", 1)
        assert target.forwards == queries * draws * len(problem.x)
        assert target.backwards == 0


@pytest.mark.parametrize(("name", "norm"), PAIRS)
def test_equal_seeds_give_equal_candidates_and_others_do_not(name: str, norm: str) -> None:
    problem = two_classes(batch=4)
    state = random.getstate(), np.random.get_state()[1].tolist()
    first = candidates(problem, name, norm, EPS[norm], seed=0, **TINY[name])
    again = candidates(problem, name, norm, EPS[norm], seed=0, **TINY[name])
    other = candidates(problem, name, norm, EPS[norm], seed=1, **TINY[name])
    assert torch.equal(first, again)
    after = random.getstate(), np.random.get_state()[1].tolist()
    assert after == state, "all randomness is torch's"
    if name not in CONVERGENT:
        assert not torch.equal(first, other)


@pytest.mark.parametrize(("name", "norm"), PAIRS)
def test_parameters_gradients_and_modes_are_left_alone(name: str, norm: str) -> None:
    layers = (nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 4))
    net = nn.Sequential(*layers).eval().requires_grad_(False)
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
    eps = 2 * float(problem.optimum[norm][0])
    sick = nan_gradients(problem, half)
    knobs = {"from_x": True} if name == "pgd" else {}
    target = sick.target()
    x_adv = candidates(sick, name, norm, eps, target, **TINY[name], **knobs)
    assert x_adv.isfinite().all()
    assert target.nonfinite > 0, "the harness still hears of it"
    if name in ("fgsm", "pgd"):
        first = x_adv[:3] if name == "pgd" else x_adv
        stays = problem.x[half].expand_as(first[:, half])
        assert torch.equal(first[:, half], stays), "it stays where it began"
        others = ~is_correct(problem.model(first[0]), problem.y)[~half]
        assert others.all(), "its neighbours are attacked as ever"


def test_a_graph_that_does_not_reach_the_image_is_no_crash() -> None:
    problem = two_classes(batch=4)
    cut = Problem(
        Wrapped(problem.model, lambda logits, x: logits.detach()), problem.x, problem.y, {}
    )
    for name in ("fgsm", "pgd", "apgd", "autoattack", "transfer"):
        assert candidates(cut, name, "linf", 0.02, **TINY[name]).isfinite().all()


def test_a_single_nan_answer_is_no_crash_for_those_that_see_labels() -> None:
    problem = two_classes(batch=4)
    holes = Problem(Wrapped(problem.model, nan_here_and_there), problem.x, problem.y, {})
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
    x_adv = candidates(problem, name, norm, EPS[norm], target, **TINY[name])
    assert len(x_adv) >= 2
    if name in ("pgd", "pgd-eot", "apgd", "apgd-eot", "autoattack"):
        assert ((x_adv - problem.x).abs().flatten(2).amax(2) > 0).all()


def test_eot_averages_away_what_single_draws_hide() -> None:
    """Gradient noise of thirty times the signal.

    With one draw per step the attack fails where with many it works.
    """
    problem = two_classes(gap=0.1, batch=20)

    def shake(logits: Tensor, x: Tensor) -> Tensor:
        zero = (x - x.detach()).flatten(1).unsqueeze(1)
        return logits + (zero @ torch.randn(len(x), 64, 2) * 2).squeeze(1)

    noisy = Problem(Wrapped(problem.model, shake), problem.x, problem.y, {})
    eps = 2 * float(problem.optimum["linf"][0])
    rates = []
    for eot in (1, 200):
        target = noisy.target(stochastic=True)
        x_adv = candidates(noisy, "pgd-eot", "linf", eps, target, steps=5, eot=eot)
        rates.append(float(misclassified(problem, x_adv).any(0).float().mean()))
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
