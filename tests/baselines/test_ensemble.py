"""The ensemble: its means in closed form, what it runs, and what it refuses."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from baselines.ensemble import Ensemble, mean_prob
from bench.data.sample import load
from bench.errors import BadInput
from bench.judging.target import predict_draws
from bench.questions.discover import discover
from bench.questions.plan import plan
from bench.questions.registry import build_classifier, build_defence
from bench.questions.request import Request
from bench.questions.spec import Spec

discover()


class Linear(nn.Module):
    """Logits of flattened images by a fixed matrix; counts the images that it sees."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight
        self.seen = 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        return x.flatten(1) @ self.weight.T


def linear(seed: int, classes: int = 3, scale: float = 1.0) -> Linear:
    return Linear(scale * torch.randn(classes, 8, generator=torch.Generator().manual_seed(seed)))


def images(count: int = 5) -> Tensor:
    return torch.rand(count, 2, 2, 2, generator=torch.Generator().manual_seed(0))


def defence(text: str) -> Spec:
    (cell,) = plan([Request(defences=(text,), attacks=("none",))]).cells
    return cell.defence


def test_the_mean_of_linear_classifiers_is_the_classifier_of_the_mean() -> None:
    members = [linear(seed) for seed in range(3)]
    mean = torch.stack([member.weight for member in members]).mean(0)
    x = images().requires_grad_()
    logits = Ensemble(members, "logit")(x)
    assert torch.allclose(logits, x.flatten(1) @ mean.T, atol=1e-6)
    (slope,) = torch.autograd.grad(logits[:, 1].sum(), x)
    assert torch.allclose(slope, mean[1].view(1, 2, 2, 2).expand(5, -1, -1, -1), atol=1e-6)


def test_the_mean_probability_is_exact_and_so_is_its_gradient() -> None:
    members = [linear(seed, scale=3) for seed in range(3)]
    x = images().requires_grad_()
    expected = torch.stack([member(x).double().softmax(1) for member in members]).mean(0).log()
    logits = Ensemble(members, "prob")(x)
    assert torch.allclose(logits.double(), expected, atol=1e-5)
    (slope,), (truth,) = (
        torch.autograd.grad(value[:, 0].sum(), x, retain_graph=True) for value in (logits, expected)
    )
    assert torch.allclose(slope, truth, atol=1e-4)


def test_certain_members_do_not_round_to_nothing() -> None:
    logits = torch.tensor([[[1e4, 0.0, 0.0], [0.0, 1e4, 0.0]]], requires_grad=True)
    value = mean_prob(logits)
    assert torch.allclose(
        value,
        torch.tensor([[-math.log(2), -math.log(2), -1e4 - math.log(2) + math.log(2)]]),
        atol=1e-2,
    )
    (slope,) = torch.autograd.grad(value[0, 2], logits)
    assert slope.isfinite().all()
    assert slope.any()


def test_the_two_means_can_disagree() -> None:
    """One member is very sure of class 0, two lean to class 1.

    The one outvotes the others in the mean logit, but not in the mean probability.
    """
    logits = torch.tensor([[[9.0, 0.0], [0.0, 3.0], [0.0, 3.0]]])
    assert logits.mean(1).argmax(1) == 0
    assert mean_prob(logits).argmax(1) == 1


def test_every_member_is_run_once_whatever_the_number_of_draws() -> None:
    members = [linear(0), linear(1)]
    answers = predict_draws(Ensemble(members, "logit"), images(), 7)
    assert answers.shape == (5, 7, 3)
    assert torch.equal(answers[:, 3], Ensemble(members, "logit")(images()))
    assert [member.seen for member in members] == [
        10,
        10,
    ]  # once for the draws, once for the line above


def test_parts_are_those_of_the_members() -> None:
    members = [linear(0), linear(1)]
    by_prob = Ensemble(members, "prob")
    assert by_prob.base is members[0]
    assert torch.equal(by_prob.per_draw(images())[:, 1], members[1](images()))
    assert torch.equal(
        by_prob.surrogates["mean-logit"](images()), Ensemble(members, "logit")(images())
    )
    assert not Ensemble(members, "logit").surrogates  # it would be the very same function


def test_the_plan_settles_each_member_and_the_first_is_the_base() -> None:
    spec = defence("ensemble")
    first, second = str(spec.params["classifiers"]).split("+")
    assert first.startswith("own:digits-at@")
    assert second.startswith("own:digits-other@")
    x = load(Spec.parse("digits[n=20]")).x
    built = build_defence(spec)
    assert torch.allclose(
        built(x), (build_classifier(first)(x) + build_classifier(second)(x)) / 2, atol=1e-5
    )
    assert torch.equal(built.base(x), build_classifier(first)(x))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ensemble[classifiers=@robust]", "1 classifier is no ensemble; join two or more by '+'"),
        (
            "ensemble[classifiers=@robust+@other+own:digits-at]",
            "names own:digits-at twice; name each once",
        ),
        ("ensemble[mean=probs]", "mean='probs' is unknown; did you mean 'prob'?"),
        ("ensemble[classifiers=@robust+own:digits-othr]", "did you mean 'digits-other'?"),
        ("ensemble[inner=jpeg]", "stands before no other defence: it joins bare classifiers"),
    ],
)
def test_what_is_no_ensemble_is_refused(text: str, message: str) -> None:
    with pytest.raises(BadInput) as error:
        build_defence(defence(text))
    assert message in str(error.value)


def test_members_that_know_different_classes_are_refused() -> None:
    with pytest.raises(
        BadInput, match="the classifiers know 3, 4 classes; join those of one dataset"
    ):
        Ensemble([linear(0), linear(1, classes=4)], "logit")(images())
