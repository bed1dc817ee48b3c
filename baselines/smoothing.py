"""Randomized smoothing: the class that a classifier names most often under noise.

It has a certified l2 radius (Cohen et al. 2019).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from baselines.transform import Answer, inner_surrogates
from bench.errors import BadInput
from bench.questions.registry import build_inner, defence
from carso.model import split_batch

HUGE = 1e30  # stands for an infinite logit, whose softmax would be NaN


@dataclass(frozen=True, slots=True)
class Options:
    """How many noisy copies of an image vote, and how sure a vote must be.

    `sigma` is the standard deviation of the noise, in pixel units of [0,1]. `samples` copies make
    a prediction, `n0` and `n` a certificate. `alpha` is the level of the tests. `chunk` noisy
    images go at once.
    """

    sigma: float
    samples: int
    alpha: float
    n0: int
    n: int
    chunk: int

    def check(self) -> None:
        """BadInput for a value out of its range."""
        if not (self.sigma > 0 and math.isfinite(self.sigma)):
            raise BadInput(f"defence 'smoothing': sigma={self.sigma} is not above 0")
        if not 0 < self.alpha < 1:
            raise BadInput(f"defence 'smoothing': alpha={self.alpha} is not between 0 and 1")
        # So many equal votes are needed for an answer (two-sided), and for a radius above 0
        # (one-sided).
        self._check_at_least("samples", math.ceil(1 + math.log2(1 / self.alpha)))
        self._check_at_least("n", math.floor(math.log2(1 / self.alpha)) + 1)
        self._check_at_least("n0", 1)
        self._check_at_least("chunk", 1)

    def _check_at_least(self, knob: str, least: int) -> None:
        value = getattr(self, knob)
        if value < least:
            raise BadInput(
                f"defence 'smoothing': {knob}={value} is too small at alpha={self.alpha}; "
                f"the least is {least}"
            )


class Smoothing(nn.Module):
    """The majority vote of `inner` over noisy copies of an image, or an abstention.

    Images (B,C,H,W) in [0,1] to logits (B,K). There are `samples` copies under N(0, sigma^2), which
    are not clipped. A logit is the logarithm of (votes + mean probability) / (samples + 1). So the
    largest is the class with most votes, and the mean probability decides among equals. It abstains
    where the two-sided binomial test cannot tell the first class from the second at level `alpha`.
    Each logit of the row is then the row's mean. `bench` counts a row of equal logits as wrong,
    whatever the label is. Memory is that of `chunk` noisy images, with a gradient too.

    The gradient is the true one: votes have none, the mean probability has. The surrogate `soft` is
    the logarithm of the mean probability alone, which no abstention flattens. Where `inner` has
    surrogates of its own, `soft+lse` and so on average those.
    """

    def __init__(self, inner: nn.Module, options: Options) -> None:
        super().__init__()
        self.inner = inner
        self.base: nn.Module = getattr(inner, "base", inner)
        self.options = options
        self.certificate = {
            "alpha": options.alpha,
            "n": options.n,
            "n0": options.n0,
            "sigma": options.sigma,
        }
        self.clear: Tensor
        clear = clear_majority(options.samples, options.alpha)
        self.register_buffer("clear", clear, persistent=False)
        answers: dict[str, Answer] = {"": inner, **inner_surrogates(inner)}
        self.surrogates = {
            f"soft{name}": partial(self.soft, answer) for name, answer in answers.items()
        }

    def forward(self, x: Tensor) -> Tensor:
        samples = self.options.samples
        votes, log_mean = self.tally(self.inner, x, samples)
        logits = torch.logaddexp(votes.to(log_mean).log(), log_mean) - math.log1p(samples)
        first, second = votes.topk(2, 1).values.unbind(1)
        unclear = first < self.clear[first + second]  # (B,)
        return torch.where(unclear[:, None], logits.mean(1, keepdim=True), logits)

    def soft(self, answer: Answer, x: Tensor) -> Tensor:
        """The logarithm of the mean probability of each class (B,K) over fresh noise.

        Salman et al. (2019), arXiv 1906.04584.
        """
        _, log_mean = self.tally(answer, x, self.options.samples)
        return log_mean

    @torch.no_grad()
    def certify(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The smoothed class of each image (B,), and a radius (B,) in l2.

        Within the radius the class is the same with probability 1 - alpha. `n0` noisy copies choose
        the class, `n` others bound its probability from below (Clopper and Pearson 1934). The
        answer is -1 and radius 0 where that bound is not above one half.
        """
        options = self.options
        votes, _ = self.tally(self.inner, x, options.n0)
        label = votes.argmax(1)
        votes, _ = self.tally(self.inner, x, options.n)
        count = votes.gather(1, label[:, None])[:, 0]
        radius = options.sigma * torch.special.ndtri(lower_limit(count, options.n, options.alpha))
        certain = radius > 0
        return torch.where(certain, label, -1), torch.where(certain, radius, 0)

    def tally(self, answer: Answer, x: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """How many of `n` noisy copies `answer` gives to each class (B,K); a NaN is no vote.

        Beside that, the logarithm of its mean probability (B,K).
        """
        tallies = [self.tally_block(answer, block, n) for block in x.split(self.options.chunk)]
        votes = torch.cat([votes for votes, _ in tallies])
        log_sum = torch.cat([log_sum for _, log_sum in tallies])
        return votes, log_sum - math.log(n)

    def tally_block(self, answer: Answer, x: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """Votes (B,K) and log-sum of probabilities (B,K) for at most `chunk` images."""
        at_once = max(self.options.chunk // max(len(x), 1), 1)
        sizes = [min(at_once, n - done) for done in range(0, n, at_once)]
        count_votes = self.count_votes
        if n > at_once and x.requires_grad and torch.is_grad_enabled():
            # Recomputed on the way back: kept, the activations of the chunks would grow with n.
            count_votes = partial(checkpoint, self.count_votes, use_reentrant=False)
        votes, log_sum = count_votes(answer, x, sizes[0])
        for size in sizes[1:]:
            more_votes, more_log_sum = count_votes(answer, x, size)
            votes = votes + more_votes
            log_sum = torch.logaddexp(log_sum, more_log_sum)
        return votes, log_sum

    def count_votes(self, answer: Answer, x: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Votes (B,K) and log-sum of probabilities (B,K) over `size` noisy copies of each image.

        Their noise is drawn in one batch.
        """
        noise = torch.randn(len(x), size, *x.shape[1:], device=x.device, dtype=x.dtype)
        copies = (x[:, None] + self.options.sigma * noise).flatten(0, 1)  # (B*size,C,H,W)
        logits = torch.cat([answer(batch) for batch in split_batch(copies)])
        logits = logits.unflatten(0, (len(x), size))  # (B,size,K)
        ballots = nn.functional.one_hot(logits.argmax(-1), logits.shape[-1])
        votes = ballots.masked_fill(logits.isnan().any(-1, keepdim=True), 0).sum(1)
        return votes, logits.clamp(-HUGE, HUGE).log_softmax(-1).logsumexp(1)


def clear_majority(samples: int, alpha: float) -> Tensor:
    """How many votes the first class needs, by the votes for the first two classes together.

    The answer (samples+1,) makes the two-sided p-value at most `alpha`.
    """
    from scipy.stats import binom  # slow to import

    together = torch.arange(samples + 1)
    return torch.as_tensor(binom.isf(alpha / 2, together.numpy(), 0.5)).long() + 1


def lower_limit(count: Tensor, n: int, alpha: float) -> Tensor:
    """The one-sided lower limit, float64, of shares of which `count` in `n` were seen.

    Its confidence is 1 - alpha. Clopper and Pearson (1934).
    """
    from scipy.special import betaincinv

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
    """Answer with the majority vote of the classifier under Gaussian noise; certify an l2 radius.

    It abstains where the vote is not clear. `sigma` is in pixel units of [0,1]; `samples` votes
    make a prediction, `n0` and `n` a certificate; `chunk` noisy images go at once. What it
    certifies is little unless the classifier was trained on such noise. Attack it with pgd-eot on
    its own gradient, or on `soft`, the mean probability under noise. Cohen, Rosenfeld and Kolter
    (2019), arXiv 1902.02918.
    """
    options = Options(sigma, samples, alpha, n0, n, chunk)
    options.check()
    return Smoothing(build_inner(classifier, inner), options)
