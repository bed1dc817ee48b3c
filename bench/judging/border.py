"""The border between the harness and other people's code: defences, surrogates and their parts.

Nothing of the harness crosses the border uncopied, and nothing comes back unchecked:

- in: a copy of the images;
- around: the defence draws from a random stream of its own, and global state is put back;
- out: logits become a float32 copy, of shape (B,K), whatever object or type held them.

What a defence changed, and in what form it answered, is noted on the border that it stands behind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import partial
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _pop_mode

from bench.judging.randomness import current, judging_stream
from bench.judging.target import find_convolutions, to_device_channels_last
from bench.results.record import Flag

# The parts of a defence that are functions of images, by what they answer.
ANSWER_LOGITS = ("base", "classify", "draws", "presoftmax")
ANSWER_OTHERWISE = ("certify", "decode", "features", "latent", "per_draw", "purify")


class UnusableAnswer(RuntimeError):
    """A defence answered with something that holds no logits; the message is one line."""


# ---- global state ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Switch:
    """One piece of global state that costs next to nothing to read."""

    name: str
    read: Callable[[], Any]
    write: Callable[[Any], object]


_inference_guards: list[Any] = []  # kept for ever: one that goes puts back what was before it


def write_inference_mode(enabled: bool) -> None:
    _inference_guards.append(torch._C._InferenceMode(enabled))


def read_default_device() -> Any:
    return getattr(torch._GLOBAL_DEVICE_CONTEXT, "device_context", None)


def write_default_device(context: Any) -> None:
    """Where none was set, none is: setting the CPU would slow every call."""
    torch.set_default_device(None if context is None else context.device)


def leave_function_modes(depth: int) -> None:
    while torch._C._len_torch_function_stack() > depth:
        torch._C._pop_torch_function_stack()


def leave_dispatch_modes(depth: int) -> None:
    while torch._C._len_torch_dispatch_stack() > depth:
        _pop_mode()


def read_tensor_hooks() -> Any:
    """The functions through which autograd keeps tensors; None where there are none."""
    return torch._C._autograd._top_saved_tensors_default_hooks(True)


def leave_tensor_hooks(before: Any) -> None:
    while read_tensor_hooks() not in (before, None):
        torch._C._autograd._pop_saved_tensors_default_hooks()


def read_autocast() -> tuple[bool, bool]:
    return torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")


def write_autocast(enabled: tuple[bool, bool]) -> None:
    """An autocast that was entered and not left has its cache of weights cleared too."""
    torch.set_autocast_enabled("cpu", enabled[0])
    torch.set_autocast_enabled("cuda", enabled[1])
    torch.autocast_increment_nesting()
    while torch.autocast_decrement_nesting() > 0:
        pass
    torch.clear_autocast_cache()


SWITCHES = (
    # Before the gradient mode, which it decides.
    Switch("the inference mode", torch.is_inference_mode_enabled, write_inference_mode),
    # Before the function modes, of which it is one.
    Switch("torch's default device", read_default_device, write_default_device),
    Switch("torch function modes", torch._C._len_torch_function_stack, leave_function_modes),
    Switch("torch dispatch modes", torch._C._len_torch_dispatch_stack, leave_dispatch_modes),
    Switch("autocast", read_autocast, write_autocast),
    Switch("how autograd keeps tensors", read_tensor_hooks, leave_tensor_hooks),
    Switch("the gradient mode", torch.is_grad_enabled, torch._C._set_grad_enabled),
    Switch("the default dtype", torch.get_default_dtype, torch.set_default_dtype),
    Switch("the number of threads", torch.get_num_threads, torch.set_num_threads),
    Switch("TF32 in cuDNN", torch._C._get_cudnn_allow_tf32, torch._C._set_cudnn_allow_tf32),
    Switch(
        "TF32 in matrix products",
        torch._C._get_cublas_allow_tf32,
        torch._C._set_cublas_allow_tf32,
    ),
    Switch("cuDNN's benchmark mode", torch._C._get_cudnn_benchmark, torch._C._set_cudnn_benchmark),
    Switch(
        "cuDNN's deterministic mode",
        torch._C._get_cudnn_deterministic,
        torch._C._set_cudnn_deterministic,
    ),
    Switch(
        "deterministic algorithms",
        torch.get_deterministic_debug_mode,
        torch.set_deterministic_debug_mode,
    ),
    Switch("anomaly detection", torch.is_anomaly_enabled, torch.set_anomaly_enabled),
)


def read_switches() -> tuple[Any, ...]:
    return tuple(switch.read() for switch in SWITCHES)


def restore_switches(before: tuple[Any, ...]) -> list[str]:
    """Put the switches back to `before`; returns the names of those that had changed."""
    after = read_switches()
    if after == before:
        return []
    changed = []
    for switch, old, new in zip(SWITCHES, before, after, strict=True):
        if old == new or switch.read() == old:  # another switch may have taken it along
            continue
        switch.write(old)
        changed.append(switch.name)
    return changed


# ---- crossings ------------------------------------------------------------------------------


class Crossing:
    """A call of other people's code: it draws from its stream, and global state is put back.

    `changed` holds the names of the switches that the call left in another position.
    """

    __slots__ = ("_entered", "_switches", "changed")

    def __enter__(self) -> Crossing:
        self.changed: list[str] = []
        self._entered = not current.inside
        if self._entered:
            current.leave_all_backwards()
            current.inside = True
            self._switches = read_switches()
            if current.stream is not None:
                current.stream.exchange()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._entered:
            if current.stream is not None:
                current.stream.exchange()
            self.changed = restore_switches(self._switches)
            current.inside = False


# ---- answers --------------------------------------------------------------------------------


def unpack_logits(answer: Any) -> tuple[Any, list[str]]:
    """The logits in an answer, and a note on where they were unless it is a plain tensor."""
    if isinstance(answer, Tensor):
        return answer, []
    if isinstance(answer, Mapping) and isinstance(answer.get("logits"), Tensor):
        return answer["logits"], ["its logits are ['logits'] of a mapping"]
    if isinstance(getattr(answer, "logits", None), Tensor):
        return answer.logits, [f"its logits are .logits of {type(answer).__name__}"]
    if isinstance(answer, tuple) and answer and isinstance(answer[0], Tensor):
        return answer[0], ["its logits are the first of a tuple"]
    raise UnusableAnswer(
        f"it answers {describe_type(answer)}, which holds no logits; "
        "answer a tensor (B,K), an object with .logits, or a tuple that begins with them"
    )


def describe_type(answer: Any) -> str:
    if isinstance(answer, np.ndarray):
        return "a numpy array"
    if answer is None:
        return "None"
    return f"a {type(answer).__name__}"


def check_logits(logits: Tensor, x: Tensor) -> Tensor:
    """The logits (B,...,K); UnusableAnswer where they are not floating, a row for each image."""
    if not logits.is_floating_point():
        raise UnusableAnswer(f"it answers numbers of type {logits.dtype}; logits are floating")
    if logits.device != x.device:
        raise UnusableAnswer(f"it answers on {logits.device}, and its images lie on {x.device}")
    if logits.dim() < 2 or len(logits) != len(x):
        raise UnusableAnswer(
            f"it answers shape {tuple(logits.shape)} for {len(x)} images; logits are (B,K)"
        )
    return logits


@dataclass(frozen=True, slots=True)
class Conduct:
    """How other people's code behaved, in words.

    - `switches`: settings that it left otherwise.
    - `patches`: functions and hooks in the place of those of torch or of the harness; images of the
      attacker that it changed.
    - `notes`: other forms in which it answered.
    - `threads`: those that it started and that go on, which nothing can stop.
    """

    switches: tuple[str, ...] = ()
    patches: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    threads: tuple[str, ...] = ()

    def __add__(self, other: Conduct) -> Conduct:
        pairs = ((getattr(self, f.name), getattr(other, f.name)) for f in fields(Conduct))
        return Conduct(*(tuple(dict.fromkeys(ours + theirs)) for ours, theirs in pairs))

    @property
    def flags(self) -> tuple[Flag, ...]:
        """P17, where anything was changed that other rows share."""
        flags = []
        changed = (*self.patches, *self.switches)
        if changed:
            message = f"it changes {', '.join(changed)}; the harness has put this back"
            flags.append(Flag("P17", "hard" if self.patches else "soft", message))
        if self.threads:
            message = f"it leaves threads running, which the harness cannot stop: {self.threads[0]}"
            flags.append(Flag("P17", "soft", message))
        return tuple(flags)


class Border(nn.Module):
    """A defence behind the border. Images (B,C,H,W) in [0,1] to float32 logits (B,K).

    The parts that a defence declares are reached through the border too. `defence` is the module
    itself: look at it, but do not call it.
    """

    def __init__(self, defence: nn.Module, notes: Iterable[str] = ()) -> None:
        super().__init__()
        self.dtype = torch.float32
        self.answer_dtype = torch.float32  # of the last answer, before it was converted
        self.standing_notes = tuple(notes)
        self._changed: dict[str, None] = {}
        self._patched: dict[str, None] = {}
        self._notes: dict[str, None] = {}
        self.__dict__["defence"] = defence  # not a submodule: names of its layers stay as they are

    def forward(self, x: Tensor) -> Tensor:
        return self.ask_logits(self.defence, x)

    def ask_logits(self, function: Callable[..., Any], x: Tensor, *rest: Any) -> Tensor:
        """The logits that `function` answers on a copy of x (B,C,H,W)."""
        answer = self.ask(function, x, *rest)
        raw_logits, notes = unpack_logits(answer)
        logits = check_logits(raw_logits, x)
        self.answer_dtype = logits.dtype
        if logits.dtype != self.dtype:
            notes.append(f"its logits are {str(logits.dtype).removeprefix('torch.')}")
        self._notes.update(dict.fromkeys(notes))
        logits = logits.clone() if logits.dtype == self.dtype else logits.to(self.dtype)
        if logits.requires_grad:
            logits.register_hook(note_entry)
        return logits

    def ask(self, function: Callable[..., Any], x: Tensor, *rest: Any) -> Any:
        """What `function` answers on a copy of x (B,C,H,W), unchecked."""
        copy = x.clone()
        if copy.requires_grad:
            copy.register_hook(note_exit)
        copies = [value.clone() if isinstance(value, Tensor) else value for value in rest]
        pristine = x.detach().clone() if x.requires_grad else None
        with Crossing() as crossing:
            answer = function(copy, *copies)
        self.note_changes(crossing.changed)
        if pristine is not None and not same_images(x, pristine):
            x.data.copy_(pristine)  # autograd's graph leads from the copy to x
            self._patched["the images of the attacker"] = None
        return answer

    def note_changes(self, switches: Iterable[str]) -> None:
        """Switches that a call, or the factory, left otherwise."""
        self._changed.update(dict.fromkeys(switches))

    def edits_images(self, x: Tensor) -> bool:
        """Whether a prediction changes the very images x (B,C,H,W) that it is given."""
        copy = x.clone()
        with Crossing(), torch.no_grad():
            self.defence(copy)
        return copy.requires_grad or not torch.equal(copy, x)

    def report_to(self, other: Border) -> None:
        """Note what this changes as conduct of `other`, on whose row it runs."""
        self._changed = other._changed
        self._patched = other._patched

    def take_conduct(self) -> Conduct:
        """What was noted since this was last asked."""
        notes = (*self.standing_notes, *self._notes)
        conduct = Conduct(tuple(self._changed), tuple(self._patched), notes)
        self._changed.clear()
        self._patched.clear()
        self._notes.clear()
        return conduct

    def double(self) -> Border:
        """The same in float64: it takes images of that type, and so answers."""
        self.defence.double()
        self.dtype = torch.float64
        return self

    def named_modules(
        self, memo: set[nn.Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Module]]:
        """Those of the defence, under their own names."""
        yield from self.defence.named_modules(memo, prefix, remove_duplicate)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            return super().__getattr__(name)
        part = getattr(self.__dict__["defence"], name)
        if name == "surrogates":
            return {key: partial(self.ask_logits, answer) for key, answer in part.items()}
        if name in ANSWER_LOGITS:
            return partial(self.ask_logits, part)
        if name in ANSWER_OTHERWISE:
            return partial(self.ask, part)
        return part


def same_images(x: Tensor, pristine: Tensor) -> bool:
    """Whether images (B,C,H,W) are the same, NaN among them."""
    return torch.equal(x, pristine) or torch.equal(x.nan_to_num(), pristine.nan_to_num())


def note_entry(grad: Tensor) -> None:
    current.enter_backward()


def note_exit(grad: Tensor) -> None:
    current.leave_backward()


# ---- memory layout --------------------------------------------------------------------------


def place_defence(defence: nn.Module, x: Tensor) -> Border:
    """The defence behind the border, on the device of the images x (B,C,H,W).

    Its convolutions lie channels last where that is faster and the defence runs so; else as its
    author laid them, with a note.
    """
    weights = {module: module.weight.data for module in find_convolutions(defence)}
    border = Border(to_device_channels_last(defence, x.device))
    if x.device.type != "cpu" or not weights:
        return border
    error = try_prediction(border, x)
    if error is None:
        return border
    for module, weight in weights.items():
        module.weight.data = weight
    if try_prediction(Border(defence), x) is not None:
        return border
    reason = str(error).partition("\n")[0]
    return Border(
        defence, [f"it keeps its own memory layout, for channels last it raises: {reason}"]
    )


def build_behind_border(build: Callable[[], nn.Module], x: Tensor) -> Border:
    """What a factory builds, for images x (B,C,H,W); what it switches is put back at once."""
    with Crossing() as crossing:
        model = build()
    border = place_defence(model, x)
    border.note_changes(crossing.changed)
    return border


def try_prediction(border: Border, x: Tensor) -> Exception | None:
    """What a prediction of images x (B,C,H,W), or its gradient, raises."""
    with judging_stream(x.device, "a trial of the memory layout"), torch.enable_grad():
        leaf = x.clone().requires_grad_()
        try:
            logits = border(leaf)
            if logits.requires_grad:
                torch.autograd.grad(logits.sum(), leaf, allow_unused=True)
        except Exception as error:
            return error
    return None
