"""The U-ViT, the context encoder and the light network: costs, identities at initialisation, context."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from dualrate.diffusion.prediction import x_from_v
from dualrate.diffusion.process import GaussianProcess
from dualrate.diffusion.schedule import Cosine
from dualrate.experiment.network_configs import TwoNetworks
from dualrate.networks.blocks import (
    ConvBlock,
    FiLM,
    GroupNorm,
    TransformerBlock,
    attend,
    haar,
    patchified,
    unpatchified,
)
from dualrate.networks.decoder import LatentEncoder
from dualrate.networks.dual import ContextConfig, ContextEncoder, LightUViT, disconnect
from dualrate.networks.dual import kept as kept_at
from dualrate.networks.uvit import Blocks, Level, UViT, UViTConfig
from dualrate.recipes import imagenet
from dualrate.sampling.cost import macs_of


def config(**changes) -> UViTConfig:
    fields = {
        "image_size": 16,
        "image_channels": 3,
        "levels": (Level("conv", 16, 1), Level("transformer", 32, 1), Level("transformer", 32, 2)),
        "num_classes": 4,
        "patch": 2,
        "embedding": 32,
        "head_dim": 16,
    }
    return UViTConfig(**(fields | changes))


LIGHT = config(levels=(Level("conv", 8, 1), Level("transformer", 16, 1), Level("transformer", 16, 1)))


def randomised(net: nn.Module) -> nn.Module:
    """Every parameter random, the zero-initialised ones too."""
    torch.manual_seed(0)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.1)
    return net


@pytest.mark.parametrize(
    ("size", "net", "giga"),
    [
        (64, "heavy", 108.45),
        (128, "heavy", 137.44),
        (64, "light", 44.02),
        (128, "light", 73.01),
        (512, "heavy", 652.84),
    ],
)
def test_imagenet_layouts_cost_what_the_papers_report(size, net, giga):
    layout = imagenet.heavy_network(size) if net == "heavy" else imagenet.light_network(size)
    with FakeTensorMode():
        network = UViT(layout)
        z, log_snr = torch.zeros(1, 3, size, size), torch.zeros(1)
        emb = torch.zeros(1, layout.embedding)
        whole = macs_of(lambda: network(z, log_snr, None))
        blocks = 0
        for part in network.modules():
            if isinstance(part, Blocks):
                h = torch.zeros(1, part.level.channels, part.side, part.side)
                films = sum(f.linear.in_features * f.linear.out_features for f in part.modules() if isinstance(f, FiLM))
                blocks += macs_of(lambda part=part, h=h: part(h, emb)) - films
    assert blocks / 1e9 == pytest.approx(giga, rel=1e-3)
    assert whole / 1e9 == pytest.approx(giga, rel=1e-2)


def test_macs_of_one_layer_by_hand():
    conv = nn.Conv2d(8, 8, 3, padding=1)
    assert macs_of(lambda: conv(torch.zeros(1, 8, 10, 10))) == 9 * 8 * 8 * 100
    linear = nn.Linear(5, 7)
    assert macs_of(lambda: linear(torch.zeros(3, 5))) == 3 * 5 * 7
    q = torch.zeros(1, 2, 6, 4)
    assert macs_of(lambda: attend(q, q, q)) == 2 * 2 * 6 * 6 * 4
    block = TransformerBlock(32, embedding=8, head_dim=16, dropout=0.0)
    n, films = 9, 2 * 8 * 64
    assert macs_of(lambda: block(torch.zeros(1, 32, 3, 3), torch.zeros(1, 8))) == 12 * 32**2 * n + 2 * 32 * n**2 + films


def test_attention_is_softmax_attention():
    q, k, v = torch.randn(3, 2, 4, 9, 16, dtype=torch.float64)
    expected = nn.functional.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(attend(q, k, v), expected)


def test_output_is_zero_at_initialisation():
    z = torch.randn(2, 3, 16, 16)
    assert UViT(config())(z, torch.zeros(2), torch.tensor([0, 4])).abs().max() == 0


def test_skip_passes_through_while_blocks_are_the_identity():
    """All blocks are the identity at initialisation, so the last activation of level 0 is the patchified input."""
    net = UViT(config(levels=(Level("conv", 16, 1), Level("conv", 32, 1), Level("conv", 32, 1))))
    z = torch.randn(2, 3, 16, 16)
    levels, _ = net.features(z, torch.zeros(2), None)
    torch.testing.assert_close(levels[0], net.stem(z))


@pytest.mark.parametrize("patch", [2, 4, 8])
def test_the_haar_transform_of_patches_is_orthonormal_and_its_own_inverse(patch):
    z = torch.randn(3, 2, 16, 16, dtype=torch.float64)
    h = haar(patchified(z, patch), patch)
    assert h.shape == (3, 2 * patch**2, 16 // patch, 16 // patch)
    torch.testing.assert_close(unpatchified(haar(h, patch), patch), z)
    basis = haar(torch.eye(patch**2, dtype=torch.float64)[..., None, None], patch).flatten(1)
    torch.testing.assert_close(basis @ basis.T, torch.eye(patch**2, dtype=torch.float64))
    means = nn.functional.avg_pool2d(z, patch)  # the first of each channel's numbers, times the side
    torch.testing.assert_close(h[:, :: patch**2], patch * means)
    signs = torch.tensor([[1, 1], [1, -1]], dtype=torch.float64) / 2**0.5
    two = z.unfold(2, 2, 2).unfold(3, 2, 2)
    expected = torch.einsum("ai,bj,nchwij->ncabhw", signs, signs, two).flatten(1, 3)
    torch.testing.assert_close(haar(patchified(z, 2), 2), expected)
    assert haar(patchified(z[:0], patch), patch).shape == (0, *h.shape[1:])


def test_a_network_that_is_the_identity_between_transforms_returns_its_input():
    """With a stem and a head that pass the centre of their kernels through, z is there again to rounding."""
    net = UViT(config(levels=(Level("conv", 12, 0),), downsampling="haar")).double()
    nn.init.zeros_(net.stem.bias)
    for conv in (net.stem, net.head[2]):
        nn.init.dirac_(conv.weight)
    net.head[0], net.head[1] = nn.Identity(), nn.Identity()
    z = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(net(z, torch.zeros(2, dtype=torch.float64), None), z)


@pytest.mark.parametrize("patch", [1, 3, 12])
def test_a_haar_transform_of_other_patches_is_refused(patch):
    with pytest.raises(ValueError, match=f"of patches of 2, 4, 8, ... pixels a side, got a patch of {patch}"):
        config(image_size=48, patch=patch, downsampling="haar")


@pytest.mark.parametrize("channels", [64, 24])
def test_group_norm_is_of_groups_of_channels_over_all_positions(channels):
    """32 groups, or 8 of 24 channels."""
    h = (3 + 2 * torch.randn(2, channels, 5, 5)).double()
    norm, groups = randomised(GroupNorm(channels)).double(), {64: 32, 24: 8}[channels]
    of_group = h.unflatten(1, (groups, -1))
    m, v = of_group.mean((2, 3, 4), keepdim=True), of_group.var((2, 3, 4), keepdim=True, correction=0)
    expected = ((of_group - m) / torch.sqrt(v + 1e-5)).flatten(1, 2)
    expected = expected * norm.scale[:, None, None] + norm.shift[:, None, None]
    torch.testing.assert_close(norm(h), expected)


def test_a_block_of_group_norms_does_not_see_the_scale_of_its_groups():
    """What it adds is the same for its input times 7 and more 2, which a group norm takes out."""
    h, emb = torch.randn(2, 64, 5, 5).double(), torch.zeros(2, 4).double()
    block, by_layer = (randomised(ConvBlock(64, 4, 0.0, norm)).double() for norm in ("group", "layer"))
    more = 7 * h + 2
    torch.testing.assert_close(block(more, emb) - more, block(h, emb) - h, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(block(h, emb), by_layer(h, emb))


def test_features_of_every_level_have_its_shape():
    net = UViT(config())
    levels, v = net.features(torch.randn(2, 3, 16, 16), torch.zeros(2), None)
    assert [tuple(level.shape) for level in levels] == [(2, 16, 8, 8), (2, 32, 4, 4), (2, 32, 2, 2)]
    assert v is not None
    assert v.shape == (2, 3, 16, 16)


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_any_number_of_levels_and_rows_are_independent(levels):
    net = randomised(UViT(config(levels=config().levels[-levels:]))).eval()
    z, log_snr, label = torch.randn(4, 3, 16, 16), torch.linspace(-3, 3, 4), torch.arange(4)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(net(z, log_snr, label)[order], net(z[order], log_snr[order], label[order]))


def test_all_conditions_matter():
    net = randomised(UViT(config())).eval()
    z, zero = torch.randn(1, 3, 16, 16), torch.zeros(1)
    out = net(z, zero, torch.tensor([1]))
    assert not torch.allclose(out, net(z, zero + 1, torch.tensor([1])))
    assert not torch.allclose(out, net(z, zero, torch.tensor([2])))
    torch.testing.assert_close(net(z, zero, None), net(z, zero, torch.tensor([4])))


def test_sides_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="multiple of 8"):
        config(image_size=20)


@pytest.mark.parametrize(
    ("light", "differs"),
    [
        ({"image_size": 32}, "got image_size 16 and 32$"),
        ({"image_channels": 1}, "got image_channels 3 and 1$"),
        ({"num_classes": 3}, "got num_classes 4 and 3$"),
        ({"num_classes": 0, "patch": 1}, "got num_classes 4 and 0, patch 2 and 1$"),
        ({"levels": config().levels[1:]}, "got number of levels 3 and 2$"),
    ],
)
def test_encoder_and_light_must_see_the_same_images_and_classes(light, differs):
    """Said before anything is built, and by the networks themselves."""
    with pytest.raises(ValueError, match=differs):
        TwoNetworks(config(), config(**light))
    with pytest.raises(ValueError, match=differs):
        ContextEncoder(config(), config(**light))
    with pytest.raises(ValueError, match="have 3 levels, so 4 cannot hand over"):
        TwoNetworks(config(), config(), ContextConfig(levels=4))


def dual(head: bool = True) -> tuple[ContextEncoder, LightUViT]:
    return randomised(ContextEncoder(config(head=head), LIGHT)), randomised(LightUViT(LIGHT))


@pytest.mark.parametrize(("head", "concat"), [(True, 0), (False, 0), (True, 3)])
def test_an_absent_context_is_no_context(head, concat):
    """A row marked absent, its features zeroed, gives exactly what the light network alone gives, whatever tau is."""
    encoder, light = dual(head)
    light = light if not concat else randomised(LightUViT(LIGHT, concat=concat))
    z, log_snr, label = torch.randn(2, 3, 16, 16), torch.zeros(2), torch.tensor([1, 2])
    features, _ = encoder(torch.randn(2, 3, 16, 16), log_snr - 1, label)
    present = torch.tensor([True, False])
    zeroed = tuple(f * present[:, None, None, None] for f in features)
    out = light(z, log_snr, label, zeroed, log_snr - 1, present)
    alone = light(z, log_snr, label)
    torch.testing.assert_close(out[1], alone[1])
    assert not torch.allclose(out[0], alone[0])


def test_every_level_of_the_context_reaches_the_light_network():
    encoder, light = dual()
    z, log_snr = torch.randn(1, 3, 16, 16), torch.zeros(1)
    features, _ = encoder(z, log_snr, None)
    out = light(z, log_snr, None, features, log_snr)
    for i in range(len(features)):
        changed = tuple(f + (0.5 if i == j else 0) for j, f in enumerate(features))
        assert not torch.allclose(out, light(z, log_snr, None, changed, log_snr))
    assert not torch.allclose(out, light(z, log_snr, None, features, log_snr + 1))


def test_context_is_every_level_s_last_activation_and_the_encoder_s_own_x_hat():
    """features[i] = projections[i](last activation of level i); the finest also has the patches of x_hat."""
    encoder, _ = dual()
    z, log_snr = torch.randn(2, 3, 16, 16), torch.tensor([-1.0, 2.0])
    features, v = encoder(z, log_snr, None)
    levels, own_v = encoder.net.features(z, log_snr, None)
    torch.testing.assert_close(v, own_v)
    expected = [project(level) for project, level in zip(encoder.projections, levels, strict=True)]
    expected[0] = expected[0] + encoder.pixels(x_from_v(z, v, log_snr))
    for got, want in zip(features, expected, strict=True):
        torch.testing.assert_close(got, want)


def test_an_encoder_without_head_predicts_nothing():
    encoder, _ = dual(head=False)
    assert encoder(torch.zeros(1, 3, 16, 16), torch.zeros(1), None)[1] is None
    with pytest.raises(ValueError, match="without a head"):
        encoder.net(torch.zeros(1, 3, 16, 16), torch.zeros(1), None)


def test_a_context_of_fewer_levels_reaches_only_those():
    """The light network with the last level alone is the one whose other features are zero."""
    encoder = randomised(ContextEncoder(config(), LIGHT, ContextConfig(levels=1)))
    light, z, log_snr = randomised(LightUViT(LIGHT)), torch.randn(2, 3, 16, 16), torch.tensor([0.3, -1.0])
    features, _ = encoder(z, log_snr, None)
    assert [tuple(feature.shape) for feature in features] == [(2, 8, 8, 8)]
    zeros = tuple(
        torch.zeros(2, level.channels, side, side) for level, side in zip(LIGHT.levels[1:], (4, 2), strict=True)
    )
    args = (z, log_snr, None)
    torch.testing.assert_close(light(*args, features, log_snr), light(*args, (*features, *zeros), log_snr))
    assert not torch.allclose(light(*args, features, log_snr), light(*args, (), log_snr))


def test_a_squeezed_context_has_the_rank_of_its_width():
    encoder = randomised(ContextEncoder(config(head=False), LIGHT, ContextConfig(width=2)))
    features, v = encoder(torch.randn(4, 3, 16, 16), torch.zeros(4), None)
    assert v is None
    for feature, level in zip(features, LIGHT.levels, strict=True):
        assert feature.shape[1] == level.channels
        assert torch.linalg.matrix_rank(feature.transpose(0, 1).flatten(1), rtol=1e-4) == 2


@pytest.mark.parametrize("levels", [None, 1])
def test_a_concatenated_context_is_one_projection_of_both(levels):
    """Where a level begins there is W [h; e], the encoder's part of which comes from it; W_h costs C^2 a position."""
    made = TwoNetworks(config(head=False), LIGHT, ContextConfig(levels=levels, join="concat"))
    networks, _ = made.build(GaussianProcess(Cosine()))
    encoder, light = (randomised(networks[role]).double() for role in ("encoder", "light"))
    z, log_snr = torch.randn(2, 3, 16, 16).double(), torch.tensor([0.3, -1.0]).double()
    last, _ = encoder.net.features(z, log_snr, None)
    before, after = [], []
    for own, level in zip(light.own, (*light.net.down, light.net.middle), strict=False):
        own.register_forward_pre_hook(lambda _, given: before.append(given[0]))
        level.register_forward_pre_hook(lambda _, given: after.append(given[0]))
    light(z, log_snr, None, encoder(z, log_snr, None)[0], log_snr)
    assert len(before) == len(after) == (levels or 3)
    for own, project, h, e, joined in zip(light.own, encoder.projections, before, last, after, strict=False):
        w = torch.cat((own.weight, project.weight), 1)
        torch.testing.assert_close(joined, nn.functional.conv2d(torch.cat((h, e), 1), w))
    more = sum(level.channels**2 * side**2 for level, side in list(zip(LIGHT.levels, (8, 4, 2), strict=True))[:levels])
    added = TwoNetworks(made.encoder, LIGHT, ContextConfig(levels=levels)).build(GaussianProcess(Cosine()))[0]["light"]
    costs = [macs_of(lambda net=net: net(z[:1].float(), log_snr[:1].float(), None)) for net in (light.float(), added)]
    assert costs[0] - costs[1] == more


def test_a_decoder_s_encoder_adds_its_features():
    latent = replace(LIGHT, num_classes=0)
    with pytest.raises(ValueError, match="got join 'concat': leave it at add"):
        LatentEncoder(latent, latent, (4, 4, 4), ContextConfig(join="concat"))


def test_a_network_of_concatenated_contexts_begins_as_that_of_added_ones():
    def light(join):
        torch.manual_seed(0)
        made = TwoNetworks(config(), LIGHT, ContextConfig(join=join))
        return made.build(GaussianProcess(Cosine()))[0]["light"]

    added, concatenated = light("add").state_dict(), light("concat").state_dict()
    for name, tensor in concatenated.items():
        own = name.startswith("own.")
        torch.testing.assert_close(tensor.squeeze() if own else tensor, torch.eye(len(tensor)) if own else added[name])


def test_more_levels_than_there_are_cannot_hand_over():
    with pytest.raises(ValueError, match="3 levels"):
        ContextEncoder(config(), LIGHT, ContextConfig(levels=4))


@pytest.mark.parametrize("wrong", [{"levels": 0}, {"width": 0}, {"width": -1}])
def test_an_empty_context_is_refused(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is a whole number from 1"):
        ContextConfig(**wrong)


T = torch.tensor([0.2, 0.5, 0.6, 0.9], dtype=torch.float64)
TAU = torch.tensor([0.3, 0.5, 0.95, 1.0], dtype=torch.float64)
LOG_SNR, LOG_SNR_TAU = Cosine().log_snr(T), Cosine().log_snr(TAU)


def test_a_correction_is_for_rows_with_a_context_and_a_trained_light_network_begins_alone():
    encoder, light = randomised(ContextEncoder(config(), LIGHT)), randomised(LightUViT(LIGHT, residual=True))
    z, x_tau, log_snr = torch.randn(2, 3, 16, 16), torch.randn(2, 3, 16, 16), torch.tensor([0.3, -1.0])
    features = (*encoder(z, log_snr - 1, None)[0], x_tau)
    present = torch.tensor([True, False])
    kept = tuple(feature * present[:, None, None, None] for feature in features)
    alone, beside = light(z, log_snr, None), light(z, log_snr, None, kept, log_snr - 1, present)
    torch.testing.assert_close(beside[1], alone[1])
    added = light.net.predict(
        light.net.trunk(z, light.net.embedding(log_snr, None) + light.tau(log_snr - 1), features[:-1])[0]
    )
    gate = light.gate(light.net.embedding(log_snr, None) + light.tau(log_snr - 1))[0]
    torch.testing.assert_close(beside[0], added[0] + gate * kept_at(z, x_tau, log_snr)[0])
    disconnect(encoder, light)
    features = (*encoder(z, log_snr - 1, None)[0], x_tau)
    begun = light(z, log_snr, None, features, log_snr - 1)
    torch.testing.assert_close(begun, alone)
    begun.square().sum().backward()
    assert light.gate.bias.grad.abs() > 0
    assert light.gate.weight.grad.abs().max() > 0
