"""CARSO as a defence of the bench. The only module of the method, beside its training command, that knows the bench."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from torch import nn

from bench import weights as files
from bench.errors import BadInput
from bench.questions.registry import build_classifier, defence
from bench.questions.spec import Value
from bench.weights import locate, pin
from carso import released
from carso.aggregate import AGGREGATIONS
from carso.checkpoint import check, load, load_released
from carso.model import CARSO

CONDITIONS = ("layers", "logits", "none")


def build(
    make: type[CARSO], kind: str, classifier: str, weights: str, samples: int, aggregation: str
) -> CARSO:
    """The classifier and the purifier that the two texts name, wrapped; BadInput where they do not belong together."""
    pin(weights)
    base = build_classifier(classifier)
    try:
        loaded, card = load(locate(weights))
        if card["kind"] != kind:
            raise ValueError(f"it is a purifier of the kind '{card['kind']}', not '{kind}'")
        check(card, base)
        return make(base, loaded, samples, aggregation)
    except ValueError as error:
        raise BadInput(f"{kind}[classifier={classifier},weights={weights}]: {error}") from None


def scenario_of(classifier: str) -> str:
    """The released purifier that was made around the classifier of this name, pinned or not; BadInput names the classifiers that have one."""
    bare = classifier.partition("@")[0]
    known = {
        f"robustbench:{one.robustbench}": name
        for name, one in released.SCENARIOS.items()
        if one.robustbench
    }
    known |= {f"released:{name}": name for name in released.with_purifier()}
    if bare not in known:
        raise BadInput(
            f"carso[weights=released]: the authors released no purifier for the classifier '{bare}'; they did for {', '.join(known)}"
        )
    return known[bare]


def ensure(knobs: Mapping[str, Value]) -> None:
    """Fetch the released files that these knobs ask for, if they are missing; BadInput with one line that says what to put where if that fails."""
    if str(knobs["weights"]).partition("@")[0] == "released":
        try:
            released.ensure(scenario_of(str(knobs["classifier"])))
        except BadInput:
            raise
        except ValueError as error:
            raise BadInput(str(error)) from None


def digest(knobs: Mapping[str, Value]) -> str | None:
    """8 hex digits of the released files that these knobs ask for, of their SHA-256 in the order of `PARTS`; None for others, or a missing file."""
    if str(knobs["weights"]).partition("@")[0] != "released":
        return None
    paths = [
        released.folder() / file
        for file in released.files(scenario_of(str(knobs["classifier"]))).values()
    ]
    if not all(path.is_file() for path in paths):
        return None
    return hashlib.sha256("".join(files.digest(path) for path in paths).encode()).hexdigest()[:8]


def pins(knobs: Mapping[str, Value]) -> dict[str, str]:
    """The knob `weights` with the digest of the released files, where it names those and they are here."""
    found = digest(knobs)
    return {"weights": f"released@{found}"} if found else {}


def build_released(classifier: str, pinned: str, samples: int, aggregation: str) -> CARSO:
    """The authors' purifier around their classifier; BadInput where a file is missing, damaged, or, where `pinned` says which, another one."""
    name = scenario_of(classifier)
    try:
        made = load_released(
            name, build_classifier(classifier), samples=samples, aggregation=aggregation
        )
    except BadInput:
        raise
    except ValueError as error:
        raise BadInput(f"carso[classifier={classifier},weights=released]: {error}") from None
    if pinned and pinned != (found := digest({"classifier": classifier, "weights": "released"})):
        raise BadInput(f"the released weights of '{name}' have the digest {found}, not {pinned}")
    return made


def follows(knobs: Mapping[str, Value]) -> dict[str, str]:
    """The purifier that the other knobs ask for, where none is named: around another classifier of the dataset, or on another condition."""
    if knobs["weights"] != "@carso":
        return {}
    if knobs["condition"] == "none":
        return {"weights": f"@vae{around(knobs)}"}
    return {
        "weights": f"@carso{around(knobs)}{'-logits' if knobs['condition'] == 'logits' else ''}"
    }


def around(knobs: Mapping[str, Value]) -> str:
    """What the name of a purifier says of its classifier, where that is not the dataset's robust one: `-standard` of `@standard`."""
    role = str(knobs["classifier"])
    return f"-{role[1:]}" if role.startswith("@") and role != "@robust" else ""


@defence(
    "carso",
    stochastic=lambda knobs: int(knobs["samples"]) > 0,
    fetch=ensure,
    pin=pins,
    no_inner="it reads the layers of a classifier",
    dependent_defaults=follows,
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
    """Reconstruct the image from the classifier's representation of it, `samples` times, and classify the reconstructions.

    `weights`, the purifier, is own:NAME or file:PATH, trained around this very `classifier`, or released, the authors' for theirs; 0 samples: one
    reconstruction from z=0, deterministic; `aggregation`: peel, logit, prob, count, vote, lse, peel-naive. `condition` is what the purifier
    reads: layers of the classifier, its logits alone, or none (an unconditional purifier, whose samples do not depend on the image: a control, which
    guesses). arXiv 2306.06081.
    """
    scheme, _, pinned = weights.partition("@")
    if scheme == "released":
        if condition != "layers":
            raise BadInput(
                f"carso[condition={condition},weights=released]: the authors' purifiers read layers"
            )
        return build_released(classifier, pinned, samples, aggregation)
    made = build(
        CARSO, "vae" if condition == "none" else "carso", classifier, weights, samples, aggregation
    )
    if condition == "logits" and made.purifier.layers != (last := last_layer(made.base),):
        raise BadInput(
            f"carso[condition=logits,weights={weights}]: that purifier reads {', '.join(made.purifier.layers)}, not '{last}'"
        )
    return made


def last_layer(classifier: nn.Module) -> str:
    """The name of the classifier's last full layer, whose outputs are its logits."""
    names: list[str] = [
        name for name, module in classifier.named_modules() if isinstance(module, nn.Linear)
    ]
    return names[-1]
