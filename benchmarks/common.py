"""What the benchmarks share: flags, AutoAttack's standard version, the verdict on proposals."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from bench.cli.main import Parser
from bench.data.sample import Dataset
from bench.judging.norms import to_ball
from bench.judging.target import Target, is_correct
from bench.questions.spec import ThreatModel

NORM_NAMES = {"linf": "Linf", "l2": "L2", "l1": "L1"}  # pyautoattack's


def flag_parser(doc: str | None, defaults: Mapping[str, str | int]) -> Parser:
    """A parser of one flag for each default; the type of the default is that of the flag."""
    parser = Parser(description=(doc or "").partition("\n")[0])
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    return parser


def device_line() -> str:
    """What a time was measured on."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def run_autoattack(target: Target, data: Dataset, threat: ThreatModel, queries: int) -> Tensor:
    """The images (N,C,H,W) of pyautoattack's standard version, whose Square has `queries`."""
    from pyautoattack import AutoAttack

    attack = AutoAttack(
        target,
        norm=NORM_NAMES[threat.norm],
        eps=float(threat.eps),
        seed=0,
        device=target.device,
        version="standard",
    )
    attack.square.n_queries = queries
    x_adv: Tensor = attack.run_standard_evaluation(data.x, data.y)[0]
    return x_adv.to(target.device)


def is_robust(model: nn.Module, proposals: Tensor, data: Dataset, threat: ThreatModel) -> Tensor:
    """Which examples (N,) are right after each proposal, once it is projected to the ball.

    `proposals` is (N,C,H,W) or (M,N,C,H,W).
    """
    if proposals.dim() == 4:
        proposals = proposals.unsqueeze(0)
    correct = []
    with torch.no_grad():
        for images in proposals:
            x_adv = to_ball(images, data.x, threat.norm, float(threat.eps))
            correct.append(is_correct(model(x_adv), data.y))
    return torch.stack(correct).all(0)
