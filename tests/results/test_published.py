"""Published figures meet a cell only where classifier, dataset, norm and exact eps agree."""

from __future__ import annotations

from fractions import Fraction

import pytest

from bench.results.published import PublishedResult, load, match_published, published_for
from bench.soundness.assess import assess
from tests.fake_records import cell, evidence, record

CUI = "robustbench:Cui2023Decoupled_WRN-28-10"
CUI100 = "robustbench:cifar100/Linf/Cui2023Decoupled_WRN-28-10"


def on_cifar(
    defence: str, dataset: str = "cifar10[n=100]", eps: str = "8/255", norm: str = "linf"
) -> float | None:
    asked = cell("none", defence, dataset=dataset, eps=eps, norm=norm)
    result = match_published(load(), asked)
    return result and result.robust


def test_known_figures() -> None:
    assert on_cifar(f"at[classifier={CUI}]") == pytest.approx(0.6773)
    assert on_cifar(f"undefended[classifier={CUI}]") == pytest.approx(0.6773)
    # The lower of its two figures.
    assert on_cifar(f"carso[classifier={CUI},samples=8]") == pytest.approx(0.7613)
    cifar100 = "cifar100[n=100]"
    assert on_cifar(f"at[classifier={CUI100}]", cifar100) == pytest.approx(0.3918)
    assert on_cifar(f"carso[classifier={CUI100}]", cifar100) == pytest.approx(0.6665)
    engstrom = "at[classifier=robustbench:cifar10/L2/Engstrom2019Robustness]"
    assert on_cifar(engstrom, eps="1/2", norm="l2") == pytest.approx(0.6924)


@pytest.mark.parametrize(
    ("defence", "dataset", "eps", "norm"),
    [
        (f"at[classifier={CUI}]", "cifar10[n=100]", "0.031", "linf"),
        (f"at[classifier={CUI}]", "cifar10[n=100]", "8/255", "l2"),
        (f"at[classifier={CUI}]", "cifar100[n=100]", "8/255", "linf"),
        (f"at[classifier={CUI100}]", "cifar10[n=100]", "8/255", "linf"),
        # The bare name is another model.
        ("at[classifier=robustbench:Engstrom2019Robustness]", "cifar10[n=100]", "1/2", "l2"),
        (f"at[classifier={CUI}]", "cifar10-jpeg[n=100]", "8/255", "linf"),
        (f"jpeg[classifier={CUI}]", "cifar10[n=100]", "8/255", "linf"),
        ("carso[classifier=own:digits-at]", "cifar10[n=100]", "8/255", "linf"),
        ("carso[samples=8]", "tiny_imagenet[n=100]", "8/255", "linf"),
    ],
)
def test_another_question_has_no_published_figure(
    defence: str, dataset: str, eps: str, norm: str
) -> None:
    assert on_cifar(defence, dataset, eps, norm) is None


def test_every_figure_is_a_share_with_a_source() -> None:
    published = load()
    assert len(published) > 190
    for result in published:
        assert 0 <= result.robust < 1
        assert result.clean is None or result.robust < result.clean < 1
        assert result.source
        assert result.norm in ("linf", "l2")
    assert {result.defence for result in published} == {"at", "carso", "purification"}


def test_figures_for_a_threat_model_come_best_first() -> None:
    results = published_for(load(), cell("none", dataset="cifar10[n=3]", eps="8/255"))
    assert {(result.dataset, result.eps) for result in results} == {("cifar10", Fraction(8, 255))}
    assert results == sorted(results, key=lambda result: -result.robust)


@pytest.mark.parametrize(
    ("more", "n", "flagged"),
    [
        (10, 1000, False),
        (-10, 1000, False),
        (11, 1000, True),
        (-11, 1000, True),
        (99, 999, False),
        (-99, 999, False),
    ],
)
def test_a_gap_of_more_than_a_point_at_a_thousand_examples(
    more: int, n: int, flagged: bool
) -> None:
    claim = PublishedResult(
        "digits", "linf", Fraction(1, 5), "at", "own:digits-at", "AutoAttack", None, 0.6, "a source"
    )
    right = 600 + more
    rows = [record(cell("pgd"), [1] * right + [0] * (n - right))]
    assert ("G3" in {flag.id for flag in assess(evidence(rows, published=claim)).flags}) is flagged
