"""Plug-ins that do to the process what a plug-in should not. Their answers are otherwise honest."""

from __future__ import annotations

import gc
import os
import random
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench.questions.registry import attack, build_classifier, classifier, defence

Act = Callable[["Acting", Tensor], None]


class Acting(nn.Module):
    """A classifier that acts before it answers, on the images (B,C,H,W) that it was given."""

    def __init__(self, net: nn.Module, act: Act) -> None:
        super().__init__()
        self.net = net
        self.act = act
        self.kept: list[Tensor] = []
        self.generator = torch.Generator().manual_seed(1)

    def forward(self, x: Tensor) -> Tensor:
        self.act(self, x)
        logits: Tensor = self.net(x)
        return logits


def edit_images(model: Acting, x: Tensor) -> None:
    with torch.no_grad():
        x.data.mul_(0.5)


def edit_earlier_images(model: Acting, x: Tensor) -> None:
    for earlier in model.kept:
        earlier.data.zero_()
    model.kept = [x]


def seed_all(model: Acting, x: Tensor) -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)


def draw_all(model: Acting, x: Tensor) -> None:
    torch.rand(7)
    np.random.rand(7)
    random.random()


def leave_float64(model: Acting, x: Tensor) -> None:
    torch.set_default_dtype(torch.float64)


def leave_gradients_off(model: Acting, x: Tensor) -> None:
    torch.set_grad_enabled(False)


def leave_gradients_on(model: Acting, x: Tensor) -> None:
    torch.set_grad_enabled(True)


def leave_threads(model: Acting, x: Tensor) -> None:
    torch.set_num_threads(2)


def leave_tf32(model: Acting, x: Tensor) -> None:
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True


def leave_anomaly(model: Acting, x: Tensor) -> None:
    torch.autograd.set_detect_anomaly(True)


def hook_all_modules(model: Acting, x: Tensor) -> None:
    if not model.kept:
        nn.modules.module.register_module_forward_hook(lambda module, given, out: out * 0)
    model.kept = [x]


def patch_functions(model: Acting, x: Tensor) -> None:
    torch.clamp = lambda images, *rest: images
    torch.sign = lambda images: images * 0


def patch_tensors(model: Acting, x: Tensor) -> None:
    torch.Tensor.sign = lambda self: self * 0
    torch.Tensor.clamp = lambda self, *rest, **options: self


def patch_harness(model: Acting, x: Tensor) -> None:
    import bench.judging.proposals
    import bench.judging.scoring

    bench.judging.proposals.to_ball = lambda images, clean, norm, eps: clean
    bench.judging.scoring.is_correct = lambda logits, y: torch.ones_like(y, dtype=torch.bool)


def print_much(model: Acting, x: Tensor) -> None:
    print("a line of a plug-in")
    print("another", file=sys.stderr)


def write_a_file(model: Acting, x: Tensor) -> None:
    with open(os.devnull, "w") as file:
        file.write("a line of a plug-in")


def change_folder(model: Acting, x: Tensor) -> None:
    os.chdir("/")


def change_environment(model: Acting, x: Tensor) -> None:
    os.environ["OMP_NUM_THREADS"] = "2"
    os.environ["BENCH_DATA"] = "/nowhere"


def silence(model: Acting, x: Tensor) -> None:
    warnings.simplefilter("ignore")
    np.seterr(all="ignore")
    gc.disable()
    sys.path.insert(0, "/nowhere")


ACTS: dict[str, Act] = {
    act.__name__: act
    for act in (
        edit_images,
        edit_earlier_images,
        seed_all,
        draw_all,
        leave_float64,
        leave_gradients_off,
        leave_gradients_on,
        leave_threads,
        leave_tf32,
        leave_anomaly,
        hook_all_modules,
        patch_functions,
        patch_tensors,
        patch_harness,
        print_much,
        write_a_file,
        change_folder,
        change_environment,
        silence,
    )
}


@defence("ill-mannered", bare=True, broken=True)
def ill_mannered(*, classifier: str = "@standard", how: str = "edit_images") -> nn.Module:
    """Acts in every prediction."""
    return Acting(build_classifier(classifier), ACTS[how])


@defence("ill-built", bare=True, broken=True)
def ill_built(*, classifier: str = "@standard", how: str = "edit_images") -> nn.Module:
    """Acts once, while it is built."""
    model = Acting(build_classifier(classifier), lambda self, x: None)
    ACTS[how](model, torch.zeros(1, 1, 8, 8))
    return model


@classifier("ill", names=lambda: sorted(ACTS))
def ill_classifier(name: str) -> nn.Module:
    """A surrogate that acts in every prediction."""
    return Acting(build_classifier("toy:linear"), ACTS[name])


@attack("ill-attack", norms={"linf"}, access="white-box", family="gradient")
def ill_attack(model: Any, x: Tensor, y: Tensor, threat: Any, *, how: str = "seed_all") -> Tensor:
    """Acts, spoils what it was given, and proposes the images."""
    proposal = x.clone()
    ACTS[how](Acting(nn.Identity(), ACTS[how]), x)
    model(proposal)
    with torch.no_grad():
        x.zero_()
        y.zero_()
    return proposal


class Cast(nn.Module):
    """A classifier whose weights are of another type, and so its answers."""

    def __init__(self, net: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.net = net.to(dtype)
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x.to(self.dtype))
        return logits


@defence("of-another-type", bare=True, broken=True)
def of_another_type(*, classifier: str = "@standard", kind: str = "float64") -> nn.Module:
    """An honest classifier in float64, float16 or bfloat16."""
    return Cast(build_classifier(classifier), getattr(torch, kind))


class OwnGenerator(nn.Module):
    """Noise from a generator that the harness cannot seed."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.generator = torch.Generator().manual_seed(1)

    def forward(self, x: Tensor) -> Tensor:
        noise = torch.randn(x.shape, generator=self.generator)
        logits: Tensor = self.net((x + 0.05 * noise).clamp(0, 1))
        return logits


@defence("own-generator", stochastic=True, broken=True)
def own_generator(*, classifier: str = "@standard") -> nn.Module:
    """An honest stochastic defence with a generator of its own."""
    return OwnGenerator(build_classifier(classifier))


class FollowsSeeds(OwnGenerator):
    """The same noise from torch's generator."""

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net((x + 0.05 * torch.randn_like(x)).clamp(0, 1))
        return logits


@defence("follows-seeds", stochastic=True, broken=True)
def follows_seeds(*, classifier: str = "@standard") -> nn.Module:
    """An honest stochastic defence."""
    return FollowsSeeds(build_classifier(classifier))
