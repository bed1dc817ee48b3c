"""What the lists of registered names show."""

from __future__ import annotations

import pytest

from tests.cli.commands import run


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("defences", ("carso", "samples=8")),
        ("attacks", ("pgd", "steps")),
        ("datasets", ("digits",)),
        ("classifiers", ("own:digits-at",)),
    ],
)
def test_lists_show_names_and_knobs(
    what: str, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["--list", what]) == 0
    text = capsys.readouterr().out
    assert all(word in text for word in words)


def test_the_list_of_classifiers_shows_published_figures(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["--list", "classifiers"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line]
    rows = {name: " ".join(rest) for name, *rest in lines}
    assert sum(name.startswith("robustbench:") for name in rows) == 164 + 1  # and the scheme
    published = {
        "Wang2023Better_WRN-28-10": "WRN-28-10 36.48 92.44 67.31 8/255 ICML 2023",
        "Zhang2019Theoretically": "WRN-34-10 48.26 84.92 53.08 0.031 ICML 2019",
        "cifar10/L2/Rice2020Overfitting": "PreActRN-18 11.17 88.67 67.68 0.5 ICML 2020",
        "cifar100/Linf/Cui2023Decoupled_WRN-28-10": (
            "WRN-28-10 36.54 73.85 39.18 8/255 NeurIPS 2024"
        ),
        "cifar100/corruptions/Hendrycks2020AugMix_WRN": "WRN-40-2 2.26 ICLR 2020",
    }
    assert {name: rows[f"robustbench:{name}"] for name in published} == published
    assert rows["own:digits-at"] == "cnn 0.05"
    assert {"autoattack:resnet18", "file:..."} <= rows.keys()


def test_no_line_of_the_list_of_classifiers_is_too_wide(
    capsys: pytest.CaptureFixture[str],
) -> None:
    run(["--list", "classifiers"])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 150
