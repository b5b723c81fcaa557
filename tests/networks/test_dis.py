"""DiS: published sizes, names and the paper's equations; alone, in pairs, and through the commands."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from cli.command import call
from networks.test_dit import check_pair, randomised
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F

import dualrate as dr
from dualrate.cli.train import parse_train
from dualrate.config.serial import from_plain, to_plain
from dualrate.denoisers.feature_cache import FeatureCache
from dualrate.diffusion.prediction import v_from_eps
from dualrate.diffusion.schedule import Betas, Cosine
from dualrate.experiment.network_configs import NetworksConfig
from dualrate.networks.dis import DiS, DiSConfig, dis
from dualrate.networks.dit import DiT, DiTConfig
from dualrate.sampling.cost import macs_of

NET = DiSConfig(8, 4, channels=16, blocks=5, num_classes=5, head_dim=8, states=3, learned_sigma=True)
HEADS = replace(NET, decay="head")
DIT = DiTConfig(8, 4, channels=16, blocks=2, num_classes=5, head_dim=8)
PROCESS = dr.GaussianProcess(Cosine())
LOG_SNR, LABEL = torch.tensor([-3.0, 0.5, 4.0]).double(), torch.tensor([0, 4, 5])
Z = torch.randn(3, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def macs(config: DiSConfig) -> int:
    """Count the multiply-adds of an image."""
    d, states, half = config.channels, config.states, config.blocks // 2
    n = math.prod(config.sides(0))
    m, rank, heads = n + config.extras, -(-d // 16), 2 * d // config.head_dim
    block = m * d * (6 * d + 8 * rank + 16 * states + 16)
    if config.decay == "head":
        block = m * d * (6 * d + 14 + 8 * states + 4 * heads) + 2 * m**2 * (states + d)
    numbers = config.image_channels * config.patch**2
    out = numbers * (2 if config.learned_sigma else 1)
    ends = n * d * (numbers + out) + 8 * d**2 + (2 * d**2 if config.num_classes else 0)
    return config.blocks * block + half * 2 * m * d**2 + ends


def layout(config: DiSConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of published weights (models_dis.py of github.com/feizc/DiS, mamba_simple.py of Vim)."""
    d, inner, states, half = config.channels, 2 * config.channels, config.states, config.blocks // 2
    rank, numbers = -(-d // 16), config.image_channels * config.patch**2
    out = numbers * (2 if config.learned_sigma else 1)
    names: dict[str, tuple[int, ...]] = {"pos_embed": (1, config.extras + math.prod(config.sides(0)), d)}

    def linear(name: str, out: int, of: int) -> None:
        names[f"{name}.weight"], names[f"{name}.bias"] = (out, of), (out,)

    names["patch_embed.proj.weight"] = (d, config.image_channels, config.patch, config.patch)
    names["patch_embed.proj.bias"] = names["norm_f.weight"] = (d,)
    names["label_emb.embedding_table.weight"] = (config.num_classes + 1, d)
    linear("time_embed.0", 4 * d, d)
    linear("time_embed.2", d, 4 * d)
    linear("final_layer.linear", out, d)
    linear("final_layer.adaLN_modulation.1", 2 * d, d)
    blocks = [*(f"in_blocks.{i}" for i in range(half)), "mid_block", *(f"out_blocks.{i}" for i in range(half))]
    for block in blocks:
        mixer = f"{block}.mixer"
        names[f"{block}.norm.weight"] = (d,)
        names[f"{mixer}.in_proj.weight"], names[f"{mixer}.out_proj.weight"] = (2 * inner, d), (d, inner)
        names[f"{mixer}.A_log"] = names[f"{mixer}.A_b_log"] = (inner, states)
        names[f"{mixer}.D"] = names[f"{mixer}.D_b"] = (inner,)
        for way in ("", "_b"):
            names[f"{mixer}.conv1d{way}.weight"], names[f"{mixer}.conv1d{way}.bias"] = (inner, 1, 4), (inner,)
            names[f"{mixer}.x_proj{way}.weight"] = (rank + 2 * states, inner)
            linear(f"{mixer}.dt_proj{way}", inner, rank)
        if block.startswith("out"):
            linear(f"{block}.skip_linear", d, 2 * d)
    return names


def published(config: DiSConfig, weights: dict[str, Tensor], z: Tensor, steps: Tensor, label: Tensor) -> Tensor:
    """The output of published weights, written from the paper's equations token by token."""
    d = config.channels

    def linear(name: str, h: Tensor) -> Tensor:
        return F.linear(h, weights[f"{name}.weight"], weights.get(f"{name}.bias"))

    def norm(name: str, h: Tensor) -> Tensor:
        return h / (h.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weights[f"{name}.weight"]

    def one_way(mixer: str, xz: Tensor, way: str, decays: str) -> Tensor:
        x, gate = xz.chunk(2, -1)
        before = F.pad(x, (0, 0, 3, 0))
        taps = weights[f"{mixer}.conv1d{way}.weight"][:, 0]
        u = F.silu(
            sum(before[:, k : k + x.shape[1]] * taps[:, k] for k in range(4)) + weights[f"{mixer}.conv1d{way}.bias"]
        )
        delta, b, c = linear(f"{mixer}.x_proj{way}", u).split([-(-d // 16), config.states, config.states], -1)
        dt, a = F.softplus(linear(f"{mixer}.dt_proj{way}", delta)), -weights[f"{mixer}.{decays}"].exp()
        h, out = u.new_zeros(len(u), 2 * d, config.states), []
        for i in range(u.shape[1]):
            h = torch.exp(dt[:, i, :, None] * a) * h + (dt[:, i] * u[:, i])[..., None] * b[:, i, None]
            out.append((h * c[:, i, None]).sum(-1) + weights[f"{mixer}.D{way}"] * u[:, i])
        return torch.stack(out, 1) * F.silu(gate)

    def mixed(block: str, h: Tensor) -> Tensor:
        mixer = f"{block}.mixer"
        xz = linear(f"{mixer}.in_proj", norm(f"{block}.norm", h))
        backward = one_way(mixer, xz.flip(1), "_b", "A_b_log").flip(1)
        return linear(f"{mixer}.out_proj", one_way(mixer, xz, "", "A_log") + backward)

    angle = steps.double()[:, None] * 10000 ** (-torch.arange(d // 2).double() / (d // 2))
    time = linear("time_embed.2", F.silu(linear("time_embed.0", torch.cat((angle.cos(), angle.sin()), -1))))
    of_class = weights["label_emb.embedding_table.weight"][label]
    patches = F.conv2d(z, weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"], stride=config.patch)
    h = torch.cat((of_class[:, None], time[:, None], patches.flatten(2).mT), 1) + weights["pos_embed"]
    residual, skips, half = torch.zeros_like(h), [], config.blocks // 2
    for i in range(half):
        residual = residual + h
        h = mixed(f"in_blocks.{i}", residual)
        skips.append(h)
    residual = residual + h
    h = mixed("mid_block", residual)
    for i in range(half):
        residual = residual + linear(f"out_blocks.{i}.skip_linear", torch.cat((h, skips.pop()), -1))
        h = mixed(f"out_blocks.{i}", residual)
    h = norm("norm_f", residual + h)
    shift, scale = linear("final_layer.adaLN_modulation.1", F.silu(time + of_class)).chunk(2, -1)
    h = linear("final_layer.linear", F.layer_norm(h, (d,), eps=1e-6) * (1 + scale[:, None]) + shift[:, None])[:, 2:]
    side, patch = config.image_size // config.patch, config.patch
    h = h.view(len(z), side, side, patch, patch, -1).permute(0, 5, 1, 3, 2, 4)
    return h.reshape(len(z), -1, config.image_size, config.image_size)


def test_weights_of_the_published_layout_are_read_and_give_the_paper_s_outputs() -> None:
    config, generator = replace(NET, convention="dit"), torch.Generator().manual_seed(0)
    weights = {
        name: 0.2 * torch.randn(shape, dtype=torch.float64, generator=generator)
        for name, shape in layout(config).items()
    }
    net = DiS(config).double().eval()
    net.load_state_dict(weights)  # strict
    steps = torch.tensor([0, 500, 999])
    log_snr = Betas().log_snr((steps + 1).double() / 1000)
    eps = published(config, weights, Z, steps, LABEL)[:, :4]
    found, expected = net(Z, log_snr, LABEL), v_from_eps(Z, eps, log_snr)
    assert (found - expected).abs().max() / expected.abs().max() < 1e-6


@pytest.mark.parametrize("config", [NET, replace(NET, num_classes=0), HEADS], ids=["channel", "no classes", "head"])
def test_cost_and_size_by_hand(config: DiSConfig) -> None:
    net = DiS(config)
    label = torch.zeros(1, dtype=torch.int64) if config.num_classes else None
    assert macs_of(lambda: net(torch.zeros(1, 4, 8, 8), torch.zeros(1), label)) == macs(config)
    if config is NET:
        assert sum(weight.numel() for weight in net.parameters()) == sum(map(math.prod, layout(NET).values()))


@pytest.mark.parametrize(
    ("name", "millions", "giga"),
    [("S/2", 29.1, 7.17), ("B/2", 121.2, 29.7), ("M/2", 231.4, 58.4), ("L/2", 407.2, 102.7), ("H/2", 900.0, 228.4)],
)
def test_published_sizes(name: str, millions: float, giga: float) -> None:
    """H/2 is reported to have 900 million parameters (by arXiv 2410.11081), met within 1%; others are counted here."""
    config = dis(name)
    assert sum(map(math.prod, layout(config).values())) / 1e6 == pytest.approx(millions, rel=0.01)
    assert macs(config) / 1e9 == pytest.approx(giga, rel=0.01)
    assert (config.convention, config.learned_sigma, config.dropout) == ("dit", True, 0.1)


def test_what_does_not_fit_is_refused() -> None:
    for name in ("XL/2", "S/8", "S"):
        with pytest.raises(ValueError, match="S, B, M, L, H, and patches of 2, 4, got"):
            dis(name)
    with pytest.raises(ValueError, match="channels are even and blocks odd, got 16 channels and 4 blocks"):
        replace(NET, blocks=4)
    with pytest.raises(ValueError, match="32 inner channels do not divide into heads of 5"):
        replace(HEADS, head_dim=5)
    with pytest.raises(ValueError, match="do not divide into patches of 3"):
        replace(NET, patch=3)


def test_a_decay_per_head_is_two_scans_of_the_whole_sequence() -> None:
    """The one matrix of both directions, against `selective_scan` forward and on the flipped sequence."""
    from dualrate.networks.dis import HeadMixer
    from dualrate.networks.scan import selective_scan

    mixer: Any = randomised(HeadMixer(HEADS)).double()
    h = torch.randn(2, 11, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    x, z = mixer.in_proj(h).mT.chunk(2, 1)
    u = F.silu(mixer.conv1d(x))
    B, C, delta = mixer.x_proj(u.mT).mT.split((6, 6, 8), 1)
    A = -mixer.A_log.exp()
    ways = []
    for way, turned in ((0, lambda part: part), (1, lambda part: part.flip(-1))):
        parts = (part.chunk(2, 1)[way] for part in (delta + mixer.dt_bias[:, None], B, C))
        dt, b, c = map(turned, parts)
        ways.append(turned(selective_scan(turned(u), dt, A.chunk(2)[way], b, c, backend="loop")))
    y = ways[0] + ways[1] + mixer.D[:, None] * u
    torch.testing.assert_close(mixer(h), mixer.out_proj((y * F.silu(z)).mT))


@pytest.mark.parametrize("config", [NET, HEADS], ids=["channel", "head"])
def test_all_conditions_and_all_patches_matter_and_rows_are_independent(config: DiSConfig) -> None:
    net = randomised(DiS(config)).double()
    with torch.no_grad():
        out, order = net(Z, LOG_SNR, LABEL), torch.tensor([2, 0, 1])
        torch.testing.assert_close(net(Z[order], LOG_SNR[order], LABEL[order]), out[order])
        torch.testing.assert_close(net(Z, LOG_SNR, None)[2], out[2])  # the null class
        changed = Z.clone()
        changed[:, :, :2, :2] += 1  # the first patch
        for other in (net(Z, LOG_SNR + 1, LABEL), net(Z, LOG_SNR, (LABEL + 1) % 6), net(changed, LOG_SNR, LABEL)):
            assert ((other - out).abs().amax((1, 2, 3)) > 1e-6).all()
        changed = Z.clone()
        changed[:, :, -2:, -2:] += 1  # the last one, of which the first learns backward
        gap = (net(changed, LOG_SNR, LABEL) - out)[:, :, :2, :2]
        assert (gap.abs().amax((1, 2, 3)) > 1e-12).all()


def test_at_first_the_output_is_zero_and_blocks_are_dropped_in_training_alone() -> None:
    net = DiS(replace(NET, convention="repa", dropout=0.9)).double()
    with torch.no_grad():
        torch.testing.assert_close(net.eval()(Z, LOG_SNR, LABEL), torch.tanh(LOG_SNR / 4)[:, None, None, None] * Z)
        randomised(net)
        torch.testing.assert_close(net(Z, LOG_SNR, LABEL), net(Z, LOG_SNR, LABEL))
        torch.manual_seed(0)
        assert not torch.isclose(net.train()(Z, LOG_SNR, LABEL), net(Z, LOG_SNR, LABEL)).all()


PAIRS = {
    "DiS, DiS": dr.TwoNetworks(NET, NET.lighter()),
    "DiS, DiT": dr.TwoNetworks(replace(NET, head=False), DIT),
    "DiT, DiS by heads": dr.TwoNetworks(DIT, HEADS),
}


@pytest.mark.parametrize("networks", PAIRS.values(), ids=PAIRS)
def test_either_network_of_a_pair_may_be_a_dis(networks: dr.TwoNetworks) -> None:
    assert from_plain(NetworksConfig, to_plain(networks)) == networks
    check_pair(networks)


def test_a_light_network_is_laid_out_beside_one() -> None:
    light = dis("B/2").lighter()
    assert (light.channels, light.blocks, light.head, light.learned_sigma) == (384, 11, True, False)
    assert replace(NET, blocks=1).lighter().blocks == 1
    assert replace(HEADS, head_dim=32).lighter().channels == 16


@pytest.mark.parametrize("net", [DiT(DIT), DiS(NET), DiS(HEADS)], ids=["DiT", "DiS", "DiS by heads"])
def test_a_cache_keeps_what_the_blocks_add(net: DiT | DiS) -> None:
    randomised(net).double()
    cut = net.cut(0)
    with torch.no_grad():
        added, v = cut.whole(Z, LOG_SNR, LABEL)
        torch.testing.assert_close(v, net(Z, LOG_SNR, LABEL))
        torch.testing.assert_close(cut.rest(Z, LOG_SNR, LABEL, added), v)
        assert not torch.isclose(cut.rest(Z, LOG_SNR, LABEL, 2 * added), v).all()
    with pytest.raises(ValueError, match=r"has one level, all inside \(outer 0\), got outer 1"):
        net.cut(1)
    with pytest.raises(ValueError, match="built without a head, so it cannot denoise"):
        type(net)(replace(net.config, head=False)).cut(0)


def test_a_derivative_is_carried_through_a_network() -> None:
    net = randomised(DiS(NET)).double()
    along = torch.randn(Z.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        with forward_ad.dual_level():
            found = forward_ad.unpack_dual(net(forward_ad.make_dual(Z, along), LOG_SNR, LABEL)).tangent
        slope = (net(Z + 1e-5 * along, LOG_SNR, LABEL) - net(Z - 1e-5 * along, LOG_SNR, LABEL)) / 2e-5
    torch.testing.assert_close(found, slope, rtol=1e-6, atol=1e-6)


def parsed(*words: str) -> Any:
    command: Any = parse_train(list(words))
    return command.experiment


def test_recipes_of_flat_networks_are_options_of_the_command() -> None:
    words = ["fashion-mnist-flat", "--body", "dis", "--rate", "dual", "--networks.light.blocks", "1"]
    networks: Any = parsed(*words).networks
    assert networks.encoder == dr.DiSConfig(28, 1, 112, 5, 10, patch=4, head_dim=32)
    assert (networks.light.widths, networks.light) == ((56,), replace(networks.encoder.lighter(), blocks=1))
    whole = parsed("imagenet256-latents-flat", "--body", "dis", "--size", "L/4")
    assert whole.networks == dr.OneNetwork(replace(dis("L/4"), convention="sit", learned_sigma=False))
    assert isinstance(parsed("imagenet256-latents-flat").networks.model, dr.DiTConfig)


def test_a_pair_is_trained_sampled_counted_cached_and_released_by_the_commands(tmp_path, monkeypatch, capsys) -> None:
    images = np.random.default_rng(0).integers(0, 256, (16, 28, 28, 1), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images=images, labels=np.arange(16) % 10)
    small = [
        "--networks.encoder.channels",
        16,
        "--networks.encoder.blocks",
        1,
        "--networks.light.channels",
        8,
        "--networks.light.head-dim",
        16,
    ]
    small += ["--networks.light.decay", "head", "--fit.iterations", 2, "--fit.batch-size", 4]
    data = ["--data.source", tmp_path / "images.npz"]
    run, out = tmp_path / "run", tmp_path / "released"
    assert (
        call(monkeypatch, "train", "fashion-mnist-flat", "--body", "dis", "--rate", "dual", *small, *data, "--out", run)
        == 0
    )
    assert call(monkeypatch, "sample", run, "--num", 2, "--steps", 2, "--heavy", 1, "--out", tmp_path / "samples") == 0
    assert call(monkeypatch, "cost", run, "--steps", 2, "--heavy", 1) == 0
    assert call(monkeypatch, "export", run, "--out", out) == 0
    model = dr.load(out)
    heavy, light = (model.experiment.networks.configs[role] for role in ("encoder", "light"))
    cost = model.call_cost
    projected = 49 * 16 * 8 + 49 * 16 * 8  # the feature, and x_hat in patches of 4
    assert cost.heavy == macs(heavy) + projected
    embedded = 64 * light.embedding + light.embedding**2  # of tau
    assert cost.light == macs(light) + embedded
    assert isinstance(heavy, DiSConfig)


def test_a_single_network_is_cached_by_name() -> None:
    networks, denoiser = dr.OneNetwork(NET).build(PROCESS)
    randomised(networks).double()
    cache = FeatureCache.around(denoiser, PROCESS)
    t = torch.tensor(0.4).double()
    with torch.no_grad():
        context = cache.encode(Z, t, dr.Cond(LABEL))
        torch.testing.assert_close(context.x_hat, denoiser.denoise(Z, t, dr.Context(), dr.Cond(LABEL)))


def test_fields_keep_their_order() -> None:
    """Kept samples, scores and errors are found by a digest of an experiment's fields in this order."""
    first = ["image_size", "image_channels", "channels", "blocks", "num_classes", "patch"]
    last = ["head", "convention", "learned_sigma", "dropout"]
    assert [field.name for field in fields(dr.DiTConfig)] == [*first, "head_dim", *last]
    assert [field.name for field in fields(dr.DiSConfig)] == [*first, "decay", "states", "head_dim", *last]
