"""Building blocks of the networks: FiLM-modulated residual blocks, transformer blocks, embeddings.

Activations (B, C, H, W) are in channels-last memory: tokens (B, H W, C) are a view. Every block begins as the identity.
MACs per image: convolution block 18 C^2 HW; transformer block 12 C^2 n + 2 C n^2 with n = HW tokens.

Precision. Autocast casts the weights of linear layers and convolutions wherever they are used; it keeps the result only
of weights that require gradients, and only until its block ends. A network that samples has none of those. Weights held
in bfloat16 (`copied`) have the same bits, and are cast once.

Training. `frozen` switches parameters off for a while; `eval_mode` switches dropout off too. A frozen parameter gets no
gradient, so an optimiser keeps no state for it and leaves it alone, and its moving average stays where it is. The
gradient with respect to the module's *inputs* still flows. Only the `requires_grad` flags change: no parameter is
replaced, cast or moved. The block may hold a network's first forward: autocast keeps 16-bit copies only of weights that
require gradients, so a frozen call leaves none behind.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dualrate.config.ranges import Precision
from dualrate.system.device import pays

Value = TypeVar("Value")
Part = TypeVar("Part", bound=nn.Module)


SMALL = 4, 4096  # fewer rows, and fewer positions of all rows: a CPU's casts take longer than bfloat16 saves


def in_bfloat16(precision: Precision, device: torch.device, batch: Sequence[int] | None = None) -> bool:
    """Whether matrix products are in bfloat16 there.

    batch: the shape of what is drawn at a time, (B, C, H, W). Of a small one "auto" is float32 on a CPU: 28 x 28 pixels
           in bfloat16 take 1.1 times as long one by one, and 0.75 of the time eight at a time
    """
    if precision != "auto":
        return precision == "bfloat16"
    rows, positions = SMALL
    small = batch is not None and batch[0] < rows and batch[0] * math.prod(batch[-2:]) < positions
    return not (small and device.type == "cpu") and pays(device)


def no_autocast(h: Tensor) -> AbstractContextManager[object]:
    """A context in which operations on h are in the precision of h.

    It does nothing where autocast is off: so torch's compiler finds its work in the cache again.
    """
    device = h.device.type
    if h.is_meta or not torch.is_autocast_enabled(device):  # torch cannot ask for `meta`
        return nullcontext()
    return torch.autocast(device, enabled=False)


class InFloat32(nn.Module):
    """The first base class of a layer, which then runs in the precision of its weights, also under autocast."""

    def forward(self, input: Tensor) -> Tensor:
        h = input.to(next(self.parameters()).dtype)
        with no_autocast(h):
            return super().forward(h)


class LinearInFloat32(InFloat32, nn.Linear):
    """A linear layer in the precision of its weights, also under autocast."""


def cast_layers(network: nn.Module) -> Iterator[nn.Module]:
    """The linear layers and convolutions, whose weights autocast casts, but for those within `InFloat32`."""
    if isinstance(network, InFloat32):
        return
    if isinstance(network, (nn.Linear, nn.Conv2d)):
        yield network
    for part in network.children():
        yield from cast_layers(part)


def copied(value: Value, network: nn.Module, *, bfloat16: bool) -> Value:
    """A copy of a value that holds the network or parts of it; it shares the network's weights.

    bfloat16: but for those of `cast_layers`, which are then bfloat16, without gradient
    """
    shared: dict[int, object] = {id(part): part for part in (*network.parameters(), *network.buffers())}
    for layer in cast_layers(network) if bfloat16 else ():
        for weight in layer.parameters(recurse=False):
            shared[id(weight)] = nn.Parameter(weight.detach().to(torch.bfloat16), requires_grad=False)
    return copy.deepcopy(value, shared)


AS_CPU = {"cpu"}  # kinds of device on which attention is not one kernel, and whose autocast leaves norms as they are


def zero_init(part: Part) -> Part:
    """The part of a network with all its weights zero."""
    for weight in part.parameters():
        nn.init.zeros_(weight)
    return part


class PeriodicConv2d(nn.Conv2d):
    """A convolution on a torus: the same as with padding_mode="circular", whose padding leaves channels-last memory.

    A light network on a torus is 1.1 to 1.5 times as fast with it, its training 1.1 times.
    edges, rest: widths, down and across, of padding that lies within the opposite edge, and that is 0
    """

    edges: tuple[int, int]
    rest: tuple[int, int]

    def forward(self, input: Tensor) -> Tensor:
        return F.conv2d(wrapped(input, self.edges), self.weight, self.bias, padding=self.rest)


def wrapped(h: Tensor, edges: tuple[int, int]) -> Tensor:
    """(B, C, H, W) -> (B, C, H + 2 a, W + 2 b), edges = (a, b): beyond each edge lie those within the opposite one.

    The result is in the memory format of h.
    """
    (a, b), (*many, height, width) = edges, h.shape
    # of one row half the time of three operations; compiled, what is written in place takes 1.7 times as long
    if torch.compiler.is_compiling() or not a:
        wide = torch.cat((h[..., -b:], h, h[..., :b]), -1) if b else h
        return torch.cat((wide[..., -a:, :], wide, wide[..., :a, :]), -2) if a else wide
    form = torch.channels_last if h.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
    wide = torch.empty((*many, height + 2 * a, width + 2 * b), dtype=h.dtype, device=h.device, memory_format=form)
    rows = wide[..., a : a + height, :]
    rows[..., b : b + width] = h
    if b:
        rows[..., :b], rows[..., -b:] = h[..., -b:], h[..., :b]
    wide[..., :a, :], wide[..., -a:, :] = rows[..., -a:, :], rows[..., :a, :]
    return wide


class SphereConv2d(nn.Conv2d):
    """A convolution over three positions of each axis of a sphere: rows are circles round it, none of them a pole."""

    def forward(self, input: Tensor) -> Tensor:
        return F.conv2d(over_poles(input), self.weight, self.bias)


def over_poles(h: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C, H + 2, W + 2), W even: beyond a pole lies the row before it, half a turn round."""
    wide, half = wrapped(h, (1, 1)), h.shape[-1] // 2
    for row in (0, -1):
        wide[..., row, :] = torch.cat((h[..., row, half - 1 :], h[..., row, : half + 1]), -1)
    return wide


def conv3(
    channels: int, out: int, *, line: bool = False, periodic: tuple[bool, bool] = (False, False), poles: bool = False
) -> nn.Conv2d:
    """A convolution over three positions of each axis; on a line of the second axis alone.

    periodic: whether the upper and lower edges meet, the left and right ones; else beyond them all is 0
    poles: whether instead all round is as on a sphere
    """
    if poles:
        return SphereConv2d(channels, out, 3, padding=1, padding_mode="circular")
    kernel, padding = ((1, 3), (0, 1)) if line else ((3, 3), (1, 1))
    if not any(periodic):
        return nn.Conv2d(channels, out, kernel, padding=padding)
    conv = PeriodicConv2d(channels, out, kernel, padding=padding, padding_mode="circular")
    conv.edges = padding[0] * periodic[0], padding[1] * periodic[1]
    conv.rest = padding[0] - conv.edges[0], padding[1] - conv.edges[1]
    return conv


class FiLM(nn.Module):
    """Feature-wise scale and shift from the embedding (Perez et al. 2018): h (1 + scale) + shift. Zero at init."""

    def __init__(self, embedding: int, channels: int) -> None:
        super().__init__()
        self.linear = zero_init(nn.Linear(embedding, 2 * channels))

    def forward(self, emb: Tensor) -> tuple[Tensor, Tensor]:
        """emb: (B, E) -> 1 + scale, shift: (B, C)."""
        scale, shift = self.linear(emb).chunk(2, dim=-1)
        return 1 + scale, shift


class Block(nn.Module):
    """A part of a network that is repeated. forward: (h, emb) -> like h; h: (B, C, H, W) or (B, n, C), emb: (B, E).

    Training may treat each block by itself: hold its weights in several processes, compute it again in the backward
    pass, compile it.
    """


def blocks_of(network: nn.Module) -> list[Block]:
    """The blocks of a network; none of a network of other parts, which is then treated as one."""
    return [part for part in network.modules() if isinstance(part, Block)]


class ConvBlock(Block):
    """norm - SiLU - conv - FiLM norm - SiLU - conv, added to its input.

    The norm is a layer norm over the channels of each position, as in the transformer blocks, where SiD2 has GroupNorm:
    that took 40% of a light network's time on a CPU in bfloat16.
    """

    def __init__(
        self,
        channels: int,
        embedding: int,
        dropout: float,
        *,
        line: bool = False,
        periodic: tuple[bool, bool] = (False, False),
        poles: bool = False,
    ) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels)
        self.conv1 = conv3(channels, channels, line=line, periodic=periodic, poles=poles)
        self.conv2 = zero_init(conv3(channels, channels, line=line, periodic=periodic, poles=poles))
        self.film = FiLM(embedding, channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        u = self.conv1(F.silu(self.norm(h)))
        u = F.silu(modulated(u.permute(0, 2, 3, 1), self.film(emb)))
        return h + self.conv2(self.dropout(u.permute(0, 3, 1, 2)))


def modulated(h: Tensor, film: tuple[Tensor, Tensor], eps: float = 1e-5) -> Tensor:
    """layer norm(h) scale + shift. h: (B, ..., C); film: scale and shift, (B, C)."""
    scale, shift = (part[(slice(None), *[None] * (h.ndim - 2))] for part in film)
    return (_normed(h, None, eps) * scale + shift).to(h.dtype)


def transformer_macs(channels: int, tokens: int) -> int:
    """Multiply-adds of a `TransformerBlock`, but for its embedding: 12 n d^2 + 2 n^2 d."""
    return 12 * channels**2 * tokens + 2 * channels * tokens**2


class TransformerBlock(Block):
    """Self-attention, then an MLP of ratio 4; both behind FiLM norms, queries and keys normalised per head."""

    causal = False

    def __init__(self, channels: int, embedding: int, head_dim: int, dropout: float) -> None:
        super().__init__()
        if channels % head_dim:
            raise ValueError(
                f"transformer channels must be a multiple of head_dim {head_dim}, got {channels}: change one"
            )
        self.heads = channels // head_dim
        self.film1, self.film2 = FiLM(embedding, channels), FiLM(embedding, channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.scale_q, self.scale_k = nn.Parameter(torch.ones(head_dim)), nn.Parameter(torch.ones(head_dim))
        self.out = zero_init(nn.Linear(channels, channels))
        self.up = nn.Linear(channels, 4 * channels)
        self.down = zero_init(nn.Linear(4 * channels, channels))
        self.dropout = nn.Dropout(dropout)

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        batch, channels, height, width = h.shape
        tokens = h.permute(0, 2, 3, 1).reshape(batch, height * width, channels)
        tokens = tokens + self.attention(modulated(tokens, self.film1(emb)))
        tokens = tokens + self.mlp(tokens, emb)
        return tokens.view(batch, height, width, channels).permute(0, 3, 1, 2)

    def attention(self, tokens: Tensor) -> Tensor:
        return self.joined(attend(*self.heads_of(tokens), causal=self.causal))

    def heads_of(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values: (B, heads, n, d) each."""
        batch, length, channels = tokens.shape
        q, k, v = self.qkv(tokens).view(batch, length, 3, self.heads, channels // self.heads).permute(2, 0, 3, 1, 4)
        return layer_norm(q, self.scale_q), layer_norm(k, self.scale_k), v

    def joined(self, mixed: Tensor) -> Tensor:
        """The sum that attention adds to the tokens, (B, n, C), computed of its heads' values (B, heads, n, d)."""
        return self.out(mixed.transpose(1, 2).flatten(2))

    def mlp(self, tokens: Tensor, emb: Tensor) -> Tensor:
        """The sum that the second half of the block adds to any k of the tokens, (B, k, C)."""
        return self.down(self.dropout(F.gelu(self.up(modulated(tokens, self.film2(emb))))))


class ChannelNorm(nn.Module):
    """Layer norm over the channels of each position, with a learned scale. (B, C, H, W) -> the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels))

    def forward(self, h: Tensor) -> Tensor:
        return layer_norm(h.permute(0, 2, 3, 1), self.scale).permute(0, 3, 1, 2)


def layer_norm(h: Tensor, scale: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """The layer norm over the last axis, without bias, in the precision of h, also under autocast on every device.

    scale: with one it is computed in the scale's precision, which is also faster on a CPU
    """
    return _normed(h, scale, eps).to(h.dtype)


def _normed(h: Tensor, scale: Tensor | None, eps: float) -> Tensor:
    """The layer norm, in the precision that it is computed in."""
    with _not_widened(h):
        # without a scale a CPU takes 1.3 to 1.8 times as long, in bfloat16 with few channels twice that
        if scale is None and h.device.type in AS_CPU:
            scale = h.new_ones(h.shape[-1:], dtype=torch.promote_types(h.dtype, torch.float32))
        return F.layer_norm(h if scale is None else h.to(scale.dtype), h.shape[-1:], scale, eps=eps)


def add_shared(h: Tensor, shared: Tensor) -> Tensor:
    """h (B M, ...) with shared (B, ...) added to M rows each, as of `context.for_rows`, without a copy."""
    if h.shape[0] == shared.shape[0]:  # len() would fix the rows of what is compiled
        return h + shared
    return (h.unflatten(0, (shared.shape[0], -1)) + shared[:, None]).flatten(0, 1)


def unpatchified(h: Tensor, patch: tuple[int, int]) -> Tensor:
    """(B, C p q, H, W) -> (B, C, p H, q W). patch: (p, q), alike or with p = 1."""
    (down, across), (batch, channels, height, width) = patch, h.shape
    if batch == 0:  # torch cannot go back through a shuffle of no rows
        return h.reshape(0, channels // (down * across), down * height, across * width)
    if down < across:
        return h.unflatten(1, (-1, across)).movedim(2, -1).flatten(-2)
    return F.pixel_shuffle(h, across)


def doubled(h: Tensor, *, line: bool = False) -> Tensor:
    """(B, C, H, W) -> (B, C, 2H, 2W), every value four times; on a line (B, C, H, 2W)."""
    with _not_widened(h):
        return F.interpolate(h, scale_factor=(1.0, 2.0) if line else 2.0)


def _not_widened(h: Tensor) -> AbstractContextManager[object]:
    """A context for operations that CUDA's autocast would do in float32, and a CPU's does not."""
    return nullcontext() if h.device.type in AS_CPU else no_autocast(h)


def attend(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    """softmax(q k^T / sqrt(d)) v. (B, heads, n, d) each. causal: of a token and those before it alone"""
    # for tens of tokens torch's fused kernel is slower on a CPU, 8 times in a bfloat16 backward; of no rows a GPU's may
    # refuse to be
    if q.device.type in AS_CPU or not len(q):
        return attention_weights(q, k, causal=causal).to(v.dtype) @ v
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal)


def attention_weights(q: Tensor, k: Tensor, *, causal: bool = False) -> Tensor:
    """softmax(q k^T / sqrt(d)), (B, heads, queries, keys), in float32 at least: in bfloat16 it takes twice as long."""
    wide = torch.promote_types(q.dtype, torch.float32)
    logits = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    if causal:
        later = torch.ones(logits.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        logits = logits.masked_fill(later, -torch.inf)
    return torch.softmax(logits, dim=-1, dtype=wide)


class NoiseEmbedding(nn.Module):
    """log_snr (B,) -> (B, E): sines and cosines of periods 2 to 120, then a two-layer MLP. Zero output is allowed."""

    frequency: Tensor

    def __init__(self, embedding: int, frequencies: int = 32) -> None:
        super().__init__()
        periods = torch.logspace(math.log10(2), math.log10(120), frequencies)
        self.register_buffer("frequency", 2 * math.pi / periods, persistent=False)
        self.mlp = nn.Sequential(nn.Linear(2 * frequencies, embedding), nn.SiLU(), nn.Linear(embedding, embedding))

    def forward(self, log_snr: Tensor) -> Tensor:
        angle = log_snr[:, None] * self.frequency
        return self.mlp(torch.cat((torch.sin(angle), torch.cos(angle)), dim=-1))


def class_of(label: Tensor | None, log_snr: Tensor, num_classes: int) -> Tensor:
    """(B,): the labels; without any, the null class of every row."""
    return torch.full(log_snr.shape, num_classes, device=log_snr.device) if label is None else label


class Embedding(nn.Module):
    """(log_snr, label) -> (B, E). The label after the last is the null class."""

    null = True

    def __init__(self, embedding: int, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.noise = NoiseEmbedding(embedding)
        self.label = nn.Embedding(num_classes + 1, embedding) if num_classes else None

    def forward(self, log_snr: Tensor, label: Tensor | None) -> Tensor:
        emb = self.noise(log_snr)
        if self.label is None:
            return emb
        return emb + self.label(class_of(label, log_snr, self.num_classes))


@contextmanager
def frozen(*modules: nn.Module, but: Iterable[nn.Parameter] = ()) -> Iterator[None]:
    """Within the block no parameter of `modules` requires a gradient; afterwards each is as before.

    but: parameters that are left alone
    """
    spared = {id(parameter) for parameter in but}
    parameters = (parameter for module in modules for parameter in module.parameters())
    trained = [parameter for parameter in parameters if parameter.requires_grad and id(parameter) not in spared]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Within the block the module is frozen and in evaluation mode; afterwards each part of it is as before."""
    modes = [(part, part.training) for part in module.modules()]
    try:
        module.eval()
        with frozen(module):
            yield
    finally:
        for part, training in modes:
            part.training = training


def chosen_of(tokens: Tensor, chosen: Tensor) -> Tensor:
    """The chosen tokens, (B, k, C). tokens: (B, n, C); chosen: (B, k), their places."""
    return tokens.gather(1, chosen[..., None].expand(-1, -1, tokens.shape[-1]))


def with_chosen(tokens: Tensor, chosen: Tensor, value: Tensor) -> Tensor:
    """The tokens with another value, (B, k, C), where chosen."""
    return tokens.scatter(1, chosen[..., None].expand(-1, -1, tokens.shape[-1]), value.to(tokens.dtype))


def require_shape(added: Tensor, h: Tensor) -> None:
    """Raise ValueError where `added`, a sum for h, does not have the shape of h."""
    if added.shape != h.shape:
        raise ValueError(
            f"what the inside of a cut network adds has its input's shape {tuple(h.shape)}, got {tuple(added.shape)}: "
            "pass what encode returned for these rows"
        )
