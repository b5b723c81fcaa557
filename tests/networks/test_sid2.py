"""Parts of SiD2 and simple diffusion: GroupNorm, and patches by a wavelet."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dualrate.networks.blocks import ConvBlock, FiLM
from dualrate.networks.sid2 import GroupedBlock, GroupNorm, SiD2Config, Wavelet, composed, decomposed
from dualrate.networks.uvit import Level, UViTConfig
from dualrate.sampling.cost import macs_of

LEVELS = (Level("conv", 24, 1), Level("transformer", 16, 1), Level("conv", 8, 1))
SMALL = SiD2Config(16, 3, LEVELS, patch=2, embedding=16, head_dim=8)
MORE = {"downsampling": "5/3"}, {"norm": "layer"}, {"skips": "concatenated"}
both = pytest.mark.parametrize("wavelet", ["haar", "5/3"])


def normalised(h, groups):
    """Return h less its groups' means, over the root of their variances."""
    parts = h.unflatten(1, (groups, -1))
    mean = parts.mean((2, 3, 4), keepdim=True)
    return ((parts - mean) / ((parts - mean).square().mean((2, 3, 4), keepdim=True) + 1e-5).sqrt()).flatten(1, 2)


def test_a_block_normalises_groups_over_all_positions():
    torch.manual_seed(0)
    block = GroupedBlock(ConvBlock(24, 16, 0.0))
    for weight in block.parameters():
        nn.init.normal_(weight, std=0.3)
    block, h, emb = block.double(), torch.randn(2, 24, 4, 6).double(), torch.randn(2, 16).double()
    scale, shift = (part[..., None, None] for part in block.film(emb))
    learned = block.norm.scale[:, None, None], block.norm.shift[:, None, None]
    u = block.conv1(F.silu(normalised(h, 8) * learned[0] + learned[1]))
    expected = h + block.conv2(F.silu(normalised(u, 8) * scale + shift))
    torch.testing.assert_close(block(h, emb), expected)


@pytest.mark.parametrize(("channels", "groups"), [(64, 32), (48, 16), (32, 32), (7, 1)])
def test_there_are_32_groups_or_as_many_as_divide(channels, groups):
    h = torch.randn(2, channels, 3, 3).double()
    torch.testing.assert_close(GroupNorm(channels).double()(h), normalised(h, groups))
    assert GroupNorm(channels)(h.bfloat16()).dtype == torch.bfloat16


@both
@pytest.mark.parametrize("wrapped", [(False, False), (False, True), (True, True)])
@pytest.mark.parametrize(("patch", "shape"), [((2, 2), (3, 6, 8)), ((4, 4), (1, 8, 12)), ((1, 4), (2, 1, 8))])
def test_a_transform_goes_back(wavelet: Wavelet, wrapped, patch, shape):
    x = torch.randn(2, *shape).double()
    parts = decomposed(x, wavelet, patch, wrapped)
    down, across = patch
    assert parts.shape[1:] == (shape[0] * down * across, shape[1] // down, shape[2] // across)
    torch.testing.assert_close(composed(parts, wavelet, patch, wrapped), x)


def test_haar_is_orthonormal_and_begins_with_the_sums_of_patches():
    x = torch.randn(2, 3, 8, 8).double()
    parts = decomposed(x, "haar", (4, 4), (False, False))
    torch.testing.assert_close(parts.square().sum((1, 2, 3)), x.square().sum((1, 2, 3)))
    torch.testing.assert_close(parts[:, :3], F.avg_pool2d(x, 4) * 4)


@pytest.mark.parametrize("wrapped", [False, True])
def test_5_3_has_the_taps_of_its_name(wrapped):
    """On a line: five of the low band, (-1, 2, 6, 2, -1) / 8, and three of the high one, (-1, 2, -1) / 2."""
    x = torch.randn(2, 1, 1, 12).double()
    low, high = decomposed(x, "5/3", (1, 2), (False, wrapped)).unbind(1)
    wide = F.pad(x[:, 0], (2, 2), mode="circular" if wrapped else "reflect")[:, 0]
    fives = wide.unfold(1, 5, 2) @ torch.tensor([-1, 2, 6, 2, -1]).double() / 8
    threes = wide[:, 2:].unfold(1, 3, 2) @ torch.tensor([-1, 2, -1]).double() / 2
    torch.testing.assert_close(low[:, 0], 2**0.5 * fives)
    torch.testing.assert_close(high[:, 0], 0.5**0.5 * threes)


@pytest.mark.parametrize("config", [SMALL, *(replace(SMALL, **more) for more in MORE)])
def test_a_network_has_the_multiply_adds_that_it_says(config):
    network = config.network()
    x, log_snr = torch.randn(1, 3, 16, 16), torch.zeros(1)
    counted = macs_of(lambda: network(x, log_snr, None)) - macs_of(lambda: network.embedding(log_snr, None))
    films = sum(part.linear.weight.numel() for part in network.modules() if isinstance(part, FiLM))
    assert counted - films == config.macs


@both
def test_with_a_wavelet_a_network_is_that_of_the_transformed_image(wavelet: Wavelet):
    """Transform images beforehand: it is the network without patches."""
    torch.manual_seed(0)
    network = replace(SMALL, downsampling=wavelet).network().double()
    plain = replace(SMALL, image_size=8, image_channels=12, patch=1).network().double()
    for weight in network.parameters():
        nn.init.normal_(weight, std=0.2)
    plain.load_state_dict(network.state_dict())
    z, log_snr = torch.randn(2, 3, 16, 16).double(), torch.zeros(2).double()
    parts = plain(decomposed(z, wavelet, (2, 2), (False, False)), log_snr, None)
    torch.testing.assert_close(network(z, log_snr, None), composed(parts, wavelet, (2, 2), (False, False)))


def test_with_neither_it_is_the_u_vit():
    torch.manual_seed(0)
    ours = UViTConfig(16, 3, LEVELS, patch=2, embedding=16, head_dim=8).network()
    for weight in ours.parameters():
        nn.init.normal_(weight, std=0.2)
    theirs = replace(SMALL, norm="layer").network()
    theirs.load_state_dict(ours.state_dict())
    z = torch.randn(2, 3, 16, 16)
    assert torch.equal(theirs(z, torch.zeros(2), None), ours(z, torch.zeros(2), None))


@pytest.mark.parametrize("patch", [1, 3])
def test_a_wavelet_wants_patches_of_a_power_of_two(patch):
    with pytest.raises(ValueError, match=f"got a patch of {patch}: change patch"):
        replace(SMALL, image_size=12, patch=patch, downsampling="haar")


def test_concatenated_skips_are_of_every_block_the_last_one_first():
    """Against all parts called one by one."""
    torch.manual_seed(0)
    levels = Level("conv", 8, 2), Level("transformer", 16, 3), Level("conv", 8, 1)
    net = SiD2Config(16, 3, levels, patch=2, embedding=16, head_dim=8, skips="concatenated").network().double()
    for weight in net.parameters():
        nn.init.normal_(weight, std=0.2)
    z, log_snr = torch.randn(2, 3, 16, 16).double(), torch.zeros(2).double()
    added = tuple(
        torch.randn(2, level.channels, side, side).double() for level, side in zip(levels, (8, 4, 2), strict=True)
    )
    emb, skips = net.embedding(log_snr, None), []
    h = net.patches(z)
    for i in range(2):
        h = h + added[i] + (net.down[i].position if i == 1 else 0)
        for block in net.down[i].blocks:
            h = block(h, emb)
            skips.append(h)
        h = net.shrink[i](F.avg_pool2d(h, 2))
    h = net.middle(h + added[2], emb)
    for i in (1, 0):
        h = F.interpolate(net.grow[i](h), scale_factor=2)
        for j, block in enumerate(net.up[i].blocks):
            h = net.joins[i][j](torch.cat((h, skips.pop()), 1))
            h = block(h + (net.up[i].position if i == 1 and j == 0 else 0), emb)
    torch.testing.assert_close(net(z, log_snr, None, added), net.predict(h))
    whole = net.cut(1)
    inner, v = whole.whole(z, log_snr, None)
    torch.testing.assert_close(whole.rest(z, log_snr, None, inner), v)
    torch.testing.assert_close(v, net(z, log_snr, None))


def test_concatenated_skips_want_blocks():
    with pytest.raises(ValueError, match="a level has none: give it one"):
        replace(SMALL, levels=(Level("conv", 8, 0), *LEVELS[1:]), skips="concatenated")
