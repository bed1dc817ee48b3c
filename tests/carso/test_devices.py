"""Several processes: they take steps together, fail together, or are refused together."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from carso import devices
from carso.batches import batch_indices
from carso.devices import Devices, Processes, choose_devices
from carso.fit import Run, new_purifier
from carso.loss import elbo
from carso.optimiser import Lookahead
from carso.representation import taps
from tests.carso.small import IMAGE, classifier, purifier
from tests.carso.test_fit import blobs, recipe

TOGETHER = """
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from carso.devices import choose_devices
from carso.fit import fit_purifier, new_purifier
from carso.resume import Checkpoint
from tests.carso.small import IMAGE, classifier
from tests.carso.test_devices import RECIPE
from tests.carso.test_fit import blobs

torch.set_num_threads(1)
folder = Path(sys.argv[1])
devices = choose_devices("cpu", devices="2")
devices.launch()
torch.manual_seed(5)
f = classifier()
p = new_purifier(f, IMAGE, RECIPE)
history = fit_purifier(p, f, *blobs(45), RECIPE, devices=devices)
(folder / f"{devices.rank}.txt").write_text(f"{history[-1].reconstruction:.6f} ")
if devices.rank == 0:
    save_file(p.state_dict(), folder / "together.safetensors")
try:
    checkpoint = Checkpoint(Path("/dev/null/x"), Path("/dev/null/y"), {})
    fit_purifier(p, f, *blobs(45), RECIPE, devices=devices, checkpoint=checkpoint)
except OSError:
    with (folder / f"{devices.rank}.txt").open("a") as file:
        file.write("stopped")
"""

RECIPE = recipe(
    epochs=2, batch=20, lr_start=1e-4, lr=0.01, warmup=0.5, lag=0.0, beta=0.5, adversarial=0.0
)


def test_two_processes_sum_their_gradients_and_fail_together(tmp_path: Path) -> None:
    """45 images in shared batches of 20: shares of 10 and 10, twice, then of 3 and 2.

    The reference takes the shares one after the other.
    """
    script = tmp_path / "together.py"
    script.write_text(TOGETHER)
    ended = subprocess.run(
        [sys.executable, script, tmp_path],
        check=False,
        capture_output=True,
        text=True,
        timeout=100,
        env={"PYTHONPATH": str(Path.cwd())},
    )
    assert ended.returncode == 0, ended.stderr
    said = [(tmp_path / f"{rank}.txt").read_text().split() for rank in (0, 1)]
    assert said[0] == said[1]
    assert said[0][1] == "stopped"

    torch.manual_seed(5)
    f, (x, y) = classifier(), blobs(45)
    p = new_purifier(f, IMAGE, RECIPE).train()
    run = Run(
        p,
        p,
        f,
        x,
        y,
        RECIPE,
        Devices(torch.device("cpu")),
        int(torch.randint(2**62, ()).item()),
        Lookahead(p.parameters(), RECIPE.lr),
    )
    for epoch, lr in enumerate((RECIPE.lr_start, RECIPE.lr)):
        shares = [
            batch_indices(45, 20, seed=run.seed_of("order", epoch, 0), rank=rank, count=2)
            for rank in (0, 1)
        ]
        noise = []
        for rank in (0, 1):
            torch.manual_seed(run.seed_of("training", epoch, rank))
            noise.append(torch.get_rng_state())
        assert [len(b) for b in shares[0]] == [10, 10, 3]
        losses = 0.0
        for pair in zip(*shares, strict=True):
            run.optimiser.zero_grad()
            buffers = copy.deepcopy(dict(p.named_buffers()))
            for rank, chosen in reversed(
                list(enumerate(pair))
            ):  # the first process' statistics are kept
                for name, buffer in p.named_buffers():
                    buffer.copy_(buffers[name])
                torch.set_rng_state(noise[rank])
                rec, mu, logvar = p(x[chosen], taps(f, x[chosen], p.layers))
                noise[rank] = torch.get_rng_state()
                total, reconstruction, _ = elbo(rec, x[chosen], mu, logvar, 0.5)
                total.backward()
                losses += float(reconstruction.detach())
            run.optimiser.set_lr(RECIPE.lr_start if run.optimiser.steps < 5 else lr)
            run.optimiser.step()
    assert float(said[0][0]) == pytest.approx(losses / 45, rel=1e-5)
    run.optimiser.load_slow_weights()
    got = load_file(tmp_path / "together.safetensors")
    for name, want in p.state_dict().items():
        torch.testing.assert_close(got[name], want, rtol=1e-4, atol=1e-6, msg=name)


def test_batch_statistics_are_synchronised_on_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as one can see without a GPU: the modules are converted in place, tensors too."""

    class Fabric:
        device, global_rank = torch.device("cuda"), 0

        def setup_module(self, module: nn.Module) -> nn.Module:
            return module

    p = purifier()
    before = dict(p.state_dict())
    several = Processes(Fabric(), 2)
    assert several.wrap(p) is p
    kinds = {type(module).__name__ for module in p.modules()}
    assert "SyncBatchNorm" in kinds
    assert not kinds & {"BatchNorm1d", "BatchNorm2d"}
    assert all(torch.equal(before[name], value) for name, value in p.state_dict().items())


def test_bfloat16_leaves_the_last_sigmoid_in_float32() -> None:
    torch.manual_seed(0)
    p, chosen = purifier(), choose_devices("cpu", precision="bf16-mixed")
    model = chosen.wrap(p.train())
    f, (x, _) = classifier(), blobs(8)
    nn.init.constant_(
        p.decoder[-2].bias, 8.0
    )  # sigmoid(8) = 0.99966, which bfloat16 cannot tell from 1
    with torch.no_grad(), chosen.autocast():
        representation = taps(f, x, p.layers)
    rec, _, _ = model(x, representation)
    assert rec.dtype == torch.float32
    assert representation[0].dtype == torch.bfloat16
    assert float(rec.detach().max()) < 1


def test_one_device_in_float32_is_no_fabric(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lightning.fabric", None)
    devices = choose_devices("cpu")
    assert type(devices) is Devices
    p = purifier()
    assert devices.wrap(p) is p
    half = choose_devices("cpu", half=True)
    with half.adversary_precision():
        assert (
            torch.nn.functional.linear(torch.ones(1, 2), torch.ones(1, 2)).dtype == torch.bfloat16
        )


@pytest.mark.parametrize(
    ("gpus", "flags", "message"),
    [
        (0, {"kind": "cuda"}, "there is no GPU"),
        (
            1,
            {"kind": "cuda", "devices": "3"},
            "--devices 3 were asked for, but there is 1 GPU here",
        ),
        (2, {"devices": "3"}, "but there are 2 GPUs here"),
        (0, {"devices": "0"}, "must be numbers above 0"),
        (0, {"devices": "two"}, "must be numbers above 0"),
        (0, {"nodes": 0}, "must be numbers above 0"),
        (0, {"precision": "tf32"}, "tf32 needs a GPU"),
    ],
)
def test_devices_that_are_not_there(
    gpus: int, flags: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    with pytest.raises(ValueError, match=message) as caught:
        devices.choose_devices(**flags)
    assert "\n" not in str(caught.value)
