"""The diffusion transformer (DiT, Peebles and Xie 2023, arXiv 2212.09748; SiT, Ma et al. 2024, arXiv 2401.08740): flat,
with adaLN-Zero. Its parts have the names of the published weights, which `load_state_dict` reads.

    c = MLP([cos(k w), sin(k w)]) + label,   w_i = 10000^(-i/128), k the network's own time
    h = patches of the state + position      fixed sines and cosines of column and row
    h <- h + g_1 attention(n(h) (1 + a_1) + b_1)
    h <- h + g_2 MLP(n(h) (1 + a_2) + b_2)   n: layer norm; (b_1, a_1, g_1, b_2, a_2, g_2) = linear(SiLU(c)), 0 at first
    output = linear(n(h) (1 + a) + b)        (b, a) = linear(SiLU(c))

MACs per image, n tokens of d channels: n (12 d^2 + 2 n d) + 6 d^2 a block.

A convention says what state and time it is given, and what its output is (`diffusion/prediction.py`):

    dit     z, the step k of 1000 linear betas; eps
    sit     (1 - r) x + r eps, its time 1 - r; x - eps, the velocity towards the data
    repa    the same state, its time r; eps - x                                                   (arXiv 2410.06940)

In a pair the features are the encoder's last activation, projected; they are added to the light network's patches. The
decoder of DDT (arXiv 2504.05741) has a scale and a shift of each token instead, 6 d^2 n more multiply-adds a block.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dualrate.config.ranges import BelowOne, Channels, Classes, OuterLevels, Range, Ranged, Side
from dualrate.diffusion.context import Shape
from dualrate.diffusion.prediction import REPA, SIT, Convention, Discrete
from dualrate.diffusion.schedule import Betas
from dualrate.networks.blocks import (
    Block,
    LinearInFloat32,
    add_shared,
    attend,
    class_of,
    layer_norm,
    modulated,
    require_shape,
    zero_init,
)
from dualrate.networks.body import BodyConfig

CONVENTIONS: dict[str, Convention] = {"dit": Discrete(Betas()), "sit": SIT, "repa": REPA}
FREQUENCIES, EPS = 128, 1e-6
# blocks, channels, width of a head
SIZES = {"S": (12, 384, 64), "B": (12, 768, 64), "L": (24, 1024, 64), "XL": (28, 1152, 72)}
PATCHES = (2, 4, 8)


@dataclass(frozen=True)
class FlatConfig(BodyConfig):
    """A network whose tokens are squares of the image, `patch` pixels a side, on one level."""

    image_size: Side
    """Side of the images or latents."""
    image_channels: Annotated[int, Range(1, 1024)]
    """Channels of the images or latents."""
    channels: Channels
    """Width of the blocks: a multiple of 4 in a DiT, even in a DiS."""
    blocks: Annotated[int, Range(0, 1001)]
    """Number of blocks; odd in a DiS, which has one in the middle."""
    num_classes: Classes = 0
    """Number of classes; 0 for an unconditional model. The label after the last class is the null class."""
    patch: Annotated[int, Range(1, 256)] = 2
    """Side of the square of pixels that becomes one token."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_size % self.patch:
            raise ValueError(f"images of side {self.image_size} do not divide into patches of {self.patch}")

    @property
    def shape(self) -> Shape:
        return self.image_channels, self.image_size, self.image_size

    @property
    def widths(self) -> tuple[int, ...]:
        return (self.channels,)

    def sides(self, level: int) -> tuple[int, int]:
        return self.image_size // self.patch, self.image_size // self.patch

    def with_dropout(self, dropout: float) -> Self:
        return replace(self, dropout=dropout)  # pyright: ignore[reportArgumentType]


Sizes = TypeVar("Sizes", bound=tuple[int, ...])


def published(kind: str, sizes: Mapping[str, Sizes], patches: Sequence[int], name: str) -> tuple[Sizes, int]:
    """The size and the patch of a name such as "XL/2". Raises ValueError for a name of no such size and patch."""
    size, _, patch = name.partition("/")
    if size not in sizes or patch not in map(str, patches):
        listed = f"{', '.join(sizes)}, and patches of {', '.join(map(str, patches))}"
        example = f"{list(sizes)[-1]}/2"
        raise ValueError(
            f"{kind} has the sizes {listed}, got {name!r}: write {example}, or give a {kind}Config its own channels"
        )
    return sizes[size], int(patch)


@dataclass(frozen=True)
class DiTConfig(FlatConfig):
    """A diffusion transformer: a block is self-attention and an MLP."""

    head_dim: Annotated[int, Range(1, 1024)] = 64
    """Width of an attention head, a divisor of the channels."""
    head: bool = True
    """Whether the network has a head that predicts v. A context encoder may do without."""
    convention: Literal["dit", "sit", "repa"] = "sit"
    """What the network takes as input, and what it predicts."""
    learned_sigma: bool = False
    """Whether the network also outputs a variance, as published weights do. The variance is not used."""
    dropout: BelowOne = 0.0
    """Dropout in the MLPs, in training."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.channels % 4 or self.channels % self.head_dim:
            raise ValueError(f"channels are a multiple of 4 and of head_dim {self.head_dim}, got {self.channels}")

    @property
    def embedding(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.channels

    def lighter(self) -> DiTConfig:
        """Half of its heads, but one at least, and of its blocks."""
        channels, blocks = self.head_dim * max(1, self.channels // self.head_dim // 2), max(1, self.blocks // 2)
        return replace(self, channels=channels, blocks=blocks, head=True, learned_sigma=False, dropout=0.0)

    def network(self) -> DiT:
        return DiT(self)

    def coarsest(self, network: nn.Module) -> nn.ModuleList:
        assert isinstance(network, DiT)
        return network.blocks


def dit(
    name: str,
    image_size: int = 32,
    image_channels: int = 4,
    num_classes: int = 1000,
    convention: Literal["dit", "sit", "repa"] = "sit",
) -> DiTConfig:
    """A published size, such as "XL/2": S, B, L or XL, and patches of 2, 4 or 8. Raises ValueError for another."""
    (blocks, channels, head_dim), patch = published("DiT", SIZES, PATCHES, name)
    return DiTConfig(
        image_size,
        image_channels,
        channels,
        blocks,
        num_classes,
        patch,
        head_dim=head_dim,
        convention=convention,
        learned_sigma=True,
    )


class DiTBlock(Block):
    """adaLN-Zero: attention, then an MLP of ratio 4; the identity at first. forward: (h, emb) -> like h, (B, n, C)."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        width = config.channels
        self.head_dim = config.head_dim
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self.adaLN_modulation(emb).chunk(6, dim=-1)
        qkv = self.attn["qkv"](modulated(h, (1 + scale_1, shift_1), EPS)).unflatten(-1, (3, -1, self.head_dim))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        h = h + gate_1[:, None] * self.attn["proj"](attend(q, k, v).transpose(1, 2).flatten(2))
        u = F.gelu(self.mlp["fc1"](modulated(h, (1 + scale_2, shift_2), EPS)), approximate="tanh")
        return h + gate_2[:, None] * self.mlp["fc2"](self.dropout(u))


class Flat(nn.Module, ABC):
    """A network of one level: patches, a row of blocks on tokens, a head. forward: (z, log_snr, label) -> v. Its
    methods are those of `body`; a subclass has `embedding`, `tokens`, `through`, and these parts.
    """

    final_layer: nn.ModuleDict | None
    frequency: Tensor
    null = True

    def __init__(self, config: Any, frequencies: int) -> None:
        super().__init__()
        self.config, self.num_classes = config, config.num_classes
        self.convention = CONVENTIONS[config.convention]
        w = torch.exp(-math.log(1e4) * torch.arange(frequencies) / frequencies)
        self.register_buffer("frequency", w, persistent=False)

    def waves(self, log_snr: Tensor) -> Tensor:
        """[cos(k w), sin(k w)], (B, 2 F), of the network's own time k and w_i = 10000^(-i / F)."""
        angle = self.convention.time(log_snr)[:, None] * self.frequency
        return torch.cat((angle.cos(), angle.sin()), dim=-1)

    @abstractmethod
    def embedding(self, log_snr: Tensor, label: Tensor | None) -> Tensor:
        """The embedding of noise level and label, (B, E)."""

    @abstractmethod
    def tokens(self, patches: Tensor, emb: Tensor) -> Tensor:
        """The input of the blocks, (B, k + n, C): n patches, (B, n, C), behind k tokens of the embedding."""

    @abstractmethod
    def through(self, h: Tensor, emb: Tensor) -> Tensor:
        """The output of the blocks for the input h, (B, k + n, C)."""

    @property
    @abstractmethod
    def patches(self) -> nn.Module:
        """(B, C, H, W) -> (B, channels, h, w)."""

    def condition(self, emb: Tensor) -> Tensor:
        """The part of the embedding that modulates the head, (B, C)."""
        return emb

    def forward(self, z: Tensor, log_snr: Tensor, label: Tensor | None, added: Sequence[Tensor] = ()) -> Tensor:
        """z: (B, C, H, W); log_snr: (B,); label: (B,) int64 or None -> v: (B, C, H, W) float32."""
        return self.called(z, log_snr, self.embedding(log_snr, label), added)

    def called(self, z: Tensor, log_snr: Tensor, emb: Tensor, added: Sequence[Tensor] = ()) -> Tensor:
        return self.v(z, log_snr, emb, self.through(self.start(z, log_snr, emb, added), emb))

    def features(
        self, z: Tensor, log_snr: Tensor, label: Tensor | None, added: Sequence[Tensor] = ()
    ) -> tuple[tuple[Tensor, ...], Tensor | None]:
        emb = self.embedding(log_snr, label)
        h = self.through(self.start(z, log_snr, emb, added), emb)
        v = None if self.final_layer is None else self.v(z, log_snr, emb, h)
        sides = self.config.sides(0)
        return (h[:, -math.prod(sides) :].transpose(1, 2).unflatten(2, sides),), v

    def start(self, z: Tensor, log_snr: Tensor, emb: Tensor, added: Sequence[Tensor] = ()) -> Tensor:
        """The input of the blocks. added: see `body`."""
        h = self.patches(self.convention.state(z, log_snr))
        return self.tokens((add_shared(h, added[0]) if added else h).flatten(2).transpose(1, 2), emb)

    def v(self, z: Tensor, log_snr: Tensor, emb: Tensor, h: Tensor) -> Tensor:
        """v of the blocks' output h, in float32 whatever precision they ran in."""
        name = type(self).__name__
        if self.final_layer is None:
            raise ValueError(f"this {name} was built without a head ({name}Config.head): it has features, but no v")
        linear, patch, sides = self.final_layer["linear"], self.config.patch, self.config.sides(0)
        h = h[:, -math.prod(sides) :].to(next(linear.parameters()).dtype)
        if "adaLN_modulation" in self.final_layer:
            shift, scale = self.final_layer["adaLN_modulation"](self.condition(emb)).chunk(2, dim=-1)
            output = linear(modulated(h, (1 + scale, shift), EPS))
        else:
            output = linear(layer_norm(h, eps=EPS))
        output = output.view(z.shape[0], *sides, patch, patch, output.shape[-1] // patch**2)
        output = output.permute(0, 5, 1, 3, 2, 4)[:, : z.shape[1]].reshape(z.shape)
        return self.convention.v(z, output, log_snr)

    def cut(self, outer: int) -> FlatCut:
        """This network, its blocks apart. Raises ValueError for another level than 0, and without a head."""
        return FlatCut(self, outer)


@dataclass(frozen=True)
class FlatCut(Ranged):
    """A network in two: the sum that its blocks add to their input, (B, k + n, C), and the rest, as `UViTCut`."""

    network: Any
    outer: OuterLevels = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        name = type(self.network).__name__
        if self.outer:
            raise ValueError(f"{name} has one level, all inside (outer 0), got outer {self.outer}")
        if self.network.final_layer is None:
            raise ValueError(f"this {name} was built without a head, so it cannot denoise: cut one that predicts v")

    def whole(self, z: Tensor, log_snr: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor]:
        """The sum that the blocks add, and the network's v. Arguments: the network's."""
        net, emb = self.network, self.network.embedding(log_snr, label)
        start = net.start(z, log_snr, emb)
        h = net.through(start, emb)
        return h - start, net.v(z, log_snr, emb, h)

    def rest(self, z: Tensor, log_snr: Tensor, label: Tensor | None, added: Tensor) -> Tensor:
        """v without a call of the blocks. added: their sum; raises ValueError where it has another shape."""
        emb = self.network.embedding(log_snr, label)
        start = self.network.start(z, log_snr, emb)
        require_shape(added, start)
        return self.network.v(z, log_snr, emb, start + added)


def head(config: Any, *, modulated: bool = True) -> nn.ModuleDict | None:
    """A flat network's last layers: its output is 0 at first. modulated: by the embedding"""
    if not config.head:
        return None
    width, sizes = config.channels, config.patch**2 * config.image_channels * (2 if config.learned_sigma else 1)
    parts: dict[str, nn.Module] = {"linear": zero_init(LinearInFloat32(width, sizes))}
    if modulated:
        parts["adaLN_modulation"] = nn.Sequential(nn.SiLU(), zero_init(nn.Linear(width, 2 * width)))
    return nn.ModuleDict(parts)


class DiT(Flat):
    """A diffusion transformer."""

    pos_embed: Tensor

    def __init__(self, config: DiTConfig) -> None:
        super().__init__(config, FREQUENCIES)
        width, patch = config.channels, config.patch
        mlp = nn.Sequential(nn.Linear(2 * FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        table = {"embedding_table": nn.Embedding(config.num_classes + 1, width)} if config.num_classes else {}
        self.t_embedder, self.y_embedder = nn.ModuleDict({"mlp": mlp}), nn.ModuleDict(table)
        self.x_embedder = nn.ModuleDict({"proj": nn.Conv2d(config.image_channels, width, patch, stride=patch)})
        self.register_buffer("pos_embed", positions(width, config.image_size // patch)[None])
        self.blocks = nn.ModuleList(DiTBlock(config) for _ in range(config.blocks))
        self.final_layer = head(config)
        self.apply(_initialised)
        for layer in (mlp[0], mlp[2], *table.values()):
            nn.init.normal_(next(layer.parameters()), std=0.02)
        for name, part in self.named_modules():
            if name.endswith(("adaLN_modulation.1", "final_layer.linear")):
                zero_init(part)

    @property
    def patches(self) -> nn.Module:
        return self.x_embedder["proj"]

    def embedding(self, log_snr: Tensor, label: Tensor | None) -> Tensor:
        """The sum c of the embeddings of time and class, (B, channels)."""
        emb = self.t_embedder["mlp"](self.waves(log_snr))
        if not self.num_classes:
            return emb
        return emb + self.y_embedder["embedding_table"](class_of(label, log_snr, self.num_classes))

    def tokens(self, patches: Tensor, emb: Tensor) -> Tensor:
        return patches + self.pos_embed.to(patches.dtype)

    def through(self, h: Tensor, emb: Tensor) -> Tensor:
        for block in self.blocks:
            h = block(h, emb)
        return h


def _initialised(part: Any) -> None:
    """Set the weights as published: uniform by fan-in and fan-out, and biases zero."""
    if isinstance(part, (nn.Linear, nn.Conv2d)):
        nn.init.xavier_uniform_(part.weight.view(len(part.weight), -1))
        if part.bias is not None:
            nn.init.zeros_(part.bias)


def positions(channels: int, side: int) -> Tensor:
    """(side^2, channels), row by row: [sin(x w), cos(x w), sin(y w), cos(y w)], w_i = 10000^(-4 i / channels)."""
    place = torch.arange(side, dtype=torch.float64)
    angle = place[:, None] * 1e4 ** -(torch.arange(channels // 4, dtype=torch.float64) / (channels // 4))
    axis = torch.cat((angle.sin(), angle.cos()), dim=1)
    return torch.cat((axis.repeat(side, 1), axis.repeat_interleave(side, 0)), dim=1).float()
