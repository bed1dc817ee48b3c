"""Median smoothing as a defence (Xu et al. 2018)."""

from __future__ import annotations

from torch import Tensor, nn

from baselines.transform import Transformed, mirror_positions
from bench.errors import BadInput
from bench.questions.registry import build_inner, defence


class Median(nn.Module):
    """Each pixel of images (B,C,H,W) as the median of the `window` x `window` pixels around it.

    Channels stand each for itself. Beyond an edge lies the mirror image. A window with an even
    side reaches one pixel further up and left. The upper of its two middle values is taken, as
    SciPy does. The gradient goes to the pixel that is the median, to one where several are equal.
    """

    def __init__(self, window: int) -> None:
        super().__init__()
        if not 2 <= window <= 15:
            raise BadInput(f"defence 'median': window={window} is not between 2 and 15")
        self.window = window

    def forward(self, x: Tensor) -> Tensor:
        before = self.window // 2
        after = (self.window - 1) // 2
        rows = mirror_positions(x.shape[2], before, after, x.device)
        columns = mirror_positions(x.shape[3], before, after, x.device)
        framed = x[:, :, rows][..., columns]
        windows = framed.unfold(2, self.window, 1).unfold(3, self.window, 1).flatten(4)
        return windows.sort(dim=-1, stable=True).values[..., self.window**2 // 2]


@defence("median")
def median(*, classifier: str = "@standard", inner: str = "", window: int = 2) -> nn.Module:
    """Replace each pixel by the median of the pixels around it, classify.

    `window` is a side in pixels. Attack it with PGD and AutoAttack: its gradient is the true one,
    through the sort. Xu, Evans and Qi (2018), arXiv 1704.01155.
    """
    return Transformed(build_inner(classifier, inner), Median(window))
