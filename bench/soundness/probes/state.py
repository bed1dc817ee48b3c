"""Probes of what an answer depends on: chance, the rest of the batch, training mode, memory."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.judging.border import Border
from bench.judging.randomness import current, judging_stream
from bench.judging.target import margin, predict_draws
from bench.results.record import Flag
from bench.soundness.codes import P3_CHANCE, P3_TOLERANCE

SAME_LOGITS = 1e-4  # P1: of a normalised logit vector, between two calls
ALONE = 8  # P3: images whose company changes
OTHERS = 24  # P3: noise and white images that join them
DRAWS = 16  # P3: of a stochastic defence


def is_deterministic(defence: nn.Module, x: Tensor, calls: int = 5) -> bool:
    """Whether `calls` predictions of the same images agree to 1e-4 of each normalised logit vector.

    Infinities must stand in the same places. The finite logits are compared without them: an
    infinity would drown their differences.
    """
    first = defence(x)
    unit = F.normalize(first.where(first.isfinite(), 0), dim=1)  # (n,K)
    for _ in range(calls - 1):
        again = defence(x)
        same_finite = torch.equal(again.isfinite(), first.isfinite())
        if not same_finite or not torch.equal(again == torch.inf, first == torch.inf):
            return False
        again_unit = F.normalize(again.where(again.isfinite(), 0), dim=1)
        if (again_unit - unit).norm(dim=1).max() > SAME_LOGITS:
            return False
    return True


def probe_determinism(stochastic: bool, declared: bool) -> list[Flag]:
    """P1: whether the defence is as random as it is declared."""
    if stochastic and not declared:
        message = "declared deterministic, but two calls on the same images differ"
        return [Flag("P1", "hard", message)]
    if declared and not stochastic:
        message = "declared stochastic, but five calls on the same images agree"
        return [Flag("P1", "soft", message)]
    return []


@torch.no_grad()
def probe_randomness(defence: nn.Module, x: Tensor) -> tuple[bool, list[Flag]]:
    """P16: whether the numbers that a prediction draws are those that the harness seeds.

    Gives whether they are not, as where the defence has a generator of its own. Common draws of a
    pair of predictions are then out of reach.
    """

    def answer(seed: str) -> tuple[Tensor, Tensor]:
        with judging_stream(x.device, "P16", seed):
            logits: Tensor = defence(x)
            state = torch.zeros(0) if current.stream is None else current.stream.cpu
        return logits.nan_to_num(), state

    first, first_state = answer("a")
    again, _ = answer("a")
    _, other_state = answer("b")
    scale = first.abs().amax().clamp_min(torch.finfo(first.dtype).tiny)
    own_generator = bool((again - first).abs().amax() > SAME_LOGITS * scale)
    if own_generator:
        message = "it draws from a generator of its own: the seeds of the harness do not reach it"
        return True, [Flag("P16", "soft", message)]
    if len(first_state) and torch.equal(first_state, other_state):
        message = "it seeds torch's generator itself: each prediction draws the same numbers"
        return False, [Flag("P16", "soft", message)]
    return False, []


def probe_training_mode(defence: nn.Module) -> list[Flag]:
    """P4: layers of batch normalisation or dropout in training mode."""
    kinds = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
    training = [
        name
        for name, module in defence.named_modules()
        if module.training and isinstance(module, kinds)
    ]
    if not training:
        return []
    return [Flag("P4", "hard", f"layers in training mode: {', '.join(training[:3])}")]


def probe_side_effects(defence: Border, x: Tensor) -> list[Flag]:
    """P5: whether a prediction changes the defence's own state, or the images it was given."""
    before = {name: value.clone() for name, value in defence.defence.state_dict().items()}
    edits_images = defence.edits_images(x)
    changed = [
        name
        for name, value in defence.defence.state_dict().items()
        if not torch.equal(value.nan_to_num(), before[name].nan_to_num())
    ]
    flags = []
    if changed:
        message = f"a prediction changes the defence: {', '.join(changed[:3])}"
        flags.append(Flag("P5", "hard", message))
    if edits_images:
        flags.append(Flag("P5", "soft", "a prediction edits the images that it is given"))
    return flags


@torch.no_grad()
def probe_company(defence: nn.Module, x: Tensor, y: Tensor, stochastic: bool) -> list[Flag]:
    """P3: whether the answer to an image depends on the other images of its batch.

    A deterministic defence must answer alike, to 1e-3 of a logit (relative above 1): alone, in
    another order, and among noise and white images. A stochastic defence must have the same mean
    margins alone and among these images.
    """
    few, labels = x[:ALONE], y[:ALONE]
    strange = torch.rand(OTHERS, *x.shape[1:], dtype=x.dtype, device=x.device)
    strange[::2] = 1
    crowd = torch.cat([few, strange])
    if stochastic:
        return probe_noisy_company(defence, few, crowd, labels)
    in_batch = defence(x)[: len(few)]
    alone = torch.cat([defence(image[None]) for image in few])
    reversed_order = defence(x.flip(0)).flip(0)[: len(few)]
    in_crowd = defence(crowd)[: len(few)]
    others = torch.stack([alone, reversed_order, in_crowd])  # (3,n,K)
    close = torch.isclose(others, in_batch, rtol=P3_TOLERANCE, atol=P3_TOLERANCE, equal_nan=True)
    share = (~close).any(2).any(0).float().mean()
    if not share:
        return []
    message = f"the answer to {share:.0%} of images depends on the other images of the batch"
    return [Flag("P3", "hard", message)]


def probe_noisy_company(
    defence: nn.Module, few: Tensor, crowd: Tensor, labels: Tensor
) -> list[Flag]:
    """P3 of a stochastic defence: Welch's test of each image's margins, corrected after Holm."""
    alone = margin(predict_draws(defence, few, DRAWS), labels[:, None].expand(-1, DRAWS))
    in_crowd = [margin(defence(crowd)[: len(few)], labels) for _ in range(DRAWS)]
    both = torch.stack([alone, torch.stack(in_crowd, 1)]).double().cpu()  # (2,n,draws)
    finite = both.isfinite().all(2).all(0)  # (n,)
    spread, mean = torch.std_mean(both[:, finite], 2)  # (2,n)
    moved = ~torch.isclose(mean[0], mean[1], rtol=P3_TOLERANCE, atol=P3_TOLERANCE)
    chances = [1.0] * int((~moved).sum())
    chances += [welch_p_value(mean[:, i], spread[:, i], DRAWS) for i in moved.nonzero().flatten()]
    chances.sort()
    corrected = [chance * (len(chances) - i) for i, chance in enumerate(chances)]
    worst = min(corrected, default=1.0)
    if worst >= P3_CHANCE:
        return []
    message = f"the margins of an image depend on the other images of the batch (p {worst:.1g})"
    return [Flag("P3", "hard", message)]


def welch_p_value(means: Tensor, spreads: Tensor, draws: int) -> float:
    """How often two samples of `draws` with one true mean lie as far apart, by Welch's t-test."""
    from scipy.stats import ttest_ind_from_stats  # slow to import

    first, second = zip(means.tolist(), spreads.tolist(), (draws, draws), strict=True)
    return float(ttest_ind_from_stats(*first, *second, equal_var=False).pvalue)
