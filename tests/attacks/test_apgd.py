"""Auto-PGD against the papers step by step, against optima that are known, and against pyautoattack."""

from __future__ import annotations

import logging
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.attacks import losses, stepsizes
from bench.attacks.losses import dlr_targeted, likely
from bench.data.sample import load
from bench.judging.norms import to_ball
from bench.judging.target import Target, is_correct, margin
from bench.questions import registry
from bench.questions.spec import Spec, ThreatModel, parse_eps
from tests.attacks.linear import Problem, Wrapped, candidates, fooled, many_classes, two_classes
from tests.attacks.test_contract import coin

LINEAR = {
    "linf": two_classes(),
    "l2": two_classes(channels=3, size=6),
    "l1": two_classes(channels=3, size=6),
}


class Hills(nn.Module):
    """Many local optima, in double precision, so that no trajectory hangs on the last digit; remembers what it was asked."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first, self.second = (
            torch.randn(size, generator=generator, dtype=torch.float64)
            for size in ((36, 30), (30, classes))
        )
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach().clone())
        return (2.5 * x.flatten(1) @ self.first).sin() @ self.second


def hills(batch: int = 5, eps: str = "1/10") -> tuple[Hills, Tensor, Tensor, Fraction]:
    model = Hills()
    x = torch.rand(batch, 1, 6, 6, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    x[:, :, 0], x[:, :, 1] = 0.0, 1.0  # some of it at the edges of the box
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
    target = (
        model if isinstance(model, Target) else Target(model, classes=10, stochastic=stochastic)
    )
    torch.manual_seed(seed)
    made: Tensor = registry.attacks.get("apgd-eot" if "eot" in knobs else "apgd").make(
        target, x.clone(), y.clone(), ThreatModel(norm, eps), **knobs
    )
    return made


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("loss", ["ce", "margin", "dlr", "targeted", "ce+targeted"])
def test_the_optimum_of_two_classes_is_reached(norm: str, loss: str) -> None:
    problem = LINEAR[norm]
    best = float(problem.optimum[norm][0])
    for name, knobs in (("apgd", {}), ("apgd-eot", {"eot": 2})):
        assert fooled(problem, name, norm, 1.02 * best, loss=loss, steps=25, **knobs).all(), name
        assert not fooled(problem, name, norm, 0.98 * best, loss=loss, steps=25, **knobs).any(), (
            name
        )


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("classes", [3, 6])
@pytest.mark.parametrize(
    ("name", "knobs"), [("apgd", {}), ("pgd", {}), ("pgd-eot", {"eot": 2}), ("adaptive", {})]
)
def test_with_several_classes_the_targeted_loss_finds_the_nearest(
    name: str, knobs: dict[str, int], norm: str, classes: int
) -> None:
    problem = many_classes(classes, batch=16)
    eps = float(problem.optimum[norm].median())
    found = fooled(problem, name, norm, eps, loss="targeted", steps=40, **knobs)
    assert not found[problem.optimum[norm] > 1.02 * eps].any()
    assert found[problem.optimum[norm] < 0.98 * eps].all()
    first = fooled(problem, name, norm, eps, loss="targeted", steps=40, targets=1, **knobs)
    assert (found | ~first).all()


def test_the_targeted_loss_on_logits_known_by_hand() -> None:
    logits, y, target = (
        torch.tensor([[[5.0, 3.0, 2.0, 0.0, -1.0]]]),
        torch.tensor([[0]]),
        torch.tensor([[3]]),
    )
    assert dlr_targeted(logits, torch.stack([y, target], -1)).tolist() == [
        [pytest.approx(-5 / (5 - 1))]
    ]
    assert dlr_targeted(logits, torch.stack([target, y], -1)).tolist() == [
        [pytest.approx(5 / (5 - 1))]
    ]
    assert dlr_targeted(logits[..., :3], torch.tensor([[[0, 2]]])).tolist() == [[-3]], (
        "three classes have no fourth: the margin to the target"
    )
    some = torch.tensor([[1.0, 4.0, torch.nan, 2.0], [-torch.inf, 1.0, 0.0, -torch.inf]])
    assert likely(some, torch.tensor([1, 1]), 9).T.tolist()[0] == [3, 0, 2]
    assert sorted(likely(some, torch.tensor([1, 1]), 9).T.tolist()[1]) == [0, 2, 3], (
        "never the true class"
    )
    assert likely(some, torch.tensor([1, 1]), 1).tolist() == [[3, 2]]


def test_a_peak_too_narrow_for_the_first_steps_is_reached_by_halving_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Wrong only within 2% of the ball around a point of it: steps of the length that they begin with jump over it."""
    x = torch.full((8, 1, 4, 4), 0.5)
    peak = x + 0.1 * (2 * torch.rand(x.shape, generator=torch.Generator().manual_seed(3)) - 1)

    class Peak(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            away = (images.unsqueeze(1) - peak).abs().flatten(2).amax(2).amin(1)
            return torch.stack([away - 0.002, 0 * away], 1)

    y = torch.zeros(8, dtype=torch.long)
    made = run(Peak(), x, y, "linf", parse_eps("1/10"), loss="margin", steps=300)
    assert (~is_correct(Peak()(made[2]), y)).all()
    monkeypatch.setattr(stepsizes, "checkpoints", lambda steps: {0})
    made = run(Peak(), x, y, "linf", parse_eps("1/10"), loss="margin", steps=300)
    assert is_correct(Peak()(made[2]), y).all()


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
    problem, half = two_classes(batch=4), torch.tensor([True, False, True, False])

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
    made = candidates(sick, "apgd", norm, eps, loss="ce", steps=10, from_x=True)
    assert torch.equal(made[:, half], problem.x[half].expand_as(made[:, half])), (
        "it stays where it began"
    )
    assert (~is_correct(problem.model(made[2]), problem.y))[~half].all(), (
        "its neighbours are attacked as ever"
    )


def test_an_answer_that_is_not_a_number_is_a_wrong_one_and_never_the_highest_loss() -> None:
    problem = two_classes(gap=0.2)
    eps = 0.5 * float(problem.optimum["linf"][0])

    def holes(logits: Tensor, x: Tensor) -> Tensor:
        far = (x - problem.x[: len(x)]).abs().amax((1, 2, 3)) > 0.9 * eps
        return torch.where(far.unsqueeze(1), torch.nan, logits)

    sick = Problem(Wrapped(problem.model, holes), problem.x, problem.y, {})
    target = sick.target()
    made = candidates(sick, "apgd", "linf", eps, target, loss="ce", steps=10, from_x=True)
    assert sick.model(made[2]).isnan().any(1).all()
    assert not sick.model(made[1]).isnan().any()
    assert target.forwards == 3 * len(problem.x), "the image twice, and the step that broke it"


def test_a_broken_example_leaves_and_what_is_left_costs_what_is_said() -> None:
    knobs: dict[str, Any] = {"loss": "ce+targeted", "steps": 6, "restarts": 2, "targets": 3}
    for classes, runs in ((2, 4), (6, 8)):
        problem = many_classes(classes, batch=4)
        calls = registry.attacks.get("apgd").facts.calls({**knobs, "targets": runs // 2 - 1}, False)
        for norm, looks in (("linf", 1 + runs * 7), ("l2", 1 + runs * 7), ("l1", 1 + runs * 9)):
            target = problem.target()
            candidates(problem, "apgd", norm, 1e-6, target, **knobs)
            assert target.forwards == looks * 4
            assert target.backwards == (looks - 1) * 4
            assert target.forwards + 2 * target.backwards <= 4 * calls
            assert norm != "l1" or target.forwards + 2 * target.backwards == 4 * calls
        target = problem.target()
        made = candidates(
            problem,
            "apgd",
            "linf",
            3 * float(problem.optimum["linf"].max()),
            target,
            from_x=True,
            **knobs | {"restarts": 1},
        )
        assert target.forwards == 3 * 4, "the image twice, and the first step"
        assert torch.equal(made[3:], problem.x.expand_as(made[3:])), (
            "nothing is left for the second loss"
        )
    wrong = Problem(problem.model, problem.x, (problem.y + 1) % 6, {})
    target = wrong.target()
    assert torch.equal(
        candidates(wrong, "apgd", "linf", 0.1, target, **knobs), problem.x.expand(6, -1, -1, -1, -1)
    )
    assert (target.forwards, target.backwards) == (4, 0)


def test_who_leaves_changes_nothing_for_the_others_nor_does_the_size_of_a_query(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Runs go side by side as they fit into a query: at 3 one by one and in parts, at 1000 all of a loss at once."""
    model, x, y, eps = hills(batch=12, eps="1/150")
    knobs: dict[str, Any] = {"loss": "ce+targeted", "steps": 15, "restarts": 2, "targets": 3}
    made, verdicts = {}, {}
    for size in (3, 20, 1000):
        monkeypatch.setattr(losses, "rows_at_once", lambda x, size=size: size)
        model.seen.clear()
        made[size] = run(model, x, y, "linf", eps, **knobs)
        assert max(map(len, model.seen)) <= size
        verdicts[size] = torch.stack([~is_correct(model(one), y) for one in made[size]]).any(0)
    broken = verdicts[3]
    assert 2 < broken.sum() < 10
    for size in (20, 1000):
        assert torch.equal(verdicts[size], broken)
        assert torch.allclose(made[size][:, ~broken], made[3][:, ~broken], atol=1e-9)
    monkeypatch.setattr(losses, "rows_at_once", lambda x: 10)
    model.seen.clear()
    run(model, x, y, "linf", eps, loss="targeted", steps=1, eot=4, stochastic=True)
    assert set(map(len, model.seen)) == {8}, "two images of four draws"
    alone = torch.cat(
        [
            run(
                model,
                x[i : i + 1],
                y[i : i + 1],
                "linf",
                eps,
                from_x=True,
                loss="ce+targeted",
                steps=15,
            )
            for i in range(12)
        ],
        1,
    )
    assert torch.allclose(
        run(model, x, y, "linf", eps, from_x=True, loss="ce+targeted", steps=15), alone, atol=1e-9
    )


def test_candidates_are_what_was_visited_and_the_best_of_it() -> None:
    model, x, y, eps = hills(batch=6)
    model.seen.clear()
    knobs: dict[str, Any] = {
        "loss": "margin",
        "steps": 12,
        "restarts": 3,
        "stochastic": True,
    }  # so that nothing leaves
    made = run(model, x, y, "linf", eps, **knobs)
    visited = (
        torch.stack(model.seen).unflatten(1, (3, 6)).flatten(0, 1)
    )  # 13 looks of 3 runs side by side
    gaps = torch.stack([margin(model(one), y) for one in visited])
    for i in range(6):
        best = int(gaps[:, i].argmax())
        assert torch.equal(made[2, i], visited[best, i])
        assert torch.equal(made[1, i], visited[best, i]), "the margin is the loss"
        assert torch.equal(made[0, i], visited[-3 + best % 3, i]), "the last one of the same run"
    assert torch.equal(made, run(model, x, y, "linf", eps, **knobs))
    assert not torch.equal(made, run(model, x, y, "linf", eps, seed=1, **knobs))


@pytest.mark.parametrize(("eot", "steps"), [(1, 100), (20, 5), (34, 3), (200, 2)])
def test_on_a_stochastic_defence_an_example_leaves_after_a_hundred_wrong_draws_in_a_row(
    eot: int, steps: int
) -> None:
    """Right at the image, wrong from the first step on: `steps` of these and the start are asked, and nothing after them."""
    problem = two_classes(batch=3)
    eps, target = 3 * float(problem.optimum["linf"][0]), problem.target(stochastic=True)
    knobs: dict[str, Any] = {"loss": "ce+margin", "steps": steps + 4, "from_x": True}
    if eot == 1:
        candidates(problem, "apgd", "linf", eps, target, **knobs)
    else:
        candidates(problem, "apgd-eot", "linf", eps, target, eot=eot, **knobs)
    assert target.forwards == 3 * eot * (1 + steps)


def test_a_coin_lets_nothing_leave() -> None:
    problem = many_classes(4, batch=6)
    target = Target(coin(problem, 0.1), stochastic=True, classes=4)
    made = candidates(problem, "apgd-eot", "linf", 0.01, target, eot=5, steps=60)
    assert target.forwards == 6 * 5 * 61, (
        "wrong nine times of ten, so in most steps in every draw, but never a hundred times in a row"
    )
    assert ((made - problem.x).abs().flatten(2).amax(2) > 0).all()
    assert torch.equal(made, candidates(problem, "apgd-eot", "linf", 0.01, target, eot=5, steps=60))
    target.forwards = 0
    candidates(
        problem, "apgd-eot", "linf", 0.01, target, eot=5, steps=6, loss="ce+targeted", targets=2
    )
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
            noise = torch.einsum(
                "bd,bkdc->bkc", (x - x.detach()).flatten(1), torch.randn(len(x), k, 64, 2) * 2
            )
            return problem.model(x).unsqueeze(1) + noise

    noisy = Problem(Shaken(), problem.x, problem.y, {})
    eps = 2 * float(problem.optimum["linf"][0])
    rates = []
    for eot in (1, 200):
        made = candidates(
            noisy, "apgd-eot", "linf", eps, noisy.target(stochastic=True), steps=5, eot=eot
        )
        rates.append(float((~is_correct(problem.model(made[0]), problem.y)).float().mean()))
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
    """The same pair of losses, steps and targets on 200 digits; one example more may stand, since the starts are others."""
    from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted

    data, model = (
        load(Spec.of("digits", {"n": 200})),
        registry.build_classifier(f"own:digits-{name}"),
    )
    target = Target(model, classes=10)
    made = run(
        target, data.x, data.y, norm, parse_eps(eps), loss="ce+targeted", steps=steps, targets=2
    )
    with torch.no_grad():
        ours = torch.stack(
            [
                is_correct(model(to_ball(one, data.x, norm, float(parse_eps(eps)))), data.y)
                for one in made
            ]
        ).all(0)
        theirs = is_correct(model(data.x), data.y)
    other = Target(model, classes=10)
    facts = {
        "norm": {"linf": "Linf", "l2": "L2", "l1": "L1"}[norm],
        "eps": float(parse_eps(eps)),
        "n_iter": steps,
        "use_largereps": norm == "l1",
    }
    facts |= {"seed": 0, "device": "cpu", "logger": logging.getLogger("auto-attack")}
    for attack in (
        APGDAttack(other, loss="ce", **facts),
        APGDAttack_targeted(other, n_target_classes=2, **facts),
    ):
        left = theirs.nonzero().squeeze(1)
        theirs[left] = is_correct(model(attack.perturb(data.x[left], data.y[left])), data.y[left])
    assert 0.1 < theirs.float().mean() < 0.95, "an eps at which some fall and some stand"
    assert (ours == theirs).float().mean() >= 0.99
    assert ours.sum() <= theirs.sum() + 1
    assert target.forwards + 2 * target.backwards < other.forwards + 2 * other.backwards
