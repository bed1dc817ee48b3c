"""What is known of a registered name without running it: facts, traits and knobs.

*Facts* say how a plug-in is planned. *Traits*, a part of the facts, say what an attack or a defence
is. The record keeps them: a reader of records needs no registry and judges nothing by name.
Standard library only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.errors import BadInput, did_you_mean
from bench.questions.plugin_calls import call_hook, read_text
from bench.questions.spec import ACCESS, NORMS, Value

if TYPE_CHECKING:
    from bench.questions.registry import Entry

FAMILIES = ("none", "noise", "gradient", "score", "decision", "transfer", "check")
FINITE = "a finite number of at least"

Knobs = Mapping[str, Any]
# Files that a plug-in reads: a path, several, or a function of the knobs that gives them.
Files = str | Path | Collection[str | Path]


@dataclass(frozen=True, slots=True)
class Knob:
    """One keyword-only argument of a plug-in, and the values that it takes.

    `choices` are the words that it takes, alone or joined by `+`; empty where any text will do.
    A whole number must be `minimum` at least; a float must be finite too. None sets no limit.
    `parse` gives a text in its one form, or raises BadInput.
    """

    name: str
    type: type
    default: Value
    choices: tuple[str, ...] = ()
    minimum: int | None = None
    parse: Callable[[str], str] | None = None

    def read(self, value: Value) -> Value:
        """`value`, often text of a command line or a file, as the type of the knob; or BadInput."""
        value = self._typed(value)
        if self.parse:
            label = f"parse of the knob '{self.name}'"
            value = read_text(label, call_hook(label, self.parse, str(value)))
        self._refuse_too_small(value)
        for word in str(value).split("+") if self.choices else ():
            if word not in self.choices:
                hint = did_you_mean(word, self.choices)
                raise BadInput(f"{self.name}='{word}' is unknown{hint}")
        return value

    def _typed(self, value: Value) -> Value:
        if self.type is str:
            return str(value)
        if type(value) is self.type:
            return value
        text = str(value).strip()
        try:
            if self.type is bool:
                return {"true": True, "false": False}[text.lower()]
            number: Value = self.type(text)
            return number
        except (KeyError, ValueError):
            kinds = {bool: "true or false", int: "a whole number", float: "a number"}
            raise BadInput(
                f"{self.name}='{value}' is not {kinds[self.type]}; the default is {self.default}"
            ) from None

    def _refuse_too_small(self, value: Value) -> None:
        if self.minimum is None or isinstance(value, str | bool):
            return
        if isinstance(value, int) and value < self.minimum:
            raise BadInput(f"{self.name}={value} is too small; the least is {self.minimum}")
        if isinstance(value, float) and not (self.minimum <= value and math.isfinite(value)):
            raise BadInput(
                f"{self.name}={value} is not {FINITE} {self.minimum}; the default is {self.default}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class AttackTraits:
    """What an attack is; kept in the record, and read by the audits.

    - `family`: what the attack works from, one of `FAMILIES`.
    - `iterated`: it takes many gradient steps. `single_step`: it takes one.
    - `averages_draws`: each step is made of `eot` draws of the defence.
    - `stochastic_only`: on a deterministic defence it is another attack under a second name.
    - `returns_clean`: where it fails, it returns the clean image.
    - `rescales`: its knob `scale` multiplies the logits.
    - `rounds`: it gives the images of its inner attack as they are stored in 8 bits.
    - `minimum_norm`: it looks for the nearest misclassified point, in the ball or not.
    - `random_search`: it tries changes at random and estimates no gradient, as Square does.
    - `ensemble`: it is several attacks in one, a Square attack among them.
    - `traced`: the check `indicators` can follow its steps.
    """

    family: str
    iterated: bool = False
    single_step: bool = False
    averages_draws: bool = False
    stochastic_only: bool = False
    returns_clean: bool = False
    rescales: bool = False
    rounds: bool = False
    minimum_norm: bool = False
    random_search: bool = False
    ensemble: bool = False
    traced: bool = False

    def to_json(self) -> dict[str, Any]:
        """The family, and every trait that holds."""
        values = {field.name: getattr(self, field.name) for field in fields(AttackTraits)}
        return {name: value for name, value in values.items() if value}


@dataclass(frozen=True, kw_only=True, slots=True)
class DefenceTraits:
    """What a defence is; kept in the record, and read by the audits.

    `undefended`: nothing stands before the classifier. `bare`: it has no parts that an adaptive
    attack could aim at.
    """

    undefended: bool = False
    bare: bool = False

    def to_json(self) -> dict[str, Any]:
        """Every trait that holds."""
        values = {field.name: getattr(self, field.name) for field in fields(DefenceTraits)}
        return {name: value for name, value in values.items() if value}


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """How many images the test split has, their shape (C,H,W), and what looks wrong with them."""

    size: int
    shape: tuple[int, int, int]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetFacts:
    """`norm` and `eps` (text, by norm) are the default threat models, `n` the default number of
    examples, `budget` the default budget. `roles` say what a knob such as
    `classifier="@robust"` stands for. `images` say what is known without loading them."""

    norm: str
    eps: Mapping[str, str]
    n: int
    roles: Mapping[str, str]
    budget: str = "standard"
    images: ImageFacts | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassifierFacts:
    """`names()` lists the arguments of the scheme, where it knows them.

    `fetch(argument)` is called before a sweep starts. It fetches what is missing, and raises
    BadInput with one line where that cannot be had. `digest(argument)` is a digest in hex of the
    files, or None where they are not there. Its first eight digits become part of the question:
    `scheme:argument@1a2b3c4d`, which the loader must take too. `files` are files that it reads, or
    a function of the argument that gives them: where one changes, answers are stale.
    """

    names: Callable[[], list[str]] | None = None
    fetch: Callable[[str], None] | None = None
    digest: Callable[[str], str | None] | None = None
    files: Files | Callable[[str], Files] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class DefenceFacts(DefenceTraits):
    """`stochastic` may depend on the knobs, and need not speak of an inner defence.

    - `opt_in`: it takes long, and takes part only where it is named.
    - `broken`: it is broken on purpose, and takes part only where it is named.
    - `no_inner` says why a defence has no knob `inner`.
    - `fetch(knobs)` and `pin(knobs)` are for files that no classifier names. The first fetches
      them, the second gives the knobs with a digest added.
    - `dependent_defaults(knobs)` gives the knobs whose default depends on another knob.
    - `added_later`: knobs that are no part of the question at their default, so that what was
      answered before they came still stands.
    - `files`: files that it reads, or a function of the knobs that gives them. Where one changes,
      answers are stale.
    """

    stochastic: bool | Callable[[Knobs], bool] = False
    opt_in: bool = False
    broken: bool = False
    no_inner: str = "it wraps a classifier"
    fetch: Callable[[Knobs], None] | None = None
    pin: Callable[[Knobs], Mapping[str, str]] | None = None
    dependent_defaults: Callable[[Knobs], Mapping[str, str]] | None = None
    added_later: Collection[str] = ()
    files: Files | Callable[[Knobs], Files] = ()

    @property
    def traits(self) -> DefenceTraits:
        return DefenceTraits(**self.to_json())


@dataclass(frozen=True, kw_only=True, slots=True)
class QuestionFacts(AttackTraits):
    """What attacks and checks have in common: both stand where a cell has its attack.

    - `norms` and `access`: the threat models that it knows.
    - `calls(knobs, stochastic)`: the most that it asks of the target per example, in forward
      passes, a backward counting as two. `--dry-run` multiplies it.
    - `accepts(inner, knobs)` says why it cannot have the inner attack `inner` with these knobs, or
      nothing where it can.
    - `least_classes`: how many classes the model under attack must have.
    - `added_later` and `files` as of a defence.
    """

    norms: frozenset[str]
    access: str
    calls: Callable[[Knobs, bool], float] | None = None
    accepts: Callable[[Entry[QuestionFacts], Knobs], str] = lambda inner, knobs: ""
    least_classes: int = 2
    added_later: Collection[str] = ()
    files: Files | Callable[[Knobs], Files] = ()

    def __post_init__(self) -> None:
        if not self.norms <= set(NORMS) or self.access not in ACCESS:
            given = f"norms {set(self.norms)} and access '{self.access}'"
            raise TypeError(f"{given} must be among {NORMS} and {ACCESS}")
        if self.family not in self.families():
            hint = did_you_mean(self.family, self.families())
            raise TypeError(f"family '{self.family}' is unknown{hint}")

    @staticmethod
    def families() -> tuple[str, ...]:
        return FAMILIES

    @property
    def traits(self) -> AttackTraits:
        return AttackTraits(**self.to_json())


@dataclass(frozen=True, kw_only=True, slots=True)
class AttackFacts(QuestionFacts):
    """The facts of an attack on the defence as it is.

    `parallel_runs`: its runs ask the model side by side, so that its trace has them interleaved.
    """

    parallel_runs: bool = False

    @staticmethod
    def families() -> tuple[str, ...]:
        """A check is registered by its own decorator."""
        return tuple(family for family in FAMILIES if family != "check")


@dataclass(frozen=True, slots=True)
class Code:
    """The code of a flag: the question that it asks, when it is hard or soft, and who looks."""

    id: str
    question: str
    hard: str = ""
    soft: str = ""
    looks: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckFacts(QuestionFacts):
    """The facts of a check: it attacks something else than the defence, or measures.

    - `together`: its figures are of all of its examples together.
    - `audit(record)` gives the flags that the whole answer raises. They are kept in the record.
    - `audit_row(evidence)` gives findings on a row whenever the row is read, from a
      `CheckEvidence` (`bench.checks.evidence`): for a check that compares the row's records.
    - `codes`: of the flags that the audits raise.
    """

    family: str = "check"
    together: bool = False
    audit: Callable[[Any], Collection[Any]] | None = None
    audit_row: Callable[[Any], Sequence[Any]] | None = None
    codes: tuple[Code, ...] = ()

    @staticmethod
    def families() -> tuple[str, ...]:
        return ("check",)
