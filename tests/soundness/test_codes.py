"""Every code of a flag is asked once, and the page says what the code says."""

from __future__ import annotations

import re
import subprocess
import sys

from bench.cli.catalogue import CODES_PAGE, make_codes_page
from bench.entry_points import ROOT
from bench.soundness.codes import all_codes, code_order, code_questions


def test_the_committed_table_is_the_one_that_the_codes_give() -> None:
    text = CODES_PAGE.read_text()
    assert text == make_codes_page(text), "run python -m bench.catalogue"


def test_every_code_stands_once_and_in_order() -> None:
    codes = [code.id for code in all_codes()]
    assert codes == sorted(set(codes), key=code_order)


def test_every_code_asks_something_and_can_be_raised() -> None:
    for code in all_codes():
        assert code.question, code.id
        assert code.hard or code.soft, code.id
        assert code.looks, code.id


def test_every_flag_of_ours_has_a_code() -> None:
    raised = set()
    for folder in ("bench/soundness", "bench/checks"):
        for path in (ROOT / folder).rglob("*.py"):
            raised |= set(re.findall(r'Flag\(\s*"([A-Z]\d+)"', path.read_text()))
    assert len(raised) > 25
    assert raised <= code_questions().keys()


def test_reading_codes_and_audits_loads_no_torch() -> None:
    code = "import sys, bench.soundness.assess; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
