"""Every attack against linear models, where the smallest perturbation that works is known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.attacks.transfer import DiverseInputs
from bench.judging.norms import NORMS
from bench.judging.target import is_correct, margin
from bench.questions import registry
from tests.attacks.linear import (
    Linear,
    Problem,
    Wrapped,
    candidates,
    fooled,
    many_classes,
    two_classes,
)

GRADIENT: list[tuple[str, dict[str, Any]]] = [
    ("fgsm", {}),
    ("pgd", {"steps": 20, "loss": "margin", "from_x": True}),
    ("pgd", {"steps": 20, "loss": "dlr", "restarts": 2}),
    ("pgd", {"steps": 20, "momentum": 0.75}),
    ("autoattack", {"steps": 40, "queries": 20}),
]


SMOOTH = {"smooth": True, "gap": 0.2}  # a plane whose weights have patches, as Square's steps do
# Of every attack and norm but l0: how many times the optimum it needs at most, and its knobs.
REACH: dict[tuple[str, str], tuple[float, dict[str, Any]]] = {
    ("cw", "l2"): (1.02, {"steps": 120, "searches": 6, "rate": 0.01, "constant": 0.01}),
    ("hopskipjump", "linf"): (1.25, {"queries": 2500}),
    ("hopskipjump", "l2"): (1.1, {"queries": 2500}),
    ("square", "linf"): (1.5, {"queries": 1500}),
    ("square", "l2"): (2.5, {"queries": 1500}),
    ("square", "l1"): (2.5, {"queries": 1500}),
}
for norm in ("linf", "l2", "l1"):
    REACH |= {
        ("fgsm", norm): (1.02, {}),
        ("pgd", norm): (1.02, {"steps": 20}),
        ("pgd-eot", norm): (1.02, {"steps": 20, "eot": 2}),
        ("apgd", norm): (1.02, {"steps": 25}),
        ("apgd-eot", norm): (1.02, {"steps": 25, "eot": 2}),
        ("autoattack", norm): (1.02, {"steps": 40, "queries": 20}),
        ("fab", norm): (1.02, {"steps": 20, "targets": 1}),
        ("adaptive", norm): (1.02, {"steps": 20}),
        ("transfer", norm): (1.02, {"steps": 20}),
        ("eight-bit", norm): (1.02, {"attack": "pgd[steps=20]"}),
    }
for norm in ("linf", "l2"):
    REACH |= {
        ("spsa", norm): (1.25, {"steps": 40, "samples": 64}),
        ("nes", norm): (1.25, {"steps": 40, "samples": 64}),
        ("boundary", norm): (1.1, {"steps": 800}),
        ("geoda", norm): (1.25, {"queries": 2500}),
        ("deepfool", norm): (1.02, {}),
    }
# The planes that are not `two_classes()`. Rounding takes little of an eps of many 255ths.
PLANES: dict[tuple[str, str], dict[str, Any]] = {
    ("square", "linf"): SMOOTH,
    ("square", "l2"): SMOOTH,
    ("square", "l1"): SMOOTH,
    ("eight-bit", "linf"): {"gap": 1.0},
    ("eight-bit", "l2"): {"gap": 0.5},
}
# In l0: the share of what the optimal pixels give that is surely found. That of copies of pixels is
# in test_pixle.py.
SPARSE: dict[str, tuple[float, dict[str, Any]]] = {
    "fgsm": (0.99, {}),
    "pgd": (0.99, {"steps": 10}),
    "pgd-eot": (0.99, {"steps": 10, "eot": 2}),
    "adaptive": (0.99, {"steps": 10}),
    "transfer": (0.99, {"steps": 10}),
    "eight-bit": (0.99, {"attack": "pgd[steps=10]"}),
    "onepixel": (0.9, {"popsize": 200, "steps": 100}),
}
FLOOR = {"none", "noise", "gaussian-noise"}  # these promise nothing


def test_every_attack_and_norm_has_a_reach_that_is_tested_here() -> None:
    """Who adds an attack, or a norm to one, says here how near to the optimum it comes."""
    ours = [
        entry for entry in registry.attacks if entry.make.__module__.startswith("bench.attacks.")
    ]
    promised = {
        (entry.name, norm)
        for entry in ours
        for norm in entry.facts.norms
        if entry.name not in FLOOR
    }
    assert promised == {*REACH, *((name, "l0") for name in (*SPARSE, "pixle"))}


@pytest.mark.parametrize(("name", "norm"), REACH)
def test_every_attack_comes_as_near_to_the_optimum_as_it_promises(name: str, norm: str) -> None:
    """By 2% where it sees gradients, 25% where it does not.

    Square is an exception: its patches fit weights that have patches.
    """
    ratio, knobs = REACH[name, norm]
    problem = two_classes(**PLANES.get((name, norm), {}))
    best = float(problem.optimum[norm][0])
    assert (
        ratio == 1.02
        if registry.attacks.get(name).facts.family in ("gradient", "transfer")
        else ratio <= 1.25 or name == "square"
    )
    assert fooled(problem, name, norm, ratio * best, **knobs).all()
    if name == "square":
        knobs = knobs | {"queries": 100}
    assert not fooled(problem, name, norm, 0.98 * best, **knobs).any()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize(("name", "knobs"), GRADIENT)
@pytest.mark.parametrize(
    "problem", [two_classes(), two_classes(channels=3, size=12)], ids=["1x8x8", "3x12x12"]
)
def test_gradient_attacks_reach_the_optimum(
    problem: Problem, name: str, knobs: dict[str, Any], norm: str
) -> None:
    best = float(problem.optimum[norm][0])
    assert fooled(problem, name, norm, 1.02 * best, **knobs).all()
    assert not fooled(problem, name, norm, 0.98 * best, **knobs).any()


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_with_several_classes_the_nearest_is_found(norm: str, classes: int) -> None:
    problem = many_classes(classes)
    for name, knobs in (
        ("pgd", {"steps": 30, "restarts": 5, "loss": "ce+margin"}),
        ("autoattack", {"steps": 20, "queries": 20}),
    ):
        eps = float(problem.optimum[norm].median())
        fallen = fooled(problem, name, norm, eps, **knobs)
        assert not fallen[problem.optimum[norm] > 1.02 * eps].any()
        assert fallen[problem.optimum[norm] < 0.98 * eps].all(), (name, norm, classes)


@pytest.mark.parametrize("name", SPARSE)
@pytest.mark.parametrize("pixels", [1, 3])
def test_l0_attacks_need_the_fewest_pixels(name: str, pixels: int) -> None:
    surely, knobs = SPARSE[name]
    problem = two_classes(channels=2, size=6, batch=6)
    # what a pixel can change: each channel goes to the corner of the box that its weight asks for
    side = torch.where(problem.y == 1, -1.0, 1.0)
    normal = (problem.model.weight[1] - problem.model.weight[0]) * side.unsqueeze(1)
    change = (normal > 0).float() - problem.x.flatten(1)
    gain = (normal * change).view_as(problem.x).sum(1).flatten(1)  # (B,H*W)
    lead = -margin(problem.model(problem.x), problem.y)
    reach = gain.sort(dim=1, descending=True).values[:, :pixels].sum(1)
    # each image gets the plane that `pixels` of its pixels just reach, and just do not
    for i in range(6):
        for share, expected in ((surely, True), (1.01, False)):
            shift = (share * reach[i] - lead[i]) / 2 * torch.tensor([1.0, -1.0]) * side[i]
            model = Linear(problem.model.weight, problem.model.bias + shift)
            single = Problem(model, problem.x[i : i + 1], problem.y[i : i + 1], {})
            assert bool(fooled(single, name, "l0", float(pixels), **knobs)) is expected


def test_square_refuses_the_sizes_that_it_cannot_tile() -> None:
    problem = two_classes(size=12)
    with pytest.raises(ValueError, match="12x12"):
        fooled(problem, "square", "l2", 0.1, queries=5)
    assert not fooled(problem, "square", "linf", 0.001, queries=5).any()
    for size in (6, 7, 8, 9, 10, 11, 15, 16, 20, 28, 32):
        fooled(two_classes(size=size, batch=2), "square", "l2", 0.001, queries=4)


@pytest.mark.parametrize("name", ["boundary", "hopskipjump"])
def test_minimal_norm_attacks_report_the_distance_that_they_found(name: str) -> None:
    problem = two_classes()
    knobs = {"steps": 800} if name == "boundary" else {"queries": 1500}
    points = candidates(problem, name, "l2", 0.01, **knobs)[0]
    distance = NORMS["l2"].distance(points - problem.x)
    assert (distance < 1.15 * problem.optimum["l2"]).all()
    assert (distance > 0.999 * problem.optimum["l2"]).all()


@pytest.mark.parametrize("name", ["boundary", "hopskipjump"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_points_are_misclassified_where_a_long_step_leaves_the_class(name: str, norm: str) -> None:
    problem = two_classes()
    normal = problem.model.weight[1] - problem.model.weight[0]

    # class 1 is a slab between two planes, as thick as its images are far from the first
    def slab_logits(logits: Tensor, x: Tensor) -> Tensor:
        outside = ((x.flatten(1) - 0.5) @ normal).sub(0.1).abs() - 0.1
        return torch.stack([outside, torch.zeros(len(x))], 1)

    slab = Wrapped(problem.model, slab_logits)
    thin = Problem(slab, problem.x, problem.y, {})
    knobs = {"steps": 500} if name == "boundary" else {"queries": 900}
    with torch.no_grad():
        assert is_correct(slab(thin.x), thin.y).all()
        points = candidates(thin, name, norm, 1e-3, **knobs)[0]
        assert not is_correct(slab(points), thin.y).any()
    assert (NORMS[norm].distance(points - thin.x) < 1.5 * problem.optimum[norm]).all()


@pytest.mark.parametrize("name", ["noise", "gaussian-noise"])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "l0"])
def test_noise_keeps_the_best_of_its_tries(norm: str, name: str) -> None:
    problem = two_classes()
    eps = 3.0 if norm == "l0" else 1.5 * float(problem.optimum[norm][0])
    few = margin(problem.model(candidates(problem, name, norm, eps, tries=10)[0]), problem.y)
    many = margin(problem.model(candidates(problem, name, norm, eps, tries=200)[0]), problem.y)
    assert (many >= few).all(), "the first ten tries are among the two hundred"
    assert (many > margin(problem.model(problem.x), problem.y) + 0.02).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_transfer_with_diverse_inputs_still_reaches_a_plane(norm: str) -> None:
    problem = two_classes(smooth=True, gap=0.2)
    eps = 1.3 * float(problem.optimum[norm][0])
    assert fooled(problem, "transfer", norm, eps, steps=40, diversity=0.5).all()


def test_diverse_inputs_are_as_they_are_or_smaller_and_moved_on_black() -> None:
    x = torch.rand(400, 1, 20, 20) * 0.5 + 0.5
    torch.manual_seed(0)
    seen = DiverseInputs(nn.Identity(), 0.5)(x)
    same = (seen - x).abs().flatten(1).amax(1) < 1e-5
    assert 150 < same.sum() < 250
    filled = (seen[~same] > 0.4).flatten(1).float().mean(1)
    assert filled.min() > 0.75, "at nine tenths of both sides, 0.81 of the pixels are left"
    assert filled.mean() < 0.95
    assert filled.std() > 0.02
    corners = (seen[~same][:, 0, 0] > 0.4).all(1).float().mean()
    assert 0 < corners < 1, "some at the upper edge, some not"
    assert torch.allclose(DiverseInputs(nn.Identity(), 0.0)(x), x, atol=1e-5)
