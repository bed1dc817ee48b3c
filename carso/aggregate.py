"""From the logits of several samples to one prediction: (B,samples,K) -> (B,K), K >= 2.

All but `peel-naive` give finite values and finite gradients for finite float32 logits up to +-50.
There the sum of exponentials, 4e22 for eight samples, still fits into float32. `count` and `vote`
are piecewise constant: their gradient is zero by definition.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, one_hot

from bench.errors import BadInput, did_you_mean


def logit(logits: Tensor) -> Tensor:
    """Mean over the samples."""
    return logits.mean(1)


def lse(logits: Tensor) -> Tensor:
    """log sum_e exp(l[k,e]): the same decision as `peel`, with bounded gradients."""
    return logits.logsumexp(1)


def prob(logits: Tensor) -> Tensor:
    """Log-odds of the mean over the samples of sigmoid(l[k,e]), per class.

    The log-odds are a difference of log-sum-exps, so that no value rounds to 0 or 1.
    """
    return logsigmoid(logits).logsumexp(1) - logsigmoid(-logits).logsumexp(1)


def peel(logits: Tensor) -> Tensor:
    """Log-odds of softmax_k(s), s_k = sum_e exp(l[k,e]): s_k - log sum_{j != k} exp(s_j).

    The form is exact and has no cancellation. For every k but that of the largest s, p_k <= 1/2.
    There log sum_{j != k} exp(s_j) = lse(s) + log1p(-p_k) is accurate, also among ties. For the
    largest s the others are summed directly. p is a softmax: exp(s - lse(s)) rounds to 1 for tied
    large s.

    Where all logits lie below about -15, the values (not the gradients) tie in any float32 form.
    The s are too small there to be told apart beside log(K-1). `lse` does not tie.
    arXiv 2306.06081, "PeeL".
    """
    s = logits.exp().sum(1)  # (B,K)
    top = s.argmax(1, keepdim=True)
    is_top = torch.zeros_like(s, dtype=torch.bool).scatter(1, top, True)
    others = s.masked_fill(is_top, -math.inf).logsumexp(1, keepdim=True)
    rest = s.logsumexp(1, keepdim=True) + torch.log1p(-s.softmax(1).masked_fill(is_top, 0.0))
    return s - torch.where(is_top, others, rest)


def peel_naive(logits: Tensor) -> Tensor:
    """PeeL as the authors' code computes it, for the record.

    It is infinite as soon as p rounds to 0 or 1, and then every gradient is NaN.
    """
    p = logits.exp().sum(1).softmax(1)
    return (p / (1 - p)).log()


def count(logits: Tensor) -> Tensor:
    """sum_e floor(l[k,e] / max_j l[j,e]), the authors' `count`, which is not a vote.

    Negative logits count at most -1, and less without bound. Where the maximum of a sample is
    exactly 0, the limit from above is taken: 1 for the maximum itself, a very low value for the
    others.
    """
    values = logits.detach()
    ratio = (values / values.amax(2, keepdim=True)).floor()
    lowest = torch.finfo(values.dtype).min / values.shape[1]
    return with_zero_gradient(
        ratio.nan_to_num(nan=1.0, neginf=lowest, posinf=lowest).sum(1), logits
    )


def vote(logits: Tensor) -> Tensor:
    """Plurality: the number of samples whose largest logit is that of class k."""
    votes = one_hot(logits.detach().argmax(2), logits.shape[2]).sum(1)
    return with_zero_gradient(votes.to(logits.dtype), logits)


def with_zero_gradient(values: Tensor, logits: Tensor) -> Tensor:
    """`values` (B,K) in the graph of `logits`, with a gradient of exactly zero.

    An attack that asks for the gradient gets an answer and does not crash.
    """
    return values + 0.0 * logits.mean(1)


AGGREGATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "peel": peel,
    "logit": logit,
    "prob": prob,
    "count": count,
    "vote": vote,
    "lse": lse,
    "peel-naive": peel_naive,
}


def find_aggregation(name: str) -> Callable[[Tensor], Tensor]:
    """The aggregation of that name. BadInput names the nearest one where there is none."""
    if name not in AGGREGATIONS:
        raise BadInput(f"aggregation '{name}' is unknown{did_you_mean(name, AGGREGATIONS)}")
    return AGGREGATIONS[name]
