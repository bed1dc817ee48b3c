"""`python -m carso.train --dataset digits`: train the purifier of a classifier.

The command checks the whole defence, and writes weights, card and curve.
"""

from __future__ import annotations

import argparse
import math
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.cli.main import Parser, fail, run_main
from bench.data.sample import Dataset, load, stratified_order
from bench.errors import BadInput
from bench.judging.environment import commit
from bench.questions.discover import discover
from bench.questions.registry import build_classifier, datasets
from bench.questions.spec import Spec
from bench.weights import digest, locate, path_to_write
from carso import checkpoint
from carso.batches import pack_images, unpack_images
from carso.devices import PRECISIONS, STRATEGIES, Devices, choose_devices
from carso.fit import Validation, fit_purifier, new_purifier, validate, wrap
from carso.purifier import Purifier
from carso.recipe import Recipe, parse_strength, read_recipe
from carso.resume import Checkpoint, Epoch
from carso.tensors import round_to_half

LR_PER_IMAGE = 1e-4  # the paper's learning rate for every image in the batch of one device
VALIDATION_ATTACK = "PGD of 20 steps on the margin of the lse surrogate"


def parse(words: list[str]) -> argparse.Namespace:
    parser = Parser(prog="python -m carso.train", description=__doc__)
    add_question_flags(parser)
    add_device_flags(parser)
    add_file_flags(parser)
    return parser.read(words)


def add_question_flags(parser: argparse.ArgumentParser) -> None:
    """What is trained."""
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


def add_device_flags(parser: argparse.ArgumentParser) -> None:
    """Where it is trained."""
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument(
        "--devices",
        default="1",
        help="how many of them, on each node; auto: all GPUs. "
        "The recipe's batch is divided among them",
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


def add_file_flags(parser: argparse.ArgumentParser) -> None:
    """What is kept, and where."""
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


@dataclass(frozen=True, slots=True)
class Job:
    """All that the command names."""

    args: argparse.Namespace
    recipe: Recipe
    name: str  # of the classifier
    classifier: nn.Module
    x: Tensor  # (N,C,H,W), packed; the held-out images first
    y: Tensor  # (N,)
    digest: str  # of the data
    devices: Devices
    out: Path
    checkpoint: Checkpoint


def prepare(args: argparse.Namespace) -> Job:
    """BadInput where something is wrong; nothing is written."""
    devices = choose_devices(
        args.device,
        devices=args.devices,
        nodes=args.nodes,
        strategy=args.strategy,
        precision=args.precision,
        half=args.bf16_adversaries,
    )
    if args.checkpoint_every < 0 or args.validate_every < 0:
        raise BadInput("--checkpoint-every and --validate-every must be 0 or more")
    recipe = read_recipe(args.recipe or args.dataset, args.kind, parse_changes(args.set))
    out = args.out or path_to_write(f"{args.dataset}-{args.kind}")
    check_writable(out)
    discover()
    name = args.classifier or datasets.get(args.dataset).facts.roles["robust"]
    data = load(Spec(args.dataset), split="train", data_dir=args.data_dir)
    if recipe.validation >= len(data):
        raise BadInput(
            f"recipe field validation={recipe.validation} leaves nothing "
            f"of the {len(data)} training images"
        )
    classifier = build_classifier(name)
    state = Checkpoint(
        out.with_suffix(".training"),
        out.with_suffix(".curve.jsonl"),
        question_of(args, recipe, classifier, data, devices),
        every=args.checkpoint_every,
    )
    if not args.fresh:
        state.count_epochs()
    # The order makes the check use the same held-out images whatever the seed.
    order = stratified_order(data.y, data.ids)
    x = pack_images(data.x)[order]
    y = data.y[order]
    return Job(args, recipe, name, classifier, x, y, data.digest, devices, out, state)


def parse_changes(items: list[str]) -> dict[str, str]:
    """`field=value` texts as a mapping."""
    changes = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not equals:
            raise BadInput(f"--set '{item}' is not field=value")
        changes[key.strip()] = value.strip()
    return changes


def question_of(
    args: argparse.Namespace,
    recipe: Recipe,
    classifier: nn.Module,
    data: Dataset,
    devices: Devices,
) -> Mapping[str, Any]:
    """All that the weights depend on."""
    return {
        "kind": args.kind,
        "recipe": recipe.to_json(),
        "seed": args.seed,
        "classifier": checkpoint.fingerprint(classifier),
        "data": data.digest,
        "devices": devices.count,
        "precision": args.precision,
        "bf16 adversaries": args.bf16_adversaries,
    }


def check_writable(out: Path) -> None:
    if out.suffix != ".safetensors" or out.is_dir():
        raise BadInput(f"--out '{out}' does not end in .safetensors, or is a folder")
    above = next(parent for parent in out.absolute().parents if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise BadInput(
            f"--out '{out}' cannot be written: '{above}' is not a folder that may be written to"
        )


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0 written, 1 diverged or not written, 2 bad input, 130 interrupted."""
    words = sys.argv[1:] if argv is None else argv
    return run_main(lambda: command(words), "error")


def command(words: list[str]) -> int:
    job = prepare(parse(words))
    try:
        if job.args.fresh:
            job.checkpoint.remove()  # before the processes meet, so that all of them start anew
        job.devices.launch()
        run(job, words)
    except BadInput:
        if job.devices.rank:  # the first process says it
            return 2
        raise
    except FloatingPointError as error:  # the same command would end there again
        return fail_with_checkpoint(job, f"error: {error}", 1, hint="")
    except OSError as error:
        return fail_with_checkpoint(job, f"error: {error}", 1)
    except KeyboardInterrupt:
        return fail_with_checkpoint(job, "interrupted", 130)
    return 0


def fail_with_checkpoint(
    job: Job, message: str, code: int, *, hint: str = ": the same command goes on from it"
) -> int:
    """One line on stderr, of the first process alone: the message and what checkpoint there is."""
    if job.devices.rank:
        return code
    try:
        done = job.checkpoint.count_epochs()
    except BadInput:
        done = 0
    kept = "there is no checkpoint"
    if done:
        kept = (
            f"the checkpoint '{job.checkpoint.path}' "
            f"of epoch {done} of {job.recipe.epochs} is kept{hint}"
        )
    return fail(f"{message}; {kept}", code)


def run(job: Job, words: list[str]) -> None:
    """Train, and write. Errors are those of `fit_purifier`; OSError if a file is not written."""
    recipe = job.recipe
    devices = job.devices
    held_out = recipe.validation
    classifier = job.classifier.to(devices.device)
    if devices.device.type == "cuda" and job.args.precision != "32-true":
        # In channels_last the tensor cores need no transposition.
        classifier.to(memory_format=torch.channels_last)
    torch.manual_seed(job.args.seed)
    _, channels, height, width = job.x.shape
    purifier = new_purifier(classifier, (channels, height, width), recipe).to(devices.device)
    x = job.x.to(devices.device)
    y = job.y.to(devices.device)
    validation = make_validation(job, classifier, unpack_images(x[:held_out]), y[:held_out])
    is_first = devices.rank == 0
    if is_first:
        announce(job, len(x) - held_out)
    with show_progress(recipe.epochs, is_first) as show:
        history = fit_purifier(
            purifier,
            classifier,
            x[held_out:],
            y[held_out:],
            recipe,
            show,
            validation=validation,
            checkpoint=job.checkpoint,
            devices=devices,
        )
    if is_first:
        write(job, round_as_stored(job, purifier), history, words)


def announce(job: Job, images: int) -> None:
    """Say what may surprise.

    That is a run that is gone on with, and a learning rate that is not the paper's rule.
    """
    if done := job.checkpoint.count_epochs():
        print(
            f"going on after epoch {done} of {job.recipe.epochs}: {job.checkpoint.path}", flush=True
        )
    batch = math.ceil(min(job.recipe.batch, images) / job.devices.count)
    rule = LR_PER_IMAGE * batch
    if not math.isclose(job.recipe.lr, rule, rel_tol=0.05):
        print(
            f"lr is the recipe's {job.recipe.lr:g}; the paper's rule, {LR_PER_IMAGE:g} times "
            f"the {batch} images of one device, would give {rule:g} here"
        )


def make_validation(job: Job, classifier: nn.Module, x: Tensor, y: Tensor) -> Validation | None:
    """Of the purifier as its file will hold it; each process takes its share of the images."""
    if not len(x):
        return None
    devices = job.devices
    eps = parse_strength("validation_eps", job.recipe.validation_eps)
    x_share = x[devices.rank :: devices.count]
    y_share = y[devices.rank :: devices.count]

    def measure(purifier: Purifier) -> tuple[float, float]:
        right = torch.zeros(2, device=x.device)
        if len(x_share):
            defence = wrap(classifier, round_as_stored(job, purifier))
            accuracies = validate(defence, x_share, y_share, eps)
            right = torch.tensor(accuracies, device=x.device) * len(x_share)
        clean, attacked = (devices.sum(right) / len(x)).tolist()
        return round(clean, 4), round(attacked, 4)

    return Validation(measure, job.args.validate_every)


@contextmanager
def show_progress(epochs: int, shown: bool) -> Iterator[Callable[[Epoch], None]]:
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

        def show(epoch: Epoch) -> None:
            done = epoch.epoch + 1
            validated = epoch.clean_acc is not None
            line = describe_epoch(epoch)
            bar.update(task, completed=done, description=line)
            if shown and not terminal and (done % every == 0 or validated):
                print(f"epoch {done}/{epochs}: {line}", flush=True)

        yield show


def describe_epoch(epoch: Epoch) -> str:
    line = (
        f"bce {epoch.reconstruction:.2f} kl {epoch.kl:.2f} beta {epoch.beta:.2g} lr {epoch.lr:.2g}"
    )
    if epoch.clean_acc is None:
        return line
    return f"{line} clean {epoch.clean_acc:.3f} pgd {epoch.pgd_acc:.3f}"


def round_as_stored(job: Job, purifier: Purifier) -> Purifier:
    """The purifier as it will come back from the file: what is validated is what is kept."""
    if job.recipe.half:
        round_to_half(purifier)
    return purifier


def write(job: Job, purifier: Purifier, history: list[Epoch], words: list[str]) -> None:
    """Weights and card; then the checkpoint goes."""
    facts = describe_training(job, purifier, history, words)
    try:
        checkpoint.save_purifier(job.out, purifier, facts, half=job.recipe.half)
    except ValueError as error:
        raise FloatingPointError(f"{job.out} cannot be written: {error}") from None
    job.checkpoint.remove()
    size = job.out.stat().st_size / 1024
    print(
        f"{job.out}: {size:.0f} KiB, {facts['seconds']:.0f} s; "
        f"{facts['validation'] or 'not validated'}"
    )


def describe_training(
    job: Job, purifier: Purifier, history: list[Epoch], words: list[str]
) -> dict[str, Any]:
    """The facts of the card."""
    args = job.args
    last = history[-1]
    own = job.name.startswith(("own:", "file:"))
    precision = args.precision
    if args.bf16_adversaries:
        precision += ", adversaries in bfloat16"
    return {
        **checkpoint.describe_purifier(purifier, job.classifier),
        "dataset": args.dataset,
        "data": job.digest,
        "split": f"train, less {job.recipe.validation} held-out images",
        "classifier": job.name,
        "classifier_sha256": digest(locate(job.name)) if own else None,
        "recipe": job.recipe.to_json(),
        "seed": args.seed,
        "command": shlex.join(["python", "-m", "carso.train", *words]),
        "commit": commit(),
        "device": describe_devices(job.devices),
        "precision": precision,
        "torch": torch.__version__,
        "seconds": round(sum(epoch.seconds for epoch in history), 3),
        "seconds_of_adversaries": round(sum(epoch.adversaries for epoch in history), 3),
        "final_loss": {"reconstruction": round(last.reconstruction, 4), "kl": round(last.kl, 4)},
        "validation": describe_validation(last, job.recipe),
        "parameters": sum(p.numel() for p in purifier.parameters()),
        "licence": "MIT",
    }


def describe_devices(devices: Devices) -> str:
    kind = f"cpu, {torch.get_num_threads()} threads"
    if devices.device.type == "cuda":
        kind = torch.cuda.get_device_name()
    return kind if devices.count == 1 else f"{devices.count} x {kind}"


def describe_validation(last: Epoch, recipe: Recipe) -> dict[str, Any] | None:
    if last.clean_acc is None:
        return None
    return {
        "n": recipe.validation,
        "clean_acc": last.clean_acc,
        "pgd_acc": last.pgd_acc,
        "attack": f"linf {recipe.validation_eps}, {VALIDATION_ATTACK}",
        "draws": 4,
    }


if __name__ == "__main__":
    sys.exit(main())
