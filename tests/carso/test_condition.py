"""What CARSO's purifier reads, as a knob: layers of the classifier, its logits, or nothing."""

from __future__ import annotations

import pytest
import torch

from bench.data.sample import load
from bench.errors import BadInput
from bench.questions.plan import plan
from bench.questions.registry import build_defence, defences
from bench.questions.request import Request
from bench.questions.spec import Spec
from carso.defence import default_purifier, find_last_layer
from carso.model import CARSO


def spec_of(text: str) -> Spec:
    (cell,) = plan([Request(defences=(text,), attacks=("none",))]).cells
    return cell.defence


def build_carso(text: str) -> CARSO:
    defence = build_defence(spec_of(text))
    assert isinstance(defence, CARSO)
    return defence


def test_the_default_condition_is_no_part_of_the_question_and_another_one_is() -> None:
    assert spec_of("carso") == spec_of("carso[condition=layers]")
    assert "condition" not in spec_of("carso").params
    assert spec_of("carso[condition=none]").params["condition"] == "none"


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("carso", "own:digits-carso@"),
        ("carso[classifier=@standard]", "own:digits-carso-standard@"),
        ("carso[condition=logits]", "own:digits-carso-logits@"),
        ("carso[condition=none]", "own:digits-vae@"),
        ("carso[condition=none,weights=own:digits-vae]", "own:digits-vae@"),
    ],
)
def test_the_purifier_follows_from_classifier_and_condition(text: str, weights: str) -> None:
    assert str(spec_of(text).params["weights"]).startswith(weights)


def test_around_another_classifier_of_the_dataset_the_purifier_has_its_name() -> None:
    assert default_purifier(
        {"weights": "@carso", "condition": "layers", "classifier": "@wide"}
    ) == {"weights": "@carso-wide"}
    assert default_purifier({"weights": "@carso", "condition": "none", "classifier": "@wide"}) == {
        "weights": "@vae-wide"
    }
    assert default_purifier(
        {"weights": "@carso", "condition": "layers", "classifier": "own:x"}
    ) == {"weights": "@carso"}
    assert (
        default_purifier({"weights": "own:x", "condition": "layers", "classifier": "@wide"}) == {}
    )


def test_without_a_condition_the_image_does_not_matter() -> None:
    x = load(Spec.parse("digits[n=50]")).x
    control = build_carso("carso[condition=none]")
    z = torch.randn(1, 4, control.latent_dim).expand(len(x), -1, -1)
    logits = control.sample_logits(x.requires_grad_(), z)
    assert torch.allclose(logits, logits[:1].expand_as(logits), atol=1e-5)
    assert not logits.requires_grad


def test_without_a_condition_the_samples_show_all_classes() -> None:
    """The prior's samples are digits of many kinds, so the answers are guesses.

    The frequencies of the answers are not those of one class.
    """
    torch.manual_seed(0)
    control = build_carso("carso[condition=none,samples=1]")
    answers = control.draws(torch.rand(100, 1, 8, 8), 5).argmax(2).flatten()
    assert answers.bincount(minlength=10).max() < 0.4 * len(answers)


def test_the_logits_alone_are_what_the_purifier_reads() -> None:
    x = load(Spec.parse("digits[n=20]")).x
    defence = build_carso("carso[condition=logits]")
    logits = defence.base(x)
    assert defence.purifier.layers == ("logits",)
    assert torch.allclose(defence.latent(x), defence.purifier.condition((logits,)), atol=1e-6)
    moved = x.roll(1, 0)
    same = defence.purifier.condition((defence.base(moved),))
    assert torch.allclose(defence.latent(moved), same, atol=1e-6)


@pytest.mark.parametrize("text", ["carso[condition=logits]", "carso[classifier=@standard]"])
def test_the_committed_purifiers_classify(text: str) -> None:
    data = load(Spec.parse("digits[n=300]"))
    torch.manual_seed(0)
    assert (build_carso(text)(data.x).argmax(1) == data.y).float().mean() > 0.94


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("carso[condition=logit]", "did you mean 'logits'"),
        ("carso[aggregation=peal]", "did you mean 'peel'"),
        ("carso[condition=logits,weights=own:digits-carso]", "reads conv3, fc, not 'logits'"),
        ("carso[condition=none,weights=own:digits-carso]", "of the kind 'carso', not 'vae'"),
        ("carso[weights=own:digits-vae]", "of the kind 'vae', not 'carso'"),
        ("carso[condition=none,weights=released]", "the authors' purifiers read layers"),
    ],
)
def test_what_does_not_fit_is_refused(text: str, message: str) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        build_defence(defences.resolve(Spec.parse(text.replace("]", ",classifier=own:digits-at]"))))
    assert "\n" not in str(caught.value)


def test_the_last_layer_is_the_one_whose_output_is_the_answer() -> None:
    defence = build_carso("carso")
    seen: list[torch.Tensor] = []
    layer = dict(defence.base.named_modules())[find_last_layer(defence.base)]
    handle = layer.register_forward_hook(lambda m, i, o: seen.append(o))
    x = torch.rand(3, 1, 8, 8)
    answer = defence.base(x)
    handle.remove()
    assert torch.equal(seen[0], answer)
