"""Defences before defences: what a plan makes of the knob `inner`, and what is built from it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bench.data.sample import load
from bench.errors import BadInput
from bench.judging.randomness import random_stream
from bench.judging.target import predict_draws
from bench.questions.discover import discover
from bench.questions.pins import classifier_of
from bench.questions.plan import fetch_missing, plan
from bench.questions.registry import (
    build_classifier,
    build_defence,
    classifiers,
    inner_defence,
    is_stochastic,
)
from bench.questions.request import Request
from bench.questions.spec import Spec
from bench.results.names import short_names

discover()


def defence(text: str) -> Spec:
    (cell,) = plan([Request(defences=(text,), attacks=("none",))]).cells
    return cell.defence


def test_the_plan_fills_in_and_pins_the_inner_defence() -> None:
    spec = defence("jpeg[quality=50,inner=bit-depth[bits=2]]")
    inner = inner_defence(spec)
    assert inner is not None
    assert inner.params["bits"] == 2
    assert str(inner.params["classifier"]).startswith("own:digits-standard@")
    assert spec.params["classifier"] == inner.params["classifier"]
    assert defence("jpeg[inner=bit-depth[bits=2,inner=],quality=50]") == spec


def test_the_outer_defence_comes_before_the_inner_one() -> None:
    x = load(Spec.of("digits", {"n": 20})).x * 0.93
    built = build_defence(
        defence("jpeg[quality=20,inner=bit-depth[bits=2,classifier=own:digits-at]]")
    )
    jpeg = build_defence(defence("jpeg[quality=20]"))
    depth = build_defence(defence("bit-depth[bits=2]"))
    classifier = build_classifier("own:digits-at")
    expected = classifier(depth.purify(jpeg.purify(x)))
    assert torch.allclose(built(x), expected)
    assert not torch.allclose(built(x), classifier(jpeg.purify(depth.purify(x))))


def test_a_stochastic_inner_defence_makes_the_outer_one_stochastic() -> None:
    spec = defence("bit-depth[inner=carso[samples=2]]")
    assert is_stochastic(spec)
    assert not is_stochastic(defence("bit-depth[inner=carso[samples=0]]"))
    x = load(Spec.of("digits", {"n": 3})).x
    built = build_defence(spec)
    inner = build_defence(defence("carso[samples=2]"))
    with random_stream(torch.device("cpu"), 0):
        logits = predict_draws(built, x, 4)  # (B,4,K)
    with random_stream(torch.device("cpu"), 0):
        assert torch.equal(logits, predict_draws(inner, built.purify(x), 4))
    assert len(logits.unique(dim=1)[0]) == 4
    assert {"identity", "soft", "identity+lse", "soft+lse"} <= built.surrogates.keys()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("jpeg[inner=jpg]", "defence 'jpeg': defence 'jpg' is unknown; did you mean 'jpeg'?"),
        ("jpeg[inner=bit-depth[bit=3]]", "defence 'jpeg': defence 'bit-depth' takes no 'bit'"),
        (
            "jpeg[inner=at,classifier=own:digits-at]",
            "exclude each other: give inner=at a classifier of its own",
        ),
        ("carso[inner=jpeg]", "defence 'carso' stands before no other defence: "),
        ("jpeg[inner=at[classifier=own:digits-att]]", "did you mean 'digits-at'?"),
    ],
)
def test_what_cannot_be_composed_is_refused(text: str, message: str) -> None:
    with pytest.raises(BadInput) as error:
        defence(text)
    assert message in str(error.value)


def test_short_names_show_the_knobs_of_the_inner_defence_that_differ() -> None:
    names = [
        "jpeg",
        "jpeg[inner=at]",
        "jpeg[inner=carso[samples=8]]",
        "jpeg[inner=carso[samples=2]]",
    ]
    texts = ["jpeg", "jpeg[inner=at]", "jpeg[inner=carso]", "jpeg[inner=carso[samples=2]]"]
    specs = [defence(text) for text in texts]
    assert list(short_names(specs, hide=("classifier",)).values()) == names


def test_classifiers_joined_by_plus_are_each_resolved() -> None:
    spec = defence("undefended[classifier=@robust+own:digits-other]")
    first, second = str(spec.params["classifier"]).split("+")
    assert first.startswith("own:digits-at@")
    assert second.startswith("own:digits-other@")


def test_the_weights_of_an_inner_defence_are_fetched_first(monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[str] = []
    entry = classifiers.get("autoattack")
    watched = replace(entry, facts=replace(entry.facts, fetch=fetched.append))
    monkeypatch.setitem(classifiers._entries, "autoattack", watched)
    text = "jpeg[inner=at[classifier=autoattack:resnet18]]"
    fetch_missing(plan([Request(defences=(text,), attacks=("none",))]))
    assert fetched == ["resnet18"]


def test_a_row_names_the_classifier_or_all_of_them() -> None:
    assert classifier_of(defence("ensemble")) == "own:digits-at+own:digits-other"
    assert classifier_of(defence("jpeg[inner=ensemble]")) == "own:digits-at+own:digits-other"
    assert classifier_of(defence("jpeg[inner=at]")) == "own:digits-at"
