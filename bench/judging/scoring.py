"""Select the strongest candidate of each example, then score it on draws that nobody has seen."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.judging.norms import NORMS
from bench.judging.randomness import judging_stream
from bench.judging.target import is_correct, margin, predict_draws
from bench.questions.spec import Cell

# Draws that are judged in one batch. Fixed: it decides which random number goes where.
JUDGING_BATCH = 5


@dataclass(frozen=True, slots=True)
class Chosen:
    """The strongest candidate of each example, and how it did on the selection draws.

    `images` (B,C,H,W). Each of the others is (B,). `index` is the place among the candidates, 0 for
    the clean image. `selected` counts the right selection draws, and `margin` is their mean margin.
    `clean` counts the right selection draws on the clean image. `distance` is that from it.
    """

    images: Tensor
    index: Tensor
    selected: Tensor
    margin: Tensor
    clean: Tensor
    distance: Tensor

    @property
    def columns(self) -> dict[str, Tensor]:
        """The columns of a record that selection decides."""
        names = ("clean", "selected", "margin", "distance")
        return {name: getattr(self, name) for name in names}


@torch.no_grad()
def choose_strongest(
    cell: Cell, defence: nn.Module, candidates: Tensor, y: Tensor, index: int
) -> Chosen:
    """Choose each example's strongest of `candidates` (1+M,B,C,H,W) on the stream `select`.

    Strongest: fewest right answers, then the largest mean margin, then the first. All candidates of
    all attacks on a defence meet the same selection draws (common random numbers).
    """
    hits = []
    margins = []
    for candidate in candidates:
        with judging_stream(y.device, cell.question, index, "select"):
            hit, mean_margin = count_correct(defence, candidate, y, cell.select)
        hits.append(hit)
        margins.append(mean_margin)
    right = torch.stack(hits)  # (1+M,B)
    margin_of = torch.stack(margins)  # (1+M,B)
    tied = right == right.amin(0)
    strongest = torch.where(tied, margin_of, -torch.inf).argmax(0)  # (B,)
    rows = torch.arange(len(y), device=y.device)
    images = candidates[strongest, rows]
    return Chosen(
        images=images,
        index=strongest,
        selected=right[strongest, rows],
        margin=margin_of[strongest, rows],
        clean=right[0],
        distance=NORMS[cell.threat.norm].distance(images - candidates[0]),
    )


@torch.no_grad()
def score(cell: Cell, defence: nn.Module, images: Tensor, y: Tensor, index: int) -> Tensor:
    """Right answers (B,) on the chosen `images` among the cell's own evaluation draws."""
    with judging_stream(y.device, cell.key, index, "evaluate"):
        correct, _ = count_correct(defence, images, y, cell.draws)
    return correct


def count_correct(defence: nn.Module, x: Tensor, y: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """How many of `count` draws on each example were right (B,), and the mean margin (B,)."""
    hits = torch.zeros_like(y)
    margins = torch.zeros(len(y), device=x.device)
    for done in range(0, count, JUDGING_BATCH):
        k = min(JUDGING_BATCH, count - done)
        logits = predict_draws(defence, x.clone(), k)  # (B,k,K); a check's model may edit it
        labels = y.unsqueeze(1).expand(-1, k)  # (B,k)
        hits += is_correct(logits, labels).sum(1)
        margins += margin(logits, labels).float().sum(1)
    return hits, margins / count


@torch.no_grad()
def minimum_distances(
    cell: Cell, defence: nn.Module, proposals: Tensor, x: Tensor, y: Tensor, index: int
) -> tuple[float, ...]:
    """The distance of each example's nearest proposal that is wrong; -1 where none is.

    A proposal (M,B,C,H,W) need not lie in the ball. It is wrong where at least half of the
    selection draws are wrong.
    """
    nearest = torch.full((len(x),), torch.inf, device=x.device)
    finite = torch.where(proposals.isfinite(), proposals.to(x), x)
    for images in finite.clamp(0, 1):
        with judging_stream(x.device, cell.question, index, "select"):
            hits, _ = count_correct(defence, images, y, cell.select)
        distance = NORMS[cell.threat.norm].distance(images - x).to(nearest)
        wrong = 2 * hits <= cell.select
        nearest = torch.where(wrong, torch.minimum(nearest, distance), nearest)
    return tuple(float(f"{v:.6g}") for v in nearest.nan_to_num(posinf=-1).tolist())
