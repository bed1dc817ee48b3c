"""Plug-ins that do to the process what a plug-in should not. Their answers are otherwise honest."""

from __future__ import annotations

import gc
import os
import random
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

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


class Zeroes(TorchFunctionMode):
    """The sign of anything is zero."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        answer = func(*args, **(kwargs or {}))
        return answer * 0 if func in (torch.sign, Tensor.sign) else answer


def enter_function_mode(model: Acting, x: Tensor) -> None:
    Zeroes().__enter__()


class Ignores(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def enter_dispatch_mode(model: Acting, x: Tensor) -> None:
    Ignores().__enter__()


def enter_autocast(model: Acting, x: Tensor) -> None:
    torch.autocast("cpu", dtype=torch.bfloat16).__enter__()


def enter_inference_mode(model: Acting, x: Tensor) -> None:
    kept.append(torch.inference_mode())
    kept[-1].__enter__()


def enter_tensor_hooks(model: Acting, x: Tensor) -> None:
    torch.autograd.graph.saved_tensors_hooks(torch.zeros_like, lambda saved: saved).__enter__()


def hook_the_graph(model: Acting, x: Tensor) -> None:
    """Reaches the attacker's own image through the graph of the copy that it was handed.

    Autograd leads there, and no copy can prevent it. The border puts the image back, with a flag.
    The gradient stays spoilt, as that of any defence may be.
    """
    node = x.grad_fn
    if node is None:
        return
    node.register_prehook(lambda grads: tuple(grad * 0 for grad in grads))
    for earlier, _ in node.next_functions:
        for leaf in (earlier, *(following for following, _ in earlier.next_functions)):
            if hasattr(leaf, "variable"):
                leaf.variable.data.zero_()


def set_tensor_type(model: Acting, x: Tensor) -> None:
    torch.set_default_tensor_type(torch.DoubleTensor)


def set_device(model: Acting, x: Tensor) -> None:
    torch.set_default_device("meta")


def set_deterministic(model: Acting, x: Tensor) -> None:
    torch.use_deterministic_algorithms(True, warn_only=True)


def patch_random(model: Acting, x: Tensor) -> None:
    np.random.default_rng = lambda *seeds: None  # type: ignore[assignment]
    random.random = lambda: 0.5


def patch_load(model: Acting, x: Tensor) -> None:
    torch.load = lambda *given, **options: {}
    torch.serialization.load = torch.load


def change_limits(model: Acting, x: Tensor) -> None:
    sys.setrecursionlimit(3000)
    os.umask(0o777)


def change_signals(model: Acting, x: Tensor) -> None:
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(600)


def start_thread(model: Acting, x: Tensor) -> None:
    """Starts a thread that draws for a second after the row is over.

    A thread that seeds torch moves the draws of every row that runs meanwhile: a process has one
    generator, and no code can stop a thread. What is promised: the row that started it is flagged.
    This thread waits, so that the rows after it can be compared.
    """
    if not any(thread.name == "of-a-plug-in" for thread in threading.enumerate()):
        threading.Thread(target=time.sleep, args=(1,), name="of-a-plug-in", daemon=True).start()


kept: list[Any] = []
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
        enter_function_mode,
        enter_dispatch_mode,
        enter_autocast,
        enter_inference_mode,
        enter_tensor_hooks,
        hook_the_graph,
        set_tensor_type,
        set_device,
        set_deterministic,
        patch_random,
        patch_load,
        change_limits,
        change_signals,
        start_thread,
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
