"""Diffusion purification keeps little for its gradient, and recomputes what it computed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import baselines.diffpure
from bench.data.sample import load
from bench.judging.randomness import random_stream
from bench.judging.target import predict_draws
from bench.questions.spec import Spec
from tests.baselines.test_diffpure import CPU, build_diffpure


@pytest.fixture(scope="module")
def x() -> Tensor:
    return load(Spec.of("digits", {"n": 6})).x


def call_plainly(look: Callable[..., Tensor], *given: object, use_reentrant: bool) -> Tensor:
    return look(*given)


@pytest.mark.parametrize("way", ["forward", "coarse", "draws"])
def test_the_recomputed_gradient_is_the_plain_one(
    x: Tensor, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    defence = build_diffpure(samples=2)
    monkeypatch.setattr(
        baselines.diffpure, "PIXELS_PER_BATCH", {"cpu": 5 * 64}
    )  # several parts, whose classifier is recomputed too
    answer = {
        "forward": defence,
        "coarse": defence.surrogates["coarse"],
        "draws": lambda images: defence.draws(images, 3),
    }[way]

    def slope() -> Tensor:
        point = x.clone().requires_grad_()
        with random_stream(CPU, 0):
            logits = answer(point)
        torch.manual_seed(1)  # whatever is drawn between the two passes
        return torch.autograd.grad(logits.square().sum(), point)[0]

    lean = slope()
    monkeypatch.setattr(baselines.diffpure, "recompute", call_plainly)
    assert lean.abs().max() > 0
    assert torch.allclose(lean, slope(), atol=1e-6)


def count_kept_values(run: Callable[[Tensor], Tensor], x: Tensor) -> int:
    """How many numbers autograd keeps for the way back."""
    sizes: list[int] = []

    def pack(saved: Tensor) -> Tensor:
        sizes.append(saved.numel())
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        run(x.clone().requires_grad_())
    return sum(sizes)


def test_memory_is_flat_in_the_steps_and_in_the_draws(
    x: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baselines.diffpure, "PIXELS_PER_BATCH", {"cpu": 6 * 64})
    few, many = build_diffpure(t=1.0, steps=2), build_diffpure(t=1.0, steps=10)

    def by_steps() -> int:
        return count_kept_values(many, x) - count_kept_values(few, x)

    def by_draws() -> int:
        return count_kept_values(lambda images: few.draws(images, 8), x) - count_kept_values(
            lambda images: few.draws(images, 2), x
        )

    lean = by_steps(), by_draws()
    monkeypatch.setattr(baselines.diffpure, "recompute", call_plainly)
    assert lean[0] < 0.01 * by_steps()
    assert lean[1] < 0.05 * by_draws()


def test_batches_are_bounded_and_draws_are_shared_out_rightly(
    x: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    defence = build_diffpure(samples=2)
    sizes: list[int] = []
    defence.unet.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    monkeypatch.setattr(baselines.diffpure, "PIXELS_PER_BATCH", {"cpu": 10 * 64})
    with random_stream(CPU, 0), torch.no_grad():
        answers = predict_draws(defence, x, 7)
    assert answers.shape == (6, 7, 10)
    assert max(sizes) <= 10
    assert sum(sizes) == 6 * 7 * 2 * len(defence.steps)
    monkeypatch.setattr(defence, "purify", lambda images: images)
    assert torch.allclose(
        predict_draws(defence, x, 3), defence.base(x)[:, None].expand(-1, 3, -1), atol=1e-5
    )
