"""On a GPU: every attack and every defence there, the answers of the CPU, the training commands in every precision. Skipped where there is none."""

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
from bench.questions.plan import Request, plan
from bench.questions.spec import Spec
from carso.train import main as train_purifier
from tests.attacks.linear import TINY, Problem, candidates, fooled, many_classes

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
registry.discover()
DEFENCES = [
    entry.name for entry in registry.defences if not entry.name.startswith(("toy", "diffpure"))
]


@pytest.fixture(autouse=True)
def _exact() -> None:
    make_deterministic()


def on_gpu() -> Problem:
    problem = many_classes(5, batch=6)
    problem.model.weight, problem.model.bias = (
        problem.model.weight.cuda(),
        problem.model.bias.cuda(),
    )
    return Problem(
        problem.model,
        problem.x.cuda(),
        problem.y.cuda(),
        {norm: value.cuda() for norm, value in problem.optimum.items()},
    )


@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("name", [name for name in TINY if name != "none"])
def test_every_attack_stays_on_the_gpu_in_every_norm(name: str, stochastic: bool) -> None:
    problem, entry = on_gpu(), registry.attacks.get(name)
    if entry.facts["needs_stochastic"] and not stochastic:
        return
    for norm in sorted(entry.facts["norms"]):
        eps = 3.0 if norm == "l0" else 0.5 * float(problem.optimum[norm].max())
        target = problem.target(
            "white-box" if entry.facts["access"] == "transfer" else entry.facts["access"],
            stochastic,
        )
        made = candidates(problem, name, norm, eps, target, **TINY[name])
        assert made.is_cuda
        assert made.isfinite().all()


def test_a_strong_attack_finds_there_what_is_there() -> None:
    problem = on_gpu()
    for norm in ("linf", "l2", "l1"):
        least = float(problem.optimum[norm].max())
        assert fooled(problem, "apgd", norm, 1.02 * least, loss="targeted", targets=4).all()
        assert not fooled(
            problem, "apgd", norm, 0.98 * float(problem.optimum[norm].min()), steps=20
        ).any()
        assert NORMS[norm].distance(problem.x - problem.x).eq(0).all()


@pytest.mark.parametrize("name", DEFENCES)
def test_answers_are_those_of_the_cpu(name: str) -> None:
    """Of 60 clean digits no more differ than rounding or other noise can turn; under FGSM too, where its gradient is no matter of luck."""
    for cell in plan(
        [Request(defences=(name,), attacks=("fgsm",), n=60, draws=16, select=2, batch=30)]
    ).cells:
        here, there = evaluate(cell, device="cpu"), evaluate(cell, device="cuda")
        assert there.ids == here.ids
        if cell.attack.name == "none" or (cell.draws == 1 and name != "gallery-noisy-gradient"):
            assert abs(there.accuracy - here.accuracy) <= (1.5 / 60 if cell.draws == 1 else 0.06)
        assert {flag.id for flag in there.flags if flag.severity == "hard"} == {
            flag.id for flag in here.flags if flag.severity == "hard"
        }


def test_the_same_question_has_the_same_answer_there() -> None:
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
    one, two = evaluate(cell, device="cuda"), evaluate(cell, device="cuda")
    assert (one.selected, one.correct, one.margin) == (two.selected, two.correct, two.margin)


def test_a_stream_has_the_numbers_that_torch_gives_for_its_seed_there_and_leaves_nothing_behind() -> (
    None
):
    here = torch.device("cuda")
    torch.manual_seed(seed_of("a", 1))
    expected = torch.rand(5, device=here)
    torch.manual_seed(2)
    undisturbed = torch.rand(5, device=here)
    torch.manual_seed(2)
    with random_stream(here, "a", 1):
        assert torch.equal(torch.rand(5, device=here), expected)
    assert torch.equal(torch.rand(5, device=here), undisturbed)


def test_shards_join_to_the_whole_there() -> None:
    (*_, cell) = plan(
        [Request(defences=("at",), attacks=("pgd",), n=40, batch=20, budget="quick")]
    ).cells
    whole, parts = (
        evaluate(cell, device="cuda"),
        [evaluate(cell, [index], device="cuda") for index in (1, 0)],
    )
    assert whole.correct == (*parts[1].correct, *parts[0].correct)


@pytest.mark.parametrize(
    "flags",
    [[], ["--precision", "tf32"], ["--precision", "bf16-mixed"], ["--bf16-adversaries"]],
    ids=str,
)
@pytest.mark.parametrize("kind", ["carso", "vae"])
def test_purifiers_learn_there(kind: str, flags: list[str], tmp_path: Path) -> None:
    out = tmp_path / "try.safetensors"
    words = [
        "--dataset",
        "digits",
        "--device",
        "cuda",
        "--kind",
        kind,
        "--set",
        "epochs=12",
        "--set",
        "pgd_steps=2",
        "--out",
        str(out),
    ]
    assert train_purifier([*words, *flags]) == 0
    card = json.loads(out.with_suffix(".json").read_text())
    assert card["validation"]["clean_acc"] > 0.3
    assert 0 < card["seconds_of_adversaries"] < card["seconds"]
    assert card["device"] == torch.cuda.get_device_name()


@pytest.mark.parametrize("precision", ["32-true", "tf32", "bf16-mixed"])
def test_classifiers_learn_there(precision: str, tmp_path: Path) -> None:
    words = [
        "--dataset",
        "digits",
        "--name",
        "at",
        "--epochs",
        "8",
        "--n",
        "200",
        "--device",
        "cuda",
        "--precision",
        precision,
    ]
    assert train_classifier([*words, "--out", str(tmp_path)]) == 0
    card = json.loads((tmp_path / "digits-at.json").read_text())
    assert card["precision"] == precision
    assert card["accuracy"]["clean"] > 0.8


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_finds_what_full_precision_finds(precision: str) -> None:
    data = load(Spec.of("digits", {"n": 100}))
    problem = Problem(
        registry.build_classifier("own:digits-at").cuda(), data.x.cuda(), data.y.cuda(), {}
    )
    full, half = (
        fooled(problem, "pgd", "linf", 0.25, steps=10, loss="ce+margin", precision=kind)
        for kind in ("float32", precision)
    )
    assert (full == half).float().mean() >= 0.95
