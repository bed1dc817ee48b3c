"""Randomized smoothing: the class that a classifier names most often under Gaussian noise, with a certified l2 radius (Cohen et al. 2019)."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from scipy.special import betaincinv
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bench.errors import BadInput
from bench.questions.registry import build_inner, defence
from carso.model import split_batch

Answer = Callable[[Tensor], Tensor]

HUGE = 1e30  # stands for an infinite logit, whose softmax would be NaN


class Smoothing(nn.Module):
    """The majority vote of `inner` over `samples` copies of an image under N(0, sigma^2), or an abstention where the vote is not clear.

    Images (B,C,H,W) in [0,1] to logits (B,K); the noisy copies are not clipped. A logit is the logarithm of (votes + mean probability) /
    (samples + 1), so that the largest is the class with most votes, and the mean probability decides among equals. It abstains where the
    two-sided binomial test cannot tell the first class from the second at level `alpha`: the whole row is then its own mean, and `bench`
    counts a row of equal logits as wrong, whatever the label is. Memory is that of `chunk` noisy images, with a gradient too.

    The gradient is the true one: votes have none, the mean probability has. The surrogate `soft` is the logarithm of the mean probability
    alone, which no abstention flattens; where `inner` has surrogates of its own, `soft+lse` and so on average those.
    """

    def __init__(
        self,
        inner: nn.Module,
        *,
        sigma: float,
        samples: int,
        alpha: float,
        n0: int,
        n: int,
        chunk: int,
    ) -> None:
        super().__init__()
        self.inner = inner
        self.base: nn.Module = getattr(inner, "base", inner)
        self.sigma, self.samples, self.alpha, self.n0, self.n, self.chunk = (
            sigma,
            samples,
            alpha,
            n0,
            n,
            chunk,
        )
        self.certificate = {"alpha": alpha, "n": n, "n0": n0, "sigma": sigma}
        self.clear: Tensor
        self.register_buffer("clear", clear_majority(samples, alpha), persistent=False)
        behind: dict[str, Answer] = {
            "": inner,
            **{f"+{name}": answer for name, answer in getattr(inner, "surrogates", {}).items()},
        }
        self.surrogates = {
            f"soft{name}": partial(self.soft, answer) for name, answer in behind.items()
        }

    def forward(self, x: Tensor) -> Tensor:
        votes, log_mean = self.tally(self.inner, x, self.samples)
        logits = torch.logaddexp(votes.to(log_mean).log(), log_mean) - math.log1p(self.samples)
        first, second = votes.topk(2, 1).values.unbind(1)
        unclear = first < self.clear[first + second]
        return torch.where(unclear[:, None], logits.mean(1, keepdim=True), logits)

    def soft(self, answer: Answer, x: Tensor) -> Tensor:
        """The logarithm of the mean probability of each class (B,K) over fresh noise. Salman et al. (2019), arXiv 1906.04584."""
        return self.tally(answer, x, self.samples)[1]

    @torch.no_grad()
    def certify(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The smoothed class of each image (B,), and a radius (B,) in l2 within which it is the same with probability 1 - alpha.

        `n0` noisy copies choose the class, `n` others bound its probability from below (Clopper and Pearson 1934); -1 and radius 0 where
        that bound is not above one half.
        """
        label = self.tally(self.inner, x, self.n0)[0].argmax(1)
        count = self.tally(self.inner, x, self.n)[0].gather(1, label[:, None])[:, 0]
        radius = self.sigma * torch.special.ndtri(lower_limit(count, self.n, self.alpha))
        certain = radius > 0
        return torch.where(certain, label, -1), torch.where(certain, radius, 0)

    def tally(self, answer: Answer, x: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """How many of `n` noisy copies `answer` gives to each class (B,K), and the logarithm of its mean probability (B,K); a NaN is no vote."""
        parts = [self.tally_block(answer, block, n) for block in x.split(self.chunk)]
        return torch.cat([votes for votes, _ in parts]), torch.cat(
            [log_sum for _, log_sum in parts]
        ) - math.log(n)

    def tally_block(self, answer: Answer, x: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """Votes (B,K) and log-sum of probabilities (B,K) for at most `chunk` images."""
        at_once = max(self.chunk // max(len(x), 1), 1)
        # Recomputed on the way back where there are several chunks: kept, the activations would grow with n.
        lean = n > at_once and x.requires_grad and torch.is_grad_enabled()
        sizes = [min(at_once, n - done) for done in range(0, n, at_once)]
        look = partial(checkpoint, self.look, use_reentrant=False) if lean else self.look
        votes, log_sum = look(answer, x, sizes[0])
        for size in sizes[1:]:
            more, mass = look(answer, x, size)
            votes, log_sum = votes + more, torch.logaddexp(log_sum, mass)
        return votes, log_sum

    def look(self, answer: Answer, x: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Votes and log-sum of probabilities over `size` noisy copies of each image, whose noise is drawn in one batch."""
        noise = torch.randn(len(x), size, *x.shape[1:], device=x.device, dtype=x.dtype)
        logits = torch.cat(
            [answer(part) for part in split_batch((x[:, None] + self.sigma * noise).flatten(0, 1))]
        ).unflatten(0, (len(x), size))
        named = nn.functional.one_hot(logits.argmax(-1), logits.shape[-1])
        votes = named.masked_fill(logits.isnan().any(-1, keepdim=True), 0).sum(1)
        return votes, logits.clamp(-HUGE, HUGE).log_softmax(-1).logsumexp(1)


def clear_majority(samples: int, alpha: float) -> Tensor:
    """By the votes for the two first classes together, 0 to `samples`, how many the first needs for a two-sided p-value of at most `alpha`."""
    together = torch.arange(samples + 1)
    from scipy.stats import binom  # slow to import

    return torch.as_tensor(binom.isf(alpha / 2, together.numpy(), 0.5)).long() + 1


def lower_limit(count: Tensor, n: int, alpha: float) -> Tensor:
    """The one-sided lower limit at confidence 1 - alpha, float64, of shares of which `count` in `n` were seen. Clopper and Pearson (1934)."""
    k = count.cpu().double().numpy()
    return torch.as_tensor(betaincinv(k.clip(1), n - k + 1, alpha) * (k > 0)).to(count.device)


@defence("smoothing", stochastic=True, opt_in=True)
def smoothing(
    *,
    classifier: str = "@standard",
    inner: str = "",
    sigma: float = 0.12,
    samples: int = 100,
    alpha: float = 0.001,
    n0: int = 100,
    n: int = 1000,
    chunk: int = 500,
) -> nn.Module:
    """Answer with the majority vote of the classifier under Gaussian noise, abstain where it is not clear, and certify an l2 radius.

    `sigma` is in pixel units of [0,1]; `samples` votes make a prediction, `n0` and `n` a certificate; `chunk` noisy images go at once.
    What it certifies is little unless the classifier was trained on such noise. Attack it with pgd-eot on its own gradient, or on
    `soft`, the mean probability under noise. Cohen, Rosenfeld and Kolter (2019), arXiv 1902.02918.
    """
    if not (sigma > 0 and math.isfinite(sigma)):
        raise BadInput(f"defence 'smoothing': sigma={sigma} is not above 0")
    if not 0 < alpha < 1:
        raise BadInput(f"defence 'smoothing': alpha={alpha} is not between 0 and 1")
    # So many equal votes are needed for an answer (two-sided) and for a radius above 0 (one-sided).
    needs = {
        "samples": math.ceil(1 + math.log2(1 / alpha)),
        "n": math.floor(math.log2(1 / alpha)) + 1,
        "n0": 1,
        "chunk": 1,
    }
    for (knob, least), value in zip(needs.items(), (samples, n, n0, chunk), strict=True):
        if value < least:
            raise BadInput(
                f"defence 'smoothing': {knob}={value} is too small at alpha={alpha}; the least is {least}"
            )
    return Smoothing(
        build_inner(classifier, inner),
        sigma=sigma,
        samples=samples,
        alpha=alpha,
        n0=n0,
        n=n,
        chunk=chunk,
    )
