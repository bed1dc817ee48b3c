"""`python -m baselines.train --dataset digits`: train the classifiers that the dataset names as its roles, measure them, write weights and cards."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from baselines.own import make
from baselines.recipes import RECIPES, Recipe, recipe_of
from bench import weights
from bench.data.sample import Dataset, load, stratified_order
from bench.errors import BadInput
from bench.judging.environment import commit
from bench.judging.execute import make_deterministic, pick_device
from bench.questions.discover import discover
from bench.questions.registry import datasets
from bench.questions.spec import Spec, parse_eps
from carso.adversary import pgd
from carso.devices import PRECISIONS

NAMES = ("standard", "at", "other", "noise", "wide")
STEPS, RESTARTS = 100, 3  # of the PGD whose robust accuracy the card states


def fit(
    net: nn.Module,
    data: Dataset,
    recipe: Recipe,
    device: str,
    show: Callable[[int, float], None],
    precision: str = "32-true",
) -> nn.Module:
    """Train by the recipe, under PGD where it has an eps (Madry et al. 2018); the average of the late weights, in float32 and eval mode.

    `precision` is one of carso.devices.PRECISIONS, of the network and of the attack. Randomness comes from the global generators.
    `show(epoch, loss)` is told the mean loss of each epoch.
    """
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    half = torch.autocast(
        torch.device(device).type, torch.bfloat16, enabled=precision == "bf16-mixed"
    )
    x, y = data.x.to(device), data.y.to(device)
    spread = (0, 2, 3)
    net.register_buffer("mean", x.mean(spread)[:, None, None])
    net.register_buffer("std", x.std(spread)[:, None, None])
    net.to(device).train()
    if device.startswith("cuda"):
        net.to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(net.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    batches = -(-len(x) // recipe.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, recipe.lr, total_steps=recipe.epochs * batches, pct_start=0.2
    )
    kept = net.state_dict()
    average = {k: v.clone() for k, v in kept.items()}
    floats = [k for k, v in kept.items() if v.is_floating_point()]
    for epoch in range(recipe.epochs):
        eps = float(Fraction(recipe.eps)) * min(1, (epoch + 1) / (recipe.warm * recipe.epochs))
        total = x.new_zeros(())
        for chosen in torch.randperm(len(x), device=device).split(recipe.batch):
            seen = augment(x[chosen], recipe)
            with half:
                loss = F.cross_entropy(
                    net(attack(net, seen, y[chosen], eps, recipe.steps)), y[chosen]
                )
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            total += loss.detach() * len(chosen)
            torch._foreach_lerp_(
                [average[k] for k in floats], [kept[k] for k in floats], 1 - recipe.average
            )
        show(epoch, total.item() / len(x))
    net.load_state_dict({**kept, **{k: average[k] for k in floats}})
    return net.eval()


def augment(x: Tensor, recipe: Recipe) -> Tensor:
    """Half of the images (B,C,H,W) moved by up to `shift` pixels, the rim filled with black; half mirrored where `flip` is set; then `noise`."""
    count, _, height, width = x.shape
    by = torch.randint(0, 2 * recipe.shift + 1, (2, count), device=x.device)
    by[:, torch.rand(count, device=x.device) < 0.5] = recipe.shift
    rows = by[0][:, None] + torch.arange(height, device=x.device)
    columns = by[1][:, None] + torch.arange(width, device=x.device)
    padded = F.pad(x, (recipe.shift,) * 4)
    moved = padded[
        torch.arange(count, device=x.device)[:, None, None],
        :,
        rows[:, :, None],
        columns[:, None, :],
    ].permute(0, 3, 1, 2)
    if recipe.flip:
        moved = torch.where(
            (torch.rand(count, device=x.device) < 0.5)[:, None, None, None], moved.flip(3), moved
        )
    return moved + recipe.noise * torch.randn_like(moved) if recipe.noise else moved.contiguous()


def attack(net: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int) -> Tensor:
    """The images (B,C,H,W) after `steps` of linf PGD against the network in eval mode; unchanged at eps 0."""
    if not eps:
        return x
    training = net.training
    net.eval()  # the statistics of batch normalisation are those of the batches that are learnt from
    try:
        return pgd(
            net, x, y, x.new_full((len(x), 1, 1, 1), eps), steps=steps, step=2.5 * eps / steps
        )
    finally:
        net.train(training)


def measure(
    net: nn.Module,
    data: Dataset,
    eps: float,
    device: str,
    *,
    steps: int,
    restarts: int,
    batch: int = 500,
) -> tuple[float, float]:
    """Accuracy on the clean images, and under linf PGD from `restarts` random starts."""
    clean = robust = 0
    for x, y in zip(data.x.split(batch), data.y.split(batch), strict=True):
        x, y = x.to(device), y.to(device)
        resists = net(x).argmax(1) == y
        clean += int(resists.sum())
        for _ in range(restarts):
            left = resists.nonzero().squeeze(1)
            if len(left):
                resists[left] = net(attack(net, x[left], y[left], eps, steps)).argmax(1) == y[left]
        robust += int(resists.sum())
    return clean / len(data), robust / len(data)


def rounded(net: nn.Module) -> nn.Module:
    """The network as it will come back from a file in half precision, so that what is measured is what is kept."""
    net.load_state_dict(
        {
            k: v.half().to(v.dtype) if v.is_floating_point() else v
            for k, v in net.state_dict().items()
        }
    )
    return net.eval().requires_grad_(False)


def train_one(name: str, args: argparse.Namespace, argv: list[str], device: str) -> None:
    recipe = recipe_of(args.dataset, name)
    changes: dict[str, Any] = {"epochs": args.epochs, "eps": args.eps and str(parse_eps(args.eps))}
    recipe = replace(recipe, **{k: v for k, v in changes.items() if v})
    data = load(Spec(args.dataset), split="train", data_dir=args.data_dir)
    test = load(Spec(args.dataset), data_dir=args.data_dir)
    test = test.take(stratified_order(test.y, test.ids)[: args.n])
    budget = datasets.get(args.dataset).facts.eps["linf"]

    torch.manual_seed(args.seed)
    arch = {
        "name": recipe.net,
        "params": {"shape": list(data.x.shape[1:]), "classes": data.classes, **recipe.size},
    }
    started = time.perf_counter()
    net = rounded(
        fit(
            make(arch, name),
            data,
            recipe,
            device,
            lambda epoch, loss: show(name, epoch, recipe.epochs, loss, started),
            args.precision,
        )
    )
    seconds = time.perf_counter() - started
    torch.backends.cudnn.allow_tf32 = False
    clean, robust = measure(
        net, test, float(Fraction(budget)), device, steps=STEPS, restarts=RESTARTS
    )

    path = weights.path_to_write(f"{args.dataset}-{name}")
    if args.out:
        path = args.out / path.name
    facts = {
        "name": path.stem,
        "arch": arch,
        "parameters": sum(p.numel() for p in net.parameters()),
        "dataset": args.dataset,
        "data": {"train": data.digest, "test": test.digest},
        "recipe": recipe.to_json(),
        "seed": args.seed,
        "command": shlex.join(["python", "-m", "baselines.train", *argv]),
        "commit": commit(),
        "device": torch.cuda.get_device_name()
        if device.startswith("cuda")
        else f"cpu, {torch.get_num_threads()} threads",
        "precision": args.precision,
        "torch": torch.__version__,
        "seconds": round(seconds, 3),
        "accuracy": {
            "split": "test",
            "n": len(test),
            "clean": round(clean, 4),
            "robust": round(robust, 4),
            "attack": f"linf {budget}, PGD of {STEPS} steps, {RESTARTS} restarts",
        },
        "licence": "MIT",
    }
    weights.save(path, net.state_dict(), facts, half=True)
    print(
        f"{path}: {path.stat().st_size / 1024:.0f} KiB, {seconds:.0f} s; clean {clean:.4f}, robust {robust:.4f} at linf {budget}, n={len(test)}"
    )


def every(dataset: str, device: str) -> list[str]:
    """The names of all recipes of the dataset, less those that would take days here."""
    recipes = RECIPES.get(dataset, {})
    left = [
        name for name, recipe in recipes.items() if recipe.gpu and not device.startswith("cuda")
    ]
    if left:
        print(
            f"left out, for they take days without a GPU: {', '.join(left)}; --name has them all the same"
        )
    return [name for name in recipes or NAMES if name not in left]


def show(name: str, epoch: int, epochs: int, loss: float, started: float) -> None:
    if (epoch + 1) % max(1, epochs // 10) == 0:
        print(
            f"{name}: epoch {epoch + 1}/{epochs}, loss {loss:.4f}, {time.perf_counter() - started:.0f} s",
            flush=True,
        )


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(prog="python -m baselines.train", description=__doc__)
    parser.add_argument(
        "--dataset", required=True, help="a dataset that has recipes, such as digits"
    )
    parser.add_argument(
        "--name", choices=(*NAMES, "all"), default="all", help="which of its classifiers"
    )
    parser.add_argument("--epochs", type=int, default=0, help="instead of the recipe's")
    parser.add_argument(
        "--eps",
        default="",
        help="linf strength of adversarial training instead of the recipe's, such as 8/255",
    )
    parser.add_argument("--n", type=int, default=1000, help="test images to measure on, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="32-true",
        help="of the training; what is measured afterwards is in float32",
    )
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
        if args.epochs < 0 or args.n < 1:
            raise BadInput(f"--epochs {args.epochs} and --n {args.n} must be positive")
        device = pick_device(args.device)
        discover()
        robust = str(datasets.get(args.dataset).facts.roles.get("robust", "none"))
        if args.name == "all" and not robust.startswith("own:"):
            print(
                f"the classifiers of '{args.dataset}' are not ours to train: its robust one is {robust}"
            )
            return 0
        if args.precision == "tf32" and not device.startswith("cuda"):
            raise BadInput("--precision tf32 needs a GPU; use 32-true or bf16-mixed")
        for name in every(args.dataset, device) if args.name == "all" else (args.name,):
            train_one(name, args, argv, device)
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("error: interrupted; classifiers that were finished are written", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
