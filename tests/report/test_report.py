"""The files that a store becomes."""

from __future__ import annotations

import csv
import io
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from bench import report
from bench.questions.registry import ROOT
from bench.results.record import Certificate, Cost, Env
from bench.results.store import Store
from tests.fake_records import build_rows, cell, record

AT = "at[classifier=own:digits-at@1a2b3c4d]"
CARSO = "carso[classifier=own:digits-at@1a2b3c4d,samples=8]"
ENV = Env(
    commit="abc1234",
    command="python -m bench.run --with <mine>.py",
    device="cpu",
    versions=(("torch", "2.15.0"),),
    data="ab" * 32,
)
AGAIN = ",".join(
    f"{images}_{name}"
    for images in ("clean", "robust")
    for name in ("all_10", "all_100", "majority_9")
)
FIRST = (
    "rank,defence,classifier,dataset,norm,eps,n,seed,stochastic,clean_acc,clean_lo,clean_hi,robust_acc,robust_lo,robust_hi,strongest_attack,"
    "verdict,reasons,complete,ms_per_image,cost_ratio,parameters,published_robust_acc"
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two defences under three attacks, of which one failed; and a published model on cifar10."""
    store = Store(tmp_path / "results")
    plan = [cell(name, AT) for name in ("none", "pgd", "square")] + [
        cell(name, CARSO, select=2, draws=4) for name in ("none", "pgd", "square")
    ]
    cost = Cost(
        seconds=1.5,
        forwards=400,
        backwards=160,
        nonfinite=3,
        zero=2,
        ms_per_image=0.5,
        base_ms_per_image=0.25,
        parameters=99,
    )
    for asked, correct in zip(
        plan[:5],
        ([1, 1, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0], [4, 4, 4, 3], [3, 1, 0, 2]),
        strict=True,
    ):
        store.put(record(asked, correct, cost=cost, env=ENV))
    store.fail(plan[5], "ValueError: a | b <script>", "trace")
    store.put_plan("digits-quick", plan)
    cui = "at[classifier=robustbench:Cui2023Decoupled_WRN-28-10]"
    for name in ("none", "pgd"):
        store.put(
            record(cell(name, cui, dataset="cifar10[n=4]", eps="8/255"), [1, 1, 1, 1], env=ENV)
        )
    return store.root


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text())))


def test_write_returns_what_it_wrote(root: Path) -> None:
    names = {path.relative_to(root).as_posix() for path in report.write(root)}
    boards = {
        f"leaderboards/{board}.{kind}"
        for board in ("digits-linf-1_5", "cifar10-linf-8_255")
        for kind in ("csv", "md")
    }
    assert names == {*boards, "leaderboards/cells.csv", "report.html"}
    assert all((root / name).stat().st_size for name in names)


def test_the_leaderboard_has_exactly_the_columns_of_the_design(root: Path) -> None:
    report.write(root)
    path = root / "leaderboards" / "digits-linf-1_5.csv"
    assert path.read_text().splitlines()[0] == f"{FIRST},acc_none,acc_pgd,acc_square,{AGAIN}"
    assert (root / "leaderboards" / "cifar10-linf-8_255.csv").read_text().splitlines()[
        0
    ] == f"{FIRST},acc_none,acc_pgd", "no row is stochastic"
    at, carso = table(path)
    assert (at["rank"], at["defence"], at["classifier"]) == ("1", "at", "own:digits-at")
    assert (at["dataset"], at["norm"], at["eps"]) == ("digits", "linf", "1/5")
    assert (at["n"], at["seed"], at["stochastic"], at["complete"]) == ("4", "0", "no", "yes")
    assert (at["clean_acc"], at["robust_acc"], at["acc_pgd"], at["acc_square"]) == (
        "0.7500",
        "0.0000",
        "0.2500",
        "0.2500",
    )
    assert float(at["clean_lo"]) < 0.75 < float(at["clean_hi"])
    assert (at["strongest_attack"], at["ms_per_image"], at["cost_ratio"], at["parameters"]) == (
        "pgd",
        "0.5000",
        "2.00",
        "99",
    )
    assert at["published_robust_acc"] == ""
    assert (carso["stochastic"], carso["complete"], carso["acc_square"], carso["rank"]) == (
        "yes",
        "no",
        "",
        "2",
    )
    assert "square failed: ValueError: a | b <script>" in carso["reasons"]


def test_the_published_figure_stands_beside_the_measured_one(root: Path) -> None:
    report.write(root)
    (row,) = table(root / "leaderboards" / "cifar10-linf-8_255.csv")
    assert (row["robust_acc"], row["published_robust_acc"]) == ("1.0000", "0.6773")


def test_cells_csv_has_a_line_per_record(root: Path) -> None:
    report.write(root)
    lines = table(root / "leaderboards" / "cells.csv")
    assert len(lines) == 7
    pgd = next(line for line in lines if line["defence"] == "carso" and line["attack"] == "pgd")
    assert (pgd["acc"], pgd["family"], pgd["access"], pgd["queries"], pgd["backwards"]) == (
        "0.3750",
        "gradient",
        "white-box",
        "100.0",
        "40.0",
    )
    assert (
        pgd["draws"],
        pgd["select"],
        pgd["nonfinite"],
        pgd["zero"],
        pgd["unmoved"],
        pgd["commit"],
    ) == ("4", "2", "3", "2", "0", "abc1234")
    assert pgd["key"] == cell("pgd", CARSO, select=2, draws=4).key


def test_cells_csv_tells_of_a_minimal_attack_for_how_many_it_found_something_and_how_far_away(
    tmp_path: Path,
) -> None:
    store = Store(tmp_path / "results")
    store.put(record(cell("none", AT), [1, 1, 1, 1]))
    for name, nearest in (
        ("deepfool", (0.1, -1.0, 0.3, 0.2)),
        ("fab", (0.1, -1.0, 0.3, -1.0)),
        ("pgd", None),
    ):
        store.put(replace(record(cell(name, AT), [1, 1, 1, 0]), nearest=nearest))
    report.write(store.root)
    lines = {
        line["attack"]: (line["found"], line["median_distance"])
        for line in table(store.root / "leaderboards" / "cells.csv")
    }
    assert lines == {
        "none": ("", ""),
        "pgd": ("", ""),
        "deepfool": ("0.7500", "0.25"),
        "fab": ("0.5000", ""),
    }


def test_one_answer_stands_beside_several_on_clean_images_and_in_the_worst_case(
    tmp_path: Path,
) -> None:
    """Ten draws each: of the clean images all but one answer is right; the attacks leave 10, 9 and 5 of ten, and 0 of ten."""
    store = Store(tmp_path / "results")
    asked = [cell(name, CARSO, select=10, draws=10) for name in ("none", "pgd", "square")]
    store.put(record(asked[0], [10, 10, 10, 9], clean=[10, 10, 9, 10]))
    store.put(record(asked[1], [10, 9, 10, 10], selected=[10, 9, 10, 10], clean=[10, 10, 9, 10]))
    store.put(record(asked[2], [10, 10, 5, 0], selected=[10, 10, 6, 0], clean=[10, 10, 9, 10]))
    report.write(store.root)
    (row,) = table(store.root / "leaderboards" / "digits-linf-1_5.csv")
    assert (
        row["clean_acc"],
        row["clean_all_10"],
        row["clean_majority_9"],
        row["clean_all_100"],
    ) == ("0.9750", "0.7500", "1.0000", "")
    # most of nine among ten of which five were right: nine hold all five unless one of them is left out, which is half of the time
    assert (
        row["robust_acc"],
        row["robust_all_10"],
        row["robust_majority_9"],
        row["robust_all_100"],
    ) == ("0.6000", "0.2500", "0.6250", "")
    lines = {line["attack"]: line for line in table(store.root / "leaderboards" / "cells.csv")}
    assert (
        lines["square"]["all_10"],
        lines["square"]["majority_9"],
        lines["square"]["all_100"],
    ) == ("0.5000", "0.6250", "")
    assert (
        lines["square"]["clean_acc"],
        lines["square"]["clean_all_10"],
        lines["square"]["clean_majority_9"],
    ) == ("0.9750", "0.7500", "1.0000")
    assert (
        "| carso | 0.975 | 0.750 | 1.000 | 0.600 | 0.250 | 0.625 |"
        in (store.root / "leaderboards" / "digits-linf-1_5.md").read_text()
    )
    page = (store.root / "report.html").read_text()
    assert page.count("<h3>Asked again</h3>") == 1
    outline = Outline()
    outline.feed(page)
    assert outline.open == []


def test_the_same_store_gives_the_same_bytes(root: Path) -> None:
    before = {path: path.read_bytes() for path in report.write(root)}
    for path in before:
        path.unlink()
    assert {path: path.read_bytes() for path in report.write(root)} == before


def test_an_empty_store_writes_nothing(tmp_path: Path) -> None:
    assert report.write(tmp_path / "results") == []
    assert list(tmp_path.iterdir()) == []


def test_markdown_escapes_what_would_break_its_tables(root: Path) -> None:
    report.write(root)
    text = (root / "leaderboards" / "digits-linf-1_5.md").read_text()
    widths = {
        line.replace("\\|", "").count("|")
        for line in text.split("##")[0].splitlines()
        if line.startswith("|")
    }
    assert widths == {10}
    assert "| 1 | at | own:digits-at | 0.750 [0.301, 0.954] | 0.000 [0.000, 0.490] | pgd |" in text
    assert "a \\| b &lt;script>" in text


class Outline(HTMLParser):
    """The tags of a page in order, to see that they close, and what it would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.count: dict[str, int] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count[tag] = self.count.get(tag, 0) + 1
        self.fetched += [
            value or ""
            for name, value in attrs
            if name in ("src", "href") and not (value or "").startswith(("#", "data:"))
        ]
        if tag not in ("meta", "link", "wbr", "br", "line", "circle"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("line", "circle"):
            assert self.open.pop() == tag


def test_the_page_is_whole_and_asks_nothing_of_the_network(root: Path) -> None:
    report.write(root)
    text = (root / "report.html").read_text()
    outline = Outline()
    outline.feed(text)
    assert outline.open == []
    assert outline.fetched == []
    assert not re.search(r"@import|url\(|fetch\(|XMLHttp", text)
    assert outline.count["svg"] == outline.count["h2"] - 1 == 2
    assert "a | b &lt;script&gt;" in text
    assert "<mine>" not in text
    shown = (
        "abc1234",
        f"{CARSO}</p>",
        "verdict incomplete",
        "square failed",
        "What the codes mean",
        "attack the classifier alone",
        "&lt;mine&gt;.py",
    )
    assert [told for told in shown if told not in text] == []


def test_certified_accuracy_is_shown_where_a_defence_certifies_and_only_there(root: Path) -> None:
    before = {path: path.read_bytes() for path in report.write(root)}
    assert not [path for path, found in before.items() if b"ertif" in found]
    proof = Certificate((0.3, 0.6, -1.0, 0.1), (("alpha", 0.001), ("n", 1000.0)), 2.0)
    Store(root).put(record(cell("none", AT), [1, 1, 1, 0], env=ENV, certificate=proof))
    report.write(root)
    columns = [
        f"certified_{what}_{radius}"
        for radius in ("0.25", "0.5", "0.75", "1")
        for what in ("acc", "lo", "hi")
    ]
    path = root / "leaderboards" / "digits-linf-1_5.csv"
    assert path.read_text().splitlines()[0] == ",".join(
        [
            f"{FIRST},acc_none,acc_pgd,acc_square,{AGAIN}",
            *columns,
            "certificate",
            "certify_ms_per_image",
        ]
    )
    at, carso = sorted(table(path), key=lambda line: line["defence"])
    assert [at[f"certified_acc_{radius}"] for radius in ("0.25", "0.5", "0.75", "1")] == [
        "0.5000",
        "0.2500",
        "0.0000",
        "0.0000",
    ]
    assert (at["certified_lo_0.25"], at["certified_hi_0.25"]) == ("0.1500", "0.8500")
    assert (at["certificate"], at["certify_ms_per_image"]) == (
        "l2, alpha=0.001, n=1000",
        "500.0000",
    )
    assert {carso[name] for name in (*columns, "certificate", "certify_ms_per_image")} == {""}
    text = path.with_suffix(".md").read_text()
    assert (
        "| at | own:digits-at | 0.500 [0.150, 0.850] | 0.250 [0.046, 0.699] | 0.000 [0.000, 0.490] | 0.000 [0.000, 0.490] | l2, alpha=0.001, n=1000 |"
        in text
    )
    page = (root / "report.html").read_text()
    outline = Outline()
    outline.feed(page)
    assert outline.open == []
    assert page.count("<h3>Certified accuracy by l2 radius</h3>") == 1
    other = root / "leaderboards" / "cifar10-linf-8_255.csv"
    assert other.read_bytes() == before[other]


def test_the_terminal_gets_a_cell_per_heading(root: Path) -> None:
    (board, other) = report.load_boards(Store(root))
    assert (other.dataset, other.norm, other.eps) == ("digits", "linf", "1/5")
    assert [len(report.brief_row(row)) for row in (*board.rows, *other.rows)] == [
        len(report.BRIEF_COLUMNS)
    ] * 3
    assert report.brief_row(other.rows[0])[:2] == ["1", "at"]


def test_reading_results_needs_no_torch_and_no_matplotlib() -> None:
    code = "import sys, bench.report, bench.results.leaderboard; sys.exit(bool({'torch', 'numpy', 'matplotlib'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=20).returncode == 0


def test_the_command_rebuilds_everything_figures_too(root: Path) -> None:
    command = [sys.executable, "-m", "bench.report", "--out", str(root)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    figure = root / "figures" / "digits-linf-1_5.png"
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert str(figure) in done.stdout


def test_the_command_refuses_a_folder_without_records(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench.report", "--out", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert str(tmp_path) in done.stderr
    assert list(tmp_path.iterdir()) == []


def reference_rows(
    clean: int, robust: int, n: int = 100, attack: str = "pgd", defence: str = AT
) -> list[object]:
    answers = [
        (cell("none", defence, dataset=f"digits[n={n}]"), clean),
        (cell(attack, defence, dataset=f"digits[n={n}]"), robust),
    ]
    return build_rows(
        [record(asked, [1] * right + [0] * (n - right)) for asked, right in answers], {}, {}
    )


def test_compare_reference_names_only_what_lies_beyond_the_intervals() -> None:
    ours = build_rows(
        [
            record(cell(a, AT, dataset="digits[n=100]"), [1] * k + [0] * (100 - k))
            for a, k in (("none", 96), ("pgd", 60))
        ],
        {},
        {},
    )
    assert report.list_differences(ours, reference_rows(94, 55)) == []
    (said,) = report.list_differences(ours, reference_rows(94, 20))
    assert (
        said
        == "digits linf 1/5, at: robust_acc 0.600 [0.502, 0.691] (n 100) here, 0.200 [0.133, 0.289] (n 100) in the reference"
    )
    assert len(report.list_differences(ours, reference_rows(50, 20))) == 2
    assert (
        report.list_differences(ours, reference_rows(94, 72)) == []
    )  # 0.60 is below that interval, 0.69 is not
    # Under other attacks, or of another defence, the robust accuracies are no two answers to one question.
    assert report.list_differences(ours, reference_rows(94, 20, attack="square")) == []
    assert report.list_differences(ours, reference_rows(94, 20, defence=CARSO)) == []
    retrained = reference_rows(94, 20, defence=AT.replace("1a2b3c4d", "99999999"))
    assert report.list_differences(ours, retrained)[0].endswith("with other weights")


def test_against_reference_reads_the_two_stores(root: Path, tmp_path: Path) -> None:
    assert report.compare_with_reference(root, root) == []
    assert report.compare_with_reference(root, tmp_path / "none") == []
    other = Store(tmp_path / "reference")
    for name in ("none", "pgd"):
        other.put(record(cell(name, AT, dataset="digits[n=100]"), [0] * 100))
    (said,) = report.compare_with_reference(root, other.root)
    assert said.startswith("differs from the reference: digits linf 1/5, at: clean_acc 0.750")
    alike = tmp_path / "alike"
    shutil.copytree(root, alike)
    (said,) = report.compare_with_reference(root, alike)
    assert said.endswith("they agree within the 95% intervals")
