"""Where training runs: on one device in plain PyTorch, or one process per device under Fabric."""

from __future__ import annotations

import atexit
import logging
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from bench.errors import BadInput
from carso.purifier import Purifier

if TYPE_CHECKING:
    from lightning.fabric import Fabric

PRECISIONS = ("32-true", "tf32", "bf16-mixed")
STRATEGIES = ("auto", "ddp")


def leave_group() -> None:
    """Leave the group of processes: a process that ends inside of it may abort."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


class Devices:
    """One process on one device in float32. `half`: the adversaries alone in bfloat16."""

    rank = 0
    count = 1

    def __init__(self, device: torch.device, *, half: bool = False) -> None:
        self.device = device
        self.half = half

    def launch(self) -> None:
        """Start the other processes, and meet them."""

    def wrap(self, purifier: Purifier) -> nn.Module:
        """What the training step calls: the purifier, moved to the device."""
        return purifier.to(self.device)

    def autocast(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def adversary_precision(self) -> AbstractContextManager[Any]:
        """The precision of the adversaries."""
        if self.half:
            return torch.autocast(self.device.type, torch.bfloat16)
        return self.autocast()

    def backward(self, loss: Tensor) -> None:
        """Gradients of the sum of the processes' losses."""
        torch.autograd.backward(loss)

    def sum(self, value: Tensor) -> Tensor:
        """Over all processes."""
        return value

    def any(self, flag: Tensor | bool) -> bool:
        """Whether it is true in one of the processes, so that all of them stop together."""
        return bool(flag)


class Processes(Devices):
    """DistributedDataParallel, or one device in another precision.

    The classifier is no part of it: the classifier is frozen, and each process has its own.
    """

    def __init__(self, fabric: Fabric, count: int, *, half: bool = False) -> None:
        super().__init__(fabric.device, half=half)
        self.fabric = fabric
        self.count = count

    def launch(self) -> None:
        self.fabric.launch()
        atexit.register(leave_group)
        self.device = self.fabric.device
        self.rank = self.fabric.global_rank

    def wrap(self, purifier: Purifier) -> nn.Module:
        # PyTorch synchronises the statistics of batches on GPUs only. Processes on CPUs, which
        # tests use, have each their own.
        if self.count > 1 and self.device.type == "cuda":
            nn.SyncBatchNorm.convert_sync_batchnorm(purifier)
        # A sigmoid in bfloat16 rounds to exactly 1 from 0.998 on. The cross-entropy has no
        # gradient there.
        purifier.decoder[-1].register_forward_pre_hook(to_float32)
        return self.fabric.setup_module(purifier)

    def autocast(self) -> AbstractContextManager[Any]:
        return self.fabric.autocast()

    def backward(self, loss: Tensor) -> None:
        self.fabric.backward(loss * self.count)  # DDP takes the mean of the processes' gradients

    def sum(self, value: Tensor) -> Tensor:
        if self.count == 1:
            return value
        total = self.fabric.all_reduce(value.clone(), reduce_op="sum")
        assert isinstance(total, Tensor)
        return total

    def any(self, flag: Tensor | bool) -> bool:
        return bool(self.sum(torch.as_tensor(flag, device=self.device).float()) > 0)


def to_float32(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """A hook before a module: it makes the inputs float32."""
    return tuple(value.float() for value in inputs)


def choose_devices(
    kind: str = "auto",
    *,
    devices: str = "1",
    nodes: int = 1,
    strategy: str = "auto",
    precision: str = "32-true",
    half: bool = False,
) -> Devices:
    """What the command's flags ask for. BadInput where it is not there.

    `kind` is auto, cpu or cuda; `devices` is a number per node, or auto, all GPUs; `precision` is
    one of PRECISIONS; `half`: the adversaries in bfloat16. Lightning Fabric is loaded only where
    one device in float32 is not all.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    on_gpu = kind != "cpu" and gpus > 0
    if kind == "cuda" and not gpus:
        raise BadInput("device 'cuda' was asked for, but there is no GPU; use --device cpu or auto")
    count = count_devices(devices, nodes, gpus if on_gpu else 0)
    if precision == "tf32" and not on_gpu:
        raise BadInput("--precision tf32 needs a GPU; use 32-true or bf16-mixed")
    if on_gpu:
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        torch.backends.cudnn.allow_tf32 = precision == "tf32"
    if count * nodes == 1 and precision != "bf16-mixed":
        return Devices(torch.device("cuda" if on_gpu else "cpu"), half=half)
    from lightning.fabric import Fabric

    for package in ("lightning.fabric", "lightning.pytorch"):  # both log what Fabric does
        logging.getLogger(package).setLevel(logging.WARNING)
    mixed: Literal["bf16-mixed", "32-true"] = "32-true"
    if precision == "bf16-mixed":
        mixed = "bf16-mixed"
    fabric = Fabric(
        accelerator="cuda" if on_gpu else "cpu",
        devices=count,
        num_nodes=nodes,
        strategy="ddp" if count * nodes > 1 else strategy,
        precision=mixed,
    )
    return Processes(fabric, count * nodes, half=half)


def count_devices(devices: str, nodes: int, gpus: int) -> int:
    """The number of devices per node that the text asks for; `gpus` 0 means the CPU."""
    count = 0
    if devices == "auto":
        count = gpus or 1
    elif devices.isdecimal():
        count = int(devices)
    if count < 1 or nodes < 1:
        raise BadInput(
            f"--devices {devices} and --nodes {nodes} must be numbers above 0 (or --devices auto)"
        )
    if gpus and count > gpus:
        here = "is 1 GPU" if gpus == 1 else f"are {gpus} GPUs"
        raise BadInput(f"--devices {count} were asked for, but there {here} here")
    return count
