"""RobustBench's classifiers: loaded from the right place, by a loader that disturbs nothing.

Everything that goes wrong is one line.
"""

from __future__ import annotations

import hashlib
import pickle
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch

from baselines import zoo
from bench import weights
from bench.entry_points import ROOT
from bench.errors import BadInput
from bench.questions.registry import build_classifier
from tests.baselines.zoo_fakes import SMALL, put, random_state, refusal


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BENCH_MODELS", str(tmp_path / "models"))
    return tmp_path / "models"


def test_the_names_of_the_zoo() -> None:
    names = zoo.names()
    assert len(names) == 164  # of robustbench 1.1.1; the old copy in torchattacks has fewer
    for name in (
        "Cui2023Decoupled_WRN-28-10",
        "Standard",
        "cifar10/L2/Rice2020Overfitting",
        "cifar100/Linf/Cui2023Decoupled_WRN-28-10",
        SMALL,
    ):
        assert name in names


def test_nothing_of_the_stand_ins_stays() -> None:
    zoo.read_table()
    assert not {"autoattack", "autoattack.state"} & sys.modules.keys()


def test_a_model_is_loaded_from_its_place(models: Path, capfd: pytest.CaptureFixture[str]) -> None:
    state = random_state()
    put(models / "cifar10/corruptions/Hendrycks2020AugMix_WRN.pt", {"state_dict": state})
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    zoo.fetch(SMALL)
    net = build_classifier(f"robustbench:{SMALL}")
    assert torch.equal(
        torch.rand(4), expected
    )  # building and loading draw no numbers that others see
    assert capfd.readouterr().out == ""
    own = zoo.read_table()["cifar10"]["corruptions"]["Hendrycks2020AugMix_WRN"]["model"]()
    own.load_state_dict(state, strict=False)
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(net(x), own.eval()(x))
    assert not net.training


class Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_runs_code_does_not(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zipped: bool
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    path = models / "cifar10/corruptions/Hendrycks2020AugMix_WRN.pt"
    path.parent.mkdir(parents=True)
    mark = tmp_path / "ran"
    torch.save(
        {"state_dict": random_state(), "more": Bomb(mark)},
        path,
        _use_new_zipfile_serialization=zipped,
    )
    plain = torch.load
    assert ("cannot be loaded from" if zipped else "holds more than tensors") in refusal(
        zoo.robustbench, SMALL
    )
    assert not mark.exists()
    assert torch.load is plain
    with pytest.warns(UserWarning, match="forcing weights_only=False"):
        torch.load(path)
    assert mark.exists()  # it does run where nothing forbids it


def test_a_loader_that_asks_for_more_than_tensors_does_not_get_it(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    path = put(tmp_path / "bomb.pt", {"more": Bomb(mark)})
    with zoo.unpickle_tensors_only(), pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=False)
    assert not mark.exists()


def test_a_misspelt_name() -> None:
    assert "did you mean 'Wong2020Fast'" in refusal(zoo.fetch, "Wong2020fast")
    assert "is unknown" in refusal(zoo.robustbench, "cifar100/L2/Standard")
    assert "is unknown" in refusal(
        zoo.fetch, "cifar10/Linf/Wong2020Fast"
    )  # one name for one model: the bare one


def test_a_pin_names_the_very_file(models: Path) -> None:
    path = put(models / f"{SMALL}.pt", {"state_dict": random_state()})
    digest = zoo.digest(SMALL)
    file_digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert digest == hashlib.sha256(file_digest.encode()).hexdigest()
    pin = digest[:8]
    assert zoo.digest(f"{SMALL}@{pin}") == digest
    zoo.fetch(f"{SMALL}@{pin}")
    model = zoo.find_model(f"{SMALL}@{pin}")
    assert model == zoo.find_model(SMALL)
    assert (model.dataset, model.threat) == ("cifar10", "corruptions")
    assert model.name == "Hendrycks2020AugMix_WRN"
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(
            build_classifier(f"robustbench:{SMALL}@{pin}")(x),
            build_classifier(f"robustbench:{SMALL}")(x),
        )
    for act in (zoo.fetch, zoo.robustbench):
        assert (
            refusal(act, f"{SMALL}@00000000")
            == f"weights 'robustbench:{SMALL}' have the digest {pin}, not 00000000"
        )
    put(path, {"state_dict": random_state()})
    assert zoo.digest(SMALL) != digest
    assert f"not {pin}" in refusal(zoo.fetch, f"{SMALL}@{pin}")


def test_the_digest_of_an_ensemble_is_of_all_its_files_in_order(models: Path) -> None:
    paths = [
        put(path, bytes([i]))
        for i, path in enumerate(zoo.own_files(zoo.find_model("Chen2020Adversarial")))
    ]
    assert len(paths) == 3
    digest = zoo.digest("Chen2020Adversarial")
    assert digest == hashlib.sha256("".join(map(weights.digest, paths)).encode()).hexdigest()
    paths[0].write_bytes(bytes([1]))
    paths[1].write_bytes(bytes([0]))
    assert zoo.digest("Chen2020Adversarial") not in (None, digest)
    paths[2].unlink()
    assert zoo.digest("Chen2020Adversarial") is None


def test_where_nothing_can_be_pinned(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert zoo.digest(SMALL) is None
    assert "are not there: put Hendrycks2020AugMix_WRN.pt into" in refusal(
        zoo.robustbench, f"{SMALL}@1a2b3c4d"
    )
    monkeypatch.setenv("TORCH_HOME", str(models))
    name = "Debenedetti2022Light_XCiT-S12"
    assert zoo.digest(name) is None
    put(zoo.files_of(zoo.find_model(name))[0], {"model": {}})
    assert (
        refusal(zoo.fetch, f"{name}@1a2b3c4d")
        == f"weights 'robustbench:{name}' are in the cache of torch's hub, and take no pin"
    )
    with pytest.raises(BadInput, match="is unknown; did you mean 'Wong2020Fast'"):
        zoo.digest("Wong2020fast@1a2b3c4d")


def test_an_old_copy_of_the_package_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo.refuse_old_copy()
    real = [
        file for file in metadata.files("robustbench") or [] if str(file) == "robustbench/utils.py"
    ]
    assert len(real) == 1
    changed = tmp_path / "utils.py"
    changed.write_bytes(Path(str(real[0].locate())).read_bytes() + b"\n")
    monkeypatch.setattr(type(real[0]), "locate", lambda file: changed)
    monkeypatch.setattr(metadata, "files", lambda name: real)
    with pytest.raises(BadInput, match=r"mixed with an old copy \(robustbench/utils.py\)"):
        zoo.refuse_old_copy()


HEAVY = (
    "diffusers",
    "lightning",
    "matplotlib",
    "pooch",
    "requests",
    "robustbench",
    "scipy",
    "sklearn",
    "timm",
    "torchvision",
)


def test_importing_the_plug_ins_loads_torch_and_no_other_heavy_library() -> None:
    code = (
        "import sys, torch\n"
        "before = set(sys.modules)\n"
        "import pkgutil, importlib, baselines.gallery, carso.defence\n"
        "for package in (baselines, baselines.gallery):\n"
        "    for module in pkgutil.iter_modules(package.__path__, package.__name__ + '.'):\n"
        "        importlib.import_module(module.name)\n"
        f"print(sorted(set({HEAVY}) & (sys.modules.keys() - before)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_the_resnet_of_pyautoattack() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    net = build_classifier("autoattack:resnet18")
    assert torch.equal(torch.rand(4), expected)
    assert sum(p.numel() for p in net.parameters()) == 11_173_962
    with pytest.raises(BadInput, match="is unknown; there are: resnet18"):
        build_classifier("autoattack:resnet50")
