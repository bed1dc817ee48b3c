"""The page of the attacks says what is registered."""

from __future__ import annotations

from bench.cli.catalogue import PAGE, count_calls, list_papers, make_page
from bench.questions.registry import attacks, questions


def test_the_committed_page_is_the_one_that_the_registry_gives() -> None:
    assert PAGE.read_text() == make_page(), "run python -m bench.catalogue"


def test_every_attack_of_ours_has_a_row_a_section_and_a_paper_where_there_is_one() -> None:
    text = make_page()
    for entry in questions():
        if entry.make.__module__.startswith(("bench.attacks.", "bench.checks.")):
            assert f"| [`{entry.name}`](#{entry.name}) |" in text
            assert f"\n## {entry.name}\n" in text
            assert list_papers(entry) or entry.name == "none", entry.name
    assert "toy-exact" not in text


def test_calls_are_those_of_the_budget() -> None:
    assert count_calls(attacks.get("fgsm"), "quick") == "3"
    assert count_calls(attacks.get("square"), "standard") == "5,000 / 100,000"
    assert count_calls(attacks.get("pgd-eot"), "quick") == "480"
    assert count_calls(attacks.get("adaptive"), "quick") == "-"
