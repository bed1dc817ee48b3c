"""The released classifiers, and the whole defence around one, against the paper's description.

The files are random, and of full size.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from baselines import released as classifiers
from baselines import zoo
from bench import files
from bench.errors import BadInput
from bench.questions.registry import build_classifier, datasets, defences
from carso import defence, released
from tests.carso import authors

SCALING = {
    10: ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
    100: ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    200: ((0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)),
}
PARAMETERS = {10: 36_479_194, 100: 36_536_884, 200: 36_600_984}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of models with random files of full size.

    It has the classifiers of CIFAR-10 and TinyImageNet, and the purifier of CIFAR-10.
    """
    top = tmp_path_factory.mktemp("models")
    before = os.environ.get("BENCH_MODELS")
    os.environ["BENCH_MODELS"] = str(top)
    for name in ("cifar10", "tinyimagenet200"):
        state = authors.random_state(authors.classifier_shapes(released.SCENARIOS[name].classes))
        authors.write(released.folder() / released.SCENARIOS[name].classifier, state)
    for part, shapes in authors.released_shapes("cifar10").items():
        authors.write(
            released.folder() / released.purifier_files("cifar10")[part],
            authors.random_state(shapes, 3),
        )
    yield top
    os.environ.pop("BENCH_MODELS")
    if before is not None:
        os.environ["BENCH_MODELS"] = before
    for path in top.rglob("*.safetensors"):
        path.unlink()  # half a gigabyte


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BENCH_MODELS", str(tmp_path / "none"))
    return tmp_path / "none" / "carso2024cnn"


def images(n: int, side: int) -> Tensor:
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(1))


def refusal(act: Callable[[], object]) -> str:
    with pytest.raises(BadInput) as caught:
        act()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", list(released.SCENARIOS))
def test_the_network_has_the_keys_of_the_files(name: str) -> None:
    scenario = released.SCENARIOS[name]
    with torch.device("meta"):
        net = classifiers.build_network(scenario)
    assert released.shapes_of(net.state_dict()) == authors.classifier_shapes(scenario.classes)
    assert len(net.state_dict()) == 155
    assert sum(p.numel() for p in net.parameters()) == PARAMETERS[scenario.classes]


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_it_is_the_network_of_the_zoo(name: str) -> None:
    """RobustBench's network of the same weights has the same keys, activations and scaling."""
    theirs = zoo.find_model(released.SCENARIOS[name].robustbench).entry["model"]()
    ours = classifiers.build_network(released.SCENARIOS[name])
    assert str(ours) == str(theirs)
    assert torch.equal(ours.mean, theirs.mean)
    assert torch.equal(ours.std, theirs.std)
    assert released.shapes_of(ours.state_dict()) == released.shapes_of(theirs.state_dict())
    assert set(authors.LAYERS) <= dict(theirs.named_modules()).keys()


@pytest.mark.parametrize(("name", "side"), [("cifar10", 32), ("tinyimagenet200", 64)])
@torch.no_grad()
def test_a_classifier_is_the_authors_function(models: Path, name: str, side: int) -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    classifiers.fetch(name)
    net = build_classifier(f"released:{name}")
    assert torch.equal(torch.rand(4), expected)
    classes = released.SCENARIOS[name].classes
    want, _ = authors.wide_resnet(
        authors.random_state(authors.classifier_shapes(classes)), images(1, side), *SCALING[classes]
    )
    got = net(images(1, side))
    assert got.shape == (1, classes)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_defence_is_the_authors_function(models: Path) -> None:
    """At full size: tap by tap the right compressor, then every logit of given z."""
    knobs = {"classifier": "released:cifar10", "weights": "released"}
    defence.fetch_released(knobs)
    model = defences.get("carso").make(**knobs, samples=2)
    state = authors.random_state(authors.classifier_shapes(10))
    states = {
        part: authors.random_state(shapes, 3)
        for part, shapes in authors.released_shapes("cifar10").items()
    }
    x, z = images(1, 32), torch.randn(1, 2, 128)
    _, taps = authors.wide_resnet(state, x, *SCALING[10])
    c = authors.condition(states["repr_compressors"], states["repr_fcn_compressor"], taps)
    torch.testing.assert_close(model.latent(x), c, rtol=1e-3, atol=1e-4)
    assert c.std() > 0.05
    want = torch.stack(
        [
            authors.wide_resnet(state, authors.decode(states["decoder"], z[:, e], c), *SCALING[10])[
                0
            ]
            for e in range(2)
        ],
        1,
    )
    torch.testing.assert_close(model.sample_logits(x, z), want, rtol=1e-3, atol=1e-3)
    assert sum(p.numel() for p in model.purifier.parameters()) == 106_183_571

    pin = defence.pin_released(knobs)["weights"].removeprefix("released@")
    assert len(pin) == 8
    assert f"have the digest {pin}, not 12345678" in refusal(
        lambda: defences.get("carso").make(**knobs | {"weights": "released@12345678"})
    )


def test_pins(models: Path) -> None:
    digest = classifiers.digest("cifar10")
    assert digest
    pin = digest[:8]
    assert digest == classifiers.digest(f"cifar10@{pin}")
    classifiers.fetch(f"cifar10@{pin}")
    build_classifier(f"released:cifar10@{pin}")
    assert (
        refusal(lambda: build_classifier("released:cifar10@12345678"))
        == f"weights 'released:cifar10' have the digest {pin}, not 12345678"
    )
    assert classifiers.digest("cifar100") is None
    missing = {"classifier": "released:cifar100", "weights": "released"}
    assert defence.pin_released(missing) == {}
    ours = {"classifier": "own:digits-at", "weights": "own:digits-carso"}
    assert defence.pin_released(ours) == {}


@pytest.mark.parametrize(
    ("classifier", "name"),
    [
        ("robustbench:Cui2023Decoupled_WRN-28-10", "cifar10"),
        ("robustbench:Cui2023Decoupled_WRN-28-10@1a2b3c4d", "cifar10"),
        ("robustbench:cifar100/Linf/Cui2023Decoupled_WRN-28-10", "cifar100"),
        ("released:tinyimagenet200", "tinyimagenet200"),
        ("released:cifar100-own", "cifar100-own"),
    ],
)
def test_the_scenario_follows_from_the_classifier(classifier: str, name: str) -> None:
    assert defence.scenario_of(classifier) == name


@pytest.mark.parametrize(
    "classifier",
    ["own:digits-at", "robustbench:Standard", "released:cifar10-gowal", "robustbench:cifar10"],
)
def test_a_classifier_without_a_released_purifier(classifier: str) -> None:
    knobs = {"classifier": classifier, "weights": "released"}
    for act in (lambda: defence.fetch_released(knobs), lambda: defences.get("carso").make(**knobs)):
        line = refusal(act)
        assert f"released no purifier for the classifier '{classifier}'; they did for " in line
        assert "robustbench:Cui2023Decoupled_WRN-28-10, robustbench:cifar100" in line
        assert "released:tinyimagenet200" in line
    defence.fetch_released(knobs | {"weights": "own:digits-carso"})


def test_what_the_datasets_name_exists() -> None:
    for dataset, name in (
        ("cifar10", "cifar10"),
        ("cifar100", "cifar100"),
        ("tiny-imagenet", "tinyimagenet200"),
    ):
        roles = datasets.get(dataset).facts.roles
        assert roles["carso"] == "released"
        assert defence.scenario_of(roles["robust"]) == name


def test_missing_files_are_named_with_their_places(
    empty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = empty / "cifar_10_cuiwrn2810/models/cifar10_a3_b10_t4_20m_w.safetensors"
    line = (
        "the files of classifier 'released:cifar10' are not there: "
        f"put {released.BASE}{path.relative_to(empty)} at {path}"
    )
    assert refusal(lambda: build_classifier("released:cifar10")) == line

    def fail(*_: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(files, "http_downloader", lambda: fail)
    assert (
        refusal(lambda: classifiers.fetch("cifar10"))
        == f"{line} (the download of {path.name} failed: no network)"
    )
    both = refusal(
        lambda: defence.fetch_released({"classifier": "released:cifar10", "weights": "released"})
    )
    assert both.count(released.BASE) == 3
    assert "did you mean 'cifar10'" in refusal(lambda: classifiers.fetch("cifar1"))
    assert not empty.exists()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("blurred", r"also holds layer.1.block.0.conv_0.filter"),
        ("classes", "holds logits.weight of the shape (100, 640), not (10, 640)"),
        ("nan", "is damaged: batchnorm.running_mean is not finite"),
        ("text", "is not a safetensors file, or is damaged"),
    ],
)
def test_files_that_are_not_the_classifier(empty: Path, kind: str, message: str) -> None:
    shapes = authors.classifier_shapes(100 if kind == "classes" else 10)
    state = {key: torch.zeros(shape) for key, shape in shapes.items()}
    if kind == "blurred":  # as the convolutions of the authors' own classifiers were trained
        state["layer.1.block.0.conv_0.filter"] = torch.ones(3)
    if kind == "nan":
        state["batchnorm.running_mean"][3] = torch.nan
    path = authors.write(empty / released.SCENARIOS["cifar10-own"].classifier, state)
    if kind == "text":
        path.write_bytes(b"text")
    line = refusal(lambda: build_classifier("released:cifar10-own"))
    assert message in line
    assert str(path) in line
    if kind != "nan":
        assert message in refusal(lambda: classifiers.fetch("cifar10-own"))
    assert path.is_file()
