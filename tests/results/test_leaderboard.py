"""Rows from small records made by hand."""

from __future__ import annotations

import pytest

from bench.questions.spec import Cell, Spec
from bench.report import build_leaderboards
from bench.report.markdown import render_markdown
from bench.results.evidence import select_other_eps
from bench.results.names import short_names
from bench.results.record import Certificate, Cost, Record
from bench.results.statistics import wilson
from tests.fake_records import build_rows, cell, record

AT = "at[classifier=own:digits-at@1a2b3c4d]"
CARSO = "carso[aggregation=peel,classifier=own:digits-at@1a2b3c4d,samples=8]"
TIMED = Cost(ms_per_image=0.6, base_ms_per_image=0.2, parameters=1234)


def specs(*texts: str) -> list[Spec]:
    return [Spec.parse(text) for text in texts]


def test_labels_show_only_what_tells_apart() -> None:
    group = specs("none", "pgd[eot=1,steps=40]", "pgd[eot=1,steps=80]", "spsa[steps=3]")
    assert list(short_names(group).values()) == ["none", "pgd[steps=40]", "pgd[steps=80]", "spsa"]
    group = specs("transfer[source=own:a@1a2b3c4d]", "transfer[source=own:b@5e6f7a8b]")
    assert list(short_names(group).values()) == ["transfer[source=own:a]", "transfer[source=own:b]"]


def test_labels_keep_the_pin_where_nothing_else_differs() -> None:
    group = specs("transfer[source=own:a@1a2b3c4d]", "transfer[source=own:a@5e6f7a8b]")
    assert list(short_names(group).values()) == [
        "transfer[source=own:a@1a2b3c4d]",
        "transfer[source=own:a@5e6f7a8b]",
    ]


def test_labels_leave_out_what_is_hidden_and_what_only_some_have() -> None:
    group = specs(
        "carso[classifier=own:a,samples=8]",
        "carso[classifier=own:b,samples=8]",
        "jpeg[quality=75]",
        "jpeg",
    )
    assert list(short_names(group, hide=("classifier",)).values()) == [
        "carso",
        "carso",
        "jpeg[quality=75]",
        "jpeg",
    ]


def test_a_deterministic_row() -> None:
    plan = [cell(name, AT) for name in ("none", "pgd[steps=40]", "square[queries=9]")]
    answers = [
        record(plan[0], [1, 1, 1, 0], cost=TIMED),
        record(plan[1], [1, 0, 0, 0]),
        record(plan[2], [0, 1, 1, 0]),
    ]
    (row,) = build_rows(answers, {"p": plan}, {})
    assert (row.rank, row.defence, row.classifier, row.n, row.stochastic, row.complete) == (
        1,
        "at",
        "own:digits-at",
        4,
        False,
        True,
    )
    assert row.clean
    assert (row.clean.mean, row.clean.lo, row.clean.hi) == (0.75, *wilson(3, 4))
    assert row.robust
    assert (row.robust.mean, row.robust.lo, row.robust.hi) == (0, *wilson(0, 4))
    assert row.strongest_attack == "pgd"
    assert row.accuracies == {"none": 0.75, "pgd": 0.25, "square": 0.5}
    assert (row.ms_per_image, row.cost_ratio, row.parameters) == (0.6, pytest.approx(3), 1234)


def test_attacks_of_equal_accuracy_are_told_apart_by_the_order_of_the_plan() -> None:
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
    found = build_rows(answers, {}, {})
    assert len(found) == len(variants)
    assert all(len(row.records) == 2 for row in found)
    assert len({(row.defence, row.cell.seed) for row in found}) == len(variants)
    assert any("draws=4" in row.defence for row in found)
    assert [row.reasons[-1] for row in found if "first" in row.cell.dataset.params] == [
        "the first 4 examples, not a stratified subset"
    ]


def test_a_failed_cell_and_one_not_yet_run_make_a_row_incomplete_and_rank_it_last() -> None:
    weak, strong = (
        [cell(name, defence) for name in ("none", "pgd", "spsa", "square")]
        for defence in (AT, "jpeg[classifier=own:digits-at]")
    )
    answers = [record(c, [0, 0, 0, 0]) for c in weak] + [
        record(c, [1, 1, 1, 1]) for c in strong[:2]
    ]
    first, last = build_rows(
        answers, {"p": [*weak, *strong]}, {strong[2].key: "RuntimeError:\n no memory"}
    )
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
    assert (row.rank, row.n, row.clean, row.robust, row.strongest_attack, row.complete) == (
        None,
        4,
        None,
        None,
        "",
        False,
    )
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


def test_a_row_that_was_spared_what_the_others_met_does_not_outrank_them() -> None:
    def plan(defence: str, *names: str) -> list[Cell]:
        return [cell(name, defence) for name in ("none", *names)]

    full = [
        plan(f"{name}[classifier=own:x]", "fgsm", "pgd", "square")
        for name in ("at", "jpeg", "undefended")
    ]
    mine = plan("mine[classifier=own:x]", "fgsm")
    answers = [record(c, [1, 0, 0, 0]) for cells in full for c in cells] + [
        record(c, [1, 1, 1, 1]) for c in mine
    ]
    found = build_rows(
        answers, {"sweep": [c for cells in full for c in cells], "a-quick-look": mine}, {}
    )
    assert [row.defence for row in found] == ["at", "jpeg", "undefended", "mine"]
    assert found[-1].complete
    assert found[-1].reasons[-1] == "spared what most like it met: pgd, square"


def test_a_special_attack_on_one_row_does_not_push_the_others_behind_it() -> None:
    plan = [
        cell(name, f"{defence}[classifier=own:x]")
        for defence in ("at", "jpeg", "undefended")
        for name in ("none", "pgd")
    ]
    special = cell("mine", "jpeg[classifier=own:x]")
    answers = [record(c, [1, 1, 0, 0]) for c in plan] + [record(special, [0, 0, 0, 0])]
    found = build_rows(answers, {"sweep": plan, "special": [special]}, {})
    assert [row.defence for row in found] == ["at", "undefended", "jpeg"]
    assert not any("spared" in reason for row in found for reason in row.reasons)


def test_the_largest_plan_gives_the_order_of_the_attacks() -> None:
    sweep, look = [cell(name) for name in ("none", "square", "pgd")], [cell("none"), cell("pgd")]
    (board,) = build_leaderboards([], {"a-look": look, "sweep": sweep}, {})
    assert board.attacks == ("none", "square", "pgd")


def test_stochastic_rows_meet_other_attacks_and_that_spares_nobody() -> None:
    steady = [cell(name, AT) for name in ("none", "pgd")]
    noisy = [cell(name, CARSO, select=2, draws=4) for name in ("none", "pgd", "pgd-eot")]
    answers = [record(c, [1, 1]) for c in steady] + [record(c, [4, 2]) for c in noisy]
    found = build_rows(answers, {"p": [*steady, *noisy]}, {})
    assert [(row.defence, row.complete, row.stochastic) for row in found] == [
        ("at", True, False),
        ("carso", True, True),
    ]
    assert not any("spared" in reason for row in found for reason in row.reasons)


def test_ablations_of_one_defence_are_told_apart() -> None:
    texts = (CARSO, CARSO.replace("samples=8", "samples=16"), CARSO.replace("1a2b3c4d", "99999999"))
    names = [
        row.defence
        for row in build_rows([record(cell("none", text), [1]) for text in texts], {}, {})
    ]
    assert len(set(names)) == 3
    assert {"carso[samples=16]"} < set(names)


def test_leaderboards_are_one_per_dataset_norm_and_exact_eps() -> None:
    places = [
        ("digits[n=4]", "linf", "1/5"),
        ("digits[n=3]", "linf", "1/5"),
        ("digits[n=4]", "l2", "1/5"),
    ]
    places += [("digits[n=4]", "linf", "0.031"), ("digits[n=4]", "linf", "8/255")]
    places += [("folder[n=4,path=a]", "linf", "1/5"), ("folder[n=4,path=b]", "linf", "1/5")]
    answers = [
        record(cell("none", dataset=d, norm=norm, eps=eps), [1, 1]) for d, norm, eps in places
    ]
    found = build_leaderboards(answers, {}, {})
    assert [(b.dataset, b.norm, b.eps, len(b.rows)) for b in found[:4]] == [
        ("digits", "linf", "31/1000", 1),
        ("digits", "linf", "8/255", 1),
        ("digits", "linf", "1/5", 2),
        ("digits", "l2", "1/5", 1),
    ]
    assert found[1].name == "digits-linf-8_255"
    assert len({b.name for b in found}) == 6


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
    found = [row.certified(radius) for radius in ("0", *board.radii)]
    assert [one.mean for one in found if one] == [0.75, 0.5, 0.25, 0, 0]
    assert found[1]
    assert (found[1].lo, found[1].hi) == wilson(2, 4)


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


def test_a_record_without_a_certificate_is_written_as_it_always_was_and_one_with_it_comes_back() -> (
    None
):
    plain, proven = record(cell(), [1, 0]), record(cell(), [1, 0, 1, 1], certificate=PROOF)
    assert "certificate" not in plain.to_json()
    assert Record.from_json(plain.to_json()) == plain
    assert Record.from_json(proven.to_json()) == proven
    with pytest.raises(ValueError, match="4 certified radii for 2 ids"):
        record(cell(), [1, 0], certificate=PROOF)


def test_transfers_are_a_matrix_of_defences_by_sources() -> None:
    asked = [("at", "own:a", 3), ("at", "own:b", 1), ("jpeg", "own:a", 2)]
    records = [
        record(cell("none", f"{name}[classifier=own:x]"), [1] * 4) for name in ("at", "jpeg")
    ]
    records += [
        record(
            cell(f"transfer[source={s}@1a2b3c4d]", f"{name}[classifier=own:x]"),
            [1] * k + [0] * (4 - k),
        )
        for name, s, k in asked
    ]
    (board,) = build_leaderboards(records, {}, {})
    text = (
        render_markdown(board)
        .partition("## Accuracy under transfer, by source")[2]
        .partition("##")[0]
    )
    assert "| defence | own:a | own:b |" in text
    assert "| at | 0.750 | 0.250 |" in text
    assert "| jpeg | 0.500 |  |" in text
    (lone,) = build_leaderboards(
        [r for r in records if r.cell.attack.params.get("source") != "own:b@1a2b3c4d"], {}, {}
    )
    assert "by source" not in render_markdown(lone)


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
    assert select_other_eps([here], others) == others[:1]
    assert select_other_eps([], others) == []
