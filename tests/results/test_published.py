"""Published figures meet a cell only where classifier, dataset, norm and exact eps agree."""

from __future__ import annotations

from fractions import Fraction

import pytest

from bench.results.published import PublishedResult, load, match_published, published_for
from bench.results.worst_case import worst_case
from bench.soundness.audits.records import audit
from tests.fake_records import cell, record

CUI = "robustbench:Cui2023Decoupled_WRN-28-10"
CUI100 = "robustbench:cifar100/Linf/Cui2023Decoupled_WRN-28-10"


def on_cifar(
    defence: str, dataset: str = "cifar10[n=100]", eps: str = "8/255", norm: str = "linf"
) -> float | None:
    found = match_published(load(), cell("none", defence, dataset=dataset, eps=eps, norm=norm))
    return found and found.robust


def test_known_figures() -> None:
    assert on_cifar(f"at[classifier={CUI}]") == pytest.approx(0.6773)
    assert on_cifar(f"undefended[classifier={CUI}]") == pytest.approx(0.6773)
    assert on_cifar(f"carso[classifier={CUI},samples=8]") == pytest.approx(
        0.7613
    )  # the lower of its two figures
    assert on_cifar(f"at[classifier={CUI100}]", dataset="cifar100[n=100]") == pytest.approx(0.3918)
    assert on_cifar(f"carso[classifier={CUI100}]", dataset="cifar100[n=100]") == pytest.approx(
        0.6665
    )
    assert on_cifar(
        "at[classifier=robustbench:cifar10/L2/Engstrom2019Robustness]", eps="1/2", norm="l2"
    ) == pytest.approx(0.6924)


@pytest.mark.parametrize(
    ("defence", "dataset", "eps", "norm"),
    [
        (f"at[classifier={CUI}]", "cifar10[n=100]", "0.031", "linf"),
        (f"at[classifier={CUI}]", "cifar10[n=100]", "8/255", "l2"),
        (f"at[classifier={CUI}]", "cifar100[n=100]", "8/255", "linf"),
        (f"at[classifier={CUI100}]", "cifar10[n=100]", "8/255", "linf"),
        (
            "at[classifier=robustbench:Engstrom2019Robustness]",
            "cifar10[n=100]",
            "1/2",
            "l2",
        ),  # the bare name is another model
        (f"at[classifier={CUI}]", "cifar10-jpeg[n=100]", "8/255", "linf"),
        (f"jpeg[classifier={CUI}]", "cifar10[n=100]", "8/255", "linf"),
        ("carso[classifier=own:digits-at]", "cifar10[n=100]", "8/255", "linf"),
        ("carso[samples=8]", "tiny_imagenet[n=100]", "8/255", "linf"),
    ],
)
def test_what_is_not_the_same_question_has_no_published_figure(
    defence: str, dataset: str, eps: str, norm: str
) -> None:
    assert on_cifar(defence, dataset, eps, norm) is None


def test_every_figure_is_a_share_with_a_source() -> None:
    published = load()
    assert len(published) > 190
    assert all(
        0 <= p.robust < 1
        and (p.clean is None or p.robust < p.clean < 1)
        and p.source
        and p.norm in ("linf", "l2")
        for p in published
    )
    assert {p.defence for p in published} == {"at", "carso", "purification"}
    here = published_for(published, cell("none", dataset="cifar10[n=3]", eps="8/255"))
    assert {(p.dataset, p.eps) for p in here} == {("cifar10", Fraction(8, 255))}
    assert here == sorted(here, key=lambda p: -p.robust)


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
    assert ("G3" in {flag.id for flag in audit(rows, worst_case(rows), claim)}) is flagged
