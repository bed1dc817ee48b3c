"""Training our own classifiers: it learns, repeats, and keeps what it measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from baselines.own import make_network
from baselines.recipes import CLASSIFIER_RECIPES, ClassifierRecipe
from baselines.train import attack, augment, fit, main, measure, names_to_train, round_as_stored
from bench.data.sample import dataset_of, load
from bench.questions.discover import discover
from bench.questions.registry import build_classifier, datasets
from bench.questions.spec import Spec


def two_kinds(count: int = 64) -> tuple[Tensor, Tensor]:
    """Images that are bright on the left or on the right."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(count) % 2
    x = 0.3 * torch.rand(count, 1, 8, 8, generator=generator)
    x[y == 0, :, :, :4] += 0.6
    x[y == 1, :, :, 4:] += 0.6
    return x, y


def quiet(epoch: int, loss: float) -> None: ...


@pytest.mark.parametrize("net", ["cnn", "mlp", "resnet"])
@pytest.mark.parametrize("eps", ["0", "1/10"])
def test_fit_learns_and_repeats(net: str, eps: str) -> None:
    data = dataset_of("toy", *two_kinds(), classes=2)
    recipe = ClassifierRecipe(
        net, epochs=8, batch=16, lr=1e-2, eps=eps, steps=2, shift=0, average=0.8
    )

    def train() -> nn.Module:
        torch.manual_seed(0)
        return fit(
            make_network({"name": net, "params": {"shape": [1, 8, 8], "classes": 2}}, net),
            data,
            recipe,
            "cpu",
            quiet,
        )

    once = train()
    assert measure(once, data, 0.05, "cpu", steps=3, restarts=1)[0] == 1.0
    assert torch.allclose(once.get_buffer("mean"), data.x.mean())
    assert not once.training
    again = train()
    assert all(
        torch.equal(a, b)
        for a, b in zip(once.state_dict().values(), again.state_dict().values(), strict=True)
    )


def test_the_attack_of_training_stays_in_ball_and_box_and_raises_the_loss() -> None:
    net = build_classifier("own:digits-standard")
    x, y = two_kinds(16)
    torch.manual_seed(0)
    x_adv = attack(net, x, y, 0.1, 5)
    assert (x_adv - x).abs().max() <= 0.1 + 1e-6
    assert 0 <= x_adv.min() <= x_adv.max() <= 1
    assert nn.functional.cross_entropy(net(x_adv), y) > nn.functional.cross_entropy(net(x), y)
    assert attack(net, x, y, 0.0, 5) is x


def test_the_strength_of_training_rises_to_its_eps(monkeypatch: pytest.MonkeyPatch) -> None:
    strengths: list[float] = []

    def spy(net: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int) -> Tensor:
        strengths.append(round(eps, 6))
        return x

    monkeypatch.setattr("baselines.train.attack", spy)
    recipe = ClassifierRecipe("mlp", epochs=5, batch=32, eps="1/10", warm=0.4)
    fit(
        make_network({"name": "mlp", "params": {"shape": [1, 8, 8], "classes": 2}}, "net"),
        dataset_of("toy", *two_kinds(), classes=2),
        recipe,
        "cpu",
        quiet,
    )
    assert strengths[::2] == [0.05, 0.1, 0.1, 0.1, 0.1]  # two batches in each epoch


def test_what_is_measured_is_what_half_precision_keeps() -> None:
    net = make_network({"name": "mlp", "params": {"shape": [1, 8, 8], "classes": 2}}, "net")
    before = {k: v.clone() for k, v in net.state_dict().items()}
    after = round_as_stored(net).state_dict()
    assert all(torch.equal(after[k], v.half().float()) for k, v in before.items())
    assert any(not torch.equal(after[k], v) for k, v in before.items())


def test_measure_counts_an_example_that_one_restart_breaks() -> None:
    """A model that is right on the clean image, and beside it on one side of a plane only."""

    class Edge(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            s = x.flatten(1)[:, 0] - 0.5 - 0.05  # class 1 as soon as the first pixel rises by 0.05
            return torch.stack([-s, s], 1)

    data = dataset_of(
        "toy", torch.full((10, 1, 1, 2), 0.5), torch.zeros(10, dtype=torch.long), classes=2
    )
    assert measure(Edge(), data, 0.04, "cpu", steps=5, restarts=2) == (1.0, 1.0)
    assert measure(Edge(), data, 0.06, "cpu", steps=5, restarts=2) == (1.0, 0.0)


def test_augmentation_moves_and_mirrors() -> None:
    x = torch.zeros(200, 1, 5, 5)
    x[:, 0, 2, 1] = 1.0
    torch.manual_seed(0)
    assert torch.equal(augment(x, ClassifierRecipe("cnn", shift=0)), x)
    moved = augment(x, ClassifierRecipe("cnn", shift=1))
    places = {tuple(image.nonzero()[0].tolist()) for image in moved[:, 0]}
    assert places == {(r, c) for r in (1, 2, 3) for c in (0, 1, 2)}
    assert 0.5 <= moved[:, 0, 2, 1].mean() <= 0.65  # half stay, and a ninth of the others
    mirrored = augment(x, ClassifierRecipe("cnn", shift=0, flip=True))
    assert 0.4 <= mirrored[:, 0, 2, 3].mean() <= 0.6


def test_gaussian_noise_is_added_once_to_every_image_and_not_clipped() -> None:
    x = torch.full((50, 1, 20, 20), 0.5)
    torch.manual_seed(0)
    added = augment(x, ClassifierRecipe("cnn", shift=0, noise=0.3)) - x
    assert added.mean().abs() < 0.01
    assert abs(float(added.std()) - 0.3) < 0.01
    assert added.min() < -0.9  # below black
    assert added.flatten(1).std(1).min() > 0.25


def test_the_command_writes_weights_and_a_card_that_agree(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [
        "--dataset",
        "digits",
        "--name",
        "other",
        "--epochs",
        "2",
        "--n",
        "100",
        "--device",
        "cpu",
        "--out",
        str(tmp_path),
        "--seed",
        "4",
    ]
    assert main(argv) == 0
    card = json.loads((tmp_path / "digits-other.json").read_text())
    assert (card["recipe"]["epochs"], card["seed"], card["accuracy"]["n"], card["dataset"]) == (
        2,
        4,
        100,
        "digits",
    )
    assert card["arch"] == {
        "name": "mlp",
        "params": {"shape": [1, 8, 8], "classes": 10, "hidden": 128},
    }
    net = build_classifier(f"file:{tmp_path / 'digits-other.safetensors'}")
    data = load(Spec.parse("digits[n=100]"))
    assert measure(net, data, 0.2, "cpu", steps=1, restarts=0)[0] == card["accuracy"]["clean"]
    assert "clean" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--dataset", "digit"], "digit"),
        (["--dataset", "toy", "--name", "at"], "there is no recipe for classifiers of 'toy'"),
        (["--dataset", "digits", "--eps", "much"], "eps 'much' is not a number"),
        (["--dataset", "digits", "--epochs", "-1"], "must be positive"),
        (["--dataset", "digits", "--device", "gpu"], "gpu"),
        (["--dataset", "digits", "--device", "cpu", "--precision", "tf32"], "tf32 needs a GPU"),
    ],
)
def test_bad_input_is_one_line_and_code_two(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    assert main([*argv, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_dataset_whose_classifiers_are_not_ours_has_nothing_to_train(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--dataset", "cifar10", "--out", str(tmp_path)]) == 0
    assert "robustbench:Cui2023Decoupled_WRN-28-10" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_what_takes_days_without_a_gpu_is_left_out_there(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert names_to_train("cifar10-jpeg", "cpu") == ["at", "other"]
    assert "wide" in capsys.readouterr().out
    assert names_to_train("cifar10-jpeg", "cuda:0") == ["at", "other", "wide"]
    assert names_to_train("digits", "cpu") == list(CLASSIFIER_RECIPES["digits"])
    assert not capsys.readouterr().out


def test_half_precision_is_of_the_training_alone(tmp_path: Path) -> None:
    words = [
        "--dataset",
        "digits",
        "--name",
        "standard",
        "--epochs",
        "2",
        "--n",
        "200",
        "--device",
        "cpu",
    ]
    for precision in ("32-true", "bf16-mixed"):
        assert main([*words, "--precision", precision, "--out", str(tmp_path / precision)]) == 0
    full, half = (
        json.loads((tmp_path / precision / "digits-standard.json").read_text())
        for precision in ("32-true", "bf16-mixed")
    )
    assert half["precision"] == "bf16-mixed"
    assert half["sha256"] != full["sha256"]
    assert abs(half["accuracy"]["clean"] - full["accuracy"]["clean"]) < 0.15
    assert full["accuracy"]["clean"] > 0.5


def test_recipes_name_what_exists() -> None:
    discover()
    for name, recipes in CLASSIFIER_RECIPES.items():
        roles = datasets.get(name).facts.roles
        assert {roles.get(role) for role in ("standard", "robust", "other", "noise", "wide")} >= {
            f"own:{name}-{kind}" for kind in recipes
        }
        assert {"at", "other"} <= recipes.keys() <= {"standard", "at", "other", "noise", "wide"}
        assert [kind for kind in recipes if recipes[kind].noise] == ["noise"] * ("noise" in recipes)
        assert recipes["other"].net not in {
            recipes[kind].net for kind in recipes.keys() - {"other"}
        }
        assert recipes["at"].eps != "0"
        assert {recipes[kind].eps for kind in recipes.keys() - {"at", "wide"}} == {"0"}
