"""The order of the weights on a CPU: another order, the same answers."""

import torch
from torch import Tensor, nn

from bench.data.sample import load
from bench.judging.setup import prepare
from bench.judging.target import to_device_channels_last
from bench.questions.plan import plan
from bench.questions.registry import build_defence
from bench.questions.request import Request
from carso.model import CARSO

CPU = torch.device("cpu")


class Own(nn.Conv2d):
    """A convolution that reads its weights in the order in which they were made, as `view` does."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.weight.view(-1).norm()


def channels_last(weight: Tensor) -> bool:
    return weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()


def test_only_convolutions_of_torch_lie_channels_last() -> None:
    net = to_device_channels_last(
        nn.Sequential(
            nn.Conv2d(3, 4, 3),
            nn.ConvTranspose2d(4, 5, 3),
            Own(5, 6, 3),
            nn.Flatten(),
            nn.Linear(6 * 36, 2),
        ),
        CPU,
    )
    convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    first, second, own = [convolution.weight for convolution in convolutions]
    assert channels_last(first)
    assert channels_last(second)
    assert own.is_contiguous()
    assert net(torch.rand(2, 3, 8, 8)).shape == (2, 2)


def test_on_another_device_no_order_is_changed() -> None:
    net = to_device_channels_last(nn.Conv2d(3, 4, 3), torch.device("meta"))
    assert net.weight.is_meta
    assert net.weight.is_contiguous()


def test_a_prepared_defence_has_the_answers_and_gradients_of_any() -> None:
    cell = plan([Request(defences=("carso[samples=0]",), attacks=("none",), n=8)]).cells[0]
    data = load(cell.dataset)
    prepared = prepare(cell, "cpu", "data").defence.defence
    plain = build_defence(cell.defence)
    weights = [
        m.weight
        for m in prepared.modules()
        if isinstance(m, nn.Conv2d | nn.ConvTranspose2d) and min(m.weight.shape[:2]) > 1
    ]
    assert len(weights) > 4
    assert all(map(channels_last, weights))
    answers = []
    for model in (prepared, plain):
        x = data.x.clone().requires_grad_()
        assert isinstance(model, CARSO)
        logits = model.surrogates["lse"](x)
        (gradient,) = torch.autograd.grad(logits.logsumexp(1).sum(), x)
        answers.append((logits.detach(), gradient))
    torch.testing.assert_close(answers[0], answers[1], rtol=1e-4, atol=1e-5)
