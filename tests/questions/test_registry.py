"""The registry: a mistyped name or knob is refused, with the nearest right one."""

from pathlib import Path

import pytest

from bench.errors import BadInput
from bench.questions.discover import discover, load_file
from bench.questions.facts import AttackFacts
from bench.questions.registry import Registry, attacks, defences
from bench.questions.spec import Spec


def make(*, steps: int = 40, size: float = 0.1, loss: str = "ce", early: bool = False) -> None:
    """Do nothing.

    More.
    """


FACTS = AttackFacts(norms=frozenset({"linf"}), access="white-box", family="gradient")


def registry() -> Registry[AttackFacts]:
    attacks: Registry[AttackFacts] = Registry("attack")
    attacks.add("pgd", make, FACTS)
    return attacks


def test_defaults_are_filled_in_and_text_is_read_as_the_type_of_the_default() -> None:
    assert registry().resolve(Spec.parse("pgd[steps=7,early=true]")).params == {
        "steps": 7,
        "size": 0.1,
        "loss": "ce",
        "early": True,
    }
    assert registry().resolve(Spec("pgd")) == registry().resolve(
        Spec.parse("pgd[steps=40,size=0.1]")
    )
    assert registry().get("pgd").summary == "Do nothing."


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pdg", "attack 'pdg' is unknown; did you mean 'pgd'?"),
        (
            "pgd[step=7]",
            "attack 'pgd' takes no 'step'; it takes steps, size, loss, early; "
            "did you mean 'steps'?",
        ),
        ("pgd[steps=many]", "attack 'pgd': steps='many' is not a whole number; the default is 40"),
        ("pgd[steps=1.5]", "attack 'pgd': steps='1.5' is not a whole number; the default is 40"),
        ("pgd[early=yes]", "attack 'pgd': early='yes' is not true or false; the default is False"),
        ("pgd[size=big]", "attack 'pgd': size='big' is not a number; the default is 0.1"),
    ],
)
def test_bad_specs_say_what_is_right(text: str, message: str) -> None:
    with pytest.raises(BadInput) as caught:
        registry().resolve(Spec.parse(text))
    assert str(caught.value) == message


def test_two_plugins_cannot_share_a_name() -> None:
    attacks = registry()
    # The same function again, as when a module is imported twice, is no clash.
    attacks.add("pgd", make, FACTS)
    with pytest.raises(BadInput, match="registered twice"):
        attacks.add("pgd", test_two_plugins_cannot_share_a_name, FACTS)


def test_a_knob_without_a_plain_default_is_a_programming_error() -> None:
    def odd(*, knob: list[int]) -> None: ...

    with pytest.raises(TypeError, match="knob"):
        registry().add("odd", odd, FACTS)


def test_discovery_finds_ours_and_a_file_of_yours(tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(
        """from bench import defence


@defence("found-in-a-file")
def make(*, k: int = 1):
    '''Mine.'''
"""
    )
    discover((mine,))
    names = {"undefended", "at", "carso", "vae", "jpeg", "bit-depth", "found-in-a-file"}
    assert names <= {entry.name for entry in defences}
    names = {
        "none",
        "fgsm",
        "pgd",
        "pgd-eot",
        "autoattack",
        "square",
        "spsa",
        "onepixel",
        "boundary",
        "hopskipjump",
        "transfer",
    }
    assert names <= {entry.name for entry in attacks}
    del defences._entries["found-in-a-file"]


@pytest.mark.parametrize("text", [None, "import nothing_of_that_name", "1 +"])
def test_a_plugin_file_that_cannot_be_read_is_bad_input(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "broken.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(BadInput, match="broken"):
        load_file(path)
