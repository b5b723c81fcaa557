"""Under autocast our networks compute on a GPU in the precision in which they do on a CPU."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

import dualrate as dr
from dualrate.diffusion.process import GaussianProcess
from dualrate.diffusion.schedule import Cosine
from dualrate.networks import blocks
from dualrate.networks.blocks import ConvBlock, doubled, layer_norm, no_autocast
from dualrate.networks.dis import DiSConfig
from dualrate.networks.dit import DiTConfig

LEVELS = (dr.Level("conv", 8, 1), dr.Level("conv", 8, 1), dr.Level("transformer", 16, 1))
NET = dr.UViTConfig(16, 1, LEVELS, 3, embedding=16, head_dim=8)
FLOAT32 = {  # in which CUDA's autocast computes these, and a CPU's not (torch.amp, "ops that can autocast to float32")
    "layer_norm", "group_norm", "interpolate", "upsample_nearest2d", "softmax", "log_softmax", "softplus", "sum",
    "prod", "cumsum", "norm", "exp", "log", "pow", "__pow__", "rsqrt", "reciprocal", "sinh", "tan", "acos",
}  # fmt: skip


class Watched(TorchFunctionMode):
    """Sees which of these are called on activations, (B, n, C) or (B, C, H, W), while autocast decides."""

    def __init__(self) -> None:
        super().__init__()
        self.left_to_autocast: list[str] = []
        self.calls = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name, h = getattr(func, "__name__", ""), args[0] if args else None
        if name in FLOAT32 and isinstance(h, torch.Tensor) and h.ndim >= 3 and (kwargs or {}).get("dtype") is None:
            self.calls += 1
            if torch.is_autocast_enabled("cpu"):
                self.left_to_autocast.append(name)
        return func(*args, **(kwargs or {}))


DIT = DiTConfig(16, 1, channels=16, blocks=3, num_classes=3, head_dim=8)
DIS = DiSConfig(16, 1, channels=16, blocks=3, num_classes=3, head_dim=8)
NETWORKS = {
    "one": dr.OneNetwork(NET),
    "two": dr.TwoNetworks(NET, NET),
    "dit": dr.TwoNetworks(replace(DIT, head=False), DIT),
    "dis": dr.TwoNetworks(replace(DIS, head=False), replace(DIS, decay="head")),
}


@pytest.mark.parametrize("networks", NETWORKS.values(), ids=NETWORKS)
def test_nothing_that_a_gpu_would_widen_is_left_to_autocast(networks, monkeypatch):
    monkeypatch.setattr(blocks, "AS_CPU", set())
    denoiser = networks.build(GaussianProcess(Cosine()))[1]
    z, t, cond = torch.randn(2, 1, 16, 16), torch.full((2,), 0.5), dr.Cond(torch.arange(2))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), Watched() as watched:
        context = denoiser.encode(z, t, cond)
        denoiser.denoise(z, t, context, cond)
    assert watched.left_to_autocast == []
    assert watched.calls > 10


def test_autocast_is_left_only_where_it_is_on_and_would_widen(monkeypatch):
    h = torch.ones(1, 2, 4, 4)
    assert isinstance(no_autocast(h), nullcontext)
    entered = []
    monkeypatch.setattr(blocks, "no_autocast", lambda h: entered.append(h) or nullcontext())
    with torch.autocast("cpu", torch.bfloat16):
        doubled(layer_norm(h))
        assert entered == []
        with monkeypatch.context() as as_on_gpu:
            as_on_gpu.setattr(blocks, "AS_CPU", set())
            doubled(layer_norm(h))
        assert len(entered) == 2
    layer_norm(h)
    assert len(entered) == 2


def test_doubled_repeats_every_value():
    h = torch.randn(2, 3, 4, 5)
    assert torch.equal(doubled(h), h.repeat_interleave(2, 2).repeat_interleave(2, 3))


def test_blocks_need_no_device():
    block = ConvBlock(4, 8, 0.0).to("meta")
    assert block(torch.zeros(2, 4, 8, 8, device="meta"), torch.zeros(2, 8, device="meta")).shape == (2, 4, 8, 8)


def test_what_is_left_to_autocast_is_seen():
    with torch.autocast("cpu", torch.bfloat16), Watched() as watched:
        functional.layer_norm(torch.zeros(1, 2, 4), (4,))
    assert watched.left_to_autocast[0] == "layer_norm"
