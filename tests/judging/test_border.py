"""Nothing of the harness crosses the border uncopied, and nothing comes back unchecked."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.judging.border import Border, Conduct, UnusableAnswer, place_defence
from bench.judging.containment import Containment
from bench.judging.randomness import random_stream

CPU = torch.device("cpu")
IMAGES = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(3))


class Plain(nn.Module):
    """An honest linear classifier of 4x4 images into three classes."""

    def __init__(self) -> None:
        super().__init__()
        weights = torch.linspace(-1, 1, 48).view(3, 16)
        self.layer = nn.Linear(16, 3)
        self.layer.weight.data = weights
        self.layer.bias.data.zero_()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layer(x.flatten(1))
        return logits


class Behaved(nn.Module):
    """The honest classifier, behind a function that may do anything to its logits."""

    def __init__(self, act: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.net = Plain()
        self.act = act

    def forward(self, x: Tensor) -> Any:
        return self.act(self.net(x), x)


def gradient(model: nn.Module, images: Tensor) -> Tensor:
    x = images.clone().requires_grad_()
    (grad,) = torch.autograd.grad(model(x).logsumexp(1).sum(), x)
    return grad


def test_an_honest_model_answers_the_same_with_the_same_gradient() -> None:
    border = Border(Plain())
    assert torch.equal(border(IMAGES), Plain()(IMAGES))
    assert torch.equal(gradient(border, IMAGES), gradient(Plain(), IMAGES))
    assert border.take_conduct() == Conduct()
    assert not border.edits_images(IMAGES)


def test_images_stay_what_they_were_where_a_model_edits_its_input() -> None:
    def edit(logits: Tensor, x: Tensor) -> Tensor:
        x.sub_(0.5)
        return logits

    border = Border(Behaved(edit))
    before = IMAGES.clone()
    border(IMAGES)
    assert torch.equal(IMAGES, before)
    assert border.edits_images(IMAGES)


def test_a_leaf_that_wants_a_gradient_may_be_edited_in_place() -> None:
    class Normalised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Plain()

        def forward(self, x: Tensor) -> Tensor:
            x.sub_(0.5).div_(0.5)
            logits: Tensor = self.net(x)
            return logits

    grad = gradient(Border(Normalised()), IMAGES)
    x = IMAGES.clone().requires_grad_()
    (right,) = torch.autograd.grad(Plain()((x - 0.5) / 0.5).logsumexp(1).sum(), x)
    assert torch.equal(grad, right)


def test_an_answer_is_not_changed_by_the_next_one() -> None:
    class Buffered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Plain()
            self.kept = torch.zeros(len(IMAGES), 3)

        def forward(self, x: Tensor) -> Tensor:
            self.kept.copy_(self.net(x).detach())
            return self.kept

    border = Border(Buffered())
    first = border(IMAGES)
    kept = first.clone()
    border(1 - IMAGES)
    assert torch.equal(first, kept)


@dataclass
class Output:
    logits: Tensor
    loss: object = None


FORMS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "dataclass": lambda logits, x: Output(logits),
    "mapping": lambda logits, x: OrderedDict(loss=None, logits=logits),
    "tuple": lambda logits, x: (logits, x),
    "float64": lambda logits, x: logits.double(),
    "float16": lambda logits, x: logits.half(),
    "bfloat16": lambda logits, x: logits.bfloat16(),
}


@pytest.mark.parametrize("form", FORMS)
def test_other_forms_of_an_answer_become_float32_logits_with_a_note(form: str) -> None:
    border = Border(Behaved(FORMS[form]))
    logits = border(IMAGES)
    assert logits.dtype == torch.float32
    assert torch.allclose(logits, Plain()(IMAGES), rtol=2e-2, atol=2e-2)
    assert len(border.take_conduct().notes) == 1
    assert gradient(border, IMAGES).abs().sum() > 0


UNUSABLE: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "None": lambda logits, x: None,
    "list": lambda logits, x: [logits],
    "numpy": lambda logits, x: logits.detach().numpy(),
    "labels": lambda logits, x: logits.argmax(1),
    "whole numbers": lambda logits, x: logits.long(),
    "one row too few": lambda logits, x: logits[1:],
    "a mapping without logits": lambda logits, x: {"scores": logits},
    "an empty tuple": lambda logits, x: (),
}


@pytest.mark.parametrize("form", UNUSABLE)
def test_an_answer_without_logits_is_refused_in_one_line(form: str) -> None:
    with pytest.raises(UnusableAnswer) as error:
        Border(Behaved(UNUSABLE[form]))(IMAGES)
    assert "\n" not in str(error.value)


def seed_everything(logits: Tensor, x: Tensor) -> Tensor:
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    return logits


def test_a_model_that_seeds_does_not_move_the_numbers_of_the_attacker() -> None:
    def draw(model: nn.Module) -> list[float]:
        with random_stream(CPU, "attack"):
            numbers = []
            for _ in range(3):
                model(IMAGES)
                gradient(model, IMAGES)
                numbers += [float(torch.rand(())), float(np.random.rand()), random.random()]
            return numbers

    assert draw(Border(Behaved(seed_everything))) == draw(Border(Plain()))


class SeedsInBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        return logits.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        torch.manual_seed(0)
        return grad


def test_a_backward_that_seeds_does_not_move_the_numbers_of_the_attacker() -> None:
    def draw(model: nn.Module) -> list[float]:
        with random_stream(CPU, "attack"):
            numbers = []
            for _ in range(3):
                gradient(model, IMAGES)
                numbers.append(float(torch.rand(())))
            return numbers

    ill = Border(Behaved(lambda logits, x: SeedsInBackward.apply(logits)))
    assert draw(ill) == draw(Border(Plain()))


def test_a_model_draws_the_same_numbers_whatever_the_attacker_draws() -> None:
    model = Border(Behaved(lambda logits, x: logits + torch.randn_like(logits)))

    def answers(attacker_draws: int) -> Tensor:
        with random_stream(CPU, "attack"):
            logits = []
            for _ in range(3):
                torch.rand(attacker_draws)
                logits.append(model(IMAGES))
            return torch.stack(logits)

    assert torch.equal(answers(0), answers(5))
    first, second, _ = answers(0)
    assert not torch.equal(first, second)


def test_a_gradient_that_never_arrives_leaves_the_attacker_its_stream() -> None:
    def detached(logits: Tensor, x: Tensor) -> Tensor:
        return torch.zeros_like(logits, requires_grad=True) + torch.rand(())

    def draw(model: nn.Module) -> float:
        with random_stream(CPU, "attack"):
            x = IMAGES.clone().requires_grad_()
            torch.autograd.grad(model(x).sum(), x, allow_unused=True)
            model(IMAGES)
            return float(torch.rand(()))

    assert draw(Border(Behaved(detached))) == draw(Border(Plain()))


def leave_gradients_off(logits: Tensor, x: Tensor) -> Tensor:
    torch.set_grad_enabled(False)
    return logits


def leave_double(logits: Tensor, x: Tensor) -> Tensor:
    torch.set_default_dtype(torch.float64)
    return logits


def leave_threads(logits: Tensor, x: Tensor) -> Tensor:
    torch.set_num_threads(2)
    return logits


def leave_tf32(logits: Tensor, x: Tensor) -> Tensor:
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    return logits


@pytest.mark.parametrize(
    "act", [leave_gradients_off, leave_double, leave_threads, leave_tf32], ids=lambda f: f.__name__
)
def test_switches_are_put_back_after_a_call_and_noted(
    act: Callable[[Tensor, Tensor], Tensor],
) -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    before = (
        torch.is_grad_enabled(),
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.backends.cuda.matmul.allow_tf32,
        torch.backends.cudnn.allow_tf32,
    )
    border = Border(Behaved(act))
    border(IMAGES)
    after = (
        torch.is_grad_enabled(),
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.backends.cuda.matmul.allow_tf32,
        torch.backends.cudnn.allow_tf32,
    )
    assert after == before
    assert border.take_conduct().switches
    assert not border.take_conduct().switches


def test_switches_are_put_back_where_the_call_raises() -> None:
    def fail(logits: Tensor, x: Tensor) -> Tensor:
        torch.set_default_dtype(torch.float64)
        raise KeyError("mine")

    with pytest.raises(KeyError):
        Border(Behaved(fail))(IMAGES)
    assert torch.get_default_dtype() == torch.float32


def test_parts_are_behind_the_border_too() -> None:
    class Composite(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.base = Plain()
            self.surrogates = {"smooth": self.edit}

        def purify(self, x: Tensor) -> Tensor:
            return x.mul_(0.5)

        def edit(self, x: Tensor) -> Tensor:
            x.zero_()
            torch.manual_seed(0)
            logits: Tensor = self.base(x).double()
            return logits

    border = Border(Composite())
    before = IMAGES.clone()
    assert torch.equal(border.purify(IMAGES), IMAGES * 0.5)
    assert border.surrogates["smooth"](IMAGES).dtype == torch.float32
    assert torch.equal(border.base(IMAGES), Plain()(IMAGES))
    assert torch.equal(IMAGES, before)
    assert not hasattr(border, "decode")


def patch_clamp(folder: Path) -> None:
    torch.clamp = lambda x, *rest: x


def patch_method(folder: Path) -> None:
    torch.Tensor.sign = lambda self: self


def patch_layer(folder: Path) -> None:
    nn.Linear.forward = lambda self, x: x


def patch_harness(folder: Path) -> None:
    import bench.judging.norms

    bench.judging.norms.to_ball = lambda images, x, norm, eps: images


def add_a_global_hook(folder: Path) -> None:
    nn.modules.module.register_module_forward_hook(lambda module, x, out: out)


def change_environment(folder: Path) -> None:
    os.environ["OMP_NUM_THREADS"] = "7"


def change_folder(folder: Path) -> None:
    os.chdir(folder)


def set_device(folder: Path) -> None:
    torch.set_default_device("meta")


ILL_MANNERED = [
    patch_clamp,
    patch_method,
    patch_layer,
    patch_harness,
    add_a_global_hook,
    change_environment,
    change_folder,
    set_device,
]


@pytest.mark.parametrize("act", ILL_MANNERED, ids=lambda f: f.__name__)
def test_what_a_row_changes_in_the_process_is_put_back_and_named(
    act: Callable[[Path], None], tmp_path: Path
) -> None:
    import bench.judging.norms

    def look() -> tuple[object, ...]:
        return (
            torch.clamp,
            torch.Tensor.sign,
            nn.Linear.forward,
            bench.judging.norms.to_ball,
            dict(nn.modules.module._global_forward_hooks),
            dict(os.environ),
            Path.cwd(),
            torch.get_default_device(),
        )

    before = look()
    with Containment() as row:
        act(tmp_path)
        assert look() != before
    assert look() == before
    assert len(row.conduct.switches) + len(row.conduct.patches) == 1


def test_a_quiet_row_changes_nothing() -> None:
    with Containment() as row:
        F.linear(IMAGES.flatten(1), torch.ones(2, 16))
    assert row.conduct == Conduct()


class Views(nn.Module):
    """The network of many tutorials: `view` after a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.conv = nn.Conv2d(4, 8, 3, padding=1)
        self.layer = nn.Linear(8 * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        features = self.conv(self.first(x))
        logits: Tensor = self.layer(features.view(len(x), -1))
        return logits


def test_a_view_after_a_convolution_runs_as_in_plain_torch() -> None:
    model = Views()
    logits = model(IMAGES)
    border = place_defence(model, IMAGES)
    assert torch.equal(border(IMAGES), logits)
    assert "memory layout" in border.take_conduct().notes[0]


def test_a_model_that_fails_in_any_layout_keeps_its_own_error() -> None:
    border = place_defence(Views(), torch.rand(2, 3, 4, 4))
    with pytest.raises(RuntimeError, match="channels"):
        border(torch.rand(2, 3, 4, 4))


def test_what_torch_imports_when_it_is_needed_is_no_patch() -> None:
    """Torch's compiler wraps `torch.manual_seed` and sets a variable, once in a process."""
    code = (
        "from bench.judging.containment import Containment\n"
        "with Containment() as row:\n"
        "    import torch._dynamo\n"
        "print(row.conduct.switches, row.conduct.patches)\n"
    )
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout == "() ()\n"
