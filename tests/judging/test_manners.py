"""An honest row is, byte for byte, what it is alone, whatever ran before it in the process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.checks.target import CheckTarget
from bench.judging import setup
from bench.judging.evaluate import evaluate
from bench.questions import registry
from bench.questions.plan import plan
from bench.questions.request import Request
from bench.questions.spec import Cell, Spec
from bench.results.record import Record
from tests.ill_mannered import ACTS, Acting
from tests.judging.cells import cell

# Of gradients, of scores, of labels, of another model, and of chance: each draws random numbers.
ATTACKS = (
    "none",
    "noise[tries=3]",
    "pgd[steps=4,restarts=2]",
    "square[queries=8]",
    "boundary[steps=4]",
)


@pytest.fixture(autouse=True)
def _no_setup_is_kept() -> Iterator[None]:
    setup._prepare.cache_clear()
    setup.load_cached.cache_clear()
    yield
    setup._prepare.cache_clear()
    setup.load_cached.cache_clear()


def timeless(record: Record) -> dict[str, Any]:
    """The record as it is stored, but for what a clock decides."""
    stored = record.to_json()
    stored["cost"] = {
        name: value
        for name, value in stored["cost"].items()
        if name != "seconds" and "ms_per_image" not in name
    }
    return stored


def honest_cells() -> list[Cell]:
    return [cell(attack, n=10, batch=5) for attack in ATTACKS]


def answer_honest() -> list[dict[str, Any]]:
    return [timeless(evaluate(question)) for question in honest_cells()]


def ill_cells(how: str) -> list[Cell]:
    return [
        cell("pgd[steps=2]", f"ill-built[how={how}]", n=10, batch=5),
        cell("square[queries=4]", f"ill-mannered[how={how}]", n=10, batch=5),
        cell("pgd[steps=2]", f"ill-mannered[how={how}]", n=10, batch=5),
        cell(f"ill-attack[how={how}]", n=10, batch=5),
        cell(f"transfer[source=ill:{how},steps=2]", n=10, batch=5),
    ]


@pytest.mark.parametrize("how", ACTS)
def test_an_honest_row_is_what_it_is_alone(how: str) -> None:
    alone = answer_honest()
    setup._prepare.cache_clear()
    setup.load_cached.cache_clear()
    for question in ill_cells(how):
        evaluate(question)
    assert answer_honest() == alone


@pytest.mark.parametrize("how", ["edit_images", "seed_all", "patch_functions", "leave_float64"])
def test_rows_after_an_ill_mannered_one_share_its_images_and_stay_right(how: str) -> None:
    """The images are not loaded again between the two."""
    alone = answer_honest()
    for question in ill_cells(how):
        evaluate(question)
    assert answer_honest() == alone


CHANGES = {
    "hook_the_graph": "the images of the attacker",
    "leave_float64": "the default dtype",
    "leave_gradients_off": "the gradient mode",
    "leave_threads": "the number of threads",
    "leave_tf32": "TF32",
    "leave_anomaly": "anomaly detection",
    "hook_all_modules": "global hooks of nn.Module",
    "patch_functions": "torch.clamp",
    "patch_tensors": "torch.Tensor.sign",
    "patch_harness": "bench.judging.proposals.to_ball",
    "change_folder": "the working folder",
    "change_environment": "the environment",
    "silence": "the filters of warnings",
    "enter_function_mode": "torch function modes",
    "enter_dispatch_mode": "torch dispatch modes",
    "enter_autocast": "autocast",
    "enter_inference_mode": "the inference mode",
    "enter_tensor_hooks": "how autograd keeps tensors",
    "set_tensor_type": "the default dtype",
    "set_device": "torch's default device",
    "set_deterministic": "deterministic algorithms",
    "patch_random": "random.random",
    "patch_load": "torch.load",
    "change_limits": "the mask of new files",
    "change_signals": "the alarm clock",
    "start_thread": "threads running, which the harness cannot stop: of-a-plug-in",
}


@pytest.mark.parametrize("how", CHANGES)
def test_what_a_row_changes_is_a_flag_on_that_row(how: str) -> None:
    record = evaluate(cell("pgd[steps=2]", f"ill-mannered[how={how}]", n=10, batch=5))
    (message,) = {flag.message for flag in record.flags if flag.id == "P17"}
    assert CHANGES[how] in message
    honest = evaluate(cell("pgd[steps=2]", n=10, batch=5))
    assert not [flag for flag in honest.flags if flag.id == "P17"]


def test_a_model_that_edits_its_images_answers_as_in_plain_torch() -> None:
    images = setup.load_cached(cell("none").dataset, "data").x[:10]
    record = evaluate(cell("none", "ill-mannered[how=edit_images]", n=10, batch=5))
    net = setup.registry.build_classifier("toy:linear")
    labels = setup.load_cached(cell("none", n=10).dataset, "data").y
    right = (net(images * 0.5).argmax(1) == labels).sum()
    assert sum(record.correct) == int(right)
    assert "P5" in {flag.id for flag in record.flags}


def test_an_attacker_keeps_its_random_numbers_where_the_defence_seeds() -> None:
    """Square's queries on a defence that seeds are as many different ones as elsewhere."""
    plain = evaluate(cell("square[queries=60]", eps="1/4", n=20, batch=20))
    seeding = evaluate(
        cell("square[queries=60]", "ill-mannered[how=seed_all]", eps="1/4", n=20, batch=20)
    )
    assert plain.accuracy < 0.9
    assert seeding.accuracy == pytest.approx(plain.accuracy, abs=0.1)
    assert "P16" in {flag.id for flag in seeding.flags}


@pytest.mark.parametrize("kind", ["float64", "float16", "bfloat16"])
@pytest.mark.parametrize("role", ["own:digits-standard", "own:digits-at"])
def test_an_honest_model_of_another_type_is_answered_without_a_hard_flag(
    kind: str, role: str
) -> None:
    (clean, attacked) = plan(
        [
            Request(
                defences=(f"of-another-type[classifier={role},kind={kind}]",),
                attacks=("pgd[steps=3]",),
                n=64,
            )
        ]
    ).cells
    for question in (clean, attacked):
        record = evaluate(question)
        assert not [flag for flag in record.flags if flag.severity == "hard"]
        assert record.notes == (f"its logits are {kind}",)
    for attack in ("square[queries=5]", "boundary[steps=3]", "spsa[steps=2,samples=2]"):
        assert evaluate(cell(attack, f"of-another-type[kind={kind}]", n=10)).accuracy <= 1


def codes(defence: str) -> dict[str, str]:
    record = evaluate(cell("none", defence, n=40, batch=40, draws=5))
    return {flag.id: flag.severity for flag in record.flags}


def test_a_generator_of_its_own_is_told_in_its_own_words() -> None:
    """And not as a fault of the gradient, for whose differences two draws must be alike."""
    assert codes("own-generator") == {"P16": "soft"}
    assert codes("follows-seeds") == {}


@contextlib.contextmanager
def spoil_all(
    defence: Any, x: Tensor, y: Tensor, threat: Any, classes: int, stochastic: bool
) -> Iterator[CheckTarget]:
    """A check that edits all that it is handed, and whose model edits what it is asked about."""

    def act(model: Acting, images: Tensor) -> None:
        with torch.no_grad():
            images.data.zero_()

    x.zero_()
    y.zero_()
    object.__setattr__(threat, "eps", Fraction(1))
    yield CheckTarget(Acting(torch.nn.Flatten(), act), y, classes, False)


def test_a_check_that_edits_what_it_was_given_spoils_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(registry.checks, "_entries", dict(vars(registry.checks)["_entries"]))
    registry.check("spoils", norms={"linf"})(spoil_all)
    alone = answer_honest()
    question = cell("spoils", n=10, batch=5)
    evaluate(question)
    assert question.threat.eps == Fraction(1, 10)
    assert answer_honest() == alone


def test_an_attack_cannot_widen_its_own_ball(monkeypatch: pytest.MonkeyPatch) -> None:
    def widen(model: Any, x: Tensor, y: Tensor, threat: Any) -> Tensor:
        object.__setattr__(threat, "eps", Fraction(1))
        return 1 - x

    monkeypatch.setattr(registry.attacks, "_entries", dict(vars(registry.attacks)["_entries"]))
    registry.attack("widens", norms={"linf"}, access="score", family="score")(widen)
    record = evaluate(cell("widens", n=10, batch=5))
    assert record.cell.threat.eps == Fraction(1, 10)
    assert max(record.distance) <= 0.1 + 1e-6


def test_what_a_dataset_changes_while_it_is_loaded_is_put_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    toy = registry.datasets.get("toy")

    def load_and_patch(split: str, data_dir: Path) -> Any:
        images = toy.make(split, data_dir)
        torch.set_default_dtype(torch.float64)
        torch.sign = lambda x: x
        return images

    monkeypatch.setattr(registry.datasets, "_entries", dict(vars(registry.datasets)["_entries"]))
    facts = {"norm": "linf", "eps": {"linf": "1/10"}, "n": 20, "roles": {}}
    registry.dataset("patches", **facts)(load_and_patch)
    sign = torch.sign
    setup.load_cached(Spec("patches"), "data")
    assert torch.sign is sign
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize("how", ["leave_float64", "patch_functions"])
def test_what_a_surrogate_changes_is_a_flag_on_the_row_that_it_attacks(how: str) -> None:
    record = evaluate(cell(f"transfer[source=ill:{how},steps=2]", n=10, batch=5))
    (message,) = {flag.message for flag in record.flags if flag.id == "P17"}
    assert CHANGES[how] in message
