"""`python -m baselines.train --dataset digits`: train the classifiers of a dataset's roles.

The command measures them, and writes weights and cards.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from baselines.own import make_network
from baselines.recipes import CLASSIFIER_RECIPES, ClassifierRecipe, find_classifier_recipe
from bench import weights
from bench.cli.main import Parser, run_main
from bench.data.sample import Dataset, load, stratified_order
from bench.errors import BadInput
from bench.judging.environment import commit
from bench.judging.execute import make_deterministic, pick_device
from bench.questions.discover import discover
from bench.questions.eps import parse_eps
from bench.questions.registry import datasets
from bench.questions.spec import Spec
from carso.adversary import pgd
from carso.devices import PRECISIONS
from carso.tensors import round_to_half

NAMES = ("standard", "at", "other", "noise", "wide")
# Of the PGD whose robust accuracy the card states.
STEPS = 100
RESTARTS = 3


def fit(
    net: nn.Module,
    data: Dataset,
    recipe: ClassifierRecipe,
    device: str,
    show: Callable[[int, float], None],
    precision: str = "32-true",
) -> nn.Module:
    """Train by the recipe, under PGD where it has an eps (Madry et al. 2018).

    The answer has the average of the late weights, in float32 and eval mode. `precision` is one of
    carso.devices.PRECISIONS, of the network and of the attack. Randomness comes from the global
    generators. `show(epoch, loss)` gets the mean loss of each epoch.
    """
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    autocast = torch.autocast(
        torch.device(device).type, torch.bfloat16, enabled=precision == "bf16-mixed"
    )
    x = data.x.to(device)
    y = data.y.to(device)
    prepare_network(net, x, device)
    optimiser = torch.optim.AdamW(net.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    batches = -(-len(x) // recipe.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, recipe.lr, total_steps=recipe.epochs * batches, pct_start=0.2
    )
    average = WeightAverage(net, recipe.average)
    for epoch in range(recipe.epochs):
        eps = float(Fraction(recipe.eps)) * min(1, (epoch + 1) / (recipe.warm * recipe.epochs))
        total = x.new_zeros(())
        for chosen in torch.randperm(len(x), device=device).split(recipe.batch):
            images = augment(x[chosen], recipe)
            with autocast:
                x_adv = attack(net, images, y[chosen], eps, recipe.steps)
                loss = F.cross_entropy(net(x_adv), y[chosen])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            total += loss.detach() * len(chosen)
            average.update()
        show(epoch, total.item() / len(x))
    average.load()
    return net.eval()


def prepare_network(net: nn.Module, x: Tensor, device: str) -> None:
    """Give the network the scaling of its training images (N,C,H,W), and put it on the device."""
    net.register_buffer("mean", x.mean((0, 2, 3))[:, None, None])
    net.register_buffer("std", x.std((0, 2, 3))[:, None, None])
    net.to(device).train()
    if device.startswith("cuda"):
        net.to(memory_format=torch.channels_last)


class WeightAverage:
    """The exponential average of a network's floating tensors."""

    def __init__(self, net: nn.Module, decay: float) -> None:
        self.net = net
        self.decay = decay
        self.state = net.state_dict()
        self.names = [name for name, v in self.state.items() if v.is_floating_point()]
        self.average = [self.state[name].clone() for name in self.names]

    def update(self) -> None:
        values = [self.state[name] for name in self.names]
        torch._foreach_lerp_(self.average, values, 1 - self.decay)

    def load(self) -> None:
        """Put the average into the network."""
        averages = dict(zip(self.names, self.average, strict=True))
        self.net.load_state_dict({**self.state, **averages})


def augment(x: Tensor, recipe: ClassifierRecipe) -> Tensor:
    """Images (B,C,H,W), moved, mirrored and noisy as the recipe says.

    Half of the images are moved by up to `shift` pixels, the rim filled with black. Half are
    mirrored where `flip` is set. Then `noise` is added.
    """
    count, _, height, width = x.shape
    offset = torch.randint(0, 2 * recipe.shift + 1, (2, count), device=x.device)
    offset[:, torch.rand(count, device=x.device) < 0.5] = recipe.shift
    rows = offset[0][:, None] + torch.arange(height, device=x.device)  # (B,H)
    columns = offset[1][:, None] + torch.arange(width, device=x.device)  # (B,W)
    padded = F.pad(x, (recipe.shift,) * 4)
    image = torch.arange(count, device=x.device)[:, None, None]
    moved = padded[image, :, rows[:, :, None], columns[:, None, :]]  # (B,H,W,C)
    moved = moved.permute(0, 3, 1, 2)
    if recipe.flip:
        flipped = (torch.rand(count, device=x.device) < 0.5)[:, None, None, None]
        moved = torch.where(flipped, moved.flip(3), moved)
    if recipe.noise:
        return moved + recipe.noise * torch.randn_like(moved)
    return moved.contiguous()


def attack(net: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int) -> Tensor:
    """The images (B,C,H,W) after `steps` of linf PGD against the network in eval mode.

    They are unchanged at eps 0.
    """
    if not eps:
        return x
    training = net.training
    # In eval mode, the statistics of batch normalisation stay those of the batches of training.
    net.eval()
    box = x.new_full((len(x), 1, 1, 1), eps)
    try:
        return pgd(net, x, y, box, steps=steps, step=2.5 * eps / steps)
    finally:
        net.train(training)


def measure(
    net: nn.Module,
    data: Dataset,
    eps: float,
    device: str,
    *,
    steps: int = STEPS,
    restarts: int = RESTARTS,
    batch: int = 500,
) -> tuple[float, float]:
    """Accuracy on the clean images, and under linf PGD from `restarts` random starts."""
    clean = 0
    robust = 0
    for x, y in zip(data.x.split(batch), data.y.split(batch), strict=True):
        x = x.to(device)
        y = y.to(device)
        resists = net(x).argmax(1) == y  # (B,)
        clean += int(resists.sum())
        for _ in range(restarts):
            rest = resists.nonzero().squeeze(1)
            if len(rest):
                x_adv = attack(net, x[rest], y[rest], eps, steps)
                resists[rest] = net(x_adv).argmax(1) == y[rest]
        robust += int(resists.sum())
    return clean / len(data), robust / len(data)


def round_as_stored(net: nn.Module) -> nn.Module:
    """The network as it will come back from a file in half precision, frozen, in eval mode.

    So what is measured is what is kept.
    """
    round_to_half(net)
    return net.eval().requires_grad_(False)


def choose_recipe(name: str, args: argparse.Namespace) -> ClassifierRecipe:
    """The recipe of the data set under this name, with the changes that the command asks for."""
    recipe = find_classifier_recipe(args.dataset, name)
    if args.epochs:
        recipe = replace(recipe, epochs=args.epochs)
    if args.eps:
        recipe = replace(recipe, eps=str(parse_eps(args.eps)))
    return recipe


def train_classifier(name: str, args: argparse.Namespace, words: list[str], device: str) -> None:
    """Train, measure, and write weights and card."""
    recipe = choose_recipe(name, args)
    data = load(Spec(args.dataset), split="train", data_dir=args.data_dir)
    test = load(Spec(args.dataset), data_dir=args.data_dir)
    test = test.take(stratified_order(test.y, test.ids)[: args.n])
    eps = datasets.get(args.dataset).facts.eps["linf"]
    arch = {
        "name": recipe.net,
        "params": {"shape": list(data.x.shape[1:]), "classes": data.classes, **recipe.size},
    }
    torch.manual_seed(args.seed)
    started = time.perf_counter()
    progress = Progress(name, recipe.epochs, started)
    net = fit(make_network(arch, name), data, recipe, device, progress, args.precision)
    net = round_as_stored(net)
    seconds = time.perf_counter() - started
    torch.backends.cudnn.allow_tf32 = False
    clean, robust = measure(net, test, float(Fraction(eps)), device)

    card = {
        "arch": arch,
        "parameters": sum(p.numel() for p in net.parameters()),
        "dataset": args.dataset,
        "data": {"train": data.digest, "test": test.digest},
        "recipe": asdict(recipe),
        **describe_run("baselines.train", args.seed, words, device),
        "precision": args.precision,
        "seconds": round(seconds, 3),
        "accuracy": {
            "split": "test",
            "n": len(test),
            "clean": round(clean, 4),
            "robust": round(robust, 4),
            "attack": f"linf {eps}, PGD of {STEPS} steps, {RESTARTS} restarts",
        },
    }
    line = save(net, f"{args.dataset}-{name}", args.out, card)
    print(
        f"{line}, {seconds:.0f} s; "
        f"clean {clean:.4f}, robust {robust:.4f} at linf {eps}, n={len(test)}"
    )


def save(net: nn.Module, name: str, out: Path | None, card: dict[str, Any]) -> str:
    """Write weights and card, in half precision; the file and its size, as text.

    They go into the folder `out`, or to where `own:NAME` is looked for.
    """
    path = weights.path_to_write(name)
    if out:
        path = out / path.name
    weights.save(path, net.state_dict(), {"name": path.stem, **card}, half=True)
    return f"{path}: {path.stat().st_size / 1024:.0f} KiB"


def describe_run(module: str, seed: int, words: list[str], device: str) -> dict[str, Any]:
    """The facts of a card that say how, where and from what code the weights were made."""
    kind = f"cpu, {torch.get_num_threads()} threads"
    if device.startswith("cuda"):
        kind = torch.cuda.get_device_name()
    return {
        "seed": seed,
        "command": shlex.join(["python", "-m", module, *words]),
        "commit": commit(),
        "device": kind,
        "torch": torch.__version__,
        "licence": "MIT",
    }


class Progress:
    """Prints ten lines of a training; called with each epoch and its loss."""

    def __init__(self, name: str, epochs: int, started: float) -> None:
        self.name = name
        self.epochs = epochs
        self.started = started

    def __call__(self, epoch: int, loss: float) -> None:
        if (epoch + 1) % max(1, self.epochs // 10) == 0:
            seconds = time.perf_counter() - self.started
            print(
                f"{self.name}: epoch {epoch + 1}/{self.epochs}, loss {loss:.4f}, {seconds:.0f} s",
                flush=True,
            )


def names_to_train(dataset: str, device: str) -> list[str]:
    """The names of all recipes of the dataset, without those that would take days here."""
    recipes = CLASSIFIER_RECIPES.get(dataset, {})
    on_gpu = device.startswith("cuda")
    left_out = [name for name, recipe in recipes.items() if recipe.gpu and not on_gpu]
    if left_out:
        print(
            f"left out, for they take days without a GPU: {', '.join(left_out)}; "
            "--name has them all the same"
        )
    return [name for name in recipes or NAMES if name not in left_out]


def parse(words: list[str]) -> argparse.Namespace:
    parser = Parser(prog="python -m baselines.train", description=__doc__)
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
    return parser.read(words)


def main(argv: list[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else argv
    return run_main(
        lambda: train_all(words),
        "error",
        interrupted="interrupted; classifiers that were finished are written",
    )


def train_all(words: list[str]) -> None:
    args = parse(words)
    make_deterministic()
    if args.epochs < 0 or args.n < 1:
        raise BadInput(f"--epochs {args.epochs} and --n {args.n} must be positive")
    device = pick_device(args.device)
    discover()
    robust = str(datasets.get(args.dataset).facts.roles.get("robust", "none"))
    if args.name == "all" and not robust.startswith("own:"):
        print(
            f"the classifiers of '{args.dataset}' are not ours to train: its robust one is {robust}"
        )
        return
    if args.precision == "tf32" and not device.startswith("cuda"):
        raise BadInput("--precision tf32 needs a GPU; use 32-true or bf16-mixed")
    names = names_to_train(args.dataset, device) if args.name == "all" else [args.name]
    for name in names:
        train_classifier(name, args, words, device)


if __name__ == "__main__":
    sys.exit(main())
