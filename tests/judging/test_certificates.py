"""What a defence certifies, and how its abstentions are judged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench.judging.certificates import certify
from bench.judging.evaluate import evaluate
from bench.questions import registry
from bench.results.record import Certificate, merge
from bench.results.store import Store
from tests.judging.cells import cell


class Silent(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((1, 2, 3))[:, None].expand(-1, 2)


class Certifier(torch.nn.Module):
    """The linear model, which certifies its true l2 radius, less a draw below 0.001.

    It abstains near the plane, and errs far from it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.base = registry.build_classifier("toy:linear")
        self.certificate = {"n": 9, "alpha": 0.25}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.base(x)
        return logits

    def certify(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        score = self.base(x)[:, 1]
        distance = score.abs() / (4 * self.base.get_buffer("weight").norm())
        labels = torch.where(distance < 0.05, -1, (score > 0).long())
        labels = torch.where(score > 0.9 * score.max(), 1 - labels, labels)
        return labels, distance - 0.001 * torch.rand(len(x))


class Answering(torch.nn.Module):
    def __init__(self, labels: torch.Tensor, radii: torch.Tensor) -> None:
        super().__init__()
        self.answer = labels, radii

    def certify(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.answer


@registry.defence("toy-silent", bare=True)
def toy_silent(*, classifier: str = "@standard") -> torch.nn.Module:
    """Equal logits: it abstains everywhere."""
    return Silent()


@registry.defence("toy-certifier", bare=True)
def toy_certifier(*, classifier: str = "@standard") -> torch.nn.Module:
    """Certifies."""
    return Certifier()


def test_an_abstention_is_wrong_whatever_the_label_is() -> None:
    for attack in ("none", "liar-idle"):
        record = evaluate(cell(attack, "toy-silent"))
        assert set(record.correct) == set(record.clean) == set(record.selected) == {0}
    assert len(set(registry.datasets.get("toy").make("test", Path()).y.tolist())) == 2


def test_certificates_are_asked_for_in_the_none_cell_alone() -> None:
    record = evaluate(cell("none", "toy-certifier"))
    proof = record.certificate
    assert proof is not None
    assert proof.rests_on == (("alpha", 0.25), ("n", 9.0))
    assert evaluate(cell("liar-idle", "toy-certifier")).certificate is None
    assert evaluate(cell("none")).certificate is None
    assert record.accuracy == 1.0  # what it answers and what it certifies are two things


def test_radii_count_where_the_label_is_right_and_are_rounded_down() -> None:
    certifier = Certifier()
    data = registry.datasets.get("toy").make("test", Path())
    proof = certify(certifier, data.x, data.y)
    assert proof is not None
    score = certifier(data.x)[:, 1]
    exact = (score.abs() / (4 * certifier.base.get_buffer("weight").norm())).tolist()
    erred = (score > 0.9 * score.max()).tolist()
    for radius, true, wrong in zip(proof.radii, exact, erred, strict=True):
        assert radius == -1 if wrong or true < 0.05 else true - 0.0010011 < radius <= true
    assert (
        proof.radii.count(-1.0)
        == sum(wrong or true < 0.05 for true, wrong in zip(exact, erred, strict=True))
        > 0
    )
    thirds = Answering(
        torch.ones(1, dtype=torch.long), torch.full((1,), 2 / 3, dtype=torch.float64)
    )
    certificate = certify(thirds, torch.zeros(1, 1, 2, 2), torch.ones(1, dtype=torch.long))
    assert certificate is not None
    assert replace(certificate, seconds=0.0) == Certificate((0.666666,))


@pytest.mark.parametrize("radius", [0.0, -1.0, float("nan")])
def test_a_radius_of_zero_or_less_certifies_nothing(radius: float) -> None:
    certificate = certify(
        Answering(torch.tensor([1]), torch.tensor([radius])),
        torch.zeros(1, 1, 2, 2),
        torch.tensor([1]),
    )
    assert certificate
    assert certificate.radii == (-1.0,)
    assert certificate.beyond(0) == certificate.beyond(-2) == (0,)


def test_the_time_of_certificates_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([1.0, 3.5])
    monkeypatch.setattr("bench.judging.certificates.time.perf_counter", lambda: next(ticks))
    certificate = certify(
        Answering(torch.tensor([1]), torch.tensor([1.0])),
        torch.zeros(1, 1, 2, 2),
        torch.tensor([1]),
    )
    assert certificate
    assert certificate.seconds == 2.5


def test_an_infinite_radius_becomes_a_number_and_shapes_are_checked() -> None:
    x = torch.zeros(2, 1, 2, 2)
    y = torch.tensor([1, 0])
    certificate = certify(Answering(y, torch.full((2,), torch.inf)), x, y)
    assert certificate
    assert certificate.beyond(1e6) == (1, 1)
    assert all(radius <= 1e30 for radius in certificate.radii)
    with pytest.raises(ValueError, match=r"certify answered labels \(1,\)"):
        certify(Answering(y[:1], torch.ones(2)), x, y)


def test_certificates_have_a_stream_of_their_own_and_parts_join(tmp_path: Path) -> None:
    asked = cell("none", "toy-certifier")
    whole = evaluate(asked)
    parts = merge([evaluate(asked, [i]) for i in (4, 0, 5, 2, 1, 3)])
    assert whole.certificate
    assert parts.certificate
    order = [parts.ids.index(i) for i in whole.ids]
    assert tuple(parts.certificate.radii[i] for i in order) == whole.certificate.radii
    again = evaluate(asked).certificate
    other = evaluate(replace(asked, seed=1)).certificate
    assert again
    assert other
    assert again.radii == whole.certificate.radii != other.radii
    store = Store(tmp_path)
    store.put(whole)
    assert store.get(asked) == whole
    with pytest.raises(ValueError, match="different certificates"):
        merge([evaluate(asked, [0]), replace(evaluate(asked, [1]), certificate=None)])
