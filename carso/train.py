"""`python -m carso.train --dataset digits`: train the purifier of a classifier, check the whole defence, write weights, card and curve."""

from __future__ import annotations

import argparse
import math
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.data.sample import load, stratified_order
from bench.errors import BadInput
from bench.judging.environment import commit
from bench.questions.discover import discover
from bench.questions.registry import build_classifier, datasets
from bench.questions.spec import Spec
from bench.weights import digest, locate, path_to_write
from carso import checkpoint
from carso.batches import check, packed, pixels
from carso.devices import PRECISIONS, STRATEGIES, Devices, choose
from carso.fit import Validation, fit, new_purifier, validate, wrap
from carso.purifier import Purifier
from carso.recipe import Recipe, read, strength
from carso.resume import Checkpoint, Epoch

RULE = 1e-4  # the paper's learning rate for every image in the batch of one device


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m carso.train", description=__doc__)
    parser.add_argument("--dataset", required=True, help="a dataset of the bench, such as digits")
    parser.add_argument(
        "--classifier",
        default="",
        help="whose representation is read (default: the dataset's robust one)",
    )
    parser.add_argument(
        "--kind",
        choices=checkpoint.KINDS,
        default="carso",
        help="vae: the unconditional purifier of the baseline",
    )
    parser.add_argument(
        "--recipe",
        default="",
        help="a name in carso/recipes, or a TOML file (default: that of the dataset)",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="change a field of the recipe; may be repeated",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument(
        "--devices",
        default="1",
        help="how many of them, on each node; auto: all GPUs. The recipe's batch is divided among them",
    )
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument(
        "--strategy",
        choices=STRATEGIES,
        default="auto",
        help="how several devices work together (auto: ddp)",
    )
    parser.add_argument("--precision", choices=PRECISIONS, default="32-true")
    parser.add_argument(
        "--bf16-adversaries", action="store_true", help="the training adversaries alone in bfloat16"
    )
    parser.add_argument(
        "--checkpoint-every",
        type=int,
        default=1,
        metavar="EPOCHS",
        help="0: never; where one lies, the run goes on from it",
    )
    parser.add_argument("--fresh", action="store_true", help="start anew where a checkpoint lies")
    parser.add_argument(
        "--validate-every", type=int, default=0, metavar="EPOCHS", help="0: only at the end"
    )
    parser.add_argument(
        "--out", type=Path, default=None, help="default: weights/DATASET-KIND.safetensors"
    )
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=None,
        help="default: the environment variable BENCH_DATA, or data/",
    )
    return parser.parse_args(argv)


@dataclass(frozen=True, slots=True)
class Job:
    """All that the command names."""

    args: argparse.Namespace
    recipe: Recipe
    name: str  # of the classifier
    classifier: nn.Module
    x: Tensor  # packed; the held-out images first
    y: Tensor
    digest: str  # of the data
    devices: Devices
    out: Path
    checkpoint: Checkpoint


def prepare(args: argparse.Namespace) -> Job:
    """BadInput, or ValueError, in one line where something is wrong; nothing is written."""
    devices = choose(
        args.device,
        devices=args.devices,
        nodes=args.nodes,
        strategy=args.strategy,
        precision=args.precision,
        half=args.bf16_adversaries,
    )
    if args.checkpoint_every < 0 or args.validate_every < 0:
        raise BadInput("--checkpoint-every and --validate-every must be 0 or more")
    changes = {}
    for item in args.set:
        key, equals, value = item.partition("=")
        if not equals:
            raise BadInput(f"--set '{item}' is not field=value")
        changes[key.strip()] = value.strip()
    recipe = read(args.recipe or args.dataset, args.kind, changes)
    out = args.out or path_to_write(f"{args.dataset}-{args.kind}")
    writable(out)
    discover()
    name = args.classifier or datasets.get(args.dataset).facts.roles["robust"]
    data = load(Spec(args.dataset), split="train", data_dir=args.data_dir)
    check(data.x)
    if recipe.validation >= len(data):
        raise BadInput(
            f"recipe field validation={recipe.validation} leaves nothing of the {len(data)} training images"
        )
    classifier = build_classifier(name)
    question = {
        "kind": args.kind,
        "recipe": recipe.to_json(),
        "seed": args.seed,
        "classifier": checkpoint.fingerprint(classifier),
        "data": data.digest,
        "devices": devices.count,
        "precision": args.precision,
        "bf16 adversaries": args.bf16_adversaries,
    }
    kept = Checkpoint(
        out.with_suffix(".training"),
        out.with_suffix(".curve.jsonl"),
        question,
        every=args.checkpoint_every,
    )
    if not args.fresh:
        kept.epochs()
    order = stratified_order(
        data.y, data.ids
    )  # a check on the same held-out images whatever the seed
    return Job(
        args,
        recipe,
        name,
        classifier,
        packed(data.x)[order],
        data.y[order],
        data.digest,
        devices,
        out,
        kept,
    )


def writable(out: Path) -> None:
    if out.suffix != ".safetensors" or out.is_dir():
        raise BadInput(f"--out '{out}' does not end in .safetensors, or is a folder")
    above = next(parent for parent in out.absolute().parents if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise BadInput(
            f"--out '{out}' cannot be written: '{above}' is not a folder that may be written to"
        )


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    args = parse(argv)
    job: Job | None = None
    try:
        job = prepare(args)
        if args.fresh:
            job.checkpoint.remove()  # before the processes meet, so that all of them start anew
        job.devices.launch()
        run(job, argv)
    except ValueError as error:
        return failed(job, f"error: {error}", 2)
    except FloatingPointError as error:  # the same command would end there again
        return failed(job, f"error: {error}", 1, hint="")
    except OSError as error:
        return failed(job, f"error: {error}", 1)
    except KeyboardInterrupt:
        return failed(job, "interrupted", 130)
    return 0


def failed(
    job: Job | None, message: str, code: int, *, hint: str = ": the same command goes on from it"
) -> int:
    """One line on stderr, of the first process alone; what there is to go on from."""
    if job and code != 2:
        try:
            done = job.checkpoint.epochs()
        except ValueError:
            done = 0
        where = f"the checkpoint '{job.checkpoint.path}' of epoch {done} of {job.recipe.epochs} is kept{hint}"
        message += f"; {where if done else 'there is no checkpoint'}"
    if not job or job.devices.rank == 0:
        print(message, file=sys.stderr)
    return code


def run(job: Job, argv: list[str]) -> None:
    """Train, and write. ValueError and FloatingPointError as `fit`; OSError where a file cannot be written."""
    args, recipe, devices, held = job.args, job.recipe, job.devices, job.recipe.validation
    # In channels_last the tensor cores need no transposition.
    classifier = job.classifier.to(devices.device)
    if devices.device.type == "cuda" and args.precision != "32-true":
        classifier.to(memory_format=torch.channels_last)
    torch.manual_seed(args.seed)
    purifier = new_purifier(
        classifier, (job.x.shape[1], job.x.shape[2], job.x.shape[3]), recipe
    ).to(devices.device)
    x, y = job.x.to(devices.device), job.y.to(devices.device)
    measure = validation(job, classifier, pixels(x[:held]), y[:held])
    if devices.rank == 0:
        announce(job, len(x) - held)
    with progress(recipe.epochs, devices.rank == 0) as show:
        history = fit(
            purifier,
            classifier,
            x[held:],
            y[held:],
            recipe,
            show,
            validation=measure,
            checkpoint=job.checkpoint,
            devices=devices,
        )
    if devices.rank == 0:
        write(job, stored(purifier, half=recipe.half), history, argv)


def announce(job: Job, images: int) -> None:
    """What may surprise: a run that is gone on with, and a learning rate that is not what the paper's rule gives here."""
    if done := job.checkpoint.epochs():
        print(
            f"going on after epoch {done} of {job.recipe.epochs}: {job.checkpoint.path}", flush=True
        )
    batch = math.ceil(min(job.recipe.batch, images) / job.devices.count)
    rule = RULE * batch
    if not math.isclose(job.recipe.lr, rule, rel_tol=0.05):
        print(
            f"lr is the recipe's {job.recipe.lr:g}; the paper's rule, {RULE:g} times the {batch} images of one device, would give {rule:g} here"
        )


def validation(job: Job, classifier: nn.Module, x: Tensor, y: Tensor) -> Validation | None:
    """Of the purifier as its file will hold it; each process takes its share of the images."""
    if not len(x):
        return None
    devices, eps = job.devices, strength("validation_eps", job.recipe.validation_eps)
    mine, labels = x[devices.rank :: devices.count], y[devices.rank :: devices.count]

    def measure(purifier: Purifier) -> tuple[float, float]:
        right = torch.zeros(2, device=x.device)
        if len(mine):
            accuracy = validate(
                wrap(classifier, stored(purifier, half=job.recipe.half)), mine, labels, eps
            )
            right = torch.tensor(accuracy, device=x.device) * len(mine)
        clean, attacked = (devices.sum(right) / len(x)).tolist()
        return round(clean, 4), round(attacked, 4)

    return Validation(measure, job.args.validate_every)


@contextmanager
def progress(epochs: int, shown: bool) -> Iterator[Callable[[Epoch], None]]:
    """A progress bar; ten plain lines where the output is no terminal."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("epoch {task.completed}/{task.total}"),
        BarColumn(),
        TextColumn("{task.description}"),
        TimeRemainingColumn(),
    )
    terminal = sys.stdout.isatty()
    every = math.ceil(epochs / 10)
    with Progress(*columns, disable=not (terminal and shown)) as bar:
        task = bar.add_task("", total=epochs)

        def show(e: Epoch) -> None:
            checked = "" if e.clean_acc is None else f" clean {e.clean_acc:.3f} pgd {e.pgd_acc:.3f}"
            line = (
                f"bce {e.reconstruction:.2f} kl {e.kl:.2f} beta {e.beta:.2g} lr {e.lr:.2g}{checked}"
            )
            bar.update(task, completed=e.epoch + 1, description=line)
            if shown and not terminal and ((e.epoch + 1) % every == 0 or checked):
                print(f"epoch {e.epoch + 1}/{epochs}: {line}", flush=True)

        yield show


def stored(purifier: Purifier, *, half: bool) -> Purifier:
    """The purifier as it will come back from the file, so that what is validated is what is kept."""
    kept = {
        k: v.half().to(v.dtype) if half and v.is_floating_point() else v
        for k, v in purifier.state_dict().items()
    }
    purifier.load_state_dict(kept)
    return purifier


def write(job: Job, purifier: Purifier, history: list[Epoch], argv: list[str]) -> None:
    """Weights and card; then the checkpoint has had its day."""
    args, recipe, devices, last = job.args, job.recipe, job.devices, history[-1]
    seconds, adversaries = sum(e.seconds for e in history), sum(e.adversaries for e in history)
    kind = (
        torch.cuda.get_device_name()
        if devices.device.type == "cuda"
        else f"cpu, {torch.get_num_threads()} threads"
    )
    facts = {
        **checkpoint.describe(purifier, job.classifier),
        "dataset": args.dataset,
        "data": job.digest,
        "split": f"train, less {recipe.validation} held-out images",
        "classifier": job.name,
        "classifier_sha256": digest(locate(job.name))
        if job.name.startswith(("own:", "file:"))
        else None,
        "recipe": recipe.to_json(),
        "seed": args.seed,
        "command": shlex.join(["python", "-m", "carso.train", *argv]),
        "commit": commit(),
        "device": kind if devices.count == 1 else f"{devices.count} x {kind}",
        "precision": args.precision
        + (", adversaries in bfloat16" if args.bf16_adversaries else ""),
        "torch": torch.__version__,
        "seconds": round(seconds, 3),
        "seconds_of_adversaries": round(adversaries, 3),
        "final_loss": {"reconstruction": round(last.reconstruction, 4), "kl": round(last.kl, 4)},
        "validation": report(last, recipe),
        "parameters": sum(p.numel() for p in purifier.parameters()),
        "licence": "MIT",
    }
    try:
        checkpoint.save(job.out, purifier, facts, half=recipe.half)
    except ValueError as error:
        raise FloatingPointError(f"{job.out} cannot be written: {error}") from None
    job.checkpoint.remove()
    print(
        f"{job.out}: {job.out.stat().st_size / 1024:.0f} KiB, {seconds:.0f} s; {facts['validation'] or 'not validated'}"
    )


def report(last: Epoch, recipe: Recipe) -> dict[str, Any] | None:
    if last.clean_acc is None:
        return None
    attack = f"linf {recipe.validation_eps}, PGD of 20 steps on the margin of the lse surrogate"
    return {
        "n": recipe.validation,
        "clean_acc": last.clean_acc,
        "pgd_acc": last.pgd_acc,
        "attack": attack,
        "draws": 4,
    }


if __name__ == "__main__":
    sys.exit(main())
