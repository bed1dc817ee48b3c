"""The networks against the paper's numbers, and at other sizes."""

from __future__ import annotations

from math import prod
from typing import Any

import pytest
import torch

from carso import Layout, Purifier
from carso.purifier import Cat
from carso.recipe import read_recipe
from tests.carso.small import LAYERS, images, layout, purifier

# The 26 tapped convolutions of a WRN-28-10 on 32x32 images; on 64x64 every side doubles.
WRN = ((160, 32, 32),) * 8 + ((320, 16, 16),) * 9 + ((640, 8, 8),) * 9
COUNTS = {
    "cifar10": (846, 28_442_960, 75_285_504, 164_096, 33_024, 2_455_107, 106_381_537),
    "cifar100": (846, 28_442_960, 75_285_504, 164_096, 33_024, 2_455_107, 106_381_537),
    "tinyimagenet200": (846, 28_782_600, 289_998_336, 737_664, 74_112, 4_914_979, 324_508_537),
}


def paper(name: str) -> Purifier:
    recipe = read_recipe(name)
    double = 2 if name == "tinyimagenet200" else 1
    taps = tuple((ch, h * double, w * double) for ch, h, w in WRN)
    with torch.device("meta"):
        return Purifier(recipe.layout((3, 32 * double, 32 * double), taps), recipe.layers)


def count(*modules: Any) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


@pytest.mark.parametrize("name", list(COUNTS))
def test_parameter_counts_of_the_paper(name: str) -> None:
    p = paper(name)
    got = (
        count(p.encoder),
        count(p.compressors),
        count(p.bottleneck),
        count(p.joint),
        count(p.mu, p.logvar),
        count(p.decoder),
        count(p),
    )
    assert got == COUNTS[name]


def test_layers_of_the_paper() -> None:
    layers = read_recipe("cifar10").layers
    assert len(layers) == 26
    assert layers[:3] == (
        "layer.0.block.0.conv_0",
        "layer.0.block.0.conv_1",
        "layer.0.block.1.conv_0",
    )
    assert layers[8:11] == (
        "layer.1.block.0.conv_0",
        "layer.1.block.0.conv_1",
        "layer.1.block.0.shortcut",
    )
    assert layers[17:20] == (
        "layer.2.block.0.conv_0",
        "layer.2.block.0.conv_1",
        "layer.2.block.0.shortcut",
    )
    assert layers == read_recipe("cifar100").layers == read_recipe("tinyimagenet200").layers


@pytest.mark.parametrize(
    ("name", "compressed", "flat", "decoder"),
    [
        (
            "cifar10",
            ((20, 26, 26), (40, 10, 10), (80, 2, 2)),
            147_040,
            [(256, 5, 5), (128, 9, 9), (64, 17, 17), (32, 33, 33), (3, 32, 32)],
        ),
        (
            "tinyimagenet200",
            ((10, 56, 56), (20, 24, 24), (40, 8, 8)),
            377_600,
            [(256, 8, 8), (128, 16, 16), (64, 32, 32), (32, 64, 64), (3, 64, 64)],
        ),
    ],
)
def test_shapes_of_the_paper(
    name: str, compressed: tuple[tuple[int, ...], ...], flat: int, decoder: list[tuple[int, ...]]
) -> None:
    p = paper(name).eval()
    for i, want in zip((0, 8, 17), compressed, strict=True):
        tap = p.layout.taps[i]
        assert p.layout.compressed_shape(tap) == want
        assert p.compressors[i](torch.empty(1, *tap, device="meta")).shape[1:] == want
    assert sum(prod(p.layout.compressed_shape(tap)) for tap in p.layout.taps) == flat
    h = (
        torch.empty(2, p.layout.latent, device="meta"),
        torch.empty(2, p.layout.bottleneck, device="meta"),
    )
    h = p.decoder[0](h)
    for stage, want in zip(list(p.decoder)[1:6], decoder, strict=True):
        h = stage(h)
        assert tuple(h.shape[1:]) == want
    side = p.layout.image[1]
    c = p.condition([torch.empty(2, *tap, device="meta") for tap in p.layout.taps])
    mu, logvar = p.encode(torch.empty(2, 3, side, side, device="meta"), c)
    assert (c.shape, mu.shape, logvar.shape) == (
        (2, p.layout.bottleneck),
        (2, p.layout.latent),
        (2, p.layout.latent),
    )
    assert p.encoder(torch.empty(1, 3, side, side, device="meta")).shape == (
        1,
        12,
        side // 4,
        side // 4,
    )


def test_key_names_of_the_released_files() -> None:
    p = paper("cifar10")
    assert p.compressors[3][2][0].weight.shape == (20, 40, 3, 3)
    assert p.bottleneck is not None
    assert p.bottleneck.state_dict()["1.0.weight"].shape == (512, 147_040)
    decoder = {k: tuple(v.shape) for k, v in p.decoder.state_dict().items()}
    assert (len(p.compressors.state_dict()), len(p.bottleneck.state_dict()), len(decoder)) == (
        468,
        6,
        28,
    )
    assert (decoder["0.1.weight"], decoder["0.1.bias"]) == ((2304, 640), (2304,))
    assert [decoder[f"{i}.0.weight"] for i in (1, 2, 3, 4)] == [
        (256, 256, 3, 3),
        (256, 128, 3, 3),
        (128, 64, 3, 3),
        (64, 32, 3, 3),
    ]
    assert (decoder["5.weight"], decoder["5.bias"], decoder["4.1.running_var"]) == (
        (32, 3, 2, 2),
        (3,),
        (32,),
    )


@pytest.mark.parametrize("last_kernel", [2, 3])
@pytest.mark.parametrize("size", [(8, 8), (28, 28), (7, 12), (1, 5), (33, 64), (50, 31)])
def test_the_decoder_hits_any_size(size: tuple[int, int], last_kernel: int) -> None:
    model = Purifier(
        Layout(
            (2, *size),
            ((4, 3, 3),),
            (0.5, 0.5),
            (0.2, 0.3),
            1,
            1,
            5,
            3,
            (4, 6),
            (6, 5, 4, 3),
            last_kernel,
        )
    ).eval()
    x = model.decode(torch.randn(2, 3), torch.randn(2, 5))
    assert x.shape == (2, 2, *size)
    assert 0 < x.min() < x.max() < 1
    mu, _ = model.encode(x, torch.randn(2, 5))
    assert mu.shape == (2, 3)


def test_the_condition_reads_every_tap_and_the_posterior_the_scaled_image() -> None:
    p = purifier()
    rest = [
        torch.randn(2, *tap, generator=torch.Generator().manual_seed(0)) for tap in p.layout.taps
    ]
    base = p.condition(rest)
    for i in range(len(LAYERS)):
        moved = [r + (j == i) for j, r in enumerate(rest)]
        assert not torch.allclose(p.condition(moved), base)
    x = images(2)
    mu, _ = p.encode(x, base)
    h = p.encoder((x - 0.3) / 0.4)
    torch.testing.assert_close(mu, p.mu(p.joint((h, base))))


def test_z_comes_before_c() -> None:
    p = purifier()
    z, c = torch.randn(2, 3), torch.randn(2, 6)
    torch.testing.assert_close(
        p.decode(z, c),
        p.decoder[1:](p.decoder[0][3](p.decoder[0][2](p.decoder[0][1](torch.cat([z, c], 1))))),
    )


def test_the_forward_pass_samples_the_posterior() -> None:
    p, x = purifier(), images(1).expand(4000, -1, -1, -1)
    rest = [torch.ones(4000, *tap) for tap in p.layout.taps]
    seen = []
    p.decoder.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0][0]))
    with torch.no_grad():
        _, mu, logvar = p(x, rest)
    torch.testing.assert_close(seen[0].mean(0), mu[0], rtol=0, atol=0.1)
    torch.testing.assert_close(seen[0].std(0), (logvar[0] / 2).exp(), rtol=0.06, atol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"taps": ((512, 4, 4),), "blocks": 3, "padding": 0},
            r"tap 0 \(512x4x4\) is too small for 3 blocks .* need 7x7",
        ),
        ({"mean": (0.1, 0.2)}, "one value for each of the 1 channels"),
        ({"last_kernel": 4}, "last_kernel=4 must be 2 or 3"),
        ({"latent": 0}, "at least 1"),
        (
            {"taps": ((5, None, None),)},
            "flat=0 is counted where the taps' shapes are known, "
            "and must be given where they are not",
        ),
        ({"taps": ((5, 8, 8),), "flat": 3}, "flat=3 is counted"),
        (
            {"taps": ((None, 8, 8),), "flat": 3},
            "only the height and the width of a tap can be unknown",
        ),
        ({"taps": ((None,),), "flat": 3}, "only the height and the width of a tap can be unknown"),
    ],
)
def test_a_layout_that_cannot_be_built_says_why(change: dict[str, Any], message: str) -> None:
    data = layout().to_json() | change
    with pytest.raises(ValueError, match=message):
        Layout.from_json(data)


def test_layout_round_trip() -> None:
    assert Layout.from_json(layout().to_json()) == layout()
    unknown = Layout.from_json(layout().to_json() | {"taps": ((5, None, 8), (7,)), "flat": 199})
    assert Layout.from_json(unknown.to_json()) == unknown
    assert "flat" not in layout().to_json()  # which cards of earlier versions lack
    with pytest.raises(ValueError, match="colour"):
        Layout.from_json(layout().to_json() | {"colour": 1})


def test_activations() -> None:
    """Leaky rectifiers of slope 0.2 after every block and the adapter, a sigmoid at the end.

    There is none in the neck, and no dropout.
    """
    p = paper("cifar10")
    kinds = [module for module in p.modules() if not list(module.children())]
    leaky = [module.negative_slope for module in kinds if isinstance(module, torch.nn.LeakyReLU)]
    assert leaky == [0.2] * (26 * 3 + 1 + 2 + 1 + 1 + 4)
    normal = {
        torch.nn.Conv2d,
        torch.nn.Linear,
        torch.nn.ConvTranspose2d,
        torch.nn.BatchNorm2d,
        torch.nn.BatchNorm1d,
        torch.nn.Unflatten,
        Cat,
    }
    assert {type(module) for module in kinds} == normal | {torch.nn.LeakyReLU, torch.nn.Sigmoid}
    assert isinstance(p.decoder[-1], torch.nn.Sigmoid)


def test_foreign_taps_are_refused() -> None:
    with pytest.raises(ValueError, match="was made for taps"):
        purifier().condition([torch.ones(2, 5, 8, 8)])
    with pytest.raises(ValueError, match="was made for taps"):
        purifier(unconditional=True).condition([])


def test_taps_whose_height_is_not_known() -> None:
    """Channels 5 become 3, maps of 8 wide stay as wide, and 7 flat values enter as they are."""
    model = Purifier(
        Layout.from_json(
            layout().to_json() | {"taps": ((5, None, 8), (7,)), "flat": 3 * 9 * 8 + 7}
        ),
        ("a", "b"),
    ).eval()
    assert model.condition([torch.ones(2, 5, 9, 8), torch.ones(2, 7)]).shape == (2, 6)
    for taps in (
        [(5, 8, 9), (7,)],
        [(5, 9, 8), (8,)],
        [(5, 9, 8), (7, 1)],
        [(6, 9, 8), (7,)],
        [(5, 9, 8)],
        [(5, 8, 8), (7,)],
    ):
        with pytest.raises(
            ValueError,
            match=r"made for taps of the shapes|"
            r"223 values after compression, the classifier's have 199",
        ):
            model.condition([torch.ones(2, *tap) for tap in taps])


def test_a_purifier_without_an_encoder() -> None:
    model = Purifier(Layout.from_json(layout().to_json() | {"encoder": ()}), LAYERS).eval()
    assert {key.partition(".")[0] for key in model.state_dict()} == {
        "compressors",
        "bottleneck",
        "decoder",
    }
    with pytest.raises(ValueError, match="has no encoder, and can only decode"):
        model.encode(images(2), torch.zeros(2, 6))
    assert model.decode(torch.zeros(2, 3), torch.zeros(2, 6)).shape == (2, 1, 8, 8)
