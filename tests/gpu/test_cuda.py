"""On a GPU: attacks and defences, the answers of the CPU, training in every precision.

All of it is skipped where there is no GPU.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from baselines.train import main as train_classifier
from bench.data.sample import load
from bench.judging.evaluate import evaluate
from bench.judging.execute import make_deterministic
from bench.judging.norms import NORMS
from bench.judging.randomness import random_stream, seed_of
from bench.questions import registry
from bench.questions.discover import discover
from bench.questions.plan import plan
from bench.questions.request import Request
from bench.questions.spec import Spec
from bench.results.record import Record
from carso.train import main as train_purifier
from tests.attacks.linear import TINY, Problem, candidates, fooled, many_classes

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
discover()
DEFENCES = [
    entry.name for entry in registry.defences if not entry.name.startswith(("toy", "diffpure"))
]


@pytest.fixture(autouse=True)
def _exact() -> None:
    make_deterministic()


def on_gpu() -> Problem:
    problem = many_classes(5, batch=6)
    problem.model.weight = problem.model.weight.cuda()
    problem.model.bias = problem.model.bias.cuda()
    optimum = {norm: value.cuda() for norm, value in problem.optimum.items()}
    return Problem(problem.model, problem.x.cuda(), problem.y.cuda(), optimum)


@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("name", [name for name in TINY if name != "none"])
def test_every_attack_stays_on_the_gpu_in_every_norm(name: str, stochastic: bool) -> None:
    problem = on_gpu()
    entry = registry.attacks.get(name)
    if entry.facts.stochastic_only and not stochastic:
        return
    for norm in sorted(entry.facts.norms):
        eps = 3.0 if norm == "l0" else 0.5 * float(problem.optimum[norm].max())
        target = problem.target(
            "white-box" if entry.facts.access == "transfer" else entry.facts.access,
            stochastic,
        )
        proposals = candidates(problem, name, norm, eps, target, **TINY[name])
        assert proposals.is_cuda
        assert proposals.isfinite().all()


def test_a_strong_attack_finds_the_optimum_on_the_gpu() -> None:
    problem = on_gpu()
    for norm in ("linf", "l2", "l1"):
        largest = float(problem.optimum[norm].max())
        smallest = float(problem.optimum[norm].min())
        assert fooled(problem, "apgd", norm, 1.02 * largest, loss="targeted", targets=4).all()
        assert not fooled(problem, "apgd", norm, 0.98 * smallest, steps=20).any()
        assert NORMS[norm].distance(problem.x - problem.x).eq(0).all()


@pytest.mark.parametrize("name", DEFENCES)
def test_answers_are_those_of_the_cpu(name: str) -> None:
    """Of 60 clean digits no more differ than rounding or other noise can turn.

    It is so under FGSM too, where its gradient is no matter of luck.
    """
    request = Request(defences=(name,), attacks=("fgsm",), n=60, draws=16, select=2, batch=30)
    for cell in plan([request]).cells:
        on_cpu = evaluate(cell, device="cpu")
        on_gpu = evaluate(cell, device="cuda")
        assert on_gpu.ids == on_cpu.ids
        if cell.attack.name == "none" or (cell.draws == 1 and name != "gallery-noisy-gradient"):
            tolerance = 1.5 / 60 if cell.draws == 1 else 0.06
            assert abs(on_gpu.accuracy - on_cpu.accuracy) <= tolerance
        assert hard_codes(on_gpu) == hard_codes(on_cpu)


def hard_codes(record: Record) -> set[str]:
    return {flag.id for flag in record.flags if flag.severity == "hard"}


def test_the_same_question_has_the_same_answer_on_the_gpu() -> None:
    (*_, cell) = plan(
        [
            Request(
                defences=("carso",),
                attacks=("pgd-eot",),
                n=40,
                draws=4,
                select=2,
                batch=40,
                budget="quick",
            )
        ]
    ).cells
    first = evaluate(cell, device="cuda")
    second = evaluate(cell, device="cuda")
    assert first.selected == second.selected
    assert first.correct == second.correct
    assert first.margin == second.margin


def test_a_random_stream_has_the_numbers_of_its_seed() -> None:
    """On the GPU too; and it leaves the state of the generator as it was."""
    here = torch.device("cuda")
    torch.manual_seed(seed_of("a", 1))
    expected = torch.rand(5, device=here)
    torch.manual_seed(2)
    undisturbed = torch.rand(5, device=here)
    torch.manual_seed(2)
    with random_stream(here, "a", 1):
        assert torch.equal(torch.rand(5, device=here), expected)
    assert torch.equal(torch.rand(5, device=here), undisturbed)


def test_parts_merge_to_the_whole_on_the_gpu() -> None:
    (*_, cell) = plan(
        [Request(defences=("at",), attacks=("pgd",), n=40, batch=20, budget="quick")]
    ).cells
    whole = evaluate(cell, device="cuda")
    second = evaluate(cell, [1], device="cuda")
    first = evaluate(cell, [0], device="cuda")
    assert whole.correct == (*first.correct, *second.correct)


@pytest.mark.parametrize(
    "flags",
    [[], ["--precision", "tf32"], ["--precision", "bf16-mixed"], ["--bf16-adversaries"]],
    ids=str,
)
@pytest.mark.parametrize("kind", ["carso", "vae"])
def test_purifiers_learn_on_the_gpu(kind: str, flags: list[str], tmp_path: Path) -> None:
    out = tmp_path / "try.safetensors"
    words = f"--dataset digits --device cuda --kind {kind} --set epochs=12 --set pgd_steps=2"
    assert train_purifier([*words.split(), "--out", str(out), *flags]) == 0
    card = json.loads(out.with_suffix(".json").read_text())
    assert card["validation"]["clean_acc"] > 0.3
    assert 0 < card["seconds_of_adversaries"] < card["seconds"]
    assert card["device"] == torch.cuda.get_device_name()


@pytest.mark.parametrize("precision", ["32-true", "tf32", "bf16-mixed"])
def test_classifiers_learn_on_the_gpu(precision: str, tmp_path: Path) -> None:
    words = f"--dataset digits --name at --epochs 8 --n 200 --device cuda --precision {precision}"
    assert train_classifier([*words.split(), "--out", str(tmp_path)]) == 0
    card = json.loads((tmp_path / "digits-at.json").read_text())
    assert card["precision"] == precision
    assert card["accuracy"]["clean"] > 0.8


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_finds_what_full_precision_finds(precision: str) -> None:
    data = load(Spec.of("digits", {"n": 100}))
    model = registry.build_classifier("own:digits-at").cuda()
    problem = Problem(model, data.x.cuda(), data.y.cuda(), {})
    knobs = {"steps": 10, "loss": "ce+margin"}
    full = fooled(problem, "pgd", "linf", 0.25, **knobs, precision="float32")
    half = fooled(problem, "pgd", "linf", 0.25, **knobs, precision=precision)
    assert (full == half).float().mean() >= 0.95
