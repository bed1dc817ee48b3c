"""The adapter against pyautoattack itself, and the library's traps."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from bench.attacks.via_autoattack import LibraryModel, NeverWrong
from bench.judging.target import Target, margin
from bench.questions import registry
from bench.questions.eps import parse_eps
from bench.questions.spec import ThreatModel
from tests.attacks.linear import (
    Problem,
    Wrapped,
    candidates,
    many_classes,
    misclassified,
    two_classes,
)


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(3)
    layers = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 64, 10)
    )
    return layers.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def problem(net: nn.Module) -> Problem:
    x = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return Problem(net, x, net(x).argmax(1), {})


@pytest.mark.parametrize("version", ["standard", "plus"])
@pytest.mark.parametrize(("norm", "eps"), [("linf", "0.012"), ("l2", "0.06"), ("l1", "0.35")])
def test_standard_and_plus_are_the_library_bit_for_bit(
    problem: Problem, net: nn.Module, norm: str, eps: str, version: str
) -> None:
    from pyautoattack import AutoAttack

    queries = 60
    threat = ThreatModel(norm, parse_eps(eps))
    torch.manual_seed(5)
    target = Target(net, classes=10)
    library = Target(net, classes=10)
    ours = registry.attacks.get("autoattack").make(
        target, problem.x.clone(), problem.y, threat, queries=queries, version=version
    )
    torch.manual_seed(5)
    seed = int(torch.randint(2**31, ()))
    front = AutoAttack(
        library,
        norm={"linf": "Linf", "l2": "L2", "l1": "L1"}[norm],
        eps=float(threat.eps),
        seed=seed,
        version=version,
    )
    front.square.n_queries = queries
    theirs, _ = front.run_standard_evaluation(problem.x.clone(), problem.y)
    assert torch.equal(ours, theirs)
    # the library's own checks: for randomness, for probabilities, for test-time optimisation
    checks = 5 + 1 + 1
    assert library.forwards - checks * len(ours) == target.forwards
    assert library.backwards == target.backwards
    changed = (ours != problem.x).flatten(1).any(1)
    assert 0 < changed.sum() < len(changed), "an eps at which some fall and some stand"
    entry = registry.attacks.get("autoattack")
    calls = entry.facts.calls(entry.resolve({"queries": queries, "version": version}), False)
    assert target.forwards + 2 * target.backwards <= calls * len(ours)


@pytest.mark.parametrize("classes", [2, 3, 4])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_plus_leaves_out_what_needs_more_classes_and_keeps_to_its_budget(
    norm: str, classes: int
) -> None:
    """At an eps that nothing reaches, so that every attack runs to its end on every example."""
    few = many_classes(classes, batch=3, channels=1)
    entry = registry.attacks.get("autoattack")
    knobs = {"version": "plus", "steps": 6, "queries": 20, "targets": classes - 1}
    target = few.target()
    assert torch.equal(candidates(few, "autoattack", norm, 1e-6, target, **knobs)[0], few.x)
    untargeted = 5 * (6 + 1) * (1 if classes == 2 else 2)
    targeted = 0 if classes < 4 else (classes - 1) * 7
    fab = 5 * 6 * classes + 6 * (classes - 1)
    assert target.backwards == 3 * (untargeted + targeted + fab)
    assert target.forwards + 2 * target.backwards <= 3 * entry.facts.calls(
        entry.resolve(knobs), False
    )


def test_tracing_and_the_dynamic_counters_are_untouched(problem: Problem) -> None:
    from pyautoattack import checks

    def trace(frame: object, event: str, argument: object) -> None:
        return None

    before = dict(checks.funcs)
    tracer = sys.gettrace()
    sys.settrace(trace)
    try:
        candidates(problem, "autoattack", "linf", 0.01, steps=3, queries=5, targets=1)
        assert sys.gettrace() is trace
    finally:
        sys.settrace(tracer)
    assert checks.funcs == before


def test_images_that_are_not_contiguous_are_attacked_all_the_same(problem: Problem) -> None:
    turned = Problem(problem.model, problem.x.expand(-1, -1, -1, -1).transpose(2, 3), problem.y, {})
    x_adv = registry.attacks.get("autoattack").make(
        Target(problem.model, classes=10),
        turned.x,
        turned.y,
        ThreatModel("linf", parse_eps("0.01")),
        steps=3,
        queries=5,
        targets=1,
    )
    assert x_adv.isfinite().all()


def test_the_seed_comes_from_the_global_generator(problem: Problem) -> None:
    first = candidates(problem, "square", "linf", 0.01, seed=0, queries=20)
    again = candidates(problem, "square", "linf", 0.01, seed=0, queries=20)
    other = candidates(problem, "square", "linf", 0.01, seed=1, queries=20)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


class Fixed(nn.Module):
    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.logits


@pytest.mark.parametrize("eps", [1e-5, 0.5])
def test_square_counts_every_draw_and_spends_all_of_them(problem: Problem, eps: float) -> None:
    target = Target(problem.model, access="score", stochastic=True, classes=10)
    candidates(problem, "square", "linf", eps, target, queries=10, eot=3)
    assert target.forwards == 30 * len(problem.x)


def test_square_goes_on_where_half_of_the_draws_are_wrong() -> None:
    """Logits of two classes under noise whose deviation is a tenth of the clean margin.

    eps is four times that which turns that margin.
    """
    plain = two_classes(batch=20)
    noise = margin(plain.model(plain.x), plain.y).abs().median() / 10
    shaken = Wrapped(plain.model, lambda logits, x: logits + noise * torch.randn_like(logits))
    noisy = Problem(shaken, plain.x, plain.y, {})
    eps = 4 * float(plain.optimum["linf"].max())
    target = noisy.target(stochastic=True)
    x_adv = candidates(noisy, "square", "linf", eps, target, queries=600, eot=4)
    wrong = misclassified(noisy, x_adv.expand(50, -1, -1, -1, -1))
    assert wrong.float().mean() > 0.95


def test_never_wrong_logits_keep_the_order_of_the_margins() -> None:
    margins = torch.tensor(
        [-1e30, -3e7, -1e5, -12.0, -1.0, -1e-3, 0.0, 1e-3, 1.0, 12.0, 1e5, 3e7, torch.nan]
    )
    y = torch.arange(len(margins)) % 3
    logits = torch.zeros(len(margins), 3).scatter(1, y.unsqueeze(1), -margins.unsqueeze(1))
    model = NeverWrong(LibraryModel(Target(Fixed(logits), classes=3)), y)
    answered = margin(model(torch.zeros(len(margins), 1, 2, 2)), y)
    assert (answered < 0).all()
    assert (answered.diff() > 0).all()


def test_library_warnings_reach_no_terminal(
    problem: Problem, capfd: pytest.CaptureFixture[str]
) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).requires_grad_(False)
    model[1].weight.zero_()
    flat = Problem(model, problem.x, problem.y, {})
    candidates(flat, "autoattack", "linf", 0.01, steps=3, queries=5, targets=1)
    out = capfd.readouterr()
    assert (out.out, out.err) == ("", "")
