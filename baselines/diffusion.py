"""`python -m baselines.diffusion --dataset digits`: train the diffusion model of `diffpure`.

The command tries the model on held-out images, and writes weights and card.
"""

from __future__ import annotations

import argparse
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
from baselines.recipes import DIFFUSION_RECIPES, DiffusionRecipe, find_recipe
from baselines.train import attack, describe_run, round_as_stored, save
from baselines.unet import NAME, Schedule, make_schedule, make_unet
from bench.cli.main import Parser, run_main
from bench.data.sample import Dataset, load, stratified_order
from bench.errors import BadInput
from bench.judging.execute import make_deterministic, pick_device
from bench.judging.target import is_correct
from bench.questions.discover import discover
from bench.questions.registry import build_classifier, datasets
from bench.questions.spec import Spec

# Of the schedule, at which the card states accuracies.
SHARES = (0.05, 0.075, 0.1, 0.125, 0.15, 0.2, 0.3)
PGD_STEPS = 40  # of the attack whose images are purified


def unet_config(recipe: DiffusionRecipe, shape: tuple[int, int, int]) -> dict[str, Any]:
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


def schedule_config(recipe: DiffusionRecipe) -> dict[str, Any]:
    """The configuration of the scheduler."""
    return {
        "num_train_timesteps": recipe.noising,
        "beta_start": recipe.beta_start,
        "beta_end": recipe.beta_end,
        "beta_schedule": "linear",
    }


def noise_loss(net: nn.Module, schedule: Schedule, x: Tensor) -> Tensor:
    """The mean squared error of the predicted noise on images (B,C,H,W) in [0,1].

    Each image is at one random step of noising.
    """
    times = torch.randint(0, len(schedule.kept) - 1, (len(x),), device=x.device)  # (B,)
    kept = torch.tensor(schedule.kept[1:], device=x.device)[times].view(-1, 1, 1, 1)
    noise = torch.randn_like(x)
    noised = kept.sqrt() * (2 * x - 1) + (1 - kept).sqrt() * noise
    prediction: Tensor = net(noised, times, return_dict=False)[0]
    return F.mse_loss(prediction, noise)


def fit(
    net: nn.Module,
    schedule: Schedule,
    x: Tensor,
    recipe: DiffusionRecipe,
    show: Callable[[int, float], None],
) -> nn.Module:
    """Train on the images (N,C,H,W) in [0,1].

    The answer has the average of the late weights, in eval mode. Randomness comes from the global
    generators. `show(step, loss)` gets the loss of the last batch ten times.
    """
    net.to(x.device).train()
    optimiser = torch.optim.AdamW(net.parameters(), lr=recipe.lr)
    learning_rates = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, recipe.lr, total_steps=recipe.steps, pct_start=0.1
    )
    average = {k: v.clone() for k, v in net.state_dict().items()}
    every = max(1, recipe.steps // 10)
    for step in range(recipe.steps):
        chosen = torch.randint(len(x), (recipe.batch,), device=x.device)
        loss = noise_loss(net, schedule, x[chosen])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        learning_rates.step()
        decay = min(recipe.average, step / (step + 10))  # of the first steps nothing stays
        for k, v in net.state_dict().items():
            average[k].lerp_(v, 1 - decay)
        if (step + 1) % every == 0:
            show(step + 1, loss.item())
    net.load_state_dict(average)
    return net.eval()


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Held-out images (N,C,H,W), their adversarial versions, their labels, their classifier."""

    classifier: nn.Module
    x: Tensor
    x_adv: Tensor
    y: Tensor


@torch.no_grad()
def measure_shares(net: nn.Module, schedule: Schedule, held_out: HeldOut) -> list[dict[str, float]]:
    """The accuracy on purified images and purified adversarial ones, by the share t."""
    rows = []
    for t in SHARES:
        defence = DiffPure(held_out.classifier, net, schedule, t=t, steps=0, samples=1)
        clean = is_correct(defence(held_out.x), held_out.y).float().mean().item()
        attacked = is_correct(defence(held_out.x_adv), held_out.y).float().mean().item()
        rows.append({"t": t, "clean": round(clean, 4), "attacked": round(attacked, 4)})
    return rows


def train(words: list[str]) -> None:
    """Train, measure, and write weights and card."""
    args = parse(words)
    make_deterministic()
    if args.steps < 0:
        raise BadInput(f"--steps {args.steps} must be positive")
    device = pick_device(args.device)
    recipe = find_recipe(DIFFUSION_RECIPES, args.dataset, "a diffusion model")
    recipe = replace(recipe, steps=args.steps or recipe.steps)
    discover()
    data = load(Spec(args.dataset), split="train", data_dir=args.data_dir)
    order = stratified_order(data.y, data.ids)
    _, channels, height, width = data.x.shape
    config = unet_config(recipe, (channels, height, width))
    noising = schedule_config(recipe)

    torch.manual_seed(args.seed)
    schedule = make_schedule(noising, args.dataset)
    started = time.perf_counter()
    x = data.x[order[recipe.validation :]].to(device)
    net = round_as_stored(fit(make_unet(config, args.dataset), schedule, x, recipe, show))
    seconds = time.perf_counter() - started
    validation = validate(net, schedule, data.take(order[: recipe.validation]), device)

    card = {
        "arch": {"name": NAME, "params": config},
        "schedule": noising,
        "parameters": sum(p.numel() for p in net.parameters()),
        "dataset": args.dataset,
        "data": data.digest,
        "split": f"train, less {recipe.validation} held-out images",
        "recipe": asdict(recipe),
        **describe_run("baselines.diffusion", args.seed, words, device),
        "seconds": round(seconds, 1),
        "validation": validation,
    }
    line = save(net, f"{args.dataset}-diffusion", args.out, card)
    eps = datasets.get(args.dataset).facts.eps["linf"]
    print(f"{line}, {seconds:.0f} s; held-out accuracy, n={validation['n']}, linf {eps}:")
    for row in validation["accuracy"]:
        print(f"  t={row['t']}: clean {row['clean']:.4f}, attacked {row['attacked']:.4f}")


def validate(net: nn.Module, schedule: Schedule, held_out: Dataset, device: str) -> dict[str, Any]:
    """The accuracy of the dataset's standard classifier behind the model, on held-out images."""
    facts = datasets.get(held_out.name).facts
    eps = facts.eps["linf"]
    x = held_out.x.to(device)
    y = held_out.y.to(device)
    classifier = build_classifier(facts.roles["standard"]).to(device)
    x_adv = attack(classifier, x, y, float(Fraction(eps)), PGD_STEPS)
    return {
        "n": len(y),
        "classifier": facts.roles["standard"],
        "attack": f"linf {eps}, PGD of {PGD_STEPS} steps on the classifier alone",
        "accuracy": measure_shares(net, schedule, HeldOut(classifier, x, x_adv, y)),
    }


def show(step: int, loss: float) -> None:
    print(f"step {step}: loss {loss:.4f}", flush=True)


def parse(words: list[str]) -> argparse.Namespace:
    parser = Parser(prog="python -m baselines.diffusion", description=__doc__)
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
    return parser.read(words)


def main(argv: list[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else argv
    return run_main(lambda: train(words), "error", interrupted="interrupted; nothing was written")


if __name__ == "__main__":
    sys.exit(main())
