"""Attacks of minimum norm: the distance that they found, in the ball or not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from bench.judging.evaluate import evaluate
from bench.judging.scoring import minimum_distances
from bench.results.record import Record, merge
from tests.judging.cells import cell


@pytest.mark.parametrize("attack", ["deepfool", "boundary[steps=1500]"])
def test_an_attack_of_minimum_norm_reports_distances_beyond_the_ball(
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
    assert all(nearest > 0.999 * d for nearest, d in zip(record.nearest, optimum, strict=True))
    assert max(record.distance) <= 0.001 + 1e-6, "what is judged lies in the ball"
    assert Record.from_json(record.to_json()) == record
    together = merge([evaluate(asked, [i]) for i in (4, 0, 5, 2, 1, 3)])
    assert dict(zip(together.ids, together.nearest or (), strict=True)) == dict(
        zip(record.ids, record.nearest, strict=True)
    )
    with pytest.raises(ValueError, match="1 distances found for 40 ids"):
        replace(record, nearest=(0.1,))
    assert evaluate(cell("pgd", eps="1/1000")).nearest is None


class WrongBeyond(nn.Module):
    """Wrong from 0.15 away from grey on, in every draw."""

    def forward(self, images: Tensor) -> Tensor:
        far = ((images - 0.5).abs().flatten(1).amax(1) > 0.15).float()
        return torch.stack([1 - far, far], 1)


class RightInSome(nn.Module):
    """Right on every image in the first `right` of the draws, and wrong in the others."""

    def __init__(self, right: int) -> None:
        super().__init__()
        self.right = right

    def draws(self, images: Tensor, k: int) -> Tensor:
        right = [[1.0, 0.0]] * self.right
        wrong = [[0.0, 1.0]] * (k - self.right)
        return torch.tensor(right + wrong).expand(len(images), -1, -1)


def distances(defence: nn.Module) -> tuple[float, ...]:
    """The minimum distances of two proposals for three grey images; one proposal is not finite."""
    x = torch.full((3, 1, 2, 2), 0.5)
    y = torch.zeros(3, dtype=torch.long)
    proposals = x + torch.tensor([[0.1, 0.2, 0.1], [0.3, 0.1, 0.2]]).view(2, 3, 1, 1, 1)
    proposals[1, 2] = torch.nan
    return minimum_distances(cell("deepfool", draws=4), defence, proposals, x, y, 0)


def test_the_nearest_wrong_proposal_counts() -> None:
    """The third image has no wrong proposal: the one that is not finite is taken for the image."""
    assert distances(WrongBeyond()) == (pytest.approx(0.3), pytest.approx(0.2), -1.0)


@pytest.mark.parametrize("right", [0, 1, 2])
def test_a_proposal_is_wrong_where_at_least_half_of_the_draws_are(right: int) -> None:
    assert distances(RightInSome(right)) == (pytest.approx(0.1), pytest.approx(0.1), 0.0)


def test_a_proposal_is_right_where_most_of_the_draws_are() -> None:
    assert distances(RightInSome(3)) == (-1.0, -1.0, -1.0)
