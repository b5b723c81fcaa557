"""The U-ViT, the context encoder and the light network: costs, identities at initialisation, context."""

import pytest
import torch
from torch import nn

from dualrate.diffusion.prediction import v_from_x, x_from_v
from dualrate.experiment.network_configs import TwoNetworks
from dualrate.networks.blocks import (
    FiLM,
    TransformerBlock,
    attend,
)
from dualrate.networks.dual import ContextEncoder, LightBody, disconnect
from dualrate.networks.uvit import Blocks, Level, UViT, UViTConfig
from dualrate.recipes import imagenet
from dualrate.sampling.cost import _Counter, macs_of


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
    counted: dict[nn.Module, int] = {}

    def count(part: nn.Module, *of: object) -> None:
        counted[part] = counter.flops - counted.get(part, 0)

    with torch.device("meta"):
        network = UViT(imagenet.network(size, net))
        for part in network.modules():
            if isinstance(part, Blocks):
                part.register_forward_pre_hook(count)
                part.register_forward_hook(count)
        with _Counter() as counter, torch.no_grad():
            network(torch.zeros(1, 3, size, size), torch.zeros(1), None)
    films = (film.linear for film in network.modules() if isinstance(film, FiLM))
    blocks = sum(counted.values()) / 2 - sum(film.in_features * film.out_features for film in films)
    assert blocks / 1e9 == pytest.approx(giga, rel=1e-3)
    assert counter.flops / 2e9 == pytest.approx(giga, rel=1e-2)


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
        ({"image_size": 32}, r"got shape \(3, 16, 16\) and \(3, 32, 32\)$"),
        ({"image_channels": 1}, r"got shape \(3, 16, 16\) and \(1, 16, 16\)$"),
        ({"periodic": True}, "got periodic False and True$"),
        ({"num_classes": 3}, "got num_classes 4 and 3$"),
        ({"num_classes": 0, "periodic": True}, "got num_classes 4 and 0, periodic False and True$"),
        ({"patch": 1}, "of 8 x 8, 4 x 4, 2 x 2 positions, or the last of them, got 16 x 16, 8 x 8, 4 x 4: change"),
        ({"levels": config().levels[1:]}, "got 8 x 8, 4 x 4: change its patch or its levels$"),
    ],
)
def test_encoder_and_light_must_see_the_same_images_and_classes(light, differs):
    """Said before anything is built, and by the networks themselves."""
    with pytest.raises(ValueError, match=differs):
        TwoNetworks(config(), config(**light))
    with pytest.raises(ValueError, match=differs):
        ContextEncoder(config(), config(**light))


def dual(head: bool = True) -> tuple[ContextEncoder, LightBody]:
    return randomised(ContextEncoder(config(head=head), LIGHT)), randomised(LightBody(LIGHT))


@pytest.mark.parametrize("head", [True, False])
def test_an_absent_context_is_no_context(head):
    """A row marked absent, its features zeroed, gives exactly what the light network alone gives, whatever tau is."""
    encoder, light = dual(head)
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


def test_a_correction_of_x_hat_is_for_rows_with_a_context_and_a_trained_light_network_begins_alone():
    encoder, light = randomised(ContextEncoder(config(), LIGHT)), randomised(LightBody(LIGHT, residual=True))
    z, log_snr = torch.randn(2, 3, 16, 16), torch.tensor([0.3, -1.0])
    features, v_tau = encoder(z, log_snr - 1, None)
    x_tau = x_from_v(z, v_tau, log_snr - 1)
    features, present = (*features, x_tau), torch.tensor([True, False])
    kept = tuple(feature * present[:, None, None, None] for feature in features)
    alone, beside = light(z, log_snr, None), light(z, log_snr, None, kept, log_snr - 1, present)
    torch.testing.assert_close(beside[1], alone[1])
    emb = light.net.embedding(log_snr, None) + light.tau(log_snr - 1)
    added, gate = light.net.predict(light.net.trunk(z, emb, features[:-1])[0]), light.gate(emb)[0]
    torch.testing.assert_close(beside[0], added[0] + gate * v_from_x(z, x_tau, log_snr)[0])
    disconnect(encoder, light)
    begun = light(z, log_snr, None, (*encoder(z, log_snr - 1, None)[0], x_tau), log_snr - 1)
    torch.testing.assert_close(begun, alone)
    begun.square().sum().backward()
    assert light.gate.bias.grad.abs() > 0
    assert light.gate.weight.grad.abs().max() > 0
