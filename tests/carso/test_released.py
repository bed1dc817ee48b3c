"""The authors' files: their function, against an implementation of its own, and their faults."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from carso import CARSO, Purifier, released
from carso.checkpoint import describe_purifier, load_purifier, save_purifier
from carso.released_purifier import from_released
from tests.carso import authors
from tests.carso.authors import State

# channels and sides of the taps, blocks, C, D, the decoder's maps, its seed's side, the last kernel
SIZES = {
    "cifar": ([16, 9, 5], [11, 9, 7], 3, 6, 4, [10, 8, 6, 5, 4], 3, 2),
    "tiny": ([16, 20], [12, 9], 4, 7, 3, [6, 6, 5, 4, 4], 4, 3),
    "one stage": ([3], [4], 1, 2, 5, [7, 3], 2, 3),
    "no stage": ([4, 1], [5, 6], 2, 3, 1, [5], 7, 2),
}
IMAGE = {"cifar": 32, "tiny": 64, "one stage": 4, "no stage": 6}


class Convs(nn.Module):
    """A classifier with taps of these channels and sides, from images of any size."""

    def __init__(self, channels: list[int], sides: list[int]) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3, n, 1) for n in channels)
        self.sides, self.logits = sides, nn.Linear(sum(channels), 5)

    def forward(self, x: Tensor) -> Tensor:
        out = [
            conv(nn.functional.interpolate(x, (side, side)))
            for conv, side in zip(self.convs, self.sides, strict=True)
        ]
        logits: Tensor = self.logits(torch.cat([r.mean((2, 3)) for r in out], 1)) * 3
        return logits

    def taps(self, x: Tensor) -> list[Tensor]:
        return [
            conv(nn.functional.interpolate(x, (side, side)))
            for conv, side in zip(self.convs, self.sides, strict=True)
        ]


def parts(kind: str, seed: int = 0) -> dict[str, State]:
    channels, sides, blocks, c, d, maps, grain, kernel = SIZES[kind]
    flat = sum(
        -(-n // 2**blocks) * (side - 2 * blocks) ** 2
        for n, side in zip(channels, sides, strict=True)
    )
    shapes = authors.purifier_shapes(
        channels, blocks, flat, c=c, d=d, maps=maps, seed=grain, kernel=kernel
    )
    return {
        part: authors.random_state(want, seed + i) for i, (part, want) in enumerate(shapes.items())
    }


def names(kind: str) -> list[str]:
    return [f"convs.{i}" for i in range(len(SIZES[kind][0]))]


def classifier(kind: str) -> Convs:
    torch.manual_seed(5)
    return Convs(*SIZES[kind][:2]).eval()


def images(kind: str, n: int = 3) -> Tensor:
    return torch.rand(n, 3, IMAGE[kind], IMAGE[kind], generator=torch.Generator().manual_seed(9))


@pytest.mark.parametrize("kind", SIZES)
@torch.no_grad()
def test_the_function_is_the_authors(kind: str) -> None:
    """Taps in order, columns of z before those of c, flattening, normalisation and slopes at once.

    So are the sizes of the maps and the sigmoid.
    """
    state, f, x = parts(kind), classifier(kind), images(kind)
    purifier = from_released(*state.values(), layers=names(kind))
    assert purifier.layout.image == (3, IMAGE[kind], IMAGE[kind])
    c = authors.condition(state["repr_compressors"], state["repr_fcn_compressor"], f.taps(x))
    torch.testing.assert_close(purifier.condition(f.taps(x)), c, rtol=1e-5, atol=1e-5)
    z = torch.randn(3, 4, SIZES[kind][4])
    wants = [authors.decode(state["decoder"], z[:, e], c) for e in range(4)]
    assert wants[0].std() > 0.01
    torch.testing.assert_close(purifier.decode(z[:, 0], c), wants[0], rtol=1e-5, atol=1e-5)
    want = torch.stack([f(image) for image in wants], 1)
    model = CARSO(f, purifier, samples=4)
    torch.testing.assert_close(model.sample_logits(x, z), want, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        model.aggregate(want).double(), authors.peel(want), rtol=1e-4, atol=1e-4
    )
    swapped = state["decoder"] | {
        "0.1.weight": state["decoder"]["0.1.weight"].roll(SIZES[kind][4], 1)
    }
    turned = from_released(
        state["repr_compressors"], state["repr_fcn_compressor"], swapped, layers=names(kind)
    )
    assert not torch.allclose(turned.decode(z[:, 0], c), wants[0], atol=1e-2)


def test_what_is_sampled_is_the_prior() -> None:
    purifier = from_released(*parts("cifar").values(), layers=names("cifar"))
    model, seen = CARSO(classifier("cifar"), purifier, samples=8), []
    purifier.decoder.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0][0]))
    for _ in range(2):
        model(images("cifar", 64))
    z = torch.cat(seen)
    assert z.shape == (2 * 64 * 8, 4)
    assert len(z.unique(dim=0)) == len(z)  # fresh for every image, sample and call
    torch.testing.assert_close(z.mean(0), torch.zeros(4), rtol=0, atol=0.12)
    torch.testing.assert_close(z.T.cov(), torch.eye(4), rtol=0, atol=0.15)


def test_the_tensors_are_copied_and_the_random_stream_is_not_touched() -> None:
    state = parts("tiny")
    before = torch.get_rng_state()
    purifier = from_released(*state.values(), layers=names("tiny"))
    assert torch.equal(torch.get_rng_state(), before)
    weight = purifier.decoder[0][1].weight
    state["decoder"]["0.1.weight"].zero_()
    assert weight.abs().sum() > 0
    assert not weight.requires_grad
    assert not any(module.training for module in purifier.modules())


def test_without_the_training_parts_it_can_only_decode(tmp_path: Path) -> None:
    f, x = classifier("cifar"), images("cifar")
    purifier = from_released(*parts("cifar").values(), layers=names("cifar"))
    c = purifier.condition(f.taps(x))
    for use in (lambda p: p.encode(x, c), lambda p: p(x, f.taps(x))):
        with pytest.raises(ValueError, match="no encoder, and can only decode"):
            use(purifier)
    assert sum(p.numel() for p in purifier.parameters()) == sum(
        v.numel() for k, v in flat(parts("cifar")) if v.ndim and "running" not in k
    )
    save_purifier(tmp_path / "a.safetensors", purifier, describe_purifier(purifier, f))
    back, _ = load_purifier(tmp_path / "a.safetensors")
    assert back.layout == purifier.layout
    assert torch.equal(back.condition(f.taps(x)), c)


def flat(state: dict[str, State]) -> list[tuple[str, Tensor]]:
    return [item for part in state.values() for item in part.items()]


@pytest.mark.parametrize("widths", [[6, 12], [4, 5, 7]])
@torch.no_grad()
def test_the_training_parts(widths: list[int]) -> None:
    extra = {
        part: authors.random_state(want, 20 + i)
        for i, (part, want) in enumerate(authors.training_shapes(widths, 32, 6, 4).items())
    }
    x, c = images("cifar"), torch.randn(3, 6)
    plain = from_released(*parts("cifar").values(), layers=names("cifar"), training_parts=extra)
    for got, want in zip(plain.encode(x, c), authors.encode(extra, x, c), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    scaled = from_released(
        *parts("cifar").values(),
        layers=names("cifar"),
        training_parts=extra,
        mean=(0.1, 0.2, 0.3),
        std=(0.5, 0.6, 0.7),
    )
    moved = (x - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / torch.tensor([0.5, 0.6, 0.7]).view(
        3, 1, 1
    )
    for got, want in zip(scaled.encode(x, c), authors.encode(extra, moved, c), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    with pytest.raises(
        ValueError,
        match="holds input_compressor, neck; "
        "it takes all of input_compressor, joint_fcn_compressor, neck",
    ):
        from_released(
            *parts("cifar").values(),
            layers=names("cifar"),
            training_parts={k: v for k, v in extra.items() if k[0] != "j"},
        )


def change_tensor(
    part: str, key: str, act: Callable[[Tensor], Tensor | None]
) -> Callable[[dict[str, State]], None]:
    def do(state: dict[str, State]) -> None:
        new = act(state[part].pop(key))
        if new is not None:
            state[part][key] = new

    return do


def drop(_: Tensor) -> None:
    return None


@pytest.mark.parametrize(
    ("do", "message"),
    [
        (
            change_tensor("repr_compressors", "1.2.0.weight", drop),
            r"repr_compressors lacks 1\.2\.0\.weight$",
        ),
        (
            change_tensor("repr_compressors", "0.0.0.weight", drop),
            r"repr_compressors lacks 0\.0\.0\.weight$",
        ),
        (
            change_tensor("repr_compressors", "2.1.1.running_var", drop),
            r"repr_compressors lacks 2\.1\.1\.running_var$",
        ),
        (
            change_tensor("repr_compressors", "1.0.1.num_batches_tracked", drop),
            r"lacks 1\.0\.1\.num_batches_tracked$",
        ),
        (
            lambda s: s["repr_compressors"].update(more=torch.ones(1)),
            r"repr_compressors also holds more$",
        ),
        (
            lambda s: s["decoder"].update({"5.1.weight": torch.ones(1)}),
            r"decoder also holds 5\.1\.weight$",
        ),
        (
            lambda s: s["repr_compressors"].update({"3.0.0.weight": torch.ones(1)}),
            "is of 4 taps, and layers names 3",
        ),
        (
            change_tensor("repr_compressors", "0.1.0.weight", lambda t: t.transpose(0, 1)),
            r"0\.1\.0\.weight of the shape \(8, 4, 3, 3\), not \(4, 8, 3, 3\)",
        ),
        (
            change_tensor("repr_compressors", "1.0.0.weight", lambda t: t[:, :, :1, :1]),
            r"1\.0\.0\.weight of the shape \(5, 9, 1, 1\), not \(5, 9, 3, 3\)",
        ),
        (
            change_tensor("repr_fcn_compressor", "1.0.weight", drop),
            r"repr_fcn_compressor lacks 1\.0\.weight$",
        ),
        (change_tensor("repr_fcn_compressor", "1.0.weight", lambda t: t[0]), "not of 2 dimensions"),
        (
            change_tensor("repr_fcn_compressor", "1.1.bias", lambda t: t[1:]),
            r"1\.1\.bias of the shape \(5,\), not \(6,\)",
        ),
        (
            change_tensor("decoder", "0.1.weight", lambda t: t[:, :6]),
            "6 columns, too few for a condition of 6 values",
        ),
        (
            change_tensor("decoder", "0.1.weight", lambda t: t[1:]),
            "makes no square image: 0.1.weight has 89 rows for 10 channels",
        ),
        (
            change_tensor("decoder", "5.weight", lambda t: torch.ones(4, 3, 4, 4)),
            r"no square image.*\(4, 4\)",
        ),
        (change_tensor("decoder", "5.bias", drop), r"decoder lacks 5\.bias$"),
        (change_tensor("decoder", "2.0.weight", drop), r"decoder lacks 2\.0\.weight$"),
        (
            change_tensor("decoder", "3.1.running_mean", lambda t: t * torch.nan),
            r"decoder is damaged: 3\.1\.running_mean is not finite",
        ),
        (
            change_tensor("repr_compressors", "2.0.0.weight", lambda t: t / 0),
            r"repr_compressors is damaged: 2\.0\.0\.weight is not finite",
        ),
        (
            change_tensor("repr_fcn_compressor", "1.1.running_var", lambda t: -t),
            r"damaged: 1\.1\.running_var has negative values",
        ),
    ],
)
def test_what_does_not_fit_is_named(do: Callable[[dict[str, State]], None], message: str) -> None:
    state = parts("cifar")
    do(state)
    with pytest.raises(ValueError, match=message) as caught:
        from_released(*state.values(), layers=names("cifar"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("sides", "channels", "message"),
    [
        ([11, 9], [16, 9], "made for taps of the shapes"),
        ([11, 9, 7], [16, 9, 6], "made for taps of the shapes"),
        (
            [11, 9, 9],
            [16, 9, 5],
            "made for taps of 69 values after compression, the classifier's have 77",
        ),
        ([11, 9, 6], [16, 9, 5], r"tap 2 \(5x6x6\) is too small for 3 blocks .* need 7x7"),
    ],
)
def test_taps_of_another_classifier(sides: list[int], channels: list[int], message: str) -> None:
    purifier = from_released(*parts("cifar").values(), layers=names("cifar"))
    with pytest.raises(ValueError, match=message):
        purifier.condition(
            [torch.ones(2, n, side, side) for n, side in zip(channels, sides, strict=True)]
        )


COUNTS = {
    "cifar10": (468, 28_460_398, 2_456_071),
    "cifar100": (468, 28_460_398, 2_456_071),
    "tinyimagenet200": (624, 28_801_304, 4_915_943),
}


@pytest.mark.parametrize("name", COUNTS)
def test_the_layouts_of_the_released_files(name: str) -> None:
    """Every key and shape of the tables, with the numbers of entries and elements.

    Nothing is left over. The size of the image follows.
    """
    want = authors.released_shapes(name)
    with torch.device("meta"):
        modules = released.purifier_parts(Purifier(released.layout(name), released.layers(name)))
    shapes = {part: released.shapes_of(module.state_dict()) for part, module in modules.items()}
    assert shapes == want
    sizes = [
        sum(torch.Size(shape).numel() for shape in want[part].values())
        for part in ("repr_compressors", "decoder")
    ]
    assert (len(want["repr_compressors"]), *sizes) == COUNTS[name]
    assert (len(want["repr_fcn_compressor"]), len(want["decoder"])) == (6, 28)
    assert list(released.layers(name)) == authors.LAYERS
    assert released.layout(name).image == (
        (3, 64, 64) if name == "tinyimagenet200" else (3, 32, 32)
    )


def test_addresses() -> None:
    assert (
        released.purifier_files("cifar10")["decoder"]
        == "cifar_10_cuiwrn2810/models/wrn_28_10_cifar_10_cui_2023_decoder.safetensors"
    )
    assert (
        released.purifier_files("cifar100-own")["repr_compressors"]
        == "cifar_100_ownwrn2810/wrn_28_10_cifar_100_own_2025_repr_compressors.safetensors"
    )
    assert released.purifier_files("tinyimagenet200")["repr_fcn_compressor"].endswith(
        "models/wrn_28_10_tinyimagenet_200_wang_2023_repr_fcn_compressor.safetensors"
    )
    with pytest.raises(ValueError, match="released no 'cifar'; did you mean 'cifar10'"):
        released.purifier_files("cifar")
    with pytest.raises(ValueError, match="released no 'cifar10-gowal'; did you mean 'cifar10"):
        released.purifier_files("cifar10-gowal")
