"""CARSO as a defence of the bench.

Beside its commands, this is the only module of the method that knows the bench.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from bench import weights as files
from bench.errors import BadInput
from bench.questions.registry import build_classifier, defence
from bench.questions.spec import Value
from carso import released
from carso.aggregate import AGGREGATIONS
from carso.checkpoint import check_classifier, load_purifier
from carso.model import CARSO
from carso.released_purifier import load_released

CONDITIONS = ("layers", "logits", "none")


@dataclass(frozen=True, slots=True)
class Sampling:
    """How many reconstructions a prediction has, and how their logits become one answer."""

    samples: int
    aggregation: str


def build_defence(
    make: type[CARSO], kind: str, classifier: str, weights: str, sampling: Sampling
) -> CARSO:
    """The classifier and the purifier that the two texts name, wrapped by `make`.

    BadInput where they do not belong together.
    """
    files.pin(weights)
    base = build_classifier(classifier)
    try:
        purifier, card = load_purifier(files.locate(weights))
        if card["kind"] != kind:
            raise BadInput(f"it is a purifier of the kind '{card['kind']}', not '{kind}'")
        check_classifier(card, base)
        return make(base, purifier, sampling.samples, sampling.aggregation)
    except ValueError as error:
        raise BadInput(f"{kind}[classifier={classifier},weights={weights}]: {error}") from None


def build_released(classifier: str, pin: str, sampling: Sampling) -> CARSO:
    """The authors' purifier around their classifier.

    BadInput where a file is missing, damaged, or not the one that the `pin` names.
    """
    name = scenario_of(classifier)
    base = build_classifier(classifier)
    try:
        model = load_released(
            name, base, samples=sampling.samples, aggregation=sampling.aggregation
        )
    except ValueError as error:
        raise BadInput(f"carso[classifier={classifier},weights=released]: {error}") from None
    actual = digest_released(name)
    if pin and pin != actual:
        raise BadInput(f"the released weights of '{name}' have the digest {actual}, not {pin}")
    return model


def scenario_of(classifier: str) -> str:
    """The released purifier that was made around the classifier of this name, pinned or not.

    BadInput names the classifiers that have one.
    """
    bare = classifier.partition("@")[0]
    scenarios = {
        f"robustbench:{scenario.robustbench}": name
        for name, scenario in released.SCENARIOS.items()
        if scenario.robustbench
    }
    scenarios |= {f"released:{name}": name for name in released.with_purifier()}
    if bare not in scenarios:
        raise BadInput(
            "carso[weights=released]: the authors released no purifier for the classifier "
            f"'{bare}'; they did for {', '.join(scenarios)}"
        )
    return scenarios[bare]


def asks_for_released(knobs: Mapping[str, Value]) -> bool:
    return str(knobs["weights"]).partition("@")[0] == "released"


def fetch_released(knobs: Mapping[str, Value]) -> None:
    """Fetch the released files that these knobs ask for, if they are missing.

    BadInput says what to put where if a file cannot be fetched.
    """
    if asks_for_released(knobs):
        released.fetch_purifier(scenario_of(str(knobs["classifier"])))


def digest_released(name: str) -> str | None:
    """8 hex digits of the released files, from their SHA-256 in the order of `PARTS`.

    None where a file is missing.
    """
    paths = [released.folder() / file for file in released.purifier_files(name).values()]
    if not all(path.is_file() for path in paths):
        return None
    digests = "".join(files.digest(path) for path in paths)
    return hashlib.sha256(digests.encode()).hexdigest()[:8]


def pin_released(knobs: Mapping[str, Value]) -> dict[str, str]:
    """The knob `weights` with the digest of the released files, where it names files here."""
    if not asks_for_released(knobs):
        return {}
    digest = digest_released(scenario_of(str(knobs["classifier"])))
    return {"weights": f"released@{digest}"} if digest else {}


def default_purifier(knobs: Mapping[str, Value]) -> dict[str, str]:
    """The purifier that the other knobs ask for, where none is named.

    It is around another classifier of the dataset, or reads another condition.
    """
    if knobs["weights"] != "@carso":
        return {}
    suffix = classifier_suffix(knobs)
    if knobs["condition"] == "none":
        return {"weights": f"@vae{suffix}"}
    if knobs["condition"] == "logits":
        return {"weights": f"@carso{suffix}-logits"}
    return {"weights": f"@carso{suffix}"}


def classifier_suffix(knobs: Mapping[str, Value]) -> str:
    """What the name of a purifier says of its classifier: `-standard` of `@standard`.

    Nothing for the dataset's robust classifier.
    """
    role = str(knobs["classifier"])
    return f"-{role[1:]}" if role.startswith("@") and role != "@robust" else ""


@defence(
    "carso",
    stochastic=lambda knobs: int(knobs["samples"]) > 0,
    fetch=fetch_released,
    pin=pin_released,
    no_inner="it reads the layers of a classifier",
    dependent_defaults=default_purifier,
    added_later={"condition"},
    choices={"condition": CONDITIONS, "aggregation": AGGREGATIONS},
)
def carso(
    *,
    classifier: str = "@robust",
    weights: str = "@carso",
    samples: int = 8,
    aggregation: str = "peel",
    condition: str = "layers",
) -> nn.Module:
    """Reconstruct the image from the classifier's representation; classify each reconstruction.

    `weights`, the purifier, is own:NAME or file:PATH, trained around this very `classifier`, or
    released, the authors' for theirs. 0 samples: one reconstruction from z=0, deterministic.
    `aggregation` is peel, logit, prob, count, vote, lse or peel-naive. `condition` is what the
    purifier reads: layers of the classifier, its logits alone, or none. With none the purifier is
    unconditional, and its samples do not depend on the image: a control, which guesses.
    arXiv 2306.06081.
    """
    sampling = Sampling(samples, aggregation)
    scheme, _, pin = weights.partition("@")
    if scheme == "released":
        if condition != "layers":
            raise BadInput(
                f"carso[condition={condition},weights=released]: the authors' purifiers read layers"
            )
        return build_released(classifier, pin, sampling)
    kind = "vae" if condition == "none" else "carso"
    model = build_defence(CARSO, kind, classifier, weights, sampling)
    if condition == "logits":
        check_reads_logits(model, weights)
    return model


def check_reads_logits(model: CARSO, weights: str) -> None:
    """BadInput where the purifier reads another layer than the classifier's last full one."""
    last = find_last_layer(model.base)
    layers = model.purifier.layers
    if layers != (last,):
        raise BadInput(
            f"carso[condition=logits,weights={weights}]: "
            f"that purifier reads {', '.join(layers)}, not '{last}'"
        )


def find_last_layer(classifier: nn.Module) -> str:
    """The name of the classifier's last full layer, whose outputs are its logits."""
    modules = classifier.named_modules()
    names: list[str] = [name for name, module in modules if isinstance(module, nn.Linear)]
    return names[-1]
