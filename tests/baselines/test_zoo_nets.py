"""RobustBench's real architectures, with random weights in its file layout, through its loader.

The answers are the very logits of the network that was saved.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from baselines import zoo
from bench.questions.registry import build_classifier
from bench.results import published
from tests.baselines.zoo_fakes import put, shaken, untrained

State = dict[str, Any]


def prefixed(state: State, prefix: str) -> State:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def unscaled(state: State) -> State:
    """As older files are: the scaling of the images was no part of the network."""
    return {name: tensor for name, tensor in state.items() if name not in ("mu", "sigma")}


LAYOUTS: list[tuple[str, str, Callable[[State], State]]] = [
    (
        "Sehwag2021Proxy_R18",
        "ResNet-18",
        lambda state: {"epoch": 3, "state_dict": prefixed(state, "module.")},
    ),
    ("Wong2020Fast", "PreActResNet-18", unscaled),
    (
        "Andriushchenko2020Understanding",
        "PreActResNet-18",
        lambda state: {"last": state, "best": {name: 0 * tensor for name, tensor in state.items()}},
    ),
    ("Cui2023Decoupled_WRN-28-10", "WideResNet-28-10", lambda state: prefixed(state, "module.")),
    (
        "Chen2020Efficient",
        "WideResNet-34-10",
        lambda state: {"state_dict": prefixed(unscaled(state), "model.")},
    ),
    ("cifar100/Linf/Addepalli2022Efficient_RN18", "ResNet-18", lambda state: state),
]


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BENCH_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    return tmp_path / "models"


def compare(argument: str, net: nn.Module) -> None:
    zoo.fetch(argument)
    loaded = build_classifier(f"robustbench:{argument}")
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        logits, expected = loaded(x), net(x)
    assert torch.equal(logits, expected)
    assert logits.shape == (2, 100 if argument.startswith("cifar100/") else 10)
    assert torch.isfinite(logits).all()
    assert not torch.equal(logits[0], logits[1])
    assert logits.unique().numel() > 2
    assert not any(module.training for module in loaded.modules())


@pytest.mark.parametrize(
    ("argument", "architecture", "layout"), LAYOUTS, ids=[case[0] for case in LAYOUTS]
)
def test_a_network_is_loaded_whole(
    models: Path, argument: str, architecture: str, layout: Callable[[State], State]
) -> None:
    assert published.zoo()[f"robustbench:{argument}"].architecture == architecture
    net = shaken(untrained(argument))
    put(zoo.own_files(zoo.find_model(argument))[0], layout(net.state_dict()))
    compare(argument, net)


def test_an_ensemble_is_loaded_from_its_files_in_order(models: Path) -> None:
    argument = "cifar10/corruptions/Diffenderfer2021Winning_LRR_CARD_Deck"
    paths = zoo.own_files(zoo.find_model(argument))
    assert [path.name for path in paths] == [
        f"Diffenderfer2021Winning_LRR_CARD_Deck.pt_m{i}.pt" for i in range(6)
    ]
    name = "Chen2020Adversarial"
    net = shaken(untrained(name))
    for path, branch in zip(
        zoo.own_files(zoo.find_model(name)), (net.branch1, net.branch2, net.branch3), strict=True
    ):
        assert isinstance(branch, nn.Module)
        put(path, prefixed(branch.state_dict(), "module."))
    compare(name, net)


def test_a_transformer_of_timm_is_loaded_from_the_cache_of_torchs_hub(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        torch.hub, "download_url_to_file", lambda *_, **__: pytest.fail("it downloaded")
    )
    argument = "Debenedetti2022Light_XCiT-S12"
    net = shaken(untrained(argument))
    assert isinstance(
        net, nn.Sequential
    )  # the scaling of the images, and the network, whose file has no scaling
    (path,) = zoo.files_of(zoo.find_model(argument))
    assert path.name == "debenedetti2022light-xcit-s-cifar10-linf.pth.tar"
    assert path.parent == models.parent / "hub/hub/checkpoints"
    put(path, {"model": net[1].state_dict()})
    compare(argument, net)


def test_images_are_scaled_inside(models: Path) -> None:
    net = shaken(untrained("Wong2020Fast"))
    put(zoo.own_files(zoo.find_model("Wong2020Fast"))[0], unscaled(net.state_dict()))
    loaded = build_classifier("robustbench:Wong2020Fast")
    x = torch.rand(2, 3, 32, 32)
    mean, std = (
        torch.tensor(v).view(3, 1, 1) for v in ([0.4914, 0.4822, 0.4465], [0.2471, 0.2435, 0.2616])
    )
    network = zoo.import_robustbench(
        "model_zoo.architectures.resnet"
    ).PreActResNet  # it takes scaled images
    with torch.no_grad():
        expected = network.forward(net, (x - mean) / std)
        assert torch.allclose(loaded(x), expected, atol=1e-5)


@pytest.mark.parametrize(
    "argument",
    [
        "Sehwag2021Proxy_R18",
        "Cui2023Decoupled_WRN-34-10",
        "cifar100/Linf/Debenedetti2022Light_XCiT-M12",
        "Chen2020Adversarial",
    ],
)
def test_the_table_of_parameters(argument: str) -> None:
    with torch.device("meta"):
        net = untrained(argument)
    assert published.zoo()[f"robustbench:{argument}"].parameters == sum(
        p.numel() for p in net.parameters()
    )


def test_the_table_has_the_entries_and_files_of_the_package() -> None:
    files = {}
    for dataset, threats in zoo.read_table().items():
        for threat, entries in threats.items():
            for name, facts in entries.items():
                key = facts["gdrive_id"]
                split = "" if (dataset, threat) == zoo.DEFAULT_SPLIT else f"{dataset}/{threat}/"
                files[f"robustbench:{split}{name}"] = (
                    0 if key is None else len(key) if isinstance(key, list) else 1
                )
    assert {name: listed.files for name, listed in published.zoo().items()} == files
