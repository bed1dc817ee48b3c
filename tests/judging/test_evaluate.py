"""The judge: exact on a linear model, and deaf to attacks that lie."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.judging.evaluate import evaluate
from bench.judging.proposals import AttackFailed
from bench.judging.setup import make_target, prepare
from bench.questions import registry
from bench.results.record import Record, Routes, merge
from bench.soundness.probes.probe import probe
from tests.judging.cells import cell


def accuracy(attack: str, defence: str = "toy-linear", **question: object) -> float:
    return evaluate(cell(attack, defence, **question)).accuracy


@pytest.mark.parametrize("eps", ["0", "1/100", "1/20", "13/100", "1/2"])
def test_the_optimal_attack_finds_exactly_the_points_within_eps(eps: str) -> None:
    """Distances are 0.005, 0.015, ..., 0.195, two points each."""
    expected = np.mean([(i // 2 + 0.5) / 100 > float(Fraction(eps)) for i in range(40)])
    assert accuracy("toy-exact", eps=eps) == expected


def test_clean_accuracy_is_the_cell_whose_attack_is_none() -> None:
    record = evaluate(cell("none"))
    assert record.accuracy == 1.0
    assert set(record.distance) == {0.0}
    assert record.cost.ms_per_image is not None
    assert record.cost.base_ms_per_image is not None


def test_parts_make_the_same_record_as_the_whole_in_any_order() -> None:
    whole = cell("toy-exact", "toy-coin", draws=6)
    parts = [evaluate(whole, [i]) for i in (4, 0, 5, 2, 1, 3)]
    together = merge(parts)
    alone = evaluate(whole)
    for name in ("clean", "selected", "margin", "correct", "distance", "strayed"):
        assert dict(zip(together.ids, getattr(together, name), strict=True)) == dict(
            zip(alone.ids, getattr(alone, name), strict=True)
        )


def test_a_record_names_the_route_that_counted() -> None:
    """Class 0 falls deepest to the whole step, class 1 to the half one.

    The deeper candidate counts, whether or not it is deep enough.
    """
    asked = cell("toy-several", eps="1/10")
    record = evaluate(asked)
    labels = registry.datasets.get("toy").make("test", Path()).y
    assert record.routes is not None
    assert record.routes.names == ("half", "whole")
    assert [record.routes.names[i] for i in record.routes.chosen] == [
        "whole" if labels[i] == 0 else "half" for i in record.ids
    ]
    assert record.routes.counts == {"half": 20, "whole": 20}
    assert (
        merge([evaluate(asked, [i]) for i in (4, 0, 5, 2, 1, 3)]).routes == merge([record]).routes
    )
    assert Record.from_json(record.to_json()) == record
    assert evaluate(cell("toy-exact")).routes is None


def test_routes_of_other_names_cannot_be_joined() -> None:
    first = evaluate(cell("toy-several"), [0])
    second = replace(evaluate(cell("toy-several"), [1]), routes=None)
    with pytest.raises(ValueError, match="different routes"):
        merge([first, second])
    with pytest.raises(ValueError, match="3 routes for 7 ids"):
        replace(first, routes=Routes(("half",), (0, 0, 0)))


def test_an_attack_that_leaves_the_ball_is_projected_and_noted() -> None:
    record = evaluate(cell("liar-leaves"))
    assert max(record.distance) <= 0.1 + 1e-6
    assert min(record.strayed) > 1.0


def test_an_attack_that_goes_too_far_gains_nothing_by_it() -> None:
    assert accuracy("toy-exact[scale=9]") == accuracy("toy-exact")


def test_an_attack_that_does_nothing_breaks_nothing() -> None:
    record = evaluate(cell("liar-idle"))
    assert record.accuracy == 1.0
    assert set(record.distance) == {0.0}
    assert record.cost.backwards == 0


def test_an_attack_that_edits_its_inputs_is_judged_on_the_originals() -> None:
    """It mirrors all points, as far as eps lets it: that is the optimal attack.

    The labels that it flipped are its own copy.
    """
    record = evaluate(cell("liar-edits"))
    assert record.accuracy == accuracy("toy-exact")
    assert max(record.distance) <= 0.1 + 1e-6
    assert evaluate(cell("none")).accuracy == 1.0


@pytest.mark.parametrize("attack", ["liar-nan", "liar-shape"])
def test_an_attack_that_returns_no_images_has_failed(attack: str) -> None:
    with pytest.raises(AttackFailed, match=attack):
        evaluate(cell(attack))


def test_an_attack_cannot_touch_the_defence_or_the_random_state() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    record = evaluate(cell("liar-claims", "toy-coin", draws=4))
    assert torch.equal(torch.rand(3), expected)
    assert record.clean == record.selected  # the clean image is a candidate, and here the only one
    assert evaluate(cell("none")).accuracy == 1.0


@pytest.mark.parametrize("attack", ["spy-gradient", "spy-parts"])
def test_access_is_enforced(attack: str) -> None:
    with pytest.raises((RuntimeError, AttributeError), match=r"grad|not shown"):
        evaluate(cell(attack))


def test_decision_access_gives_labels_alone() -> None:
    assert evaluate(cell("spy-logits")).accuracy == 1.0


def test_transfer_is_run_on_the_surrogate_and_judged_on_the_defence() -> None:
    record = evaluate(cell("toy-transfer", "toy-nan-gradient"))
    assert record.accuracy == accuracy("toy-exact")
    assert record.cost.nonfinite == 0


def test_calls_are_counted_per_example() -> None:
    record = evaluate(cell("toy-exact"))
    assert (record.cost.forwards, record.cost.backwards) == (40, 40)


def test_nan_logits_count_as_wrong() -> None:
    assert accuracy("none", "toy-nan-logits") == 1.0
    assert accuracy("noise[tries=2]", "toy-nan-logits", eps="1/1000") == 0.0
    flags = {
        flag.id
        for flag in evaluate(cell("none", "toy-nan-logits")).flags
        if flag.severity == "hard"
    }
    assert "P6" in flags


def test_nan_gradients_are_counted_and_flagged() -> None:
    record = evaluate(cell("toy-exact", "toy-nan-gradient"))
    assert record.accuracy == 1.0  # the attack cannot move: the number is worthless
    assert record.cost.nonfinite == 40
    assert ("D2", "hard") in {(flag.id, flag.severity) for flag in record.flags}


def test_zero_gradients_are_counted_and_flagged() -> None:
    record = evaluate(cell("toy-exact", "toy-rounded"))
    assert record.cost.zero == 40
    assert ("D1", "hard") in {(flag.id, flag.severity) for flag in record.flags}


def test_a_hidden_coin_is_flagged() -> None:
    assert ("P1", "hard") in {
        (flag.id, flag.severity) for flag in evaluate(cell("none", "toy-hidden-coin")).flags
    }
    assert prepare(cell("none", "toy-hidden-coin"), "cpu", "data").stochastic


def test_a_coin_is_seen_beside_infinite_logits() -> None:
    """Logits (inf, r, -inf) with a random r.

    The infinities must neither drown r, nor be subtracted from themselves.
    """
    x = torch.rand(8, 1, 2, 3)
    y = torch.zeros(8, dtype=torch.long)
    ends = torch.tensor([[torch.inf, 0.0, -torch.inf]])

    class Loud(torch.nn.Module):
        def __init__(self, noise: float) -> None:
            super().__init__()
            self.noise = noise

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            middle = torch.tensor([[0.0, 1.0, 0.0]]) * (
                x.mean((1, 2, 3))[:, None] + self.noise * torch.randn(len(x), 1)
            )
            return ends + middle

    assert probe(Loud(1.0), x, y, 0.1, declared=True).stochastic
    assert "P1" not in {flag.id for flag in probe(Loud(1.0), x, y, 0.1, declared=True).flags}
    assert not probe(Loud(0.0), x, y, 0.1, declared=False).stochastic


def test_an_honest_linear_model_raises_no_flag() -> None:
    assert evaluate(cell("toy-exact")).flags == ()


def test_a_coin_is_scored_by_its_expectation_not_by_its_luck() -> None:
    """Under useless candidates the score stays at p, although selection takes the worst of them."""
    record = evaluate(cell("noise[tries=8]", "toy-coin[p=0.7]", eps="1/1000", draws=40))
    half_width = 4 * (0.7 * 0.3 / (40 * 40)) ** 0.5
    assert abs(record.accuracy - 0.7) < half_width
    chosen = sum(record.selected) / (40 * 40)
    assert chosen <= sum(record.clean) / (40 * 40)


def test_the_strongest_candidate_is_kept() -> None:
    assert accuracy("toy-two") == accuracy("toy-exact")


def test_transfer_from_two_sources_sees_their_mean_logits() -> None:
    asked = cell("transfer[source=own:digits-at+own:digits-other]")
    target = make_target(asked, prepare(asked, "cpu", "data"))
    x = torch.rand(5, 1, 8, 8)
    members = [registry.build_classifier(name)(x) for name in ("own:digits-at", "own:digits-other")]
    assert torch.allclose(target(x), (members[0] + members[1]) / 2, atol=1e-6)
    assert target.forwards == 5


def test_streams_do_not_meet() -> None:
    """Selection draws of the clean image repeat in every cell of a question.

    They differ from its evaluation draws.
    """
    none = evaluate(cell("none", "toy-coin", draws=16))
    idle = evaluate(cell("liar-idle", "toy-coin", draws=16))
    assert none.clean == idle.clean
    assert none.correct != idle.correct
    assert none.clean != none.correct


def test_the_seed_changes_the_draws_and_repeating_does_not() -> None:
    base = cell("none", "toy-coin", draws=16)
    assert evaluate(base).correct == evaluate(base).correct
    assert evaluate(base).correct != evaluate(replace(base, seed=1)).correct
