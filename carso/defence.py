"""CARSO as a defence of the bench. The only module of the method, beside its training command, that knows the bench."""

from __future__ import annotations

from torch import nn

from bench.registry import build_classifier, defence
from bench.spec import BadInput
from bench.weights import locate, pin
from carso.checkpoint import check, load
from carso.model import CARSO


def build(make: type[CARSO], kind: str, classifier: str, weights: str, samples: int, aggregation: str) -> CARSO:
    """The classifier and the purifier that the two texts name, wrapped; BadInput where they do not belong together."""
    pin(weights)
    base = build_classifier(classifier)
    try:
        loaded, card = load(locate(weights))
        if card["kind"] != kind:
            raise ValueError(f"it is a purifier of the kind '{card['kind']}', not '{kind}'")
        check(card, base)
        return make(base, loaded, samples, aggregation)
    except ValueError as error:
        raise BadInput(f"{kind}[classifier={classifier},weights={weights}]: {error}") from None


@defence("carso", stochastic=lambda knobs: int(knobs["samples"]) > 0)
def carso(*, classifier: str = "@robust", weights: str = "@carso", samples: int = 8, aggregation: str = "peel") -> nn.Module:
    """Reconstruct the image from the classifier's representation of it, `samples` times, and classify the reconstructions.

    `weights`, the purifier, is own:NAME or file:PATH, trained around this very `classifier`; 0 samples: one reconstruction from z=0, deterministic;
    `aggregation`: peel, logit, prob, count, vote, lse, peel-naive. arXiv 2306.06081.
    """
    return build(CARSO, "carso", classifier, weights, samples, aggregation)
