"""`python -m carso.train --dataset digits`: train the purifier of a classifier, check the whole defence, write weights and card."""

from __future__ import annotations

import argparse
import math
import os
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench.data.sample import Dataset, load, stratified_order
from bench.execute import commit
from bench.registry import ROOT, build_classifier, datasets, discover
from bench.spec import BadInput, Spec
from bench.weights import digest, locate
from carso import checkpoint
from carso.fit import Epoch, fit, new_purifier, validate, wrap
from carso.purifier import Purifier
from carso.recipe import Recipe, read, strength


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m carso.train", description=__doc__)
    parser.add_argument("--dataset", required=True, help="a dataset of the bench, such as digits")
    parser.add_argument("--classifier", default="", help="whose representation is read (default: the dataset's robust one)")
    parser.add_argument("--kind", choices=checkpoint.KINDS, default="carso", help="vae: the unconditional purifier of the baseline")
    parser.add_argument("--recipe", default="", help="a name in carso/recipes, or a TOML file (default: that of the dataset)")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="change a field of the recipe; may be repeated")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--out", type=Path, default=None, help="default: weights/DATASET-KIND.safetensors")
    parser.add_argument("--data-dir", type=Path, default=None, help="default: the environment variable BENCH_DATA, or data/")
    return parser.parse_args(argv)


def prepare(args: argparse.Namespace) -> tuple[Recipe, str, nn.Module, Dataset, torch.device, Path]:
    """All that the command names; BadInput, or ValueError, in one line where something is wrong."""
    if args.device == "cuda" and not torch.cuda.is_available():
        raise BadInput("device 'cuda' was asked for, but there is no GPU; use --device cpu or auto")
    device = torch.device("cuda" if args.device != "cpu" and torch.cuda.is_available() else "cpu")
    changes = {}
    for item in args.set:
        key, equals, value = item.partition("=")
        if not equals:
            raise BadInput(f"--set '{item}' is not field=value")
        changes[key.strip()] = value.strip()
    recipe = read(args.recipe or args.dataset, args.kind, changes)
    discover()
    entry = datasets.get(args.dataset)
    name = args.classifier or entry.facts["roles"]["robust"]
    data = load(Spec(args.dataset), split="train", data_dir=args.data_dir)
    if recipe.validation >= len(data):
        raise BadInput(f"recipe field validation={recipe.validation} leaves nothing of the {len(data)} training images")
    out = args.out or ROOT / "weights" / f"{args.dataset}-{args.kind}.safetensors"
    if out.suffix != ".safetensors":
        raise BadInput(f"--out '{out}' does not end in .safetensors")
    above = next(parent for parent in out.absolute().parents if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise BadInput(f"--out '{out}' cannot be written: '{above}' is not a folder that may be written to")
    return recipe, name, build_classifier(name).to(device), data, device, out


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    args = parse(argv)
    try:
        recipe, name, classifier, data, device, out = prepare(args)
        torch.manual_seed(args.seed)
        image = (data.x.shape[1], data.x.shape[2], data.x.shape[3])
        purifier = new_purifier(classifier, image, recipe).to(device)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2

    order = stratified_order(data.y, data.ids)  # a check on the same held-out images whatever the seed
    x, y = data.x[order].to(device), data.y[order].to(device)
    held = recipe.validation
    started = time.perf_counter()
    try:
        history = train(purifier, classifier, x[held:], y[held:], recipe)
    except (FloatingPointError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    except KeyboardInterrupt:
        print("interrupted; nothing is written", file=sys.stderr)
        return 130
    seconds = time.perf_counter() - started
    purifier = stored(purifier, half=recipe.half)
    accuracy = validate(wrap(classifier, purifier), x[:held], y[:held], strength("validation_eps", recipe.validation_eps)) if held else None
    facts = {
        **checkpoint.describe(purifier, classifier),
        "dataset": args.dataset,
        "data": data.digest,
        "split": f"train, less {held} held-out images",
        "classifier": name,
        "classifier_sha256": digest(locate(name)) if name.startswith(("own:", "file:")) else None,
        "recipe": recipe.to_json(),
        "seed": args.seed,
        "command": shlex.join(["python", "-m", "carso.train", *argv]),
        "commit": commit(),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "seconds": round(seconds, 1),
        "final_loss": {"reconstruction": round(history[-1].reconstruction, 4), "kl": round(history[-1].kl, 4)},
        "validation": accuracy and report(accuracy, held, recipe.validation_eps),
        "parameters": sum(p.numel() for p in purifier.parameters()),
        "licence": "MIT",
    }
    try:
        checkpoint.save(out, purifier, facts, half=recipe.half)
    except (OSError, ValueError) as error:
        print(f"error: {out} cannot be written: {error}", file=sys.stderr)
        return 1
    print(f"{out}: {out.stat().st_size / 1024:.0f} KiB, {seconds:.0f} s; {facts['validation'] or 'not validated'}")
    return 0


def train(purifier: Purifier, classifier: nn.Module, x: torch.Tensor, y: torch.Tensor, recipe: Recipe) -> list[Epoch]:
    """`fit` under a progress bar; ten plain lines where the output is no terminal."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("epoch {task.completed}/{task.total}"), BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    terminal = sys.stdout.isatty()
    every = math.ceil(recipe.epochs / 10)
    with Progress(*columns, disable=not terminal) as bar:
        task = bar.add_task("", total=recipe.epochs)

        def show(e: Epoch) -> None:
            line = f"bce {e.reconstruction:.2f} kl {e.kl:.2f} beta {e.beta:.2g} lr {e.lr:.2g}"
            bar.update(task, advance=1, description=line)
            if not terminal and (e.epoch + 1) % every == 0:
                print(f"epoch {e.epoch + 1}/{recipe.epochs}: {line}", flush=True)

        return fit(purifier, classifier, x, y, recipe, show)


def stored(purifier: Purifier, *, half: bool) -> Purifier:
    """The purifier as it will come back from the file, so that what is validated is what is kept."""
    kept = {k: v.half().to(v.dtype) if half and v.is_floating_point() else v for k, v in purifier.state_dict().items()}
    purifier.load_state_dict(kept)
    return purifier


def report(accuracy: tuple[float, float], n: int, eps: str) -> dict[str, Any]:
    attack = f"linf {eps}, PGD of 20 steps on the margin of the lse surrogate"
    return {"n": n, "clean_acc": round(accuracy[0], 4), "pgd_acc": round(accuracy[1], 4), "attack": attack, "draws": 4}


if __name__ == "__main__":
    sys.exit(main())
