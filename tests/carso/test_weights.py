"""The committed purifiers: what their cards promise holds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bench.data.sample import load
from bench.questions.registry import build_classifier, defences
from bench.questions.spec import Spec
from bench.weights import folders
from carso import checkpoint
from carso.model import CARSO

CARDS = sorted(
    path
    for folder in folders()
    for path in folder.glob("*.json")
    if json.loads(path.read_text()).get("arch") == "carso.Purifier"
)


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.stem)
def test_every_card_is_true(path: Path) -> None:
    weights = path.with_suffix(".safetensors")
    purifier, card = checkpoint.load_purifier(weights)
    checkpoint.check_classifier(card, build_classifier(card["classifier"]))
    assert card["parameters"] == sum(p.numel() for p in purifier.parameters())
    assert weights.stat().st_size < 10e6
    for key in (
        "data",
        "recipe",
        "seed",
        "command",
        "commit",
        "device",
        "torch",
        "final_loss",
        "validation",
        "licence",
    ):
        assert card[key] is not None, key


@pytest.fixture(scope="module")
def digits() -> CARSO:
    knobs = {"classifier": "own:digits-at", "weights": "own:digits-carso"}
    defence: CARSO = defences.get("carso").make(**knobs)
    return defence


def test_clean_accuracy_on_digits(digits: CARSO) -> None:
    data = load(Spec("digits"))
    torch.manual_seed(0)
    with torch.no_grad():
        right = (digits.draws(data.x, 4).argmax(2) == data.y[:, None]).float().mean()
    assert right > 0.97


def test_margin_gradients_on_digits(digits: CARSO) -> None:
    """Of every image it is finite and not zero; the authors' form is not finite on most of them."""
    data = load(Spec("digits", (("n", 100),)))
    torch.manual_seed(0)
    x = data.x.clone().requires_grad_()
    logits = digits(x)
    wrong = logits.scatter(1, data.y[:, None], -torch.inf).amax(1)
    (gradient,) = torch.autograd.grad((wrong - logits.gather(1, data.y[:, None])[:, 0]).sum(), x)
    assert gradient.isfinite().all()
    assert (gradient.flatten(1).abs().amax(1) > 0).all()
    naive = CARSO(digits.base, digits.purifier, aggregation="peel-naive")
    assert (~naive(data.x).isfinite()).any(1).float().mean() > 0.5
