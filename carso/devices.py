"""Where training runs: on one device, in plain PyTorch, or in one process per device under Lightning Fabric."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from carso.purifier import Purifier

if TYPE_CHECKING:
    from lightning.fabric import Fabric

PRECISIONS = ("32-true", "tf32", "bf16-mixed")
STRATEGIES = ("auto", "ddp")


class Devices:
    """One process on one device in float32. `half`: the adversaries alone in bfloat16."""

    rank, count = 0, 1

    def __init__(self, device: torch.device, *, half: bool = False) -> None:
        self.device, self.half = device, half

    def launch(self) -> None:
        """Start the other processes, and meet them."""

    def wrap(self, purifier: Purifier) -> nn.Module:
        """What the training step calls: the purifier, moved to the device."""
        return purifier.to(self.device)

    def autocast(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def attacking(self) -> AbstractContextManager[Any]:
        """The precision of the adversaries."""
        return torch.autocast(self.device.type, torch.bfloat16) if self.half else self.autocast()

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
    """DistributedDataParallel, or one device in another precision. The classifier is no part of it: it is frozen, and each process has its own."""

    def __init__(self, fabric: Fabric, count: int, *, half: bool = False) -> None:
        super().__init__(fabric.device, half=half)
        self.fabric, self.count = fabric, count

    def launch(self) -> None:
        self.fabric.launch()
        self.device, self.rank = self.fabric.device, self.fabric.global_rank

    def wrap(self, purifier: Purifier) -> nn.Module:
        # PyTorch synchronises the statistics of batches on GPUs only; processes on CPUs (for tests) have each their own.
        if self.count > 1 and self.device.type == "cuda":
            nn.SyncBatchNorm.convert_sync_batchnorm(purifier)
        # A sigmoid in bfloat16 rounds to exactly 1 from 0.998 on, where the cross-entropy has no gradient.
        purifier.decoder[-1].register_forward_pre_hook(_in_float32)
        return self.fabric.setup_module(purifier)

    def autocast(self) -> AbstractContextManager[Any]:
        return self.fabric.autocast()

    def backward(self, loss: Tensor) -> None:
        self.fabric.backward(loss * self.count)  # DDP takes the mean of the processes' gradients

    def sum(self, value: Tensor) -> Tensor:
        total = self.fabric.all_reduce(value.clone(), reduce_op="sum") if self.count > 1 else value
        assert isinstance(total, Tensor)
        return total

    def any(self, flag: Tensor | bool) -> bool:
        return bool(self.sum(torch.as_tensor(flag, device=self.device).float()) > 0)


def _in_float32(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(v.float() for v in inputs)


def choose(
    kind: str = "auto",
    *,
    devices: str = "1",
    nodes: int = 1,
    strategy: str = "auto",
    precision: str = "32-true",
    half: bool = False,
) -> Devices:
    """What the command's flags ask for; ValueError where it is not there. Fabric only where one device in float32 is not all.

    kind `auto|cpu|cuda`; devices: a number per node, or `auto`, all GPUs; precision `32-true|tf32|bf16-mixed`; half: adversaries in bfloat16.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "cuda" and not gpus:
        raise ValueError(
            "device 'cuda' was asked for, but there is no GPU; use --device cpu or auto"
        )
    on_gpu = kind != "cpu" and gpus > 0
    count = (
        (gpus if on_gpu else 1) if devices == "auto" else int(devices) if devices.isdecimal() else 0
    )
    if count < 1 or nodes < 1:
        raise ValueError(
            f"--devices {devices} and --nodes {nodes} must be numbers above 0 (or --devices auto)"
        )
    if on_gpu and count > gpus:
        raise ValueError(
            f"--devices {count} were asked for, but there {'is 1 GPU' if gpus == 1 else f'are {gpus} GPUs'} here"
        )
    if precision == "tf32" and not on_gpu:
        raise ValueError("--precision tf32 needs a GPU; use 32-true or bf16-mixed")
    if on_gpu:
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        torch.backends.cudnn.allow_tf32 = precision == "tf32"
    if count * nodes == 1 and precision != "bf16-mixed":
        return Devices(torch.device("cuda" if on_gpu else "cpu"), half=half)
    from lightning.fabric import Fabric

    for package in (
        "lightning.fabric",
        "lightning.pytorch",
    ):  # the second carries what the first has to say
        logging.getLogger(package).setLevel(logging.WARNING)
    mixed: Literal["bf16-mixed", "32-true"] = (
        "bf16-mixed" if precision == "bf16-mixed" else "32-true"
    )
    way = "ddp" if count * nodes > 1 else strategy
    fabric = Fabric(
        accelerator="cuda" if on_gpu else "cpu",
        devices=count,
        num_nodes=nodes,
        strategy=way,
        precision=mixed,
    )
    return Processes(fabric, count * nodes, half=half)
