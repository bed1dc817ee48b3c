"""The angles between gradients, against gradients that are known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from bench.judging.target import margin
from carso import CARSO
from carso.analysis.gradients import cancelling, cosine, gradients_by_layer, main, margin_gradient
from tests.carso.small import classifier, purifier


class Linear(nn.Module):
    """Two classes apart by w, with as much noise on the slope of each draw as is asked for."""

    def __init__(self, w: Tensor, noise: float = 0.0) -> None:
        super().__init__()
        self.w = w
        self.noise = noise

    def forward(self, x: Tensor) -> Tensor:
        gap = (x * (self.w + self.noise * torch.randn_like(x))).flatten(1).sum(1)
        return torch.stack([gap, -gap], 1)


def test_the_slope_of_a_linear_model_is_its_weight_and_noise_averages_out() -> None:
    torch.manual_seed(0)
    w, x, y = torch.randn(1, 4, 4), torch.rand(5, 1, 4, 4), torch.zeros(5, dtype=torch.long)
    assert torch.allclose(margin_gradient(Linear(w), x, y, 1), -2 * w.expand_as(x))
    first, second = (margin_gradient(Linear(w, 1.0), x, y, 400) for _ in range(2))
    assert cosine(first, -w.expand_as(x)).min() > 0.98
    corrected = cosine(first, -w.expand_as(x)) / cosine(first, second).sqrt()
    assert (corrected - 1).abs().max() < 0.05


def test_the_slopes_through_the_layers_add_up_to_the_whole() -> None:
    torch.manual_seed(0)
    model = CARSO(classifier(), purifier(), samples=2).double()
    x, y = torch.rand(3, *model.purifier.layout.image, dtype=torch.double), torch.tensor([0, 1, 2])
    torch.manual_seed(1)
    ways = gradients_by_layer(model, x, y, 2)
    assert len(ways) == len(model.purifier.layers) >= 2
    torch.manual_seed(1)
    seen = x.clone().requires_grad_()
    whole = margin(model.draws(seen, 2), y[:, None].expand(-1, 2)).mean(1).sum()
    assert torch.allclose(sum(ways), torch.autograd.grad(whole, seen)[0], rtol=1e-6, atol=1e-12)


def test_ways_that_are_opposite_cancel_and_ways_that_agree_do_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    g = torch.randn(2, 1, 3, 3)
    for ways, expected in (
        ([g, g], 0.0),
        ([g, -g], 1.0),
        ([g, torch.zeros_like(g)], 0.0),
        ([3 * g, -g], 0.5),
    ):
        monkeypatch.setattr(
            "carso.analysis.gradients.gradients_by_layer", lambda *_, ways=ways: ways
        )
        assert torch.allclose(
            cancelling(CARSO.__new__(CARSO), g, g, 1), torch.full((2,), expected), atol=1e-6
        )


def test_the_command_prints_one_row_per_defence_and_the_classifier_agrees_with_itself(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--n", "20", "--draws", "2", "--defences", "at,carso,vae"]) == 0
    head, _, at, method, vae, *_ = capsys.readouterr().out.splitlines()
    assert head.split(" | ")[1:4] == ["to the classifier", "to itself", "corrected"]
    assert at.split(" | ")[:4] == ["| at", "1.00", "1.00", "1.00"]
    assert method.startswith("| carso | ")
    assert 0 < float(method.split(" | ")[4].rstrip(" |")) < 1
    assert vae.split(" | ")[4].strip(" |") == ""


def test_wrong_words_are_one_line_and_code_two(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--draws", "0"]) == 2
    assert capsys.readouterr().err == "gradients: --draws 0 is too small; the least is 1\n"
    assert main(["--defences", "carsso"]) == 2
    assert "did you mean 'carso'" in capsys.readouterr().err
