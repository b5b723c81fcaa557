"""U-ViTs of fields: on a line, on a rectangle, and where opposite edges meet."""

from __future__ import annotations

import pytest
import torch

import dualrate as dr
from dualrate.diffusion.context import Shape
from dualrate.networks.blocks import conv3, over_poles, wrapped
from dualrate.networks.conditional import ConditionEncoder, ConditionMaps
from dualrate.networks.dual import ContextEncoder, LightBody
from dualrate.networks.uvit import UViT
from dualrate.sampling.cost import macs_of

LINE: Shape = (2, 1, 32)
LEVELS = (dr.Level("conv", 8, 1), dr.Level("conv", 16, 2))


def config(*, height: int | None = 1, width: int = 32, patch: int = 1, periodic: bool = True, **more) -> dr.UViTConfig:
    how = {"levels": LEVELS} | more
    return dr.UViTConfig(width, 2, patch=patch, embedding=16, height=height, periodic=periodic, **how)


def randomised(network: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(0)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return network.double().requires_grad_(False)


def called(network: torch.nn.Module, z: torch.Tensor) -> torch.Tensor:
    return network(z, torch.zeros(len(z), dtype=z.dtype), None)


@pytest.mark.parametrize("patch", [1, 2])
@pytest.mark.parametrize(("height", "dims"), [(1, (3,)), (None, (2, 3)), (16, (2, 3))])
def test_a_shifted_periodic_field_gives_a_shifted_output(height: int | None, dims: tuple[int, ...], patch: int) -> None:
    """By the positions of the coarsest level, where a level of convolutions has none of its own."""
    made = config(height=height, patch=patch)
    network, z = randomised(UViT(made)), torch.randn(3, *made.shape, dtype=torch.float64)
    by = (4 * patch,) * len(dims)
    torch.testing.assert_close(called(network, z.roll(by, dims)), called(network, z).roll(by, dims))


def test_edges_of_a_field_that_is_not_periodic_are_edges() -> None:
    """Far from both edges the two agree."""
    made = config(periodic=False, width=128)
    network, z = randomised(UViT(made)), torch.randn(1, *made.shape, dtype=torch.float64)
    around = UViT(config(width=128)).double()
    around.load_state_dict(network.state_dict())
    apart = (called(network, z) - called(around, z)).abs().amax((0, 1, 2))
    assert apart[0] > 1e-3
    assert apart[-1] > 1e-3
    assert apart[56:72].max() < 1e-12


@pytest.mark.parametrize("patch", [1, 4])
def test_multiply_adds_on_a_line(patch: int) -> None:
    """Three positions a convolution, not nine."""
    network, made = UViT(config(patch=patch)), config(patch=patch)
    z, width = torch.zeros(1, *LINE), 32 // patch
    stem, head = 2 * 8 * (3 if patch == 1 else patch), 3 * 8 * 2 * patch
    fine, coarse, between = 2 * 2 * 3 * 8 * 8, 2 * 2 * 3 * 16 * 16 / 2, 8 * 16 / 2 * 2
    linear = 64 * 16 + 16 * 16 + 16 * 2 * (8 + 8 + 16 + 16)
    assert macs_of(lambda: network(z, torch.zeros(1), None)) == width * (stem + head + fine + coarse + between) + linear
    assert made.sides(1) == (1, width // 2)


def test_both_rates_on_a_line() -> None:
    made = config()
    encoder, light = ContextEncoder(made, made), LightBody(made)
    z, log_snr = torch.randn(3, *LINE), torch.zeros(3)
    features, v = encoder(z, log_snr, None)
    assert v is not None
    assert v.shape == z.shape
    assert light(z, log_snr, None, features, log_snr).shape == z.shape


@pytest.mark.parametrize(
    ("given", "height"), [((1, 1, 32), 1), ((1, 1, 8), 1), ((1, 16, 32), 16), ((3, 4, 8), 16), ((1, 32, 64), 16)]
)
def test_a_condition_of_any_sides_that_divide(given: Shape, height: int) -> None:
    made = config(height=height)
    encoder = ConditionEncoder(made, made, given)
    features = encoder(torch.zeros(2), torch.randn(2, *given), None)
    assert [feature.shape[2:] for feature in features] == [made.sides(0), made.sides(1)]


def test_a_condition_whose_sides_do_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match=r"levels, 16 x 32, 8 x 16"):
        ConditionMaps((1, 12, 32), config(height=16))


def test_heights_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="images of side 9 do not divide"):
        config(height=9)


@pytest.mark.parametrize(("line", "shape"), [(False, (2, 3, 5, 6)), (False, (1, 3, 1, 4)), (True, (2, 3, 1, 6))])
@pytest.mark.parametrize("form", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("compiling", [False, True])
def test_a_convolution_on_a_torus_is_that_of_torch_in_the_memory_of_its_input(
    line, shape, form, compiling, monkeypatch
) -> None:
    """Outputs, gradients, and a derivative carried forward: bit for bit, in float64. Compiled, too, it pads right."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    torch.manual_seed(0)
    periodic = conv3(3, 4, line=line, periodic=(True, True)).double()
    plain = torch.nn.Conv2d(3, 4, periodic.kernel_size, padding=periodic.padding, padding_mode="circular").double()
    plain.load_state_dict(periodic.state_dict())
    z, along = (torch.randn(shape, dtype=torch.float64).contiguous(memory_format=form) for _ in range(2))
    results = []
    for layer in (periodic, plain):
        h = z.clone(memory_format=torch.preserve_format).requires_grad_()
        out, forward = torch.func.jvp(layer, (h,), (along,))
        results.append([out, forward, *torch.autograd.grad(layer(h).square().sum(), (h, layer.weight, layer.bias))])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-13)
    assert wrapped(z, (1, 1)).is_contiguous(memory_format=form)
    assert torch.equal(wrapped(z, (1, 0)), wrapped(z, (1, 2))[..., 2:-2])
    assert torch.equal(wrapped(z, (0, 1)), wrapped(z, (1, 1))[..., 1:-1, :])


def sphere(rows: int, columns: int, *, beyond: int = 0) -> torch.Tensor:
    """x, y, z of the points of a sphere, (1, 3, rows, columns), and so many rows and columns beyond."""
    polar = torch.pi * (torch.arange(-beyond, rows + beyond, dtype=torch.float64) + 0.5) / rows
    azimuth = 2 * torch.pi * torch.arange(-beyond, columns + beyond, dtype=torch.float64) / columns
    around = torch.stack((azimuth.cos(), azimuth.sin()))[:, None] * polar.sin()[:, None]
    return torch.cat((around, polar.cos()[:, None].expand(around[:1].shape)))[None]


@pytest.mark.parametrize("form", [torch.channels_last, torch.contiguous_format])
def test_beyond_a_pole_a_sphere_goes_on(form) -> None:
    """x, y, z are smooth there: sin and cos of an angle that goes on over the pole are those of the other side."""
    wide = over_poles(sphere(6, 8).contiguous(memory_format=form))
    torch.testing.assert_close(wide, sphere(6, 8, beyond=1), rtol=0, atol=1e-14)
    assert wide.is_contiguous(memory_format=form)


def test_turning_a_sphere_turns_what_a_convolution_makes() -> None:
    """By whole longitudes; and of the sphere seen from the other pole."""
    torch.manual_seed(0)
    conv, z = conv3(3, 4, poles=True).double(), torch.randn(2, 3, 6, 8, dtype=torch.float64)
    plain = conv(z)
    for columns in (1, 4, 5):
        torch.testing.assert_close(conv(z.roll(columns, 3)), plain.roll(columns, 3))
    with torch.no_grad():
        conv.weight.copy_(conv.weight.flip(2))
    torch.testing.assert_close(conv(z.flip(2)), plain.flip(2))
    assert torch.autograd.gradcheck(over_poles, z[:1, :1].requires_grad_())


def test_a_network_over_poles_turns_with_its_field() -> None:
    network = randomised(UViT(config(height=16, periodic=False, across=True, poles=True)))
    z = torch.randn(1, 2, 16, 32, dtype=torch.float64)
    plain, changed = called(network, z), z.clone()
    torch.testing.assert_close(called(network, z.roll(4, 3)), plain.roll(4, 3))
    changed[..., 0, 16] += 1  # is beside column 0 of the first row
    assert (called(network, changed) != plain)[..., 0, 0].any()


@pytest.mark.parametrize(
    "how", [{"height": 16}, {"across": True}, {"across": True, "height": 32, "levels": LEVELS * 3}]
)
def test_poles_want_a_sphere_whose_levels_halve(how) -> None:
    with pytest.raises(ValueError, match="poles want"):
        config(poles=True, periodic=False, **how)
