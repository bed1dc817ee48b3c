"""Auto-PGD against known optima and against pyautoattack."""

from __future__ import annotations

import logging
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.attacks import losses, stepsizes
from bench.attacks.losses import dlr_targeted, likeliest_wrong
from bench.data.sample import load
from bench.judging.norms import to_ball
from bench.judging.target import Target, is_correct, margin
from bench.questions import registry
from bench.questions.eps import parse_eps
from bench.questions.spec import Spec, ThreatModel
from tests.attacks.linear import (
    Problem,
    Wrapped,
    candidates,
    fooled,
    many_classes,
    misclassified,
    nan_gradients,
    two_classes,
)
from tests.attacks.test_contract import coin

LINEAR = {
    "linf": two_classes(),
    "l2": two_classes(channels=3, size=6),
    "l1": two_classes(channels=3, size=6),
}


class Hills(nn.Module):
    """Many local optima, in double precision; keeps its queries.

    So no trajectory hangs on the last digit.
    """

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = torch.randn(36, 30, generator=generator, dtype=torch.float64)
        self.second = torch.randn(30, classes, generator=generator, dtype=torch.float64)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach().clone())
        return (2.5 * x.flatten(1) @ self.first).sin() @ self.second


def hills(batch: int = 5, eps: str = "1/10") -> tuple[Hills, Tensor, Tensor, Fraction]:
    model = Hills()
    x = torch.rand(batch, 1, 6, 6, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    x[:, :, 0] = 0.0  # some of it at the edges of the box
    x[:, :, 1] = 1.0
    return model, x, model(x).argmax(1), parse_eps(eps)


def run(
    model: nn.Module | Target,
    x: Tensor,
    y: Tensor,
    norm: str,
    eps: Fraction,
    *,
    seed: int = 0,
    stochastic: bool = False,
    **knobs: Any,
) -> Tensor:
    """The candidates of apgd, or of apgd-eot where `knobs` hold `eot`."""
    if not isinstance(model, Target):
        model = Target(model, classes=10, stochastic=stochastic)
    attack = registry.attacks.get("apgd-eot" if "eot" in knobs else "apgd")
    torch.manual_seed(seed)
    x_adv: Tensor = attack.make(model, x.clone(), y.clone(), ThreatModel(norm, eps), **knobs)
    return x_adv


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("loss", ["ce", "margin", "dlr", "targeted", "ce+targeted"])
def test_the_optimum_of_two_classes_is_reached(norm: str, loss: str) -> None:
    problem = LINEAR[norm]
    best = float(problem.optimum[norm][0])
    for name, knobs in (("apgd", {}), ("apgd-eot", {"eot": 2})):
        every = {"loss": loss, "steps": 25, **knobs}
        assert fooled(problem, name, norm, 1.02 * best, **every).all(), name
        assert not fooled(problem, name, norm, 0.98 * best, **every).any(), name


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("classes", [3, 6])
@pytest.mark.parametrize(
    ("name", "knobs"), [("apgd", {}), ("pgd", {}), ("pgd-eot", {"eot": 2}), ("adaptive", {})]
)
def test_with_several_classes_the_targeted_loss_finds_the_nearest(
    name: str, knobs: dict[str, Any], norm: str, classes: int
) -> None:
    problem = many_classes(classes, batch=16)
    eps = float(problem.optimum[norm].median())
    knobs = {"loss": "targeted", "steps": 40, **knobs}
    fallen = fooled(problem, name, norm, eps, **knobs)
    assert not fallen[problem.optimum[norm] > 1.02 * eps].any()
    assert fallen[problem.optimum[norm] < 0.98 * eps].all()
    by_first_target = fooled(problem, name, norm, eps, targets=1, **knobs)
    assert (fallen | ~by_first_target).all()


def test_the_targeted_loss_on_logits_known_by_hand() -> None:
    logits = torch.tensor([[[5.0, 3.0, 2.0, 0.0, -1.0]]])
    pairs = torch.tensor([[[0, 3]]])
    assert dlr_targeted(logits, pairs).tolist() == [[pytest.approx(-5 / (5 - 1))]]
    assert dlr_targeted(logits, pairs.flip(-1)).tolist() == [[pytest.approx(5 / (5 - 1))]]
    three = dlr_targeted(logits[..., :3], torch.tensor([[[0, 2]]]))
    assert three.tolist() == [[-3]], "three classes have no fourth: the margin to the target"


def test_the_likeliest_wrong_classes_are_those_of_the_largest_logits() -> None:
    logits = torch.tensor([[1.0, 4.0, torch.nan, 2.0], [-torch.inf, 1.0, 0.0, -torch.inf]])
    y = torch.tensor([1, 1])
    ordered = likeliest_wrong(logits, y, 9).T.tolist()
    assert ordered[0] == [3, 0, 2]
    assert sorted(ordered[1]) == [0, 2, 3], "never the true class"
    assert likeliest_wrong(logits, y, 1).tolist() == [[3, 2]]


def test_a_peak_too_narrow_for_the_first_steps_is_reached_by_halving_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Wrong only within 2% of the ball around a point of it: the first steps jump over it."""
    x = torch.full((8, 1, 4, 4), 0.5)
    peak = x + 0.1 * (2 * torch.rand(x.shape, generator=torch.Generator().manual_seed(3)) - 1)

    class Peak(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            away = (images.unsqueeze(1) - peak).abs().flatten(2).amax(2).amin(1)
            return torch.stack([away - 0.002, 0 * away], 1)

    y = torch.zeros(8, dtype=torch.long)
    x_adv = run(Peak(), x, y, "linf", parse_eps("1/10"), loss="margin", steps=300)
    assert (~is_correct(Peak()(x_adv[2]), y)).all()
    monkeypatch.setattr(stepsizes, "checkpoints", lambda steps: {0})
    x_adv = run(Peak(), x, y, "linf", parse_eps("1/10"), loss="margin", steps=300)
    assert is_correct(Peak()(x_adv[2]), y).all()


def test_a_saturated_cross_entropy_is_made_up_for_by_the_targeted_loss() -> None:
    """Logits so far apart that the gradient of the cross-entropy is zero in float32."""
    problem = many_classes(5)
    steep = Problem(
        Wrapped(problem.model, lambda logits, x: 1e7 * logits), problem.x, problem.y, {}
    )
    eps = 1.05 * float(problem.optimum["linf"].max())
    assert not fooled(steep, "apgd", "linf", eps, loss="ce", steps=20, from_x=True).any()
    assert fooled(steep, "apgd", "linf", eps, loss="ce+targeted", steps=20, from_x=True).all()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_no_step_is_taken_on_a_gradient_that_is_not_a_number(norm: str) -> None:
    problem = two_classes(batch=4)
    half = torch.tensor([True, False, True, False])
    eps = 2 * float(problem.optimum[norm][0])
    sick = nan_gradients(problem, half)
    x_adv = candidates(sick, "apgd", norm, eps, loss="ce", steps=10, from_x=True)
    stays = problem.x[half].expand_as(x_adv[:, half])
    assert torch.equal(x_adv[:, half], stays), "it stays where it began"
    others = ~is_correct(problem.model(x_adv[2]), problem.y)[~half]
    assert others.all(), "its neighbours are attacked as ever"


def test_a_nan_answer_is_wrong_and_never_the_highest_loss() -> None:
    problem = two_classes(gap=0.2)
    eps = 0.5 * float(problem.optimum["linf"][0])

    def holes(logits: Tensor, x: Tensor) -> Tensor:
        far = (x - problem.x[: len(x)]).abs().amax((1, 2, 3)) > 0.9 * eps
        return torch.where(far.unsqueeze(1), torch.nan, logits)

    sick = Problem(Wrapped(problem.model, holes), problem.x, problem.y, {})
    target = sick.target()
    x_adv = candidates(sick, "apgd", "linf", eps, target, loss="ce", steps=10, from_x=True)
    assert sick.model(x_adv[2]).isnan().any(1).all()
    assert not sick.model(x_adv[1]).isnan().any()
    assert target.forwards == 3 * len(problem.x), "the image twice, and the step that broke it"


def test_a_broken_example_leaves_and_what_is_left_costs_what_is_said() -> None:
    knobs: dict[str, Any] = {"loss": "ce+targeted", "steps": 6, "restarts": 2, "targets": 3}
    for classes, runs in ((2, 4), (6, 8)):
        problem = many_classes(classes, batch=4)
        calls = registry.attacks.get("apgd").facts.calls({**knobs, "targets": runs // 2 - 1}, False)
        for norm, looks in {"linf": 1 + runs * 7, "l2": 1 + runs * 7, "l1": 1 + runs * 9}.items():
            target = problem.target()
            candidates(problem, "apgd", norm, 1e-6, target, **knobs)
            assert target.forwards == looks * 4
            assert target.backwards == (looks - 1) * 4
            assert target.forwards + 2 * target.backwards <= 4 * calls
            assert norm != "l1" or target.forwards + 2 * target.backwards == 4 * calls
        target = problem.target()
        eps = 3 * float(problem.optimum["linf"].max())
        once = knobs | {"restarts": 1, "from_x": True}
        x_adv = candidates(problem, "apgd", "linf", eps, target, **once)
        assert target.forwards == 3 * 4, "the image twice, and the first step"
        second = x_adv[3:]
        assert torch.equal(second, problem.x.expand_as(second)), "nothing is left for the 2nd loss"
    wrong = Problem(problem.model, problem.x, (problem.y + 1) % 6, {})
    target = wrong.target()
    x_adv = candidates(wrong, "apgd", "linf", 0.1, target, **knobs)
    assert torch.equal(x_adv, problem.x.expand(6, -1, -1, -1, -1))
    assert (target.forwards, target.backwards) == (4, 0)


def test_neither_who_leaves_nor_the_size_of_a_query_changes_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Runs go side by side as they fit into a query.

    At 3 they go one by one and in parts, at 1000 all of a loss at once.
    """
    model, x, y, eps = hills(batch=12, eps="1/150")
    knobs: dict[str, Any] = {"loss": "ce+targeted", "steps": 15, "restarts": 2, "targets": 3}
    results = {}
    verdicts = {}
    for size in (3, 20, 1000):
        monkeypatch.setattr(losses, "rows_per_query", lambda x, size=size: size)
        model.seen.clear()
        results[size] = run(model, x, y, "linf", eps, **knobs)
        assert max(map(len, model.seen)) <= size
        verdicts[size] = misclassified(Problem(model, x, y, {}), results[size]).any(0)
    broken = verdicts[3]
    assert 2 < broken.sum() < 10
    for size in (20, 1000):
        assert torch.equal(verdicts[size], broken)
        assert torch.allclose(results[size][:, ~broken], results[3][:, ~broken], atol=1e-9)
    monkeypatch.setattr(losses, "rows_per_query", lambda x: 10)
    model.seen.clear()
    run(model, x, y, "linf", eps, loss="targeted", steps=1, eot=4, stochastic=True)
    assert set(map(len, model.seen)) == {8}, "two images of four draws"
    knobs = {"from_x": True, "loss": "ce+targeted", "steps": 15}
    alone = [run(model, x[i : i + 1], y[i : i + 1], "linf", eps, **knobs) for i in range(12)]
    together = run(model, x, y, "linf", eps, **knobs)
    assert torch.allclose(together, torch.cat(alone, 1), atol=1e-9)


def test_candidates_are_what_was_visited_and_the_best_of_it() -> None:
    model, x, y, eps = hills(batch=6)
    model.seen.clear()
    knobs: dict[str, Any] = {"loss": "margin", "steps": 12, "restarts": 3}
    knobs["stochastic"] = True  # so that nothing leaves
    x_adv = run(model, x, y, "linf", eps, **knobs)
    # 13 looks of 3 runs side by side
    visited = torch.stack(model.seen).unflatten(1, (3, 6)).flatten(0, 1)
    margins = torch.stack([margin(model(images), y) for images in visited])
    for i in range(6):
        best = int(margins[:, i].argmax())
        assert torch.equal(x_adv[2, i], visited[best, i])
        assert torch.equal(x_adv[1, i], visited[best, i]), "the margin is the loss"
        assert torch.equal(x_adv[0, i], visited[-3 + best % 3, i]), "the last one of the same run"
    assert torch.equal(x_adv, run(model, x, y, "linf", eps, **knobs))
    assert not torch.equal(x_adv, run(model, x, y, "linf", eps, seed=1, **knobs))


@pytest.mark.parametrize(("eot", "steps"), [(1, 100), (20, 5), (34, 3), (200, 2)])
def test_a_stochastic_example_leaves_after_a_hundred_wrong_draws_in_a_row(
    eot: int, steps: int
) -> None:
    """Right at the image, wrong from the first step on.

    `steps` steps and the start are queried, and nothing after them.
    """
    problem = two_classes(batch=3)
    eps = 3 * float(problem.optimum["linf"][0])
    target = problem.target(stochastic=True)
    knobs: dict[str, Any] = {"loss": "ce+margin", "steps": steps + 4, "from_x": True}
    if eot == 1:
        candidates(problem, "apgd", "linf", eps, target, **knobs)
    else:
        candidates(problem, "apgd-eot", "linf", eps, target, eot=eot, **knobs)
    assert target.forwards == 3 * eot * (1 + steps)


def test_a_coin_lets_nothing_leave() -> None:
    problem = many_classes(4, batch=6)
    target = Target(coin(problem, 0.1), stochastic=True, classes=4)
    knobs: dict[str, Any] = {"eot": 5, "steps": 60}
    x_adv = candidates(problem, "apgd-eot", "linf", 0.01, target, **knobs)
    # wrong nine times of ten, so in most steps in every draw, but never a hundred times in a row
    assert target.forwards == 6 * 5 * 61
    assert ((x_adv - problem.x).abs().flatten(2).amax(2) > 0).all()
    assert torch.equal(x_adv, candidates(problem, "apgd-eot", "linf", 0.01, target, **knobs))
    target.forwards = 0
    knobs = {"eot": 5, "steps": 6, "loss": "ce+targeted", "targets": 2}
    candidates(problem, "apgd-eot", "linf", 0.01, target, **knobs)
    assert target.forwards == 6 * 5 * (1 + 3 * 7)


def test_who_was_wrong_once_is_asked_no_more() -> None:
    model, x, y, eps = hills(batch=12, eps="1/150")
    model.seen.clear()
    run(model, x, y, "linf", eps, loss="targeted+ce", steps=15, restarts=2, targets=3)
    done = torch.zeros(12, dtype=torch.bool)
    for images in list(model.seen):
        owner = torch.cdist(images.flatten(1), x.flatten(1)).argmin(1)
        assert not done[owner].any()
        done[owner[~is_correct(model(images), y[owner])]] = True
    assert 2 < done.sum() < 10


def test_eot_averages_away_what_single_draws_hide() -> None:
    """Gradient noise of thirty times the signal. The draws come from the defence's own `draws`."""
    problem = two_classes(gap=0.1, batch=20)

    class Shaken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return self.draws(x, 1)[:, 0]

        def draws(self, x: Tensor, k: int) -> Tensor:
            slopes = torch.randn(len(x), k, 64, 2) * 2
            noise = torch.einsum("bd,bkdc->bkc", (x - x.detach()).flatten(1), slopes)
            return problem.model(x).unsqueeze(1) + noise

    noisy = Problem(Shaken(), problem.x, problem.y, {})
    eps = 2 * float(problem.optimum["linf"][0])
    rates = []
    for eot in (1, 200):
        x_adv = candidates(
            noisy, "apgd-eot", "linf", eps, noisy.target(stochastic=True), steps=5, eot=eot
        )
        rates.append(float((~is_correct(problem.model(x_adv[0]), problem.y)).float().mean()))
    assert rates[0] < 0.5
    assert rates[1] == 1


@pytest.mark.parametrize(
    ("name", "norm", "eps", "steps"),
    [
        ("at", "linf", "1/5", 40),
        ("standard", "linf", "1/10", 25),
        ("standard", "l2", "1/4", 25),
        ("standard", "l1", "1/2", 25),
    ],
)
def test_it_breaks_what_pyautoattack_breaks(name: str, norm: str, eps: str, steps: int) -> None:
    """The same pair of losses, steps and targets on 200 digits.

    One example more may stand, since the starts are others.
    """
    from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted

    data = load(Spec.of("digits", {"n": 200}))
    model = registry.build_classifier(f"own:digits-{name}")
    target = Target(model, classes=10)
    knobs: dict[str, Any] = {"loss": "ce+targeted", "steps": steps, "targets": 2}
    x_adv = run(target, data.x, data.y, norm, parse_eps(eps), **knobs)
    size = float(parse_eps(eps))
    projected = torch.stack([to_ball(images, data.x, norm, size) for images in x_adv])
    with torch.no_grad():
        ours = ~misclassified(Problem(model, data.x, data.y, {}), projected).any(0)
        theirs = is_correct(model(data.x), data.y)
    other = Target(model, classes=10)
    options = {
        "norm": {"linf": "Linf", "l2": "L2", "l1": "L1"}[norm],
        "eps": size,
        "n_iter": steps,
        "use_largereps": norm == "l1",
        "seed": 0,
        "device": "cpu",
        "logger": logging.getLogger("auto-attack"),
    }
    for attack in (
        APGDAttack(other, loss="ce", **options),
        APGDAttack_targeted(other, n_target_classes=2, **options),
    ):
        rows = theirs.nonzero().squeeze(1)
        images = attack.perturb(data.x[rows], data.y[rows])
        theirs[rows] = is_correct(model(images), data.y[rows])
    assert 0.1 < theirs.float().mean() < 0.95, "an eps at which some fall and some stand"
    assert (ours == theirs).float().mean() >= 0.99
    assert ours.sum() <= theirs.sum() + 1
    assert target.forwards + 2 * target.backwards < other.forwards + 2 * other.backwards
