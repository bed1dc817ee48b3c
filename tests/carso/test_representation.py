"""Taps: copies, in execution order, with or without a graph."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from carso.representation import tap_shapes, taps
from tests.carso.small import IMAGE, classifier, images


def test_taps_are_what_the_layers_computed() -> None:
    f, x = classifier(), images()
    first, second, third = taps(
        f, x, ("fc", "block.conv2", "conv1")
    )  # a set: order of execution, not of the list
    want = f.conv1(x)
    assert torch.equal(first, want)  # though a ReLU then works in place on it
    assert first.min() < 0
    want = f.block.conv2(want.relu())
    assert torch.equal(second, want)
    assert torch.equal(third, f.fc(want.relu().flatten(1)))


def test_hooks_are_removed_also_after_an_error() -> None:
    f = classifier()
    taps(f, images(), ("conv1",))
    with pytest.raises(ValueError, match="does not run"):
        taps(f, images(), ("conv1", "unused"))
    assert not any(module._forward_hooks for module in f.modules())


def test_the_graph_leads_to_the_image() -> None:
    f, x = classifier(), images().requires_grad_()
    (tap,) = taps(f, x, ("block.conv2",))
    (gradient,) = torch.autograd.grad(tap.square().sum(), x)
    (want,) = torch.autograd.grad(f.block.conv2(f.conv1(x).relu()).square().sum(), x)
    torch.testing.assert_close(gradient, want)
    with torch.no_grad():
        assert not taps(f, x, ("conv1",))[0].requires_grad


def test_a_layer_that_runs_twice_is_tapped_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.a(self.a(x))

    assert len(taps(Twice(), torch.ones(2, 3), ("a",))) == 2


def test_shapes() -> None:
    assert tap_shapes(classifier(), IMAGE, ("fc", "conv1", "block.conv2")) == (
        (5, 8, 8),
        (6, 4, 4),
        (7,),
    )
    assert tap_shapes(classifier(), IMAGE, ()) == ()


def test_a_wrong_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"no layer 'block\.conv3'; near it: block\.conv2"):
        taps(classifier(), images(), ("block.conv3",))
