"""Rows from small records made by hand."""

from __future__ import annotations

import pytest

from bench.questions.spec import Cell
from bench.report import build_leaderboards
from bench.report.markdown import render_markdown
from bench.results.equal_sources import EqualSources
from bench.results.evidence import select_other_eps
from bench.results.leaderboard import list_exempted
from bench.results.record import Certificate, Cost, Record
from bench.results.statistics import Estimate, wilson
from tests.fake_records import build_rows, cell, record

AT = "at[classifier=own:digits-at@1a2b3c4d]"
CARSO = "carso[aggregation=peel,classifier=own:digits-at@1a2b3c4d,samples=8]"
TIMED = Cost(ms_per_image=0.6, base_ms_per_image=0.2, parameters=1234)


def test_a_deterministic_row() -> None:
    plan = [cell(name, AT) for name in ("none", "pgd[steps=40]", "square[queries=9]")]
    answers = [
        record(plan[0], [1, 1, 1, 0], cost=TIMED),
        record(plan[1], [1, 0, 0, 0]),
        record(plan[2], [0, 1, 1, 0]),
    ]
    (row,) = build_rows(answers, {"p": plan}, {})
    assert (row.rank, row.defence, row.classifier, row.n) == (1, "at", "own:digits-at", 4)
    assert not row.stochastic
    assert row.complete
    assert row.clean == Estimate(0.75, *wilson(3, 4))
    assert row.robust == Estimate(0, *wilson(0, 4))
    assert row.strongest_attack == "pgd"
    assert row.accuracies == {"none": 0.75, "pgd": 0.25, "square": 0.5}
    assert (row.ms_per_image, row.cost_ratio, row.parameters) == (0.6, pytest.approx(3), 1234)


def test_of_equally_strong_attacks_the_first_of_the_plan_is_named() -> None:
    plan = [cell(name) for name in ("none", "square", "pgd")]
    answers = [record(c, [1, 0, 0, 1]) for c in reversed(plan)]
    assert [row.strongest_attack for row in build_rows(answers, {"p": plan}, {})] == ["square"]


def test_nothing_mixes_other_images_seeds_or_draws() -> None:
    variants: list[dict[str, object]] = [
        {},
        {"seed": 1},
        {"dataset": "digits[n=3]"},
        {"dataset": "digits[first=4]"},
        {"select": 2, "draws": 4},
    ]
    answers = [
        record(cell(name, AT, **knobs), [1, 1, 0, 0])
        for knobs in variants
        for name in ("none", "pgd")
    ]
    rows = build_rows(answers, {}, {})
    assert len(rows) == len(variants)
    assert all(len(row.records) == 2 for row in rows)
    assert len({(row.defence, row.cell.seed) for row in rows}) == len(variants)
    assert any("draws=4" in row.defence for row in rows)
    (row,) = [row for row in rows if "first" in row.cell.dataset.params]
    assert row.reasons[-1] == "the first 4 examples, not a stratified subset"


def test_a_row_with_unanswered_cells_is_incomplete_and_ranks_last() -> None:
    attacks = ("none", "pgd", "spsa", "square")
    weak = [cell(name, AT) for name in attacks]
    strong = [cell(name, "jpeg[classifier=own:digits-at]") for name in attacks]
    answers = [record(c, [0, 0, 0, 0]) for c in weak]
    answers += [record(c, [1, 1, 1, 1]) for c in strong[:2]]
    failures = {strong[2].key: "RuntimeError:\n no memory"}
    first, last = build_rows(answers, {"p": [*weak, *strong]}, failures)
    assert (first.defence, first.complete, first.rank) == ("at", True, 1)
    assert (last.defence, last.complete, last.rank) == ("jpeg", False, 2)
    assert {"spsa failed: RuntimeError: no memory", "not yet run: square"} < set(last.reasons)
    assert last.robust
    assert last.robust.mean == 1


def test_a_failure_that_was_answered_since_is_no_failure() -> None:
    plan = [cell("none"), cell("pgd")]
    (row,) = build_rows([record(c, [1, 1]) for c in plan], {"p": plan}, {plan[1].key: "old"})
    assert row.complete
    assert not any("old" in reason for reason in row.reasons)


def test_a_defence_whose_every_cell_failed_still_has_a_row() -> None:
    plan = [cell("none", AT), cell("pgd", AT)]
    (row,) = build_rows([], {"p": plan}, {c.key: "no weights" for c in plan})
    assert (row.rank, row.n, row.clean, row.robust) == (None, 4, None, None)
    assert row.strongest_attack == ""
    assert not row.complete
    assert row.verdict == "incomplete"


def test_clean_accuracy_alone_is_no_robust_accuracy() -> None:
    (row,) = build_rows([record(cell("none"), [1, 1])], {}, {})
    assert row.clean
    assert row.robust is None
    assert row.rank is None
    assert not row.complete
    (row,) = build_rows([record(cell("pgd"), [1, 1])], {}, {})
    assert row.clean is None
    assert row.robust
    assert not row.complete


def test_a_row_exempted_from_attacks_does_not_outrank_the_others() -> None:
    def plan(defence: str, *names: str) -> list[Cell]:
        return [cell(name, f"{defence}[classifier=own:x]") for name in ("none", *names)]

    sweep = [
        planned
        for defence in ("at", "jpeg", "undefended")
        for planned in plan(defence, "fgsm", "pgd", "square")
    ]
    mine = plan("mine", "fgsm")
    answers = [record(c, [1, 0, 0, 0]) for c in sweep] + [record(c, [1, 1, 1, 1]) for c in mine]
    rows = build_rows(answers, {"sweep": sweep, "a-quick-look": mine}, {})
    assert [row.defence for row in rows] == ["at", "jpeg", "undefended", "mine"]
    assert rows[-1].complete
    assert rows[-1].exempted == ("pgd", "square")
    assert rows[-1].reasons[-1] == "spared what most like it met: pgd, square"


def test_an_attack_of_exactly_half_of_the_peers_exempts_nobody() -> None:
    assert list_exempted({"fgsm"}, [{"pgd"}, {"fgsm"}]) == ()
    assert list_exempted({"fgsm"}, [{"pgd"}, {"pgd"}, {"fgsm"}]) == ("pgd",)


def test_a_special_attack_on_one_row_does_not_push_the_others_behind_it() -> None:
    plan = [
        cell(name, f"{defence}[classifier=own:x]")
        for defence in ("at", "jpeg", "undefended")
        for name in ("none", "pgd")
    ]
    special = cell("mine", "jpeg[classifier=own:x]")
    answers = [record(c, [1, 1, 0, 0]) for c in plan] + [record(special, [0, 0, 0, 0])]
    rows = build_rows(answers, {"sweep": plan, "special": [special]}, {})
    assert [row.defence for row in rows] == ["at", "undefended", "jpeg"]
    assert not any(row.exempted for row in rows)


def test_the_largest_plan_gives_the_order_of_the_attacks() -> None:
    sweep = [cell(name) for name in ("none", "square", "pgd")]
    look = [cell("none"), cell("pgd")]
    (board,) = build_leaderboards([], {"a-look": look, "sweep": sweep}, {})
    assert board.attacks == ("none", "square", "pgd")


def test_attacks_on_stochastic_rows_exempt_no_deterministic_row() -> None:
    deterministic = [cell(name, AT) for name in ("none", "pgd")]
    stochastic = [cell(name, CARSO, select=2, draws=4) for name in ("none", "pgd", "pgd-eot")]
    answers = [record(c, [1, 1]) for c in deterministic] + [record(c, [4, 2]) for c in stochastic]
    at, carso = build_rows(answers, {"p": [*deterministic, *stochastic]}, {})
    assert (at.defence, at.complete, at.stochastic) == ("at", True, False)
    assert (carso.defence, carso.complete, carso.stochastic) == ("carso", True, True)
    assert at.exempted == carso.exempted == ()


def test_ablations_of_one_defence_are_told_apart() -> None:
    ablation = CARSO.replace("samples=8", "samples=16")
    retrained = CARSO.replace("1a2b3c4d", "99999999")
    answers = [record(cell("none", text), [1]) for text in (CARSO, ablation, retrained)]
    names = {row.defence for row in build_rows(answers, {}, {})}
    assert len(names) == 3
    assert "carso[samples=16]" in names


def test_leaderboards_are_one_per_dataset_norm_and_exact_eps() -> None:
    questions = [
        ("digits[n=4]", "linf", "1/5"),
        ("digits[n=3]", "linf", "1/5"),
        ("digits[n=4]", "l2", "1/5"),
        ("digits[n=4]", "linf", "0.031"),
        ("digits[n=4]", "linf", "8/255"),
        ("folder[n=4,path=a]", "linf", "1/5"),
        ("folder[n=4,path=b]", "linf", "1/5"),
    ]
    answers = [
        record(cell("none", dataset=dataset, norm=norm, eps=eps), [1, 1])
        for dataset, norm, eps in questions
    ]
    boards = build_leaderboards(answers, {}, {})
    assert [(b.dataset, b.norm, b.eps, len(b.rows)) for b in boards[:4]] == [
        ("digits", "linf", "31/1000", 1),
        ("digits", "linf", "8/255", 1),
        ("digits", "linf", "1/5", 2),
        ("digits", "l2", "1/5", 1),
    ]
    assert boards[1].name == "digits-linf-8_255"
    assert len({board.name for board in boards}) == 6


def test_records_on_other_images_are_left_out_and_named() -> None:
    plan = [cell("none"), cell("pgd"), cell("square")]
    answers = [record(plan[0], [1, 1, 1]), record(plan[1], [1, 1, 0]), record(plan[2], [0, 0])]
    (row,) = build_rows(answers, {"p": plan}, {})
    assert row.robust
    assert row.robust.mean == pytest.approx(2 / 3)
    assert not row.complete
    assert "square: on other images" in row.reasons


PROOF = Certificate((0.6, 0.25, -1.0, 0.2500001), (("alpha", 0.001), ("n", 1000.0)), 2.0)


def test_certified_accuracy_counts_radii_beyond_and_no_others() -> None:
    (board,) = build_leaderboards(
        [record(cell("none", AT), [1, 1, 1, 1], certificate=PROOF)], {}, {}
    )
    (row,) = board.rows
    assert board.radii == ("0.25", "0.5", "0.75", "1")
    certified = [row.certified(radius) for radius in ("0", *board.radii)]
    assert [share.mean for share in certified if share] == [0.75, 0.5, 0.25, 0, 0]
    assert certified[1] == Estimate(0.5, *wilson(2, 4))


@pytest.mark.parametrize(
    ("norm", "eps", "radii"),
    [
        ("l2", "128/255", ("0.25", "0.5", "128/255", "0.75", "1")),
        ("l2", "1/2", ("0.25", "0.5", "0.75", "1")),
        ("linf", "1/8", ("0.25", "0.5", "0.75", "1")),
    ],
)
def test_a_leaderboard_in_l2_has_its_own_eps_among_the_radii(
    norm: str, eps: str, radii: tuple[str, ...]
) -> None:
    asked = [cell("none", defence, norm=norm, eps=eps) for defence in (AT, CARSO)]
    (board,) = build_leaderboards(
        [record(asked[0], [1] * 4, certificate=PROOF), record(asked[1], [1] * 4)], {}, {}
    )
    assert board.radii == radii
    assert {row.defence: row.certified("0.25") is not None for row in board.rows} == {
        "at": True,
        "carso": False,
    }
    (board,) = build_leaderboards([record(asked[1], [1] * 4)], {}, {})
    assert board.radii == ()


def test_a_record_keeps_its_certificate_and_names_none_without_one() -> None:
    plain = record(cell(), [1, 0])
    certified = record(cell(), [1, 0, 1, 1], certificate=PROOF)
    assert "certificate" not in plain.to_json()
    assert Record.from_json(plain.to_json()) == plain
    assert Record.from_json(certified.to_json()) == certified
    with pytest.raises(ValueError, match="4 certified radii for 2 ids"):
        record(cell(), [1, 0], certificate=PROOF)


def test_transfers_are_a_matrix_of_defences_by_sources() -> None:
    records = [
        record(cell("none", f"{name}[classifier=own:x]"), [1] * 4) for name in ("at", "jpeg")
    ]
    for name, source, right in (("at", "own:a", 3), ("at", "own:b", 1), ("jpeg", "own:a", 2)):
        asked = cell(f"transfer[source={source}@1a2b3c4d]", f"{name}[classifier=own:x]")
        records.append(record(asked, [1] * right + [0] * (4 - right)))
    (board,) = build_leaderboards(records, {}, {})
    text = render_markdown(board).partition("## Accuracy under transfer, by source")[2]
    assert "| defence | own:a | own:b |" in text
    assert "| at | 0.750 | 0.250 |" in text
    assert "| jpeg | 0.500 |  |" in text
    of_one_source = [r for r in records if r.cell.attack.params.get("source") != "own:b@1a2b3c4d"]
    (board,) = build_leaderboards(of_one_source, {}, {})
    assert "by source" not in render_markdown(board)


def test_other_eps_are_of_the_same_question_and_the_same_examples() -> None:
    def attacked(eps: str, n: int = 10, **how: object) -> Record:
        return record(cell("pgd[steps=20]", eps=eps, **how), [1] * n)

    here = attacked("1/5")
    others = [
        attacked("2/5"),
        attacked("1/5"),
        attacked("2/5", seed=1),
        attacked("2/5", defence="vae"),
        attacked("2/5", n=5),
    ]
    assert select_other_eps([here], others, EqualSources()) == others[:1]
    assert select_other_eps([], others, EqualSources()) == []
