"""Short names show only what tells specs apart."""

from __future__ import annotations

from bench.questions.spec import Spec
from bench.results.names import short_names


def names_of(*texts: str, hide: tuple[str, ...] = ()) -> list[str]:
    return list(short_names((Spec.parse(text) for text in texts), hide=hide).values())


def test_names_show_the_knobs_that_differ() -> None:
    names = names_of("none", "pgd[eot=1,steps=40]", "pgd[eot=1,steps=80]", "spsa[steps=3]")
    assert names == ["none", "pgd[steps=40]", "pgd[steps=80]", "spsa"]


def test_names_drop_pins() -> None:
    names = names_of("transfer[source=own:a@1a2b3c4d]", "transfer[source=own:b@5e6f7a8b]")
    assert names == ["transfer[source=own:a]", "transfer[source=own:b]"]


def test_names_keep_the_pins_where_nothing_else_differs() -> None:
    specs = ("transfer[source=own:a@1a2b3c4d]", "transfer[source=own:a@5e6f7a8b]")
    assert names_of(*specs) == list(specs)


def test_names_leave_out_hidden_knobs_and_knobs_that_a_spec_lacks() -> None:
    names = names_of(
        "carso[classifier=own:a,samples=8]",
        "carso[classifier=own:b,samples=8]",
        "jpeg[quality=75]",
        "jpeg",
        hide=("classifier",),
    )
    assert names == ["carso", "carso", "jpeg[quality=75]", "jpeg"]
