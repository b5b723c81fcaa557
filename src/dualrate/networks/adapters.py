"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685), one set of weights a phase of sampling.

    layer(x) = W x + s B_p A_p x        p the phase of the call, s the scale, alpha / rank
    a convolution: A_p is one of the same kind, kernel, stride and padding to `rank` channels, B_p one of 1 x 1

B is zero at first, A normal with standard deviation 1 / rank, so a new adapter changes nothing.

Which phase a call is of is an argument of `Adapted`. Its layers see it for the time of that call, so that samplings may
take turns.

States have the names of peft and diffusers, `X.lora_A.weight` (r, in, ...) and `X.lora_B.weight` (out, r, ...), X the
layer's name in the network. They are written with the scale in B: their alpha is their rank, which is what diffusers
takes where a file says none (for peft: lora_alpha = r).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from dualrate.networks.blocks import copied, zero_init

# what Glance adapts: attention, the output of MLPs, modulation; and the same parts of our networks and of U-Nets
TARGETS = (
    r"to_[qkv]|add_[qkv]_proj|to_out\.0|to_add_out|qkv|attn\.proj|out|"
    r"(ff|ff_context|img_mlp|txt_mlp)\.net\.2|fc2|down|conv2|"
    r"(img|txt)_mod\.1|norm1(_context)?\.linear|adaLN_modulation\.1|film[12]?\.linear|time_emb_proj"
)


class Active:
    """The phase of the call that is being made; None: no adapter takes part."""

    phase: str | None = None

    @contextmanager
    def during(self, phase: str | None) -> Iterator[None]:
        """Within the block this phase is active; afterwards the previous one is again."""
        before, self.phase = self.phase, phase
        try:
            yield
        finally:
            self.phase = before


class LowRank(nn.Module):
    """A linear layer or a convolution, `base`, with an update of low rank for each phase. Called as `base` is."""

    def __init__(
        self, base: nn.Linear | nn.Conv2d, phases: Sequence[str], rank: int, scale: float, active: Active
    ) -> None:
        super().__init__()
        self.base, self.scale, self.active = base, scale, active
        self.lora_A = nn.ModuleDict({phase: _reducing(base, rank) for phase in phases})
        self.lora_B = nn.ModuleDict({phase: _widening(base, rank) for phase in phases})

    @property
    def weight(self) -> Tensor:
        return self.base.weight

    @property
    def bias(self) -> Tensor | None:
        return self.base.bias

    def forward(self, x: Tensor) -> Tensor:
        h, phase = self.base(x), self.active.phase
        return h if phase is None else h + self.scale * self.lora_B[phase](self.lora_A[phase](x))

    def update(self, phase: str) -> Tensor:
        """s B A, in the shape of the weight of `base`."""
        a, b = self.weights(phase)
        return self.scale * (b.flatten(1) @ a.flatten(1)).view_as(self.base.weight)

    def weights(self, phase: str) -> tuple[Tensor, Tensor]:
        """A: (r, in, ...) and B: (out, r, ...)."""
        a, b = (next(part[phase].parameters()) for part in (self.lora_A, self.lora_B))
        return a, b


def _reducing(base: nn.Linear | nn.Conv2d, rank: int) -> nn.Module:
    """The layer A, from `base`'s input to `rank` channels, with random weights."""
    if isinstance(base, nn.Linear):
        layer = nn.Linear(base.in_features, rank, bias=False, device=base.weight.device, dtype=base.weight.dtype)
    else:
        layer = deepcopy(base)  # whatever it does at edges
        layer.out_channels, layer.bias = rank, None
        layer.weight = nn.Parameter(base.weight.new_empty(rank, *base.weight.shape[1:]))
    nn.init.normal_(layer.weight, std=1 / rank)
    return layer


def _widening(base: nn.Linear | nn.Conv2d, rank: int) -> nn.Module:
    """The layer B, from `rank` channels to `base`'s output, with weights zero."""
    how: dict[str, Any] = {"bias": False, "device": base.weight.device, "dtype": base.weight.dtype}
    if isinstance(base, nn.Linear):
        return zero_init(nn.Linear(rank, base.out_features, **how))
    return zero_init(nn.Conv2d(rank, base.out_channels, 1, **how))


class Adapted(nn.Module):
    """A network whose layers have adapters. forward: (phase, *the network's arguments) -> the network's result.

    targets: a regular expression; a linear layer, or a convolution of one group, is adapted whose name ends in it,
             after a dot or from the beginning
    Changes the network. Raises ValueError where no layer is meant.
    """

    def __init__(
        self, net: nn.Module, phases: Sequence[str], rank: int, scale: float = 4.0, targets: str = TARGETS
    ) -> None:
        super().__init__()
        self.net, self.phases, self.active = net, tuple(phases), Active()
        meant = re.compile(rf"(?:.*\.)?(?:{targets})")
        for name, layer in list(net.named_modules()) if phases else ():
            if not isinstance(layer, (nn.Linear, nn.Conv2d)) or getattr(layer, "groups", 1) > 1:
                continue
            if meant.fullmatch(name):
                net.set_submodule(name, LowRank(layer, phases, rank, scale, self.active))
        if phases and not layers_of(net):
            listed = [name for name, layer in net.named_modules() if isinstance(layer, (nn.Linear, nn.Conv2d))]
            raise ValueError(
                f"no layer's name ends in {targets}; layers are {', '.join(listed[:8])}: give other targets"
            )

    def forward(self, phase: str | None, *inputs: Any, **named: Any) -> Any:
        with self.active.during(phase):
            return self.net(*inputs, **named)

    def parameters_of(self, phase: str) -> tuple[nn.Parameter, ...]:
        """The parameters that training a phase changes."""
        parts = (part[phase] for layer in layers_of(self.net).values() for part in (layer.lora_A, layer.lora_B))
        return tuple(weight for part in parts for weight in part.parameters())


def layers_of(network: nn.Module) -> dict[str, LowRank]:
    """The adapted layers of a network, by their names."""
    return {name: layer for name, layer in network.named_modules() if isinstance(layer, LowRank)}


@torch.no_grad()
def merged(network: nn.Module, phase: str | None) -> nn.Module:
    """A copy without adapters, with the update of a phase in its weights; None: with no update.

    All other weights are shared with the network.
    """
    net = copied(network, network, bfloat16=False)
    for name, layer in layers_of(net).items():
        if phase is not None:
            layer.base.weight = nn.Parameter(layer.base.weight + layer.update(phase), layer.base.weight.requires_grad)
        net.set_submodule(name, layer.base)
    return net


def adapter_state(network: nn.Module, phase: str, prefix: str = "") -> dict[str, Tensor]:
    """A phase's weights under the names of peft and diffusers (module docstring), alpha their rank.

    network: the one that the file is for: diffusers' own, in a run that adapts a folder of theirs, is `adapted.net.net`
    prefix:  before each name: "base_model.model." in files of peft, "transformer." in those of a pipeline
    """
    state = {}
    for name, layer in layers_of(network).items():
        a, b = layer.weights(phase)
        for part, weight in (("A", a), ("B", layer.scale * b)):
            state[f"{prefix}{name}.lora_{part}.weight"] = weight.detach().clone(memory_format=torch.contiguous_format)
    return state
