"""DiT and SiT: published sizes, names and outputs; alone and in pairs."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import dualrate as dr
from dualrate.config.serial import from_plain, to_plain
from dualrate.diffusion.prediction import v_from_eps, x_from_v
from dualrate.diffusion.schedule import Betas, Cosine
from dualrate.experiment.network_configs import NetworksConfig, ThreeConditional, TwoConditional
from dualrate.methods.residual import ResidualNetworks
from dualrate.networks.dit import DiT, DiTConfig, dit
from dualrate.networks.dual import disconnect
from dualrate.sampling.cost import macs_of
from dualrate.system.progress import Silent

NET = DiTConfig(8, 4, channels=16, blocks=2, num_classes=5, head_dim=8, learned_sigma=True)
FLAT = dr.UViTConfig(8, 4, (dr.Level("conv", 8, 1),), 5, patch=2, embedding=16)
TWO_LEVELS = replace(FLAT, levels=FLAT.levels * 2)
PROCESS = dr.GaussianProcess(Cosine())
LOG_SNR, LABEL = torch.tensor([-3.0, 0.5, 4.0]).double(), torch.tensor([0, 4, 5])


def randomised(net: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for weight in net.parameters():
        nn.init.normal_(weight, std=0.2, generator=generator)
    return net.eval()


def start(rows: int = 3) -> Tensor:
    return torch.randn(rows, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def by_hand(config: DiTConfig) -> tuple[int, int]:
    """Multiply-adds of an image, and numbers of the published layout."""
    n, d, numbers = (config.image_size // config.patch) ** 2, config.channels, config.image_channels * config.patch**2
    out = numbers * (2 if config.learned_sigma else 1)
    macs = n * d * (numbers + out) + 256 * d + 3 * d**2 + config.blocks * (12 * d**2 * n + 2 * n**2 * d + 6 * d**2)
    ends = (numbers + 1) * d + n * d + 257 * d + d**2 + d + (config.num_classes + 1) * d + (d + 1) * (out + 2 * d)
    return macs, ends + config.blocks * (18 * d**2 + 15 * d)


def test_cost_and_size_by_hand():
    net = DiT(NET)
    macs = macs_of(lambda: net(torch.zeros(1, 4, 8, 8), torch.zeros(1), torch.zeros(1, dtype=torch.int64)))
    assert (macs, sum(weight.numel() for weight in net.state_dict().values())) == by_hand(NET)


@pytest.mark.parametrize(
    ("name", "giga", "millions"),
    [
        ("S/2", 6.06, 33),
        ("S/4", 1.41, 33),
        ("B/2", 23.01, 130),
        ("L/2", 80.71, 458),
        ("XL/2", 118.64, 675),
        ("XL/4", 29.05, 675),
    ],
)
def test_published_sizes_cost_and_weigh_what_the_papers_report(name, giga, millions):
    """The papers count norms and the like too, 0.02% of XL/2."""
    macs, numbers = by_hand(dit(name))
    assert macs / 1e9 == pytest.approx(giga, rel=2e-3)
    assert numbers / 1e6 == pytest.approx(millions, abs=0.6)


def test_other_sizes_are_refused():
    for name in ("M/2", "S/3", "S"):
        with pytest.raises(ValueError, match="S, B, L, XL, and patches of 2, 4, 8, got"):
            dit(name)
    with pytest.raises(ValueError, match="multiple of 4 and of head_dim 8, got 20"):
        replace(NET, channels=20)
    with pytest.raises(ValueError, match="do not divide into patches of 3"):
        replace(NET, patch=3)


class Times(nn.Module):
    """[cos(k w), sin(k w)], w_i = 10000^(-i / 128), in float32, as published: diffusers divides by 127."""

    def forward(self, timestep: Tensor) -> Tensor:
        angle = timestep.double()[:, None] * torch.exp(-math.log(1e4) * torch.arange(128) / 128).double()
        return torch.cat((angle.cos(), angle.sin()), 1)


def of_diffusers(weights: dict[str, Tensor], blocks: int) -> dict[str, Tensor]:
    """Weights of the published layout by the names of diffusers, each of whose blocks has all embeddings."""
    found = {f"pos_embed.proj.{part}": weights[f"x_embedder.proj.{part}"] for part in ("weight", "bias")}
    names = {
        "norm1.linear": "adaLN_modulation.1",
        "attn1.to_out.0": "attn.proj",
        "ff.net.0.proj": "mlp.fc1",
        "ff.net.2": "mlp.fc2",
    }
    whole = {"proj_out_1": "final_layer.adaLN_modulation.1", "proj_out_2": "final_layer.linear"}
    for i in range(blocks):
        theirs, ours = f"transformer_blocks.{i}", f"blocks.{i}"
        whole |= {f"{theirs}.{name}": f"{ours}.{of}" for name, of in names.items()}
        emb = f"{theirs}.norm1.emb"
        whole |= {f"{emb}.timestep_embedder.linear_{k + 1}": f"t_embedder.mlp.{2 * k}" for k in (0, 1)}
        found[f"{emb}.class_embedder.embedding_table.weight"] = weights["y_embedder.embedding_table.weight"]
        for part in ("weight", "bias"):
            for name, qkv in zip("qkv", weights[f"{ours}.attn.qkv.{part}"].chunk(3), strict=True):
                found[f"{theirs}.attn1.to_{name}.{part}"] = qkv
    return found | {
        f"{name}.{part}": weights[f"{of}.{part}"] for name, of in whole.items() for part in ("weight", "bias")
    }


def test_outputs_are_those_of_diffusers():
    diffusers = pytest.importorskip("diffusers")
    ours = randomised(DiT(replace(NET, convention="dit"))).double()
    sizes = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "sample_size": 8, "norm_eps": 1e-6}
    theirs = diffusers.DiTTransformer2DModel(**sizes, in_channels=4, out_channels=8, num_embeds_ada_norm=5).eval()
    theirs = theirs.double()
    theirs.load_state_dict(of_diffusers(ours.state_dict(), 2))
    for block in theirs.transformer_blocks:
        block.norm1.emb.time_proj = Times()
    z, k = start(), torch.tensor([0, 500, 999])
    log_snr = Betas().log_snr((k + 1).double() / 1000)
    eps = theirs(z, timestep=k, class_labels=LABEL, return_dict=False)[0][:, :4]
    expected = v_from_eps(z, eps, log_snr)
    error = (ours(z, log_snr, LABEL) - expected).abs().max() / expected.abs().max()
    assert error < 1e-6


def test_positions_are_those_of_diffusers():
    embeddings = pytest.importorskip("diffusers.models.embeddings")
    theirs = embeddings.get_2d_sincos_pos_embed(16, 4, base_size=4, output_type="pt")
    torch.testing.assert_close(DiT(NET).pos_embed[0], theirs.float(), rtol=0, atol=1e-6)


@dataclass(frozen=True)
class AsItIs:
    """log_snr is the network's own time."""

    def state(self, z: Tensor, log_snr: Tensor) -> Tensor:
        return z

    time = staticmethod(lambda log_snr: log_snr)

    def v(self, z: Tensor, output: Tensor, log_snr: Tensor) -> Tensor:
        return output


@pytest.mark.parametrize("convention", ["sit", "repa"])
def test_a_flow_is_asked_at_its_own_time_for_its_own_state(convention):
    """x_r = (1 - r) x + r eps, of which u = eps - x gives x = x_r - r u. SiT: time 1 - r, output -u."""
    net, r = randomised(DiT(replace(NET, convention=convention))).double(), torch.tensor([0.1, 0.5, 0.9]).double()
    log_snr, x_r, of_r = 2 * torch.log((1 - r) / r), start(), r[:, None, None, None]
    z = x_r / torch.sqrt((1 - of_r) ** 2 + of_r**2)
    found = x_from_v(z, net(z, log_snr, LABEL), log_snr)
    net.convention = AsItIs()
    u = -net(x_r, 1 - r, LABEL) if convention == "sit" else net(x_r, r, LABEL)
    torch.testing.assert_close(found, x_r - of_r * u)


def test_weights_of_the_published_layout_are_read():
    d, names = 16, {}

    def linear(name: str, out: int, of: int) -> None:
        names[f"{name}.weight"], names[f"{name}.bias"] = (out, of), (out,)

    names["pos_embed"], names["y_embedder.embedding_table.weight"] = (1, 16, d), (6, d)
    names["x_embedder.proj.weight"], names["x_embedder.proj.bias"] = (d, 4, 2, 2), (d,)
    linear("t_embedder.mlp.0", d, 256)
    linear("t_embedder.mlp.2", d, d)
    for i in range(2):
        linear(f"blocks.{i}.attn.qkv", 3 * d, d)
        linear(f"blocks.{i}.attn.proj", d, d)
        linear(f"blocks.{i}.mlp.fc1", 4 * d, d)
        linear(f"blocks.{i}.mlp.fc2", d, 4 * d)
        linear(f"blocks.{i}.adaLN_modulation.1", 6 * d, d)
    linear("final_layer.linear", 2 * 2 * 8, d)
    linear("final_layer.adaLN_modulation.1", 2 * d, d)
    net = DiT(NET)
    net.load_state_dict({name: torch.randn(shape) for name, shape in names.items()})  # strict
    assert net(start().float(), LOG_SNR.float(), LABEL).abs().max() > 0.1


def test_at_first_blocks_are_the_identity_and_the_output_is_zero():
    net, z = DiT(replace(NET, convention="repa")).double(), start()
    (level,), v = net.features(z, LOG_SNR, LABEL)
    assert v is not None
    patches = net.x_embedder["proj"](net.convention.state(z, LOG_SNR))
    expected = patches + net.pos_embed.transpose(1, 2).unflatten(2, (4, 4))
    torch.testing.assert_close(level, expected)
    torch.testing.assert_close(v, torch.tanh(LOG_SNR / 4)[:, None, None, None] * z)  # of u = 0


def test_all_conditions_matter_and_rows_are_independent():
    net, z = randomised(DiT(NET)).double(), start()
    out, order = net(z, LOG_SNR, LABEL), torch.tensor([2, 0, 1])
    torch.testing.assert_close(net(z[order], LOG_SNR[order], LABEL[order]), out[order])
    torch.testing.assert_close(net(z, LOG_SNR, None)[2], out[2])  # the null class
    for other in (net(z, LOG_SNR + 1, LABEL), net(z, LOG_SNR, (LABEL + 1) % 6)):
        assert not torch.isclose(other, out).all((1, 2, 3)).any()
    assert DiT(replace(NET, num_classes=0)).double()(z, LOG_SNR, None).shape == z.shape


PAIRS = {
    "DiT, DiT": dr.TwoNetworks(NET, NET.lighter()),
    "no head": dr.TwoNetworks(replace(NET, head=False), NET.lighter()),
    "DiT, U-ViT": dr.TwoNetworks(NET, FLAT),
    "U-ViT, DiT": dr.TwoNetworks(FLAT, NET),
    "U-ViT of two levels, DiT of its last": dr.TwoNetworks(TWO_LEVELS, replace(NET, patch=4)),
    "no head, last level": dr.TwoNetworks(replace(TWO_LEVELS, head=False), replace(FLAT, patch=4)),
}


def check_pair(networks: dr.TwoNetworks) -> None:
    """Its context reaches the light network; disconnected it does nothing, as an absent one."""
    built, denoiser = networks.build(PROCESS)
    randomised(built).double()
    z, t, cond = start(), torch.tensor(0.4).double(), dr.Cond(LABEL)
    context = denoiser.encode(z, torch.tensor(0.7).double(), cond)
    assert (context.x_hat is None) == (not networks.encoder.head)
    found = denoiser.denoise(z, t, context.aged(), cond)
    (feature,) = context.features
    other = denoiser.denoise(z, t, replace(context.aged(), features=(2 * feature,)), cond)
    assert not torch.isclose(found, other).all((1, 2, 3)).any()
    absent = denoiser.denoise(z, t, dr.Context(), cond)
    disconnect(built["encoder"], built["light"])
    context = denoiser.encode(z, torch.tensor(0.7).double(), cond)
    torch.testing.assert_close(denoiser.denoise(z, t, context.aged(), cond), absent)


@pytest.mark.parametrize("networks", PAIRS.values(), ids=PAIRS)
def test_either_network_of_a_pair_may_be_a_dit(networks):
    check_pair(networks)


def test_networks_that_do_not_fit_are_refused_with_what_differs():
    for encoder, light in ((NET, replace(NET, patch=4)), (NET, TWO_LEVELS), (TWO_LEVELS, FLAT)):
        with pytest.raises(ValueError, match=r"levels of a light network .* of 4 x 4.* got"):
            dr.TwoNetworks(encoder, light)


GIVEN = 1, 4, 4
SHORTER = TWO_LEVELS, replace(FLAT, patch=4), GIVEN


@pytest.mark.parametrize("networks", [TwoConditional(*SHORTER), ResidualNetworks(*SHORTER)])
def test_a_light_network_of_a_condition_may_begin_at_the_second_level(networks):
    """The second level brings what the heavy network's first level adds to no feature."""
    built, denoiser = networks.build(PROCESS)
    randomised(built).double()
    z, t = start().requires_grad_(), torch.tensor(0.4).double()
    context = denoiser.encode(z, t, dr.Cond(LABEL, z.new_ones(3, *GIVEN)))
    x_hat = denoiser.denoise(z, t, context, dr.Cond(LABEL))
    assert x_hat.shape == z.shape
    assert context.features[0].shape == (3, 8, 2, 2)
    x_hat.square().sum().backward()
    stem = built["encoder"].net.net.stem.weight.grad
    assert stem is None or torch.isfinite(stem).all()
    assert built["encoder"].net.net.shrink[0].weight.grad.abs().min() > 0


def test_both_rates_need_as_many_levels():
    with pytest.raises(ValueError, match="num_levels 2 and 1"):
        ThreeConditional(TWO_LEVELS, *SHORTER)


@pytest.mark.parametrize("networks", [dr.OneNetwork(NET), *PAIRS.values()], ids=["one", *PAIRS])
def test_a_configuration_comes_back_from_its_file(networks):
    assert from_plain(NetworksConfig, to_plain(networks)) == networks


def test_a_light_network_is_laid_out_beside_one():
    found = dr.OneNetwork(dit("B/2")).beside(None, "name")
    assert isinstance(found, dr.TwoNetworks)
    assert (found.light.widths, found.light.head) == ((384,), True)
    assert replace(NET, head_dim=16).lighter().channels == 16


def test_a_run_of_dits_is_trained_and_read_again(tmp_path):
    small = DiTConfig(8, 1, channels=8, blocks=1, num_classes=2, head_dim=8)
    images = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 1), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images=images, labels=np.arange(16) % 2)
    data, fit = dr.DataConfig(str(tmp_path / "images.npz")), dr.FitConfig(iterations=2, batch_size=4)
    method = dr.DenoisingConfig(dr.TimeSampler(heavy=(1, 4)))
    experiment = dr.Experiment("dits", dr.TwoNetworks(small, small), method, fit, data)
    dr.train(experiment, tmp_path / "run", progress=Silent())
    model = dr.load(tmp_path / "run")
    positions = model.networks.get_buffer("encoder.net.pos_embed")
    torch.testing.assert_close(positions, DiT(small).pos_embed)
    assert next(iter(dr.Choice(steps=2, heavy=1).drawer(model).draw([0, 1]).images)).shape == (1, 8, 8)
