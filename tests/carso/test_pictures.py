"""The pictures against the harness' own record, and against the pixels that went in."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bench.data.sample import load, stratified_order
from bench.judging.environment import commit
from bench.judging.evaluate import evaluate
from bench.judging.randomness import random_stream
from bench.questions.spec import Spec
from carso.analysis import pictures, sheet
from carso.analysis.sheet import Tile, place, png, zoom

FAST = ["--attack", "pgd-eot[steps=3,eot=1]", "--n", "3"]


def draw_figure(out: Path, *words: str) -> tuple[bytes, dict[str, Any]]:
    assert pictures.main([*FAST, "--device", "cpu", "--out", str(out), *words]) == 0
    (path,) = out.glob("*.png")
    return path.read_bytes(), json.loads(path.with_suffix(".json").read_text())


def pixels(data: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize(("channels", "side"), [(1, 28), (3, 32), (3, 8)])
def test_every_pixel_of_an_image_is_a_square_of_the_sheet(channels: int, side: int) -> None:
    rng = np.random.default_rng(0)
    images = rng.random((2, 3, channels, side, side), dtype=np.float32)
    rows = [
        [Tile(image, "4", i % 2 == 0, "small") for i, image in enumerate(row)] for row in images
    ]
    drawn, z = pixels(png("title", ["note"], ["a", "b", "c"], rows)), zoom(side, side)
    for r, row in enumerate(images):
        for c, image in enumerate(row):
            x, y = place(r, c, side, side)
            want = np.repeat(
                np.repeat(
                    np.broadcast_to(np.rint(image * 255), (3, side, side)).transpose(1, 2, 0), z, 0
                ),
                z,
                1,
            )
            assert np.array_equal(drawn[y : y + side * z, x : x + side * z], want)


def test_right_and_wrong_differ_in_mark_and_colour() -> None:
    image = np.zeros((1, 8, 8), np.float32)
    assert [Tile(image, "4", ok).text for ok in (True, False, None)] == [
        "\N{CHECK MARK} 4",
        "\N{BALLOT X} 4",
        "4",
    ]
    for ok, colour in ((True, sheet.RIGHT), (False, sheet.WRONG)):
        want = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        for tile in (Tile(image, "4", ok), Tile(None, "4", ok)):
            drawn = pixels(png("", [], ["a", "b"], [[Tile(image), tile]]))
            assert (drawn == want).all(2).sum() > 10
            other = [int((sheet.WRONG if ok else sheet.RIGHT)[i : i + 2], 16) for i in (1, 3, 5)]
            assert not (drawn == other).all(2).any()


def test_the_facts_are_those_of_the_harness(tmp_path: Path) -> None:
    """The record of the same cell: its distances and right draws are the figure's.

    It is so where the record chose the attack's proposal.
    """
    data, facts = draw_figure(tmp_path, "--n", "6")
    assert len(data) < 300_000
    args = pictures.parse([*FAST, "--n", "6"])
    record = evaluate(pictures.cell_of(args))
    attacked = [i for i, distance in enumerate(record.distance) if distance]
    assert len(attacked) >= 3
    image_of = {image["id"]: image for image in facts["images"]}
    for i in attacked:
        image = image_of[record.ids[i]]
        assert image["distance"] == pytest.approx(record.distance[i])
        assert image["right_draws"] == record.correct[i]
    assert sorted(image_of) == list(record.ids)
    whole = load(Spec("digits"))
    first = stratified_order(whole.y, whole.ids)[:6]
    assert [image["id"] for image in facts["images"]] == whole.ids[first].tolist()
    assert [image["label"] for image in facts["images"]] == whole.y[first].tolist()
    assert len(set(whole.y[first].tolist())) == 6
    assert all(
        0 < image["distance"] <= 0.2 + 1e-6
        and image["strayed"] == 0
        and len(image["reconstructions"]) == 8
        for image in facts["images"]
    )
    assert (facts["n"], facts["seed"], facts["eps"], facts["norm"], facts["difference_scale"]) == (
        6,
        0,
        "1/5",
        "linf",
        0.2,
    )
    assert set(facts["weights"]) == {"own:digits-at", "own:digits-carso"}
    assert all(len(digest) == 64 for digest in facts["weights"].values())
    assert facts["command"].startswith(
        "python -m carso.analysis.pictures --attack 'pgd-eot[steps=3,eot=1]'"
    )
    assert facts["commit"] == commit()
    assert facts["device"].startswith("CPU")


def test_what_is_drawn_is_what_was_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[pictures.Shown] = []
    sheets: list[Any] = []
    plain = pictures.show

    def show(*given: Any) -> pictures.Shown:
        shown.append(plain(*given))
        return shown[-1]

    def paint(*given: Any) -> bytes:
        sheets.append(given)
        return png(*given)

    monkeypatch.setattr(pictures, "show", show)
    monkeypatch.setattr(pictures, "png", paint)
    _, facts = draw_figure(tmp_path)
    (got,), ((title, notes, columns, rows),) = shown, sheets
    assert title == "digits, linf eps 1/5: carso under pgd-eot, seed 0"
    assert "none was picked" in "".join(notes)
    assert columns[2] == "difference\n\N{PLUS-MINUS SIGN}1/5"
    assert len(columns) == 12
    defence = evaluate_defence()
    with torch.no_grad():
        for i, (row, fact) in enumerate(zip(rows, facts["images"], strict=True)):
            label = fact["label"]
            for tile, x in (
                (row[0], got.x[i]),
                (row[1], got.x_adv[i]),
                *((row[3 + e], got.images[i, e]) for e in range(8)),
            ):
                assert np.array_equal(tile.image, x.numpy())
                said = int(defence.base(x[None]).argmax())  # one image at a time
                assert (tile.line, tile.right) == (str(said), said == label)
            assert np.allclose(
                (row[2].image - 0.5) * 0.4, (got.x_adv[i] - got.x[i]).numpy(), atol=1e-6
            )
            assert [int(tile.line) for tile in row[3:11]] == fact["reconstructions"]
            assert (row[11].line, row[11].right) == (
                str(fact["aggregated"]),
                fact["aggregated"] == label,
            )
            assert row[11].small == f"{fact['right_draws']} of 10\ndraws right"
            assert int(defence.aggregate(got.logits[i : i + 1]).argmax()) == fact["aggregated"]
        spread = got.images.std(1).amax()
        assert spread > 1e-4, "eight times the same reconstruction"
        with random_stream(torch.device("cpu"), got.cell.key, 0, "pictures"):
            z = torch.randn(3, 8, defence.latent_dim)
        want = defence.decode(
            z.flatten(0, 1), defence.latent(got.x_adv).repeat_interleave(8, 0)
        ).unflatten(0, (3, 8))
        torch.testing.assert_close(got.images, want)


def evaluate_defence() -> Any:
    from bench.questions.registry import build_defence

    return build_defence(pictures.cell_of(pictures.parse(FAST)).defence)


def test_same_command_same_bytes_another_seed_others(tmp_path: Path) -> None:
    first, first_facts = draw_figure(tmp_path / "a")
    second, second_facts = draw_figure(tmp_path / "b")
    third, third_facts = draw_figure(tmp_path / "c", "--seed", "1")
    assert first == second
    assert {**first_facts, "command": ""} == {**second_facts, "command": ""}
    assert first != third
    assert third_facts["seed"] == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--defence", "carsso"], "did you mean 'carso'"),
        (["--defence", "at"], "makes no reconstructions; take carso or vae"),
        (["--attack", "pgd-etb"], "did you mean 'pgd-eot'"),
        (["--attack", "pgd-eot[stepz=3]"], "takes no 'stepz'"),
        (["--dataset", "digitz"], "did you mean 'digits'"),
        (["--n", "11"], "n 11 is too large: the first 11 images are of 10 classes"),
        (["--n", "0"], "n 0 is too small"),
        (["--eps", "much"], "much"),
        (["--sed", "1"], "unknown flag --sed"),
        (["--device", "cuda:7"], "cuda:7"),
    ],
)
def test_bad_input_is_one_line(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "figures"
    assert pictures.main([*FAST, "--out", str(out), *words]) == 2
    line = capsys.readouterr().err
    assert message in line
    assert line.count("\n") == 1
    assert not out.exists()


def test_missing_data_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("bench.files.http_downloader", lambda: offline)
    out = tmp_path / "figures"
    assert (
        pictures.main(
            [*FAST, "--dataset", "mnist", "--data-dir", str(tmp_path / "data"), "--out", str(out)]
        )
        == 2
    )
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("pictures: dataset 'mnist' is not there: put ")
    assert not out.exists()


def test_interrupted_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pictures, "draw", stop)
    assert pictures.main([*FAST, "--out", str(tmp_path / "figures")]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert not (tmp_path / "figures").exists()
