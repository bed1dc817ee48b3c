"""Total variation minimisation: closed forms, another solver, duality, and the mask."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from baselines.total_variation import TotalVariation, adjoint, differences
from bench.data.sample import load
from bench.questions.spec import Spec


def rough(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0)).double()


def energy(z: Tensor, x: Tensor, kept: Tensor, weight: float) -> Tensor:
    """What is minimised, (B,), written out for itself."""
    total = (kept * (z - x) ** 2 / 2).sum((1, 2, 3))
    down, right = torch.zeros_like(z), torch.zeros_like(z)
    down[:, :, :-1] = z[:, :, 1:] - z[:, :, :-1]
    right[..., :-1] = z[..., 1:] - z[..., :-1]
    return total + weight * (down**2 + right**2).sqrt().sum((1, 2, 3))


def test_the_adjoint_is_the_transpose() -> None:
    z, p = rough(2, 3, 5, 7), 1 - rough(2, 3, 5, 7)
    for side in (2, 3):
        assert torch.allclose((differences(z, side) * p).sum(), (z * adjoint(p, side)).sum())


@pytest.mark.parametrize("turned", [False, True])
def test_a_step_shrinks_on_both_sides_by_weight_over_width(turned: bool) -> None:
    """Left of an edge `wide` columns at .2, right of it others at .8.

    Each mean moves by weight / columns towards the other.
    """
    wide, weight = 3, 0.3
    x = torch.full((1, 1, 6, 8), 0.8).double()
    x[..., :wide] = 0.2
    expected = (
        torch.where(torch.arange(8) < wide, 0.2 + weight / wide, 0.8 - weight / (8 - wide))
        .double()
        .expand(6, 8)
    )
    if turned:
        x, expected = x.transpose(2, 3), expected.T
    minimum = TotalVariation(weight, 3000, 1)(x)[0, 0]
    assert (minimum - expected).abs().max() < 1e-3


def test_much_weight_leaves_the_mean_of_what_is_kept() -> None:
    x = rough(3, 2, 6, 6)
    kept = (rough(3, 1, 6, 6) < 0.6).double()
    minimum = TotalVariation(10, 3000, 0.5).minimise(x, kept)
    expected = (x * kept).sum((2, 3)) / kept.sum((2, 3))
    assert (minimum - expected[..., None, None]).abs().max() < 1e-3


@pytest.mark.parametrize("keep", [1.0, 0.6])
def test_no_image_has_less_of_what_is_minimised(keep: float) -> None:
    """SciPy's quasi-Newton method minimises the same sum, with slightly rounded corners."""
    x, weight = rough(1, 1, 6, 6), 0.1
    kept = (rough(1, 1, 6, 6).flip(2) < keep).double()
    ours = energy(TotalVariation(weight, 2000, keep).minimise(x, kept), x, kept, weight).item()

    def smooth(values: np.ndarray) -> tuple[float, np.ndarray]:
        z = torch.from_numpy(values.reshape(1, 1, 6, 6)).requires_grad_()
        lengths = (differences(z, 2) ** 2 + differences(z, 3) ** 2 + 1e-8).sqrt().sum()
        value = (kept * (z - x) ** 2 / 2).sum() + weight * lengths
        return value.item(), torch.autograd.grad(value, z)[0].numpy().ravel()

    best = minimize(
        smooth,
        np.full(36, 0.5),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": 20000, "maxfun": 40000, "ftol": 1e-14},
    )
    assert (
        ours <= energy(torch.from_numpy(best.x.reshape(1, 1, 6, 6)), x, kept, weight).item() + 1e-5
    )
    assert ours >= best.fun - weight * 36 * 1e-4 - 1e-5  # the rounding adds at most 1e-4 a pixel
    assert ours < energy(x, x, kept, weight).item() * 0.9


@pytest.mark.parametrize(
    ("keep", "weight", "gap"),
    [(1.0, 0.03, 0.005), (0.9, 0.03, 0.02), (1.0, 0.1, 0.005), (0.9, 0.1, 0.02)],
)
def test_the_steps_that_are_the_default_come_near_the_minimum(
    keep: float, weight: float, gap: float
) -> None:
    x = load(Spec.parse("digits[n=50]")).x.double()
    torch.manual_seed(0)
    kept = (torch.rand_like(x[:, :1]) < keep).double()
    near, least = (
        energy(TotalVariation(weight, steps, keep).minimise(x, kept), x, kept, weight)
        for steps in (40, 3000)
    )
    start = energy(TotalVariation(weight, 1, keep).minimise(x, kept), x, kept, weight)
    assert (near / least - 1).max() < gap
    assert (near - least).sum() < 0.03 * (start - least).sum()


def test_nothing_of_a_dropped_pixel_comes_through_and_all_channels_drop_it() -> None:
    x = rough(4, 3, 8, 8)
    other = x + 0.5
    model = TotalVariation(0.05, 30, 0.5)
    kept = (rough(4, 1, 8, 8) < 0.5).double()
    assert torch.equal(
        model.minimise(torch.where(kept > 0, x, other), kept), model.minimise(x, kept)
    )
    x.requires_grad_()
    torch.manual_seed(0)
    slope = torch.autograd.grad(model(x).pow(2).sum(), x)[0]
    seen = slope != 0
    assert (seen.all(1) == seen.any(1)).all()
    assert 0.3 < seen.double().mean() < 0.7


def test_masks_are_fresh_as_dense_as_said_and_empty_ones_harmless() -> None:
    torch.manual_seed(0)
    x = rough(1, 1, 16, 16).expand(200, -1, -1, -1).clone().requires_grad_()
    once = TotalVariation(0.05, 3, 0.7)(x)
    assert len(once.detach().flatten(1).unique(dim=0)) == 200
    seen = torch.autograd.grad(once.pow(2).sum(), x)[0] != 0
    assert abs(seen.double().mean() - 0.7) < 0.02
    nothing = TotalVariation(0.05, 3, 0.5).minimise(
        rough(1, 1, 4, 4), torch.zeros(1, 1, 4, 4).double()
    )
    assert torch.equal(nothing, torch.zeros_like(nothing))


def test_the_gradient_is_that_of_the_steps() -> None:
    x = rough(1, 1, 4, 4).requires_grad_()
    assert torch.autograd.gradcheck(TotalVariation(0.05, 10, 1), x)
    flat = torch.full(
        (1, 1, 6, 6), 0.5
    ).requires_grad_()  # no difference anywhere: where a length would have no gradient
    assert torch.autograd.grad(TotalVariation(0.05, 10, 1)(flat).sum(), flat)[0].isfinite().all()
