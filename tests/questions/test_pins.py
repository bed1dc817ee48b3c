"""Weights that a question names by their digest, whoever keeps them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn

from bench.errors import BadInput
from bench.judging.environment import environment
from bench.questions import registry
from bench.questions.plan import Plan, fetch_missing, plan
from bench.questions.request import Request
from bench.questions.spec import Cell, Value

fetched: list[str] = []
DIGESTS = {"net": "1a2b3c4d" + 56 * "0"}  # of the files that are there


class Plain(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)[:, :10]


@registry.classifier(
    "pinned", names=lambda: ["net", "gone"], fetch=fetched.append, digest=DIGESTS.get
)
def pinned(argument: str) -> nn.Module:
    """A classifier whose files have a digest."""
    return Plain()


def pin(knobs: Mapping[str, Value]) -> dict[str, str]:
    return {"weights": "special@99999999"} if knobs["weights"] == "special" else {}


def fetch(knobs: Mapping[str, Any]) -> None:
    fetched.append(f"own files of {knobs['weights']}")


@registry.defence("toy-pinned", fetch=fetch, pin=pin)
def toy_pinned(*, classifier: str = "pinned:net", weights: str = "special") -> nn.Module:
    """A defence with files of its own."""
    return Plain()


def cell(text: str) -> Cell:
    (cell,) = plan([Request(defences=(text,), attacks=("none",))]).cells
    return cell


def test_the_digest_becomes_part_of_the_question_and_of_the_record() -> None:
    asked = cell("toy-pinned")
    assert asked.defence.params == {
        "classifier": "pinned:net@1a2b3c4d",
        "weights": "special@99999999",
    }
    env = environment(asked, "cpu", "", "")
    assert env.weights == (("pinned:net", DIGESTS["net"]), ("special", "99999999"))


def test_a_right_pin_is_the_same_question_and_a_wrong_one_is_refused() -> None:
    assert cell("toy-pinned[classifier=pinned:net@1a2b3c4d]").key == cell("toy-pinned").key
    with pytest.raises(
        BadInput, match=r"weights 'pinned:net' have the digest 1a2b3c4d, not 00000000"
    ):
        cell("toy-pinned[classifier=pinned:net@00000000]")
    with pytest.raises(BadInput, match=r"'pinned:nett' is unknown; did you mean 'net'"):
        cell("toy-pinned[classifier=pinned:nett]")


def test_what_is_not_there_yet_has_no_pin_and_is_fetched() -> None:
    fetched.clear()
    asked = cell("jpeg[inner=toy-pinned[classifier=pinned:gone]]")
    assert "pinned:gone," in str(asked.defence)
    fetch_missing(Plan("x", (asked,)))
    assert sorted(fetched) == ["gone", "own files of special@99999999"]


def test_a_word_that_is_also_the_name_of_a_scheme_is_no_classifier() -> None:
    fetched.clear()
    fetch_missing(Plan("x", (cell("toy-pinned[weights=pinned]"),)))
    assert fetched == ["net", "own files of pinned"]


def test_the_weights_of_an_inner_defence_and_of_every_member_are_in_the_record() -> None:
    env = environment(
        cell("jpeg[inner=ensemble[classifiers=@robust+own:digits-other]]"), "cpu", "", ""
    )
    assert [name for name, _ in env.weights] == ["own:digits-at", "own:digits-other"]
    assert all(len(digest) == 64 for _, digest in env.weights)
