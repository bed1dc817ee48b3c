"""D11: each indicator fires on an attack that failed for its reason, and on no other."""

from __future__ import annotations

import functools
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bench.checks.attack_trace import Traced, failures, margin_change, split_runs
from bench.checks.failure_indicators import INDICATORS
from bench.errors import BadInput
from bench.judging.evaluate import evaluate
from bench.judging.target import Target
from bench.questions import registry
from bench.questions.plan import plan
from bench.questions.request import Request
from bench.questions.spec import Cell, Spec, ThreatModel
from bench.results.record import Record, merge
from bench.results.store import Store
from tests.attacks.linear import two_classes

PROBLEM = two_classes(batch=4, gap=0.3)
X, Y = PROBLEM.x[:1], PROBLEM.y[:1]
STEPS = Spec.of("pgd", {"steps": 40})


class Changed(nn.Module):
    """`change(logits, x)` of the linear model."""

    def __init__(self, change: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        return self.change(PROBLEM.model(x), x)


def traced(
    model: nn.Module,
    steps: list[float],
    *,
    eps: float = 1.0,
    attack: Spec = STEPS,
    random: bool = False,
    seed: int = 0,
) -> dict[str, float]:
    """The indicators after gradients at the image, moved by each of `steps` in l2.

    The steps go along the line to the other class, which is 0.3 away.
    """
    torch.manual_seed(seed)
    seen = Traced(model, X, Y, "l2", eps)
    for along in steps:
        leaf = moved(along).requires_grad_()
        logits = seen(leaf)
        if logits.requires_grad:
            torch.autograd.grad(logits.sum() + logits[0, 1], leaf, allow_unused=True)
    return failures(seen, attack, Target(seen, stochastic=random, classes=2), torch.tensor([True]))


def moved(along: float) -> Tensor:
    way = PROBLEM.model.weight[1].view_as(X) * 2  # type: ignore[union-attr, operator]
    return X + along * (1 if int(Y) == 0 else -1) * way


def fires(figures: dict[str, float]) -> set[str]:
    assert figures["D11:survive"] == 1
    return {name for name in INDICATORS if figures[f"D11:{name}"]}


RISING, RISEN = [0.005 * i for i in range(40)], [min(0.2, 0.02 * i) for i in range(40)]
PLAIN = Changed(lambda logits, x: logits)


def test_a_run_that_still_rises_at_its_end_is_incomplete() -> None:
    assert fires(traced(PLAIN, RISING)) == {"incomplete"}
    assert fires(traced(PLAIN, RISEN)) == set()
    assert fires(traced(PLAIN, [*RISEN[:39], 0.0])) == set(), "it is the best so far that counts"
    assert fires(traced(PLAIN, RISEN[:12])) == {"incomplete"}, "ten of twelve steps are the last"
    assert fires(traced(PLAIN, [*RISEN[:30], *(0.2 + 0.0009 * i for i in range(10))])) == set(), (
        "under a twentieth of the whole"
    )


def test_the_run_that_came_farthest_counts() -> None:
    far, near = [min(0.25, 0.025 * i) for i in range(40)], RISING
    assert fires(traced(PLAIN, [*far, *near])) == fires(traced(PLAIN, [*near, *far])) == set()
    assert fires(traced(PLAIN, [*RISEN, *(1.3 * step for step in near)])) == {"incomplete"}


def test_steps_outside_of_the_ball_do_not_count() -> None:
    """PGD in l2 starts in a ball that is three times as large."""
    assert fires(traced(PLAIN, [0.4] * 20 + RISEN[:20], eps=0.25)) == set()
    assert fires(traced(PLAIN, [0.4] * 20 + RISING[:20], eps=0.25)) == {"incomplete"}
    assert fires(traced(PLAIN, [0.4] * 20 + RISEN[:20], eps=0.5)) == {"silent"}


def test_a_wrong_image_that_was_not_returned_is_a_silent_success() -> None:
    assert fires(traced(PLAIN, [*RISEN[:20], 0.31, *RISEN[21:]])) == {"silent"}
    assert fires(traced(PLAIN, [*RISEN[:20], 0.31, *RISEN[21:]], eps=0.3)) == set()


def test_a_lucky_draw_of_a_stochastic_defence_is_no_success() -> None:
    coin = Changed(lambda logits, x: torch.where(torch.rand(len(x), 1) < 0.8, logits, -logits))
    assert not any(
        "silent" in fires(traced(coin, RISEN, random=True, seed=seed)) for seed in range(20)
    )
    assert "silent" in fires(traced(coin, [0.35] * 40, random=True))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda logits, x: logits * torch.nan,
        lambda logits, x: 0 * logits,
        lambda logits, x: logits.detach(),
    ],
)
def test_a_zero_or_nonfinite_gradient_is_unavailable(
    spoil: Callable[[Tensor, Tensor], Tensor],
) -> None:
    def change(logits: Tensor, x: Tensor) -> Tensor:
        return (
            logits.detach() + spoil(logits, x).nan_to_num(0) if not logits.isnan().any() else logits
        )

    assert "unavailable" in fires(traced(Changed(change), RISEN))
    alive = Changed(lambda logits, x: logits if bool((x != X).any()) else change(logits, x))
    assert "unavailable" not in fires(traced(alive, RISEN)), "one good step is a gradient"


def test_predictions_are_unstable_where_noise_changes_the_margin() -> None:
    # The margin is -0.3 + d w with |w| = 1 and d uniform within 4/255. So its standard deviation
    # is 4/255/sqrt(3), and it is normal by its 64 terms.
    expected = (2 / torch.pi) ** 0.5 * 4 / 255 / 3**0.5 / 0.3
    torch.manual_seed(0)
    changes = [
        margin_change(Target(PLAIN, classes=2), PROBLEM.x[i : i + 1], PROBLEM.y[i : i + 1])
        for i in range(4)
    ]
    assert sum(changes) / 4 == pytest.approx(expected, rel=0.15)
    ripple = Changed(lambda logits, x: logits * (2 + torch.sin(3000 * x.sum((1, 2, 3))))[:, None])
    assert fires(traced(ripple, RISEN)) >= {"unstable"}
    assert (
        margin_change(
            Target(Changed(lambda logits, x: 1e9 * (logits - PROBLEM.model(X))), classes=2), X, Y
        )
        == 1
    ), "a margin of 0 is divided by 1"
    noisy = Changed(lambda logits, x: logits + torch.randn_like(logits) * 0.01)
    assert margin_change(Target(noisy, classes=2, stochastic=True), X, Y) == pytest.approx(
        expected, rel=0.4
    ), "both are under the same draws"


def test_runs_of_apgd_go_side_by_side_with_a_step_more() -> None:
    knobs = {"loss": "ce+targeted", "steps": 2, "restarts": 3, "targets": 9}
    rows = torch.arange(3 * 3 + 6 * 3)
    runs = split_runs(rows, Spec.of("apgd", knobs), "linf", 4, 3)
    assert [run.tolist() for run in runs[:3]] == [[0, 3, 6], [1, 4, 7], [2, 5, 8]], "three restarts"
    assert [run.tolist() for run in runs[3:7]] == [[9 + i, 13 + i, 17 + i] for i in range(4)], (
        "of three restarts by two targets the first four"
    )
    assert [run.tolist() for run in runs[7:]] == [[21, 23, 25], [22, 24, 26]]
    assert [
        run.tolist() for run in split_runs(rows[:9], Spec.of("pgd", {"steps": 4}), "linf", 4, 3)
    ] == [[0, 1, 2, 3], [4, 5, 6, 7], [8]]


@pytest.mark.parametrize(
    "name",
    [
        "pgd[steps=7,restarts=2,loss=ce+margin]",
        "apgd[steps=7,restarts=2,loss=ce+margin]",
        "apgd[steps=5,restarts=2,loss=ce+margin,wide=2]",
    ],
)
def test_a_trace_holds_every_run_and_changes_no_answer(
    name: str,
) -> None:
    spec = registry.attacks.resolve(Spec.parse(name))
    threat, seen = ThreatModel("linf", Fraction("1/100")), Traced(PLAIN, X, Y, "linf", 0.01)
    with torch.enable_grad():
        torch.manual_seed(0)
        traced_one = registry.attacks.get(spec.name).make(
            Target(seen, classes=2), X, Y, threat, **spec.params
        )
        torch.manual_seed(0)
        plain = registry.attacks.get(spec.name).make(
            Target(PLAIN, classes=2), X, Y, threat, **spec.params
        )
    assert torch.equal(traced_one, plain)
    runs = split_runs(torch.cat(seen.margins), spec, "linf", 256, 2)
    assert [len(run) for run in runs] == [7 if spec.name == "pgd" else 8] * 4


def cell(
    check: str, defence: str, *, dataset: str = "digits", n: int = 16, batch: int | None = None
) -> Cell:
    return plan(
        [
            Request(
                dataset=dataset,
                defences=(defence,),
                attacks=(check,),
                n=n,
                budget="quick",
                batch=batch,
            )
        ]
    ).cells[1]


@functools.cache
def counts(check: str, defence: str, dataset: str = "digits") -> dict[str, float]:
    return {
        code.removeprefix("D11:"): value
        for code, value in evaluate(cell(check, defence, dataset=dataset)).checks
        if code.startswith("D11")
    }


def test_an_attack_that_stops_too_early_is_incomplete() -> None:
    weak, honest = (
        counts(f"indicators[attack=pgd[{knobs},loss=ce]]", "at")
        for knobs in ("steps=6,step=0.2", "steps=60")
    )
    assert weak["survive"] >= honest["survive"] >= 8
    assert weak["incomplete"] > 0.8 * weak["survive"]
    assert honest["incomplete"] <= 0.1 * honest["survive"]
    for name in ("unavailable", "unstable", "silent"):
        assert honest[name] == weak[name] == 0


def test_a_masked_gradient_is_unavailable() -> None:
    indicators = counts("indicators", "toy-masked", "toy-grey")
    assert indicators == {
        "survive": 8,
        "unavailable": 8,
        "unstable": 0,
        "silent": 0,
        "incomplete": 0,
    }, "the net is right on half of them"


def test_examples_that_fall_are_not_counted() -> None:
    assert counts("indicators", "undefended") == {}


def test_the_columns_are_those_of_the_attack_on_the_defence() -> None:
    record = evaluate(cell("indicators[attack=pgd[steps=20]]", "at"))
    assert 0.4 < record.accuracy < 0.95
    assert dict(record.checks)["D11:survive"] == sum(record.correct)
    assert max(record.distance) <= 0.2 + 1e-6
    entry = registry.checks.get("indicators")
    assert (
        60
        < (record.cost.forwards + 2 * record.cost.backwards) / len(record.ids)
        <= entry.facts.calls(record.cell.attack.params, False)
    )


def test_parts_of_indicators_make_the_whole(tmp_path: Path) -> None:
    asked = cell("indicators[attack=pgd-eot[steps=12,eot=2],examples=4]", "tta", n=9, batch=3)
    whole, parts = evaluate(asked), [evaluate(asked, [i]) for i in (2, 0, 1)]
    assert [len(part.ids) for part in parts] == [0, 4, 0]
    together: Record = merge(parts)
    assert dict(together.checks)["D11:survive"] > 0
    assert together.checks == whole.checks
    for name in ("clean", "selected", "margin", "correct", "distance", "strayed"):
        assert dict(zip(together.ids, getattr(together, name), strict=True)) == dict(
            zip(whole.ids, getattr(whole, name), strict=True)
        )
    assert (together.cost.forwards, together.cost.backwards) == (
        whole.cost.forwards,
        whole.cost.backwards,
    )
    store = Store(tmp_path)
    store.put(whole)
    assert store.get(asked) == whole


@pytest.mark.parametrize("attack", ["fgsm", "square", "adaptive", "autoattack"])
def test_an_attack_without_traceable_steps_is_refused(attack: str) -> None:
    message = (
        f"attack={attack} takes no steps that could be followed; "
        "give pgd, pgd-eot, apgd or apgd-eot"
    )
    with pytest.raises(BadInput, match=message):
        cell(f"indicators[attack={attack}]", "at")
