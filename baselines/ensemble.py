"""Several classifiers that vote with all of their logits, and the means that they can take."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from bench.errors import BadInput, did_you_mean
from bench.questions.pins import unpinned
from bench.questions.registry import build_classifier, defence

Mean = Callable[[Tensor], Tensor]


def mean_logit(logits: Tensor) -> Tensor:
    """Mean of logits (B,n,K) over n."""
    return logits.mean(1)


def mean_prob(logits: Tensor) -> Tensor:
    """Logarithm of the mean over n of the probabilities of logits (B,n,K).

    It is computed in logarithms throughout: no probability rounds to 0 or 1.
    """
    return logits.log_softmax(2).logsumexp(1) - math.log(logits.shape[1])


MEANS: dict[str, Mean] = {"logit": mean_logit, "prob": mean_prob}


def find_mean(owner: str, name: str) -> Mean:
    """The mean of that name; BadInput, which names the defence `owner`, where there is none."""
    if name not in MEANS:
        raise BadInput(f"defence '{owner}': mean='{name}' is unknown{did_you_mean(name, MEANS)}")
    return MEANS[name]


class Ensemble(nn.Module):
    """The mean over `members`, classifiers of the same classes, each run once.

    Images (B,C,H,W) in [0,1] to logits (B,K). The first member is the `base`. The gradient is the
    true one. BadInput where the members' numbers of classes differ, or there are fewer than two
    members.
    """

    def __init__(self, members: Sequence[nn.Module], mean: str) -> None:
        super().__init__()
        if len(members) < 2:
            raise BadInput(
                f"defence 'ensemble': {len(members)} classifier is no ensemble; "
                "join two or more by '+'"
            )
        self.members = nn.ModuleList(members)
        self.base = members[0]
        self.mean = find_mean("ensemble", mean)
        # The mean logit does not saturate; the mean probability of certain members does.
        self.surrogates = {} if mean == "logit" else {"mean-logit": self.mean_logit}

    def per_draw(self, x: Tensor) -> Tensor:
        """The logits (B,members,K) of every member."""
        answers = [member(x) for member in self.members]
        counts = [answer.shape[1] for answer in answers]
        if len(set(counts)) > 1:
            raise BadInput(
                f"defence 'ensemble': the classifiers know {', '.join(map(str, counts))} classes; "
                "join those of one dataset"
            )
        return torch.stack(answers, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.mean(self.per_draw(x))

    def draws(self, x: Tensor, k: int) -> Tensor:
        """`k` predictions (B,k,K), all the same: each member is run once."""
        logits: Tensor = self(x)
        return logits[:, None].expand(-1, k, -1)

    def mean_logit(self, x: Tensor) -> Tensor:
        """The ensemble with the mean of the logits in place of that of the probabilities."""
        return mean_logit(self.per_draw(x))


def members_of(classifiers: str) -> list[nn.Module]:
    """The classifiers of a text such as `own:a+own:b`; BadInput where one is named twice."""
    names = classifiers.split("+")
    for name in names:
        if sum(unpinned(other) == unpinned(name) for other in names) > 1:
            raise BadInput(
                f"defence 'ensemble': classifiers='{classifiers}' names {unpinned(name)} twice; "
                "name each once"
            )
    return [build_classifier(name) for name in names]


@defence("ensemble", no_inner="it joins bare classifiers, which its knob 'classifiers' names")
def ensemble(*, classifiers: str = "@robust+@other", mean: str = "logit") -> nn.Module:
    """Classify by the mean over several classifiers: of their logits, or of their probabilities.

    `classifiers` are joined by `+`. The mean `prob` answers with the logarithm of the mean
    probability. Attack it with PGD on the whole ensemble, whose gradient is the true one, and with
    transfer from each member. For `prob`, attack its surrogate `mean-logit` too, which does not
    saturate. Weak members make no strong ensemble: He, Wei, Chen, Carlini and Song (2017),
    arXiv 1706.04701.
    """
    return Ensemble(members_of(classifiers), mean)
