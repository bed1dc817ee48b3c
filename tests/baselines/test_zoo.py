"""RobustBench's classifiers: loaded from the right place, by a loader that neither prints nor disturbs; everything that goes wrong is one line."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from baselines import zoo
from bench.registry import ROOT, build_classifier
from bench.spec import BadInput

SMALL = "cifar10/corruptions/Hendrycks2020AugMix_WRN"  # the smallest of the zoo: 2.2 million parameters
PAGE = b"<!DOCTYPE html><html><title>Quota exceeded</title></html>"


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BENCH_MODELS", str(tmp_path / "models"))
    return tmp_path / "models"


def put(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    return path


def refused(action: Callable[[str], object], argument: str) -> str:
    with pytest.raises(BadInput) as caught:
        action(argument)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def random_state() -> dict[str, torch.Tensor]:
    net = zoo.dicts()["cifar10"]["corruptions"]["Hendrycks2020AugMix_WRN"]["model"]()
    return {k: torch.rand_like(v) * 0.1 if v.is_floating_point() else v for k, v in net.state_dict().items()}


def test_the_names_of_the_zoo() -> None:
    names = zoo.names()
    assert len(names) == 164  # of robustbench 1.1.1; the old copy in torchattacks has fewer
    for name in ("Cui2023Decoupled_WRN-28-10", "Standard", "cifar10/L2/Rice2020Overfitting", "cifar100/Linf/Cui2023Decoupled_WRN-28-10", SMALL):
        assert name in names


def test_nothing_of_the_stand_ins_stays() -> None:
    zoo.names()
    assert not {"autoattack", "autoattack.state"} & sys.modules.keys()


def test_a_model_is_loaded_from_its_place(models: Path, capfd: pytest.CaptureFixture[str]) -> None:
    state = random_state()
    put(models / "cifar10/corruptions/Hendrycks2020AugMix_WRN.pt", {"state_dict": state})
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    zoo.ensure(SMALL)
    net = build_classifier(f"robustbench:{SMALL}")
    assert torch.equal(torch.rand(4), expected)  # building and loading draw no numbers that others see
    assert capfd.readouterr().out == ""
    own = zoo.dicts()["cifar10"]["corruptions"]["Hendrycks2020AugMix_WRN"]["model"]()
    own.load_state_dict(state, strict=False)
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(net(x), own.eval()(x))
    assert not net.training


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (PAGE, "is a web page; remove it"),
        (b"", "is empty; remove it"),
        (b"PK\x03\x04 cut off", "is truncated; remove it"),
        (b"text", "is no weights file"),
        ({"state_dict": {"foreign": torch.zeros(2)}}, "cannot be loaded from"),
        ({"state_dict": {}}, "cannot be loaded from"),
    ],
)
def test_files_that_are_not_the_model(models: Path, content: Any, says: str) -> None:
    path = put(models / "cifar10/corruptions/Hendrycks2020AugMix_WRN.pt", content)
    line = refused(zoo.robustbench, SMALL)
    assert says in line
    assert str(path) in line


class Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_runs_code_does_not(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zipped: bool) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    path = models / "cifar10/corruptions/Hendrycks2020AugMix_WRN.pt"
    path.parent.mkdir(parents=True)
    mark = tmp_path / "ran"
    torch.save({"state_dict": random_state(), "more": Bomb(mark)}, path, _use_new_zipfile_serialization=zipped)
    plain = torch.load
    assert "cannot be loaded from" in refused(zoo.robustbench, SMALL)
    assert not mark.exists()
    assert torch.load is plain
    with pytest.warns(UserWarning, match="forcing weights_only=False"):
        torch.load(path)
    assert mark.exists()  # it does run where nothing forbids it


def test_a_truncated_file_is_found_before_the_sweep(models: Path) -> None:
    path = put(models / "cifar10/corruptions/Hendrycks2020AugMix_WRN.pt", {"state_dict": random_state()})
    path.write_bytes(path.read_bytes()[:-1000])
    assert "truncated" in refused(zoo.ensure, SMALL)


def test_a_misspelt_name() -> None:
    assert "did you mean 'Wong2020Fast'" in refused(zoo.ensure, "Wong2020fast")
    assert "is unknown" in refused(zoo.robustbench, "cifar100/L2/Standard")
    assert "is unknown" in refused(zoo.ensure, "cifar10/Linf/Wong2020Fast")  # one name for one model: the bare one


def fake_download(monkeypatch: pytest.MonkeyPatch, act: Callable[[Path], None]) -> None:
    monkeypatch.setattr(zoo.package("utils"), "download_gdrive_new", lambda key, path: act(path))


def test_a_download_goes_to_its_place(models: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    state = random_state()

    def fetch(path: Path) -> None:
        print("Downloading")
        torch.save({"state_dict": state}, path)

    fake_download(monkeypatch, fetch)
    zoo.ensure(SMALL)
    assert [path.name for path in (models / "cifar10/corruptions").iterdir()] == ["Hendrycks2020AugMix_WRN.pt"]
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("name", ["Wong2020Fast", "Chen2020Adversarial"])
def test_a_failed_download_says_what_to_put_where_and_leaves_nothing(models: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def fail(path: Path) -> None:
        put(path, PAGE)  # what a full quota gives
        raise OSError("no network")

    fake_download(monkeypatch, fail)
    line = refused(zoo.ensure, name)
    file = "Wong2020Fast.pt" if name == "Wong2020Fast" else "Chen2020Adversarial.pt_m0.pt"
    where = models / "cifar10/Linf"
    assert line == f"weights of 'robustbench:{name}' are not there: put {file} into {where} (their download failed: no network)"
    assert not models.exists()


def test_a_web_page_is_no_download(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_download(monkeypatch, lambda path: put(path, PAGE) and None)
    assert "(their download failed: what came is a web page)" in refused(zoo.ensure, "Wong2020Fast")
    assert not models.exists()


def test_loading_never_downloads(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_download(monkeypatch, lambda path: pytest.fail("it downloaded"))
    assert "are not there: put Wong2020Fast.pt into" in refused(zoo.robustbench, "Wong2020Fast")


def test_an_old_copy_of_the_package_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zoo.refuse_old_copy()
    real = [file for file in zoo.metadata.files("robustbench") or [] if str(file) == "robustbench/utils.py"]
    assert len(real) == 1
    changed = tmp_path / "utils.py"
    changed.write_bytes(Path(str(real[0].locate())).read_bytes() + b"\n")
    monkeypatch.setattr(type(real[0]), "locate", lambda file: changed)
    monkeypatch.setattr(zoo.metadata, "files", lambda name: real)
    with pytest.raises(BadInput, match=r"mixed with an old copy \(robustbench/utils.py\)"):
        zoo.refuse_old_copy()


def test_plug_ins_are_discovered_without_importing_the_libraries() -> None:
    heavy = "robustbench", "timm", "torchvision"
    code = f"import sys; from bench.registry import discover; discover(); print(sorted({set(heavy)} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
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
