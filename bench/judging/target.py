"""What an attacker is handed: the defence with access enforced and every call counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

# These exactly: a class derived from one may do what it likes with its weights.
CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
PARTS = (
    "base",
    "purify",
    "classify",
    "presoftmax",
    "per_draw",
    "latent",
    "decode",
    "latent_dim",
    "surrogates",
    "features",
    "head",
)


def to_device_channels_last(model: nn.Module, device: torch.device) -> nn.Module:
    """The model on that device. On a CPU the weights of its convolutions lie channels last.

    All images between the convolutions then lie so too. oneDNN's kernels for that order waste
    nothing on layers of few channels. Channels first, on one thread and with 100 images, a forward
    pass of CARSO took 1.23 times as long on MNIST, and 1.08 times on CIFAR-10 as JPEG. Other
    devices keep their order. The answers differ in the last digit.
    """
    model = model.to(device)
    if device.type != "cpu":
        return model
    for module in find_convolutions(model):
        module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)
    return model


def find_convolutions(model: nn.Module) -> list[Any]:
    """The convolutions whose weights may be laid channels last."""
    return [module for module in model.modules() if type(module) in CONVOLUTIONS]


class Target(nn.Module):
    """A defence as an attacker with `access` sees it. Images (B,C,H,W) in [0,1] to (B,K).

    - `white-box`: logits with gradients, and the parts that the defence declares.
    - `score`: logits without gradients.
    - `decision`: the one-hot predicted label; a row of zeros where the logits hold a NaN, or
      abstain.

    For `transfer` the harness wraps the surrogate, not the defence, with `white-box` access. The
    defence itself cannot be reached, so no attack can change it.
    """

    def __init__(
        self,
        defence: nn.Module,
        *,
        classes: int,
        access: str = "white-box",
        stochastic: bool = False,
        device: str | torch.device = "cpu",
    ) -> None:
        super().__init__()
        self.access = access
        self.stochastic = stochastic
        self.classes = classes
        self.device = torch.device(device)
        # Libraries ask the parameters for the device.
        self.anchor = nn.Parameter(torch.empty(0, device=device), requires_grad=False)
        self.forwards = 0
        self.backwards = 0
        self._bad = torch.zeros(2, dtype=torch.long, device=device)  # nonfinite, zero
        # A closure, not a submodule: neither parameters() nor an attribute leads to the defence.
        self.__dict__["_hidden"] = lambda: defence

    @property
    def nonfinite(self) -> int:
        """Of the backwards, how many examples had a NaN or an infinity in their gradient."""
        return int(self._bad[0])

    @property
    def zero(self) -> int:
        """Of the backwards, how many examples had a gradient that was exactly zero."""
        return int(self._bad[1])

    def forward(self, x: Tensor) -> Tensor:
        return self._answer(self.__dict__["_hidden"](), x, 1)

    def draws(self, x: Tensor, k: int) -> Tensor:
        """`k` independent predictions of each example, (B,k,K); each is counted."""
        defence = self.__dict__["_hidden"]()
        return self._answer(lambda images: predict_draws(defence, images, k), x, k)

    def _answer(self, call: Callable[[Tensor], Tensor], x: Tensor, times: int) -> Tensor:
        self.forwards += len(x) * times
        if self.access == "white-box":
            answer: Tensor = call(self._watched(x, times))
            return answer
        with torch.no_grad():
            logits: Tensor = call(x.detach())
        if self.access == "score":
            return logits
        labels: Tensor = nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).to(logits.dtype)
        names_none = logits.isnan().any(-1) | abstained(logits)
        return labels.masked_fill(names_none.unsqueeze(-1), 0)

    def _watched(self, x: Tensor, times: int) -> Tensor:
        """`x` behind a view whose gradient is counted when it arrives."""
        if not (x.requires_grad and torch.is_grad_enabled()):
            return x
        seen = x.view_as(x)

        def count(grad: Tensor) -> None:
            self.backwards += len(grad) * times
            flat = grad.detach().flatten(1)  # (B,D)
            nonfinite = (~flat.isfinite().all(1)).sum()
            zero = (flat == 0).all(1).sum()
            self._bad += torch.stack([nonfinite, zero]) * times

        seen.register_hook(count)
        return seen

    def __getattr__(self, name: str) -> Any:
        if name not in PARTS:
            return super().__getattr__(name)
        if self.access != "white-box":
            raise AttributeError(f"an attacker with {self.access} access is not shown '{name}'")
        part = getattr(self.__dict__["_hidden"](), name)
        if isinstance(part, dict):
            return {key: self._counted(value) for key, value in part.items()}
        return self._counted(part) if callable(part) else part

    def _counted(self, part: Callable[..., Any]) -> Callable[..., Any]:
        def call(x: Tensor, *rest: Any) -> Any:
            self.forwards += len(x)
            return part(self._watched(x, 1), *rest)

        return call


def predict_draws(defence: nn.Module, x: Tensor, k: int) -> Tensor:
    """`k` independent predictions (B,k,K) of each of the images (B,C,H,W), in one batch.

    The draws share what the defence can share.
    """
    own_draws = getattr(defence, "draws", None)
    if own_draws is not None:
        shared: Tensor = own_draws(x, k)
        return shared
    logits: Tensor = defence(x.repeat_interleave(k, 0) if k > 1 else x)  # (B*k,K)
    draws: Tensor = logits.unflatten(0, (len(x), k))
    return draws


def abstained(logits: Tensor) -> Tensor:
    """Whether logits (...,K) name no class since all of them are equal: an abstention."""
    return logits.amax(-1) == logits.amin(-1)


def is_correct(logits: Tensor, y: Tensor) -> Tensor:
    """Whether the prediction is `y`, for logits (...,K).

    An answer that holds a NaN is wrong, and so is an abstention, whatever the label is.
    """
    return (logits.argmax(-1) == y) & ~logits.isnan().any(-1) & ~abstained(logits)


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """The largest wrong logit less the true one, for logits (...,K): positive is misclassified.

    Finite also for infinite logits; 1e30 for NaN.
    """
    true = logits.gather(-1, y.unsqueeze(-1)).squeeze(-1)
    wrong = logits.scatter(-1, y.unsqueeze(-1), -torch.inf).amax(-1)
    value = (wrong - true).nan_to_num(nan=0.0, posinf=1e30, neginf=-1e30).clamp(-1e30, 1e30)
    return torch.where(logits.isnan().any(-1), 1e30, value)
