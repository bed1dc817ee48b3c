"""Attacks of minimal norm: the distance that they found, in the ball or not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from bench.judging.evaluate import evaluate
from bench.judging.scoring import minimum_distances
from bench.results.record import Record, merge
from tests.judging.test_evaluate import cell


@pytest.mark.parametrize("attack", ["deepfool", "boundary[steps=1500]"])
def test_an_attack_of_minimal_norm_reports_the_distance_that_it_found_also_outside_of_the_ball(
    attack: str,
) -> None:
    asked = cell(attack, eps="1/1000")
    record = evaluate(asked)
    assert record.accuracy == 1.0
    optimum = [(i // 2 + 0.5) / 100 for i in record.ids]
    assert record.nearest is not None
    assert list(record.nearest) == [
        pytest.approx(d, rel=0.1 if "boundary" in attack else 0.03) for d in optimum
    ]
    assert all(found > 0.999 * d for found, d in zip(record.nearest, optimum, strict=True))
    assert max(record.distance) <= 0.001 + 1e-6, "what is judged lies in the ball"
    assert Record.from_json(record.to_json()) == record
    together = merge([evaluate(asked, [i]) for i in (4, 0, 5, 2, 1, 3)])
    assert dict(zip(together.ids, together.nearest or (), strict=True)) == dict(
        zip(record.ids, record.nearest, strict=True)
    )
    with pytest.raises(ValueError, match="1 distances found for 40 ids"):
        replace(record, nearest=(0.1,))
    assert evaluate(cell("pgd", eps="1/1000")).nearest is None


def test_a_distance_counts_where_at_least_half_of_the_draws_are_wrong_and_what_is_not_finite_is_the_image() -> (
    None
):
    x, y = torch.full((3, 1, 2, 2), 0.5), torch.zeros(3, dtype=torch.long)
    steps = torch.tensor([[0.1, 0.2, 0.1], [0.3, 0.1, 0.2]]).view(2, 3, 1, 1, 1)
    made = x + steps
    made[1, 2] = torch.nan

    class Beyond(nn.Module):
        """Wrong from 0.15 away on."""

        def forward(self, images: Tensor) -> Tensor:
            far = ((images - 0.5).abs().flatten(1).amax(1) > 0.15).float()
            return torch.stack([1 - far, far], 1)

    asked = cell("deepfool", draws=4)
    assert minimum_distances(asked, Beyond(), made, x, y, 0) == (
        pytest.approx(0.3),
        pytest.approx(0.2),
        -1.0,
    )

    class Mostly(Beyond):
        """Right in one draw of four everywhere."""

        def draws(self, images: Tensor, k: int) -> Tensor:
            return torch.tensor([[1.0, 0.0]] + [[0.0, 1.0]] * (k - 1)).expand(len(images), -1, -1)

    assert minimum_distances(asked, Mostly(), made, x, y, 0) == (
        pytest.approx(0.1),
        pytest.approx(0.1),
        0.0,
    )
