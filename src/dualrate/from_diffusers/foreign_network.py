"""A network of another library as one of ours: (z, log_snr, label) -> v.

`KINDS` lists the classes of diffusers that are known: how each is called, and how many labels it has. A class is known
by its name, so nothing here imports diffusers.

`check_direction` finds which way a flow's time runs. At the noise end x_hat is a blur that hardly knows z. A network
that is given the wrong end takes noise for an image: its x_hat follows z, or is the noise that it finds in that image.
Either end of time may be noise, and u may have either sign. Of these four conventions the right one has the smallest
response

    |x_hat(z) - x_hat(z')|^2 / |z - z'|^2,   z, z' ~ N(0, I) at log-SNR -4

which for data of variance c^2 is about (0.13 c^2)^2. It is more than 1 for the others where c is below 1, as it is for
all but the coarsest parts of images and latents. It costs four calls of the network, of two rows each.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from dualrate.diffusion.convention import Convention, Flow
from dualrate.diffusion.prediction import x_from_v
from dualrate.diffusion.values import Shape
from dualrate.from_diffusers.cut import CutNetwork, CutTokens
from dualrate.system.device import own_defaults

BLOCKS = "transformer_blocks"
Config = Mapping[str, Any]
Given = Mapping[str, Tensor]  # what a network takes besides, a row of each per row of z
Call = Callable[[nn.Module, Tensor, Tensor, Tensor | None, Given], Tensor]  # net, state, time, label


@dataclass(frozen=True)
class Kind:
    """A class of networks.

    call:    one forward pass
    classes: how many labels a configuration has, without a null class
    null:    whether the label after the last is a null class
    takes:   arguments that labels stand for (`ForeignNetwork`)
    blocks:  the parts that run one after another
    tapped:  of what such a part returns, the image's share: a map (B, C, h, w), or tokens (B, n, C)
    row:     the attribute that lists its blocks, where each takes tokens (B, n, C) first and returns no more; "": none
    """

    call: Call
    classes: Callable[[Config], int] = lambda config: 0
    null: bool = False
    takes: tuple[str, ...] = ()
    blocks: Callable[[Any], list[nn.Module]] = lambda net: list(getattr(net, BLOCKS, ()))
    tapped: Callable[[Any], Tensor] = lambda output: output
    row: str = ""


def _by_label(net: nn.Module, state: Tensor, time: Tensor, label: Tensor | None, given: Given) -> Tensor:
    return net(state, timestep=time, class_labels=label, return_dict=False)[0]


def _by_text(net: nn.Module, state: Tensor, time: Tensor, label: Tensor | None, given: Given) -> Tensor:
    return net(state, timestep=time, return_dict=False, **given)[0]


def _by_text_and_size(net: nn.Module, state: Tensor, time: Tensor, label: Tensor | None, given: Given) -> Tensor:
    """PixArt of 1024 pixels wants their number, and the ratio of the sides: its VAE halves a side three times."""
    added: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
    if net.use_additional_conditions:
        height, width = state.shape[2:]
        added["resolution"] = state.new_tensor([[8 * height, 8 * width]]).expand(state.shape[0], 2)
        added["aspect_ratio"] = state.new_tensor([[height / width]]).expand(state.shape[0], 1)
    return net(state, timestep=time, added_cond_kwargs=added, return_dict=False, **given)[0]


def _by_scaled_time(net: nn.Module, state: Tensor, time: Tensor, label: Tensor | None, given: Given) -> Tensor:
    return _by_text(net, state, time * cast(Any, net).config["timestep_scale"], label, given)


def by_place(net: nn.Module, state: Tensor, time: Tensor, label: Tensor | None, given: Given) -> Tensor:
    """As SiT and those that descend from it are called."""
    output = net(state, time, label)
    return output if isinstance(output, Tensor) else output[0]


def _down_and_up(net: Any) -> list[nn.Module]:
    return [*net.down_blocks, *([] if net.mid_block is None else [net.mid_block]), *net.up_blocks]


TEXT, MASK = "encoder_hidden_states", "encoder_attention_mask"
KINDS: dict[str, Kind] = {
    "DiTTransformer2DModel": Kind(
        _by_label, lambda config: config.get("num_embeds_ada_norm", 1000), null=True, row=BLOCKS
    ),
    "UNet2DModel": Kind(
        _by_label,
        lambda config: config.get("num_class_embeds") or 0,
        blocks=_down_and_up,
        tapped=lambda output: output if isinstance(output, Tensor) else output[0],  # without skips
    ),
    "SD3Transformer2DModel": Kind(_by_text, takes=(TEXT, "pooled_projections"), tapped=lambda output: output[1]),
    "PixArtTransformer2DModel": Kind(_by_text_and_size, takes=(TEXT, MASK), row=BLOCKS),
    "SanaTransformer2DModel": Kind(_by_scaled_time, takes=(TEXT, MASK), row=BLOCKS),
}


def kind_of(name: str, config: Config) -> Kind:
    """The kind of a class. Raises ValueError for one that is not known, and for an unknown set-up."""
    if name not in KINDS:
        by_name = "with convention 'sit' or 'repa' any network that is called (state, time, label)"
        raise ValueError(f"no {name} is known; known are {', '.join(KINDS)}, and {by_name}")
    for setting, known in (("time_embedding_type", "positional"), ("class_embed_type", None)):
        if name == "UNet2DModel" and (found := config.get(setting, known)) != known:
            raise ValueError(f"this {name} has {setting} {found!r}, of another process: {known!r} is known")
    return KINDS[name]


class ForeignNetwork(nn.Module):
    """forward: (z, log_snr, label) -> v, float32 at least.

    net:         called as its kind says, in evaluation mode whatever the mode of this one: a DiT in training mode drops
                 labels of its own accord, in every block anew
    embeddings:  of a model of texts what a label stands for: tables (K + 1, ...) by the name of the argument; the last
                 row is the empty text, the null class
    num_classes: labels without the null class, 0 of an unconditional model; null: whether label `num_classes` is one
    A learned variance, a second half of the output's channels, is dropped.
    """

    def __init__(
        self,
        net: nn.Module,
        kind: Kind,
        convention: Convention,
        *,
        num_classes: int = 0,
        null: bool = False,
        embeddings: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.net, self.kind, self.convention = net.eval(), kind, convention
        self.num_classes, self.null = num_classes, null
        tables = embeddings or {}
        missing = [name for name in kind.takes if name not in tables and name != MASK]
        unknown = [name for name in tables if name not in kind.takes]
        if missing or unknown:
            raise ValueError(f"embeddings are tables (K + 1, ...) by name; missing {missing}, unknown {unknown}")
        if len({len(table) for table in tables.values()}) > 1:
            shapes = {name: tuple(table.shape) for name, table in tables.items()}
            raise ValueError(f"embeddings have a row for each text, so all as many, got {shapes}")
        self.tables = tuple(tables)
        for name, table in tables.items():
            self.register_buffer(f"of_{name}", table)
            self.num_classes, self.null = len(table) - 1, True

    @property
    def blocks(self) -> list[nn.Module]:
        """The parts of the network that run one after another, in that order."""
        return self.kind.blocks(self.net)

    def cut(self, outer: int) -> CutNetwork:
        """This network, its row of blocks apart. Raises ValueError where that cannot be, as `CutNetwork`."""
        return CutNetwork(self, self.kind.row, outer)

    def token_cut(self, scores: bool) -> CutTokens:
        """This network, its blocks in tokens. Raises ValueError where that cannot be, as `CutTokens`."""
        return CutTokens(self.cut(0), scores)

    def train(self, mode: bool = True) -> ForeignNetwork:
        super().train(mode)
        self.net.eval()
        return self

    def forward(self, z: Tensor, log_snr: Tensor, label: Tensor | None) -> Tensor:
        """z: (B, C, H, W); log_snr: (B,); label: (B,) int64 or None. Raises ValueError for an output of other shape."""
        label = label if self.num_classes else None
        if label is None and self.null:
            label = torch.full((z.shape[0],), self.num_classes, device=z.device)
        given = {name: self.get_buffer(f"of_{name}")[label] for name in self.tables}
        state = self.convention.state(z, log_snr).to(next(self.net.parameters()).dtype)
        output = self.kind.call(self.net, state, self.convention.time(log_snr), label, given).to(z.dtype)
        if output.shape[1] == 2 * z.shape[1]:
            output = output[:, : z.shape[1]]
        if output.shape[1:] != z.shape[1:]:
            kind, found = type(self.net).__name__, tuple(output.shape[1:])
            raise ValueError(f"this {kind} returned {found}: expected {z.shape[1]} channels, or twice as many")
        return self.convention.v(z, output, log_snr)


def labels_of(kind: Kind, config: Config, num_classes: int | None) -> dict[str, Any]:
    """num_classes and null of `ForeignNetwork`. Raises ValueError for more classes than labels."""
    if kind.call is by_place:
        labels, null = num_classes or 0, True
    else:
        labels, null = kind.classes(config), kind.null
    if num_classes in (None, labels):
        return {"num_classes": labels, "null": null and labels > 0}
    if null or num_classes != labels - 1 or not num_classes:
        last = "its null class after them" if null else f"no null class, or {labels - 1} and that as its last label"
        raise ValueError(f"this network has {labels} classes and {last}, got num_classes {num_classes}")
    return {"num_classes": num_classes, "null": True}


def shape_of(config: Config) -> Shape:
    """(C, H, W) of a configuration. Raises ValueError where it does not say."""
    channels, side = config.get("in_channels"), config.get("sample_size")
    height, width = side if isinstance(side, (list, tuple)) else (side, side)
    if not (channels and height and width):
        raise ValueError(f"in_channels {channels} and sample_size {side} say no shape: pass shape=(C, H, W)")
    return int(channels), int(height), int(width)


LOG_SNR = -4.0
BLUR = 0.25  # response of what is no blur any more


@own_defaults()
@torch.no_grad()
def responses(network: ForeignNetwork, shape: Shape, flow: Flow) -> dict[Flow, float]:
    """Of the four conventions, `flow` first."""
    device = next(network.parameters()).device
    z = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)).to(device)
    log_snr = torch.full((2,), LOG_SNR, device=device)
    label = torch.zeros(2, dtype=torch.int64, device=device) if network.num_classes else None
    reversed_sign = "x - eps" if flow.predicts == "eps - x" else "eps - x"
    asked, found = copy.copy(network), {}
    for noise_at in (flow.noise_at, 1 - flow.noise_at):
        for predicts in (flow.predicts, reversed_sign):
            asked.convention = convention = replace(flow, noise_at=noise_at, predicts=predicts)
            x_hat = x_from_v(z, asked(z, log_snr, label), log_snr)
            found[convention] = float((x_hat[0] - x_hat[1]).square().sum() / (z[0] - z[1]).square().sum())
    return found


def check_direction(network: ForeignNetwork, shape: Shape) -> None:
    """Raises ValueError where another direction than the network's convention fits; warns where none does.

    A table of betas has no direction to mistake.
    """
    flow = network.convention
    if not isinstance(flow, Flow):
        return
    found = responses(network, shape, flow)
    best = min(found, key=lambda convention: found[convention])
    if found[best] > BLUR:
        warnings.warn(
            f"at the noise end x_hat follows z whatever the direction of time (response {found[best]:.2g} at best): "
            "this network seems untrained, so its direction is not known",
            stacklevel=3,
        )
    elif found[flow] > 2 * found[best]:
        raise ValueError(
            f"time runs another way: at the noise end x_hat follows z under {flow}, and is a blur under {best}. Pass "
            "that as the convention, or its name, 'repa' or 'sit'"
        )
