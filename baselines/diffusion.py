"""`python -m baselines.diffusion --dataset digits`: train the diffusion model of `diffpure`, try it on held-out images, write weights and card."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from baselines.diffpure import DiffPure
from baselines.train import attack, rounded
from baselines.unet import NAME, Schedule, make, schedule_of
from bench import weights
from bench.data.sample import load, stratified_order
from bench.errors import BadInput, did_you_mean
from bench.judging.environment import commit
from bench.judging.execute import make_deterministic, pick_device
from bench.judging.target import is_correct
from bench.questions.discover import discover
from bench.questions.registry import build_classifier, datasets
from bench.questions.spec import Spec

SHARES = (
    0.05,
    0.075,
    0.1,
    0.125,
    0.15,
    0.2,
    0.3,
)  # of the schedule, at which the card states accuracies
PGD = 40  # steps of the attack whose images are purified


@dataclass(frozen=True, slots=True)
class Recipe:
    """A UNet of `widths` channels at each resolution, and AdamW on its error in predicting the noise under a one-cycle rate up to `lr`.

    The noise of the schedule's `noising` steps rises linearly from `beta_start` to `beta_end` in variance; `average` is the decay per
    step of the weight average that is kept; `validation` training images are held out.
    """

    widths: tuple[int, ...]
    steps: int
    batch: int = 128
    lr: float = 4e-3
    average: float = 0.998
    noising: int = 100
    beta_start: float = 1e-3
    beta_end: float = 0.2
    validation: int = 160


RECIPES = {
    "digits": Recipe((32, 32), steps=600),
    "mnist": Recipe((16, 32, 32), steps=450, lr=2e-3, validation=200),
}


def network(recipe: Recipe, shape: tuple[int, int, int]) -> dict[str, Any]:
    """The configuration of the UNet for images of `shape`, as a card keeps it."""
    levels = len(recipe.widths)
    return {
        "sample_size": list(shape[1:]),
        "in_channels": shape[0],
        "out_channels": shape[0],
        "block_out_channels": list(recipe.widths),
        "down_block_types": ["DownBlock2D"] * levels,
        "up_block_types": ["UpBlock2D"] * levels,
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "add_attention": False,
    }


def noising(recipe: Recipe) -> dict[str, Any]:
    """The configuration of the scheduler."""
    return {
        "num_train_timesteps": recipe.noising,
        "beta_start": recipe.beta_start,
        "beta_end": recipe.beta_end,
        "beta_schedule": "linear",
    }


def loss_of(net: nn.Module, schedule: Schedule, x: Tensor) -> Tensor:
    """The mean squared error of the predicted noise, at one random step of noising for each of the images (B,C,H,W) in [0,1]."""
    times = torch.randint(0, len(schedule.kept) - 1, (len(x),), device=x.device)
    kept = torch.tensor(schedule.kept[1:], device=x.device)[times].view(-1, 1, 1, 1)
    noise = torch.randn_like(x)
    told: Tensor = net(
        kept.sqrt() * (2 * x - 1) + (1 - kept).sqrt() * noise, times, return_dict=False
    )[0]
    return F.mse_loss(told, noise)


def fit(
    net: nn.Module,
    schedule: Schedule,
    x: Tensor,
    recipe: Recipe,
    show: Callable[[int, float], None],
) -> nn.Module:
    """Train on the images (N,C,H,W) in [0,1]; the average of the late weights, in eval mode. Randomness comes from the global generators.

    `show(step, loss)` is told the loss of the last batch ten times.
    """
    net.to(x.device).train()
    optimiser = torch.optim.AdamW(net.parameters(), lr=recipe.lr)
    schedule_lr = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, recipe.lr, total_steps=recipe.steps, pct_start=0.1
    )
    average = {k: v.clone() for k, v in net.state_dict().items()}
    every = max(1, recipe.steps // 10)
    for step in range(recipe.steps):
        loss = loss_of(net, schedule, x[torch.randint(len(x), (recipe.batch,), device=x.device)])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule_lr.step()
        decay = min(recipe.average, step / (step + 10))  # of the first steps nothing stays
        for k, v in net.state_dict().items():
            average[k].lerp_(v, 1 - decay)
        if (step + 1) % every == 0:
            show(step + 1, loss.item())
    net.load_state_dict(average)
    return net.eval()


@torch.no_grad()
def sweep(
    net: nn.Module, schedule: Schedule, classifier: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor
) -> list[dict[str, float]]:
    """The accuracy of `classifier` on purified images and purified adversarial ones, by the share t of the schedule."""
    rows = []
    for t in SHARES:
        built = DiffPure(classifier, net, schedule, t=t, steps=0, samples=1)
        clean, attacked = (
            round(is_correct(built(images), y).float().mean().item(), 4) for images in (x, x_adv)
        )
        rows.append({"t": t, "clean": clean, "attacked": attacked})
    return rows


def train(args: argparse.Namespace, argv: list[str], device: str) -> None:
    if args.dataset not in RECIPES:
        raise BadInput(
            f"there is no recipe for a diffusion model of '{args.dataset}'{did_you_mean(args.dataset, RECIPES)}"
        )
    recipe = RECIPES[args.dataset]
    recipe = replace(recipe, steps=args.steps or recipe.steps)
    discover()
    data = load(Spec(args.dataset), split="train", data_dir=args.data_dir)
    facts = datasets.get(args.dataset).facts
    order = stratified_order(data.y, data.ids)
    held, learnt = order[: recipe.validation], order[recipe.validation :]
    _, channels, height, width = data.x.shape
    config, steps = network(recipe, (channels, height, width)), noising(recipe)

    torch.manual_seed(args.seed)
    schedule = schedule_of(steps, args.dataset)
    started = time.perf_counter()
    net = rounded(
        fit(make(config, args.dataset), schedule, data.x[learnt].to(device), recipe, show)
    )
    seconds = time.perf_counter() - started

    x, y, eps = data.x[held].to(device), data.y[held].to(device), facts.eps["linf"]
    classifier = build_classifier(facts.roles["standard"]).to(device)
    rows = sweep(
        net, schedule, classifier, x, attack(classifier, x, y, float(Fraction(eps)), PGD), y
    )

    path = weights.path_to_write(f"{args.dataset}-diffusion")
    if args.out:
        path = args.out / path.name
    card = {
        "name": path.stem,
        "arch": {"name": NAME, "params": config},
        "schedule": steps,
        "parameters": sum(p.numel() for p in net.parameters()),
        "dataset": args.dataset,
        "data": data.digest,
        "split": f"train, less {recipe.validation} held-out images",
        "recipe": asdict(recipe),
        "seed": args.seed,
        "command": shlex.join(["python", "-m", "baselines.diffusion", *argv]),
        "commit": commit(),
        "device": torch.cuda.get_device_name()
        if device.startswith("cuda")
        else f"cpu, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "seconds": round(seconds, 1),
        "validation": {
            "n": len(held),
            "classifier": facts.roles["standard"],
            "attack": f"linf {eps}, PGD of {PGD} steps on the classifier alone",
            "accuracy": rows,
        },
        "licence": "MIT",
    }
    weights.save(path, net.state_dict(), card, half=True)
    print(
        f"{path}: {path.stat().st_size / 1024:.0f} KiB, {seconds:.0f} s; held-out accuracy, n={len(held)}, linf {eps}:"
    )
    for row in rows:
        print(f"  t={row['t']}: clean {row['clean']:.4f}, attacked {row['attacked']:.4f}")


def show(step: int, loss: float) -> None:
    print(f"step {step}: loss {loss:.4f}", flush=True)


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(prog="python -m baselines.diffusion", description=__doc__)
    parser.add_argument(
        "--dataset", required=True, help="a dataset that has a recipe, such as digits"
    )
    parser.add_argument("--steps", type=int, default=0, help="instead of the recipe's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=None,
        help="default: the environment variable BENCH_DATA, or data/",
    )
    parser.add_argument("--out", type=Path, default=None, help="a folder; default: weights/")
    args = parser.parse_args(argv)
    make_deterministic()
    try:
        if args.steps < 0:
            raise BadInput(f"--steps {args.steps} must be positive")
        train(args, argv, pick_device(args.device))
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("error: interrupted; nothing was written", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
