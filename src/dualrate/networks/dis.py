"""The diffusion model with a state space backbone (DiS, Fei et al. 2024, arXiv 2402.05608): scans in two directions, no
attention, no MLP. Its parts have the names of the published weights, which `load_state_dict` reads.

    tokens = [class, time, patches] + position        learned positions; class and time are tokens of their own
    a_i = scan(n(r_i)),  r_(i+1) = r_i + a_i          r in float32; n: RMS norm
    r_(i+1) = r_i + linear([a_i, a_j])                in the second half, j the block opposite: a long skip
    output = linear(m(n(r)))                          m: layer norm, modulated by class + time where there are classes

A block (the form v2 of Vim, arXiv 2401.09417), both directions of its own convolution, projections and decays:

    x, z = in_proj(h);   out = out_proj((forward(x) + backward(x)) SiLU(z))
    u = SiLU(conv1d(x));   delta, B, C = x_proj(u);   y = selective_scan(u, dt_proj(delta), -exp(A_log), B, C, D)

`decay="head"` is ours, after Hydra (arXiv 2407.09941): one convolution over 7 tokens around, a decay per head and
direction, and both directions in one matrix product of a head, y = (M + M_backward) u + D u. Unlike Hydra's, both parts
have the diagonal, and the gate has no norm. No published weights have this form.

Multiply-adds of a block, m tokens of d channels, N states, rank r = d / 16 rounded up:

    channel   m d (6 d + 8 r + 16 N + 16)
    head      m d (6 d + 14 + 8 N + 4 heads) + 2 m^2 (N + d)

and 2 m d^2 of a long skip. An embedding of a pair holds the tokens of class and time, one after the other; that of tau
is added to both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dualrate.config.ranges import BelowOne, Range
from dualrate.networks.blocks import Block, InFloat32, LinearInFloat32, class_of, no_autocast
from dualrate.networks.dit import PATCHES, Flat, FlatConfig, head, published
from dualrate.networks.scan import mixing, selective_scan

EXPAND, WIDTH, AROUND = 2, 4, 7  # inner channels over outer; tokens of a convolution, before and around
STEPS = 1e-3, 0.1  # of dt at first, spread evenly in its logarithm
SIZES = {"S": (25, 368), "B": (25, 768), "M": (49, 768), "L": (49, 1024), "H": (49, 1536)}  # blocks, channels


@dataclass(frozen=True)
class DiSConfig(FlatConfig):
    """A state space network: an odd number of blocks, one in the middle and as many behind it as in front, of an even
    number of channels.
    """

    decay: Literal["channel", "head"] = "channel"
    """channel: a decay per channel and state, as published. head: one per head, by matrix products: faster."""
    states: Annotated[int, Range(1, 1024)] = 16
    """States per channel."""
    head_dim: Annotated[int, Range(1, 1024)] = 64
    """For a decay per head: channels of a head, a divisor of twice the channels."""
    head: bool = True
    """Whether the network has a head that predicts v. A context encoder may do without."""
    convention: Literal["dit", "sit", "repa"] = "sit"
    """What the network takes as input, and what it predicts."""
    learned_sigma: bool = False
    """Whether the network also outputs a variance, as published weights do. The variance is not used."""
    dropout: BelowOne = 0.0
    """Share of whole blocks that are dropped in training: 0 of the first, growing evenly to this."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.channels % 2 or not self.blocks % 2:
            raise ValueError(f"channels are even and blocks odd, got {self.channels} channels and {self.blocks} blocks")
        if self.decay == "head" and EXPAND * self.channels % self.head_dim:
            raise ValueError(f"{EXPAND * self.channels} inner channels do not divide into heads of {self.head_dim}")

    @property
    def extras(self) -> int:
        """Tokens in front of the patches."""
        return 2 if self.num_classes else 1

    @property
    def embedding(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.extras * self.channels

    def lighter(self) -> DiSConfig:
        """Half of its channels, in whole heads, and nearly of its blocks."""
        unit = max(2, self.head_dim // math.gcd(EXPAND, self.head_dim)) if self.decay == "head" else 2
        channels = unit * max(1, self.channels // unit // 2)
        blocks = max(1, (self.blocks // 2 - 1) | 1)
        return replace(self, channels=channels, blocks=blocks, head=True, learned_sigma=False, dropout=0.0)

    def network(self) -> DiS:
        return DiS(self)


def dis(name: str, image_size: int = 32, image_channels: int = 4, num_classes: int = 1000) -> DiSConfig:
    """A published size, such as "H/2": S, B, M, L or H, and patches of 2 or 4. Raises ValueError for another."""
    (blocks, channels), patch = published("DiS", SIZES, PATCHES[:2], name)
    options: Any = {"convention": "dit", "learned_sigma": True, "dropout": 0.1}
    return DiSConfig(image_size, image_channels, channels, blocks, num_classes, patch, **options)


class RMSNorm(InFloat32, nn.RMSNorm):  # pyright: ignore[reportIncompatibleMethodOverride]
    """A norm in the precision of its weights, also under autocast."""


def first_steps(count: int) -> Tensor:
    """(count,) biases of dt: softplus of them is spread over `STEPS` evenly in its logarithm, at random."""
    low, high = map(math.log, STEPS)
    dt = torch.exp(torch.rand(count) * (high - low) + low)
    return dt + torch.log(-torch.expm1(-dt))


class ChannelMixer(nn.Module):
    """Two scans with a decay per channel and state. forward: (B, m, C) -> the same."""

    def __init__(self, config: DiSConfig) -> None:
        super().__init__()
        width, states = config.channels, config.states
        inner, self.rank, self.states = EXPAND * width, -(-width // 16), states
        self.in_proj, self.out_proj = nn.Linear(width, 2 * inner, bias=False), nn.Linear(inner, width, bias=False)
        self.A_log, self.A_b_log = (nn.Parameter(torch.arange(1, states + 1).log().repeat(inner, 1)) for _ in range(2))
        self.D, self.D_b = (nn.Parameter(torch.ones(inner)) for _ in range(2))
        for way in ("", "_b"):
            self.add_module(f"conv1d{way}", nn.Conv1d(inner, inner, WIDTH, groups=inner))
            self.add_module(f"x_proj{way}", nn.Linear(inner, self.rank + 2 * states, bias=False))
            self.add_module(f"dt_proj{way}", step := LinearInFloat32(self.rank, inner))
            nn.init.uniform_(step.weight, -(self.rank**-0.5), self.rank**-0.5)
            step.bias.data = first_steps(inner)

    def forward(self, h: Tensor) -> Tensor:
        x, z = self.in_proj(h).transpose(1, 2).chunk(2, dim=1)
        ways = zip(self.scanned(x, ""), self.scanned(x.flip(2), "_b"), strict=True)
        u, delta, B, C = (torch.stack(pair, 1) for pair in ways)
        A, D = -torch.cat((self.A_log, self.A_b_log)).exp(), torch.cat((self.D, self.D_b))
        y = selective_scan(u.flatten(1, 2), delta.flatten(1, 2), A, B, C, D)
        forward, backward = y.chunk(2, dim=1)
        return self.out_proj(((forward + backward.flip(2)) * F.silu(z)).transpose(1, 2))

    def scanned(self, x: Tensor, way: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """u, delta, B and C of one direction. x: (B, D, m)."""
        u = F.silu(self.get_submodule(f"conv1d{way}")(F.pad(x, (WIDTH - 1, 0))))
        parts = self.get_submodule(f"x_proj{way}")(u.transpose(1, 2))
        delta, B, C = parts.split((self.rank, self.states, self.states), dim=2)
        delta = self.get_submodule(f"dt_proj{way}")(delta)
        return u, delta.transpose(1, 2), B.transpose(1, 2), C.transpose(1, 2)


class HeadMixer(nn.Module):
    """Both directions as one matrix of a head, with a decay per head. forward: (B, m, C) -> the same."""

    def __init__(self, config: DiSConfig) -> None:
        super().__init__()
        width, states, inner = config.channels, config.states, EXPAND * config.channels
        self.heads, self.states = inner // config.head_dim, states
        self.in_proj, self.out_proj = nn.Linear(width, 2 * inner, bias=False), nn.Linear(inner, width, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, AROUND, padding=AROUND // 2, groups=inner)
        self.x_proj = nn.Linear(inner, 4 * states + 2 * self.heads, bias=False)
        self.dt_bias = nn.Parameter(first_steps(2 * self.heads))
        self.A_log, self.D = nn.Parameter(torch.zeros(2 * self.heads)), nn.Parameter(torch.ones(inner))

    def forward(self, h: Tensor) -> Tensor:
        x, z = self.in_proj(h).transpose(1, 2).chunk(2, dim=1)
        u = F.silu(self.conv1d(x))
        B, C, delta = (
            self.x_proj(u.transpose(1, 2)).transpose(1, 2).split((2 * self.states,) * 2 + (2 * self.heads,), 1)
        )
        with no_autocast(u):
            u, B, C, delta = (part.to(self.D.dtype) for part in (u, B, C, delta))
            parts = (F.softplus(delta + self.dt_bias[:, None]), B, C)
            dt, B, C = (torch.stack((a, b.flip(2)), 1) for a, b in (part.chunk(2, dim=1) for part in parts))
            mixed = mixing(dt.flatten(1, 2), -self.A_log.exp(), B, C).unflatten(1, (2, self.heads))
            matrix = mixed[:, 0] + mixed[:, 1].flip((2, 3))
            y = (matrix @ u.unflatten(1, (self.heads, -1)).transpose(2, 3)).transpose(2, 3).flatten(1, 2)
            y = (y + self.D[:, None] * u).to(z.dtype)
        return self.out_proj((y * F.silu(z)).transpose(1, 2))


class DiSBlock(Block):
    """A block without its residual sum. forward: (r, emb) -> its output, which joins the stream, like r, (B, m, C).

    skip_linear: maps [output of the block before, output of the opposite one], before it joins the stream; or None
    """

    def __init__(self, config: DiSConfig, *, skip: bool) -> None:
        super().__init__()
        width = config.channels
        self.norm = RMSNorm(width, eps=1e-5)
        self.mixer = (ChannelMixer if config.decay == "channel" else HeadMixer)(config)
        self.skip_linear = nn.Linear(2 * width, width) if skip else None

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        return self.mixer(self.norm(h))


class DiS(Flat):
    """A state space network."""

    def __init__(self, config: DiSConfig) -> None:
        super().__init__(config, config.channels // 2)
        width, half, patch = config.channels, config.blocks // 2, config.patch
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(config.image_channels, width, patch, stride=patch)})
        self.time_embed = nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, width))
        table = {"embedding_table": nn.Embedding(config.num_classes + 1, width)} if config.num_classes else {}
        self.label_emb = nn.ModuleDict(table)
        self.pos_embed = nn.Parameter(torch.empty(1, config.extras + math.prod(config.sides(0)), width))
        self.in_blocks = nn.ModuleList(DiSBlock(config, skip=False) for _ in range(half))
        self.mid_block = DiSBlock(config, skip=False)
        self.out_blocks = nn.ModuleList(DiSBlock(config, skip=True) for _ in range(half))
        self.norm_f = RMSNorm(width, eps=1e-5)
        self.final_layer = head(config, modulated=config.num_classes > 0)
        for weight in (self.pos_embed, *(embedding.weight for embedding in table.values())):
            nn.init.normal_(weight, std=0.02)
        for name, weight in self.named_parameters():
            if name.endswith("out_proj.weight"):  # of many that are added up
                weight.data /= config.blocks**0.5

    @property
    def patches(self) -> nn.Module:
        return self.patch_embed["proj"]

    def embedding(self, log_snr: Tensor, label: Tensor | None) -> Tensor:
        """[class, time], (B, 2 channels); the time alone without classes."""
        time = self.time_embed(self.waves(log_snr))
        if not self.num_classes:
            return time
        return torch.cat((self.label_emb["embedding_table"](class_of(label, log_snr, self.num_classes)), time), dim=1)

    def condition(self, emb: Tensor) -> Tensor:
        first, *second = emb.chunk(self.config.extras, dim=1)
        return first + second[0] if second else first

    def tokens(self, patches: Tensor, emb: Tensor) -> Tensor:
        extras = emb.unflatten(1, (self.config.extras, -1)).to(patches.dtype)
        return torch.cat((extras, patches), dim=1) + self.pos_embed.to(patches.dtype)

    def through(self, h: Tensor, emb: Tensor) -> Tensor:
        blocks = [*self.in_blocks, self.mid_block, *self.out_blocks]
        stream, outs = h.to(self.pos_embed.dtype), [h.new_zeros(())]
        for i, block in enumerate(blocks):
            new = outs[-1]
            if block.skip_linear is not None:
                new = block.skip_linear(torch.cat((new, outs[len(blocks) - i]), dim=-1))
            stream = stream + self.with_dropped_rows(new, i - 1)
            outs.append(block(stream, emb))
        return self.norm_f(stream + self.with_dropped_rows(outs[-1], len(blocks) - 2))

    def with_dropped_rows(self, new: Tensor, place: int) -> Tensor:
        """A block's output with some rows dropped in training. place: at 0 none are, at the last place most."""
        most = self.config.blocks - 2
        if not self.training or not self.config.dropout or place <= 0:
            return new
        rate = self.config.dropout * min(place / max(most, 1), 1)
        return new * F.dropout(new.new_ones(len(new), 1, 1), rate)
