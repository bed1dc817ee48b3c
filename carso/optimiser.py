"""RAdam wrapped in Lookahead, and the learning rate in three phases."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

SYNC_EVERY = 6  # steps from one meeting of fast and slow weights to the next
UNSCALED_STEPS = 5  # RAdam's first steps, which are not divided by the gradient's size
MOMENTS = ("exp_avg", "exp_avg_sq")  # PyTorch's names for RAdam's m and v
FAST_SHARE = 0.8  # of the fast weights where both meet


class Lookahead:
    """Every 6 steps of RAdam: theta <- 0.8 theta + 0.2 slow, slow <- theta.

    The inner moments are left alone. `load_slow_weights` loads the slow weights, which are those
    of the last meeting. M. Zhang et al., "Lookahead optimizer", arXiv 1907.08610.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float) -> None:
        self.parameters = list(parameters)
        self.inner = torch.optim.RAdam(self.parameters, lr=lr)
        self.slow = [p.detach().clone() for p in self.parameters]
        self.steps = 0

    def zero_grad(self) -> None:
        self.inner.zero_grad()

    def set_lr(self, lr: float) -> None:
        for group in self.inner.param_groups:
            group["lr"] = lr

    @torch.no_grad()
    def step(self) -> None:
        self.inner.step()
        self.steps += 1
        if self.steps % SYNC_EVERY == 0:
            fast = [p.detach() for p in self.parameters]
            torch._foreach_lerp_(fast, self.slow, 1 - FAST_SHARE)
            torch._foreach_copy_(self.slow, fast)

    def state(self) -> dict[str, Tensor]:
        """What `restore` needs besides the parameters and the number of steps.

        That is the slow weights and RAdam's moments, numbered as the parameters are.
        """
        state = {f"slow.{i}": slow for i, slow in enumerate(self.slow)}
        for i, parameter in enumerate(self.parameters):
            for name, value in self.inner.state[parameter].items():
                if name != "step":
                    state[f"{name}.{i}"] = value
        return state

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor], steps: int) -> None:
        """Go on after `steps` steps from the very `state`. KeyError where a tensor is missing."""
        self.steps = steps
        for i, (parameter, slow) in enumerate(zip(self.parameters, self.slow, strict=True)):
            slow.copy_(state[f"slow.{i}"])
            if steps:
                moments = {
                    name: torch.empty_like(parameter).copy_(state[f"{name}.{i}"])
                    for name in MOMENTS
                }
                self.inner.state[parameter] = {"step": torch.tensor(float(steps)), **moments}

    @torch.no_grad()
    def load_slow_weights(self) -> None:
        torch._foreach_copy_([p.detach() for p in self.parameters], self.slow)


def learning_rate(
    epoch: int, epochs: int, *, start: float, base: float, final: float, warmup: float
) -> float:
    """The rate of `epoch` (from 0): it rises, stays and falls.

    It is linear from `start` to `base` in the first `warmup` share of the epochs. It is constant
    for as long, then linear to `final` after the last epoch.
    """
    rise = int(warmup * epochs)
    if epoch < rise:
        return start + (base - start) * epoch / rise
    return base + (final - base) * max(epoch - 2 * rise, 0) / max(epochs - 2 * rise, 1)
