"""The files that a store becomes."""

from __future__ import annotations

import csv
import io
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from bench import report
from bench.results.record import Certificate, Cost, Env
from bench.results.store import Store
from tests.fake_records import cell, record

ROOT = Path(__file__).parents[2]
AT = "at[classifier=own:digits-at@1a2b3c4d]"
CARSO = "carso[classifier=own:digits-at@1a2b3c4d,samples=8]"
ENV = Env(
    commit="abc1234",
    command="python -m bench.run --with <mine>.py",
    device="cpu",
    versions=(("torch", "2.15.0"),),
    data="ab" * 32,
)
COLUMNS = (
    "rank,defence,classifier,dataset,norm,eps,n,seed,stochastic,"
    "clean_acc,clean_lo,clean_hi,robust_acc,robust_lo,robust_hi,strongest_attack,"
    "verdict,reasons,complete,ms_per_image,cost_ratio,parameters,published_robust_acc"
)
REPEATS = (
    "clean_all_10,clean_all_100,clean_majority_9,robust_all_10,robust_all_100,robust_majority_9"
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two defences under three attacks, of which one failed; and a published model on cifar10."""
    store = Store(tmp_path / "results")
    attacks = ("none", "pgd", "square")
    plan = [cell(name, AT) for name in attacks]
    plan += [cell(name, CARSO, select=2, draws=4) for name in attacks]
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
    counts = ([1, 1, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0], [4, 4, 4, 3], [3, 1, 0, 2])
    for asked, correct in zip(plan[:5], counts, strict=True):
        store.put(record(asked, correct, cost=cost, env=ENV))
    store.fail(plan[5], "ValueError: a | b <script>", "trace")
    store.put_plan("digits-quick", plan)
    cui = "at[classifier=robustbench:Cui2023Decoupled_WRN-28-10]"
    for name in ("none", "pgd"):
        asked = cell(name, cui, dataset="cifar10[n=4]", eps="8/255")
        store.put(record(asked, [1, 1, 1, 1], env=ENV))
    return store.root


def read_table(path: Path) -> list[dict[str, str]]:
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
    header = path.read_text().splitlines()[0]
    assert header == f"{COLUMNS},acc_none,acc_pgd,acc_square,{REPEATS}"
    deterministic = root / "leaderboards" / "cifar10-linf-8_255.csv"
    assert deterministic.read_text().splitlines()[0] == f"{COLUMNS},acc_none,acc_pgd"


def test_a_leaderboard_row_holds_what_was_measured(root: Path) -> None:
    report.write(root)
    at, carso = read_table(root / "leaderboards" / "digits-linf-1_5.csv")
    assert (at["rank"], at["defence"], at["classifier"]) == ("1", "at", "own:digits-at")
    assert (at["dataset"], at["norm"], at["eps"]) == ("digits", "linf", "1/5")
    assert (at["n"], at["seed"], at["stochastic"], at["complete"]) == ("4", "0", "no", "yes")
    assert (at["clean_acc"], at["robust_acc"]) == ("0.7500", "0.0000")
    assert (at["acc_pgd"], at["acc_square"]) == ("0.2500", "0.2500")
    assert float(at["clean_lo"]) < 0.75 < float(at["clean_hi"])
    assert at["strongest_attack"] == "pgd"
    assert (at["ms_per_image"], at["cost_ratio"], at["parameters"]) == ("0.5000", "2.00", "99")
    assert at["published_robust_acc"] == ""
    assert (carso["stochastic"], carso["complete"]) == ("yes", "no")
    assert (carso["acc_square"], carso["rank"]) == ("", "2")
    assert "square failed: ValueError: a | b <script>" in carso["reasons"]


def test_the_published_figure_stands_beside_the_measured_one(root: Path) -> None:
    report.write(root)
    (row,) = read_table(root / "leaderboards" / "cifar10-linf-8_255.csv")
    assert (row["robust_acc"], row["published_robust_acc"]) == ("1.0000", "0.6773")


def test_cells_csv_has_a_line_per_record(root: Path) -> None:
    report.write(root)
    lines = read_table(root / "leaderboards" / "cells.csv")
    assert len(lines) == 7
    (pgd,) = [line for line in lines if line["defence"] == "carso" and line["attack"] == "pgd"]
    assert (pgd["acc"], pgd["family"], pgd["access"]) == ("0.3750", "gradient", "white-box")
    assert (pgd["queries"], pgd["backwards"]) == ("100.0", "40.0")
    assert (pgd["draws"], pgd["select"], pgd["commit"]) == ("4", "2", "abc1234")
    assert (pgd["nonfinite"], pgd["zero"], pgd["unmoved"]) == ("3", "2", "0")
    assert pgd["key"] == cell("pgd", CARSO, select=2, draws=4).key


def test_cells_csv_says_what_minimum_norm_attacks_found(tmp_path: Path) -> None:
    store = Store(tmp_path / "results")
    nearest = {
        "deepfool": (0.1, -1.0, 0.3, 0.2),
        "fab": (0.1, -1.0, 0.3, -1.0),
        "pgd": None,
    }
    store.put(record(cell("none", AT), [1, 1, 1, 1]))
    for name, distances in nearest.items():
        store.put(replace(record(cell(name, AT), [1, 1, 1, 0]), nearest=distances))
    report.write(store.root)
    columns = {
        line["attack"]: (line["found"], line["median_distance"])
        for line in read_table(store.root / "leaderboards" / "cells.csv")
    }
    assert columns == {
        "none": ("", ""),
        "pgd": ("", ""),
        "deepfool": ("0.7500", "0.25"),
        "fab": ("0.5000", ""),
    }


@pytest.fixture
def ten_draws(tmp_path: Path) -> Path:
    """Ten draws each: one clean answer is wrong; of the worst case 10, 9, 5 and 0 of ten stand."""
    store = Store(tmp_path / "results")
    asked = [cell(name, CARSO, select=10, draws=10) for name in ("none", "pgd", "square")]
    clean = [10, 10, 9, 10]
    store.put(record(asked[0], [10, 10, 10, 9], clean=clean))
    store.put(record(asked[1], [10, 9, 10, 10], selected=[10, 9, 10, 10], clean=clean))
    store.put(record(asked[2], [10, 10, 5, 0], selected=[10, 10, 6, 0], clean=clean))
    report.write(store.root)
    return store.root


def test_a_leaderboard_has_repeated_answers_clean_and_in_the_worst_case(ten_draws: Path) -> None:
    """Of ten draws of which five are right, nine hold all five with a chance of one half."""
    (row,) = read_table(ten_draws / "leaderboards" / "digits-linf-1_5.csv")
    assert (row["clean_acc"], row["robust_acc"]) == ("0.9750", "0.6000")
    assert (row["clean_all_10"], row["robust_all_10"]) == ("0.7500", "0.2500")
    assert (row["clean_majority_9"], row["robust_majority_9"]) == ("1.0000", "0.6250")
    assert row["clean_all_100"] == row["robust_all_100"] == ""


def test_cells_csv_has_repeated_answers(ten_draws: Path) -> None:
    lines = read_table(ten_draws / "leaderboards" / "cells.csv")
    (square,) = [line for line in lines if line["attack"] == "square"]
    assert (square["all_10"], square["majority_9"]) == ("0.5000", "0.6250")
    assert square["all_100"] == ""
    assert (square["clean_acc"], square["clean_all_10"]) == ("0.9750", "0.7500")
    assert square["clean_majority_9"] == "1.0000"


def test_markdown_and_page_have_repeated_answers(ten_draws: Path) -> None:
    text = (ten_draws / "leaderboards" / "digits-linf-1_5.md").read_text()
    assert "| carso | 0.975 | 0.750 | 1.000 | 0.600 | 0.250 | 0.625 |" in text
    page = (ten_draws / "report.html").read_text()
    assert page.count("<h3>Asked again</h3>") == 1
    assert read_outline(page).open == []


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


def read_outline(page: str) -> Outline:
    outline = Outline()
    outline.feed(page)
    return outline


def test_the_page_is_whole_and_asks_nothing_of_the_network(root: Path) -> None:
    report.write(root)
    text = (root / "report.html").read_text()
    outline = read_outline(text)
    assert outline.open == []
    assert outline.fetched == []
    assert not re.search(r"@import|url\(|fetch\(|XMLHttp", text)
    assert outline.count["svg"] == outline.count["h2"] - 1 == 2


def test_the_page_escapes_what_the_records_say(root: Path) -> None:
    report.write(root)
    text = (root / "report.html").read_text()
    assert "a | b &lt;script&gt;" in text
    assert "&lt;mine&gt;.py" in text
    assert "<mine>" not in text


def test_the_page_holds_provenance_reasons_and_codes(root: Path) -> None:
    report.write(root)
    text = (root / "report.html").read_text()
    assert "abc1234" in text
    assert f"{CARSO}</p>" in text
    assert "verdict incomplete" in text
    assert "square failed" in text
    assert "What the codes mean" in text
    assert "attack the classifier alone" in text


RADII = ("0.25", "0.5", "0.75", "1")
CERTIFIED = [f"certified_{limit}_{radius}" for radius in RADII for limit in ("acc", "lo", "hi")]
CERTIFIED += ["certificate", "certify_ms_per_image"]


def put_certificate(root: Path) -> None:
    proof = Certificate((0.3, 0.6, -1.0, 0.1), (("alpha", 0.001), ("n", 1000.0)), 2.0)
    Store(root).put(record(cell("none", AT), [1, 1, 1, 0], env=ENV, certificate=proof))


@pytest.fixture
def certified(root: Path) -> Path:
    """The same store, where one defence certifies."""
    put_certificate(root)
    report.write(root)
    return root


def test_a_certificate_changes_no_other_leaderboard(root: Path) -> None:
    report.write(root)
    other = root / "leaderboards" / "cifar10-linf-8_255.csv"
    before = other.read_bytes()
    put_certificate(root)
    report.write(root)
    assert other.read_bytes() == before


def test_nothing_is_certified_where_no_defence_certifies(root: Path) -> None:
    assert [path for path in report.write(root) if "ertif" in path.read_text()] == []


def test_a_leaderboard_ends_with_certified_accuracy(certified: Path) -> None:
    path = certified / "leaderboards" / "digits-linf-1_5.csv"
    columns = [f"{COLUMNS},acc_none,acc_pgd,acc_square,{REPEATS}", *CERTIFIED]
    assert path.read_text().splitlines()[0] == ",".join(columns)
    at, carso = sorted(read_table(path), key=lambda line: line["defence"])
    shares = [at[f"certified_acc_{radius}"] for radius in RADII]
    assert shares == ["0.5000", "0.2500", "0.0000", "0.0000"]
    assert (at["certified_lo_0.25"], at["certified_hi_0.25"]) == ("0.1500", "0.8500")
    assert at["certificate"] == "l2, alpha=0.001, n=1000"
    assert at["certify_ms_per_image"] == "500.0000"
    assert {carso[name] for name in CERTIFIED} == {""}


def test_markdown_and_page_have_certified_accuracy(certified: Path) -> None:
    text = (certified / "leaderboards" / "digits-linf-1_5.md").read_text()
    cells = [
        "at",
        "own:digits-at",
        "0.500 [0.150, 0.850]",
        "0.250 [0.046, 0.699]",
        "0.000 [0.000, 0.490]",
        "0.000 [0.000, 0.490]",
        "l2, alpha=0.001, n=1000",
    ]
    assert f"| {' | '.join(cells)} |" in text
    page = (certified / "report.html").read_text()
    assert read_outline(page).open == []
    assert page.count("<h3>Certified accuracy by l2 radius</h3>") == 1


def test_the_terminal_gets_a_cell_per_heading(root: Path) -> None:
    boards = report.load_boards(Store(root))
    assert [(board.dataset, board.norm, board.eps) for board in boards] == [
        ("cifar10", "linf", "8/255"),
        ("digits", "linf", "1/5"),
    ]
    for board in boards:
        for row in board.rows:
            assert len(report.brief_row(row)) == len(report.BRIEF_COLUMNS)
    assert report.brief_row(boards[1].rows[0])[:2] == ["1", "at"]


def test_importing_the_report_loads_the_standard_library_only() -> None:
    code = (
        "import sys, bench.report, bench.results.leaderboard; "
        "print(sorted({'torch', 'numpy', 'scipy', 'matplotlib', 'jinja2'} & set(sys.modules)))"
    )
    output = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True)
    assert output == "[]\n"


def test_writing_a_report_loads_no_torch_and_no_scipy_stats(root: Path) -> None:
    code = (
        "import sys, pathlib, bench.report; bench.report.write(pathlib.Path(sys.argv[1])); "
        "print(sorted({'torch', 'scipy.stats', 'matplotlib'} & set(sys.modules)))"
    )
    output = subprocess.check_output([sys.executable, "-c", code, root], cwd=ROOT, text=True)
    assert output == "[]\n"


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
