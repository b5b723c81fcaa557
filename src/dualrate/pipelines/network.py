"""A network of another library as one of ours: (z, log_snr, label) -> v, or (z, log_snr, prompts, label) -> v.

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
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dualrate.diffusion.context import Shape, for_rows
from dualrate.diffusion.prediction import Convention, Flow, x_from_v
from dualrate.pipelines.classes.kind import Config, NetworkSpec, PromptLayout, TextInputs, by_place
from dualrate.pipelines.cut_transformer import CutNetwork, CutTokens
from dualrate.system.device import own_defaults


class ForeignNetwork(nn.Module):
    """forward: (z, log_snr, label) or (z, log_snr, prompts, label) -> v, float32 at least.

    net:         called as its kind says, in evaluation mode whatever the mode of this one: a DiT in training mode drops
                 labels of its own accord, in every block anew
    num_classes: labels without the null class, 0 of an unconditional model; null: whether label `num_classes` is one
    prompt:      of a class that takes texts, what it takes for one. Its one class, label 0, is a prompt that counts.
                 Label 1, the null class, stands for the prompt in the buffer `empty`, which takes the place of a row's
                 text
    A learned variance, a second half of the output's channels, is dropped.
    """

    empty: Tensor

    def __init__(
        self,
        net: nn.Module,
        kind: NetworkSpec,
        convention: Convention,
        *,
        num_classes: int = 0,
        null: bool = False,
        prompt: PromptLayout | None = None,
        empty: Tensor | None = None,
    ) -> None:
        """empty: (1, 1, 1, D). Raises ValueError for another shape."""
        super().__init__()
        self.net, self.kind, self.convention = net.eval(), kind, convention
        self.num_classes, self.null, self.prompt = num_classes, null, prompt or PromptLayout()
        self.channels = kind.channels(getattr(net, "config", {}))
        if self.prompt.parts:
            self._check(empty)
            self.register_buffer("empty", torch.zeros(1, *self.prompt.shape) if empty is None else empty)

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

    def example(self, rows: int) -> tuple[Tensor | None, ...]:
        """A condition that it may be called with: class 0, or the empty prompt."""
        device = next(self.parameters()).device
        label = torch.zeros(rows, dtype=torch.int64, device=device) if self.num_classes else None
        return (self.empty, label) if self.prompt.parts else (label,)

    def forward(self, z: Tensor, log_snr: Tensor, *condition: Tensor | None) -> Tensor:
        """z: (B, C, H, W); log_snr: (B,); condition: (label,), or (prompts, label): label (B,) int64 or None, prompts
        (B / M, 1, 1, D). Raises ValueError for prompts of another network, and an output of another shape.
        """
        *prompts, label = condition
        label, dtype = label if self.num_classes else None, next(self.net.parameters()).dtype
        if self.prompt.parts:
            inputs, label = self._inputs(len(z), prompts[0] if prompts else None, label, dtype), None
        else:
            inputs = {}
            if label is None and self.null:
                label = torch.full((z.shape[0],), self.num_classes, device=z.device)
        if self.channels not in (None, z.shape[1]):
            raise ValueError(
                f"this {type(self.net).__name__} takes latents of in_channels {self.channels}, got {z.shape[1]}: "
                "encode images by the VAE of its pipeline"
            )
        state = self.convention.state(z, log_snr).to(dtype)
        time = self.convention.time(log_snr) / self.kind.units(self.net)
        output = self.kind.call(self.net, state, time, label, inputs).to(z.dtype)
        if output.shape[1] == 2 * z.shape[1]:
            output = output[:, : z.shape[1]]
        kind, shape = type(self.net).__name__, tuple(output.shape[1:])
        if shape[1:] != z.shape[2:]:
            raise ValueError(
                f"this {kind} makes {shape[1]} x {shape[2]} of latents of {z.shape[2]} x {z.shape[3]}: pass latents "
                "whose sides its patches divide"
            )
        if shape != z.shape[1:]:
            raise ValueError(f"this {kind} returned {shape}: expected its latents' shape, or twice the channels")
        return self.convention.v(z, output, log_snr)

    def _inputs(self, rows: int, prompts: Tensor | None, label: Tensor | None, dtype: torch.dtype) -> TextInputs:
        """The parts of each row's prompt; of the null class the empty one's, where they are of the text."""
        empty = self.prompt.unpacked(self.empty, dtype)
        if prompts is None:
            if not self.null:
                raise ValueError(
                    "this model makes images of prompts, got none, and no negative one: pass the condition that "
                    "dualrate.prompts(denoiser, texts) returns"
                )
            return {name: part.expand(rows, *part.shape[1:]) for name, part in empty.items()}
        self._check(prompts)
        inputs = self.prompt.unpacked(for_rows(prompts, rows), dtype)
        if label is None or not self.null:
            return inputs
        dropped = label == self.num_classes
        return {
            part.name: inputs[part.name]
            if part.stays
            else torch.where(dropped.view(-1, *(1 for _ in part.shape)), empty[part.name], inputs[part.name])
            for part in self.prompt.parts
        }

    def _check(self, prompts: Tensor | None) -> None:
        if prompts is not None and tuple(prompts.shape[1:]) != self.prompt.shape:
            parts = ", ".join(f"{part.name} {part.shape}" for part in self.prompt.parts)
            raise ValueError(
                f"prompts of this network are {self.prompt.shape} each ({parts}), got {tuple(prompts.shape[1:])}: make "
                "them by dualrate.prompts of this denoiser"
            )


def labels_of(kind: NetworkSpec, config: Config, num_classes: int | None) -> dict[str, Any]:
    """num_classes and null of `ForeignNetwork`. Raises ValueError for more classes than labels."""
    if kind.call is by_place:
        labels, null = num_classes or 0, True
    elif kind.tokens:
        labels, null = 1, True
    else:
        labels, null = kind.classes(config), kind.null
    if num_classes in (None, labels):
        return {"num_classes": labels, "null": null and labels > 0}
    if null or num_classes != labels - 1 or not num_classes:
        last = "its null class after them" if null else f"no null class, or {labels - 1} and that as its last label"
        raise ValueError(f"this network has num_classes {labels}, with {last}; got {num_classes}")
    return {"num_classes": num_classes, "null": True}


def shape_of(kind: NetworkSpec, config: Config, side: int = 0) -> Shape:
    """(C, H, W) of a configuration; side: where that has none. Raises ValueError where nothing says it."""
    channels, size = kind.channels(config), config.get("sample_size") or side
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    shape: Any = channels, height, width
    if not all(type(number) is int and number > 0 for number in shape):
        raise ValueError(f"{channels} channels and sample_size {size or None} say no shape: pass shape=(C, H, W)")
    return shape


LOG_SNR = -4.0
BLUR = 0.25  # response of what is no blur any more


@own_defaults()
@torch.no_grad()
def responses(network: ForeignNetwork, shape: Shape, flow: Flow) -> dict[Flow, float]:
    """The response under each of the four conventions, `flow` first. shape: (C, H, W)"""
    device = next(network.parameters()).device
    z = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)).to(device)
    log_snr = torch.full((2,), LOG_SNR, device=device)
    condition = network.example(2)
    reversed_sign = "x - eps" if flow.predicts == "eps - x" else "eps - x"
    trial, by_flow = copy.copy(network), {}
    for noise_at in (flow.noise_at, 1 - flow.noise_at):
        for predicts in (flow.predicts, reversed_sign):
            trial.convention = convention = replace(flow, noise_at=noise_at, predicts=predicts)
            x_hat = x_from_v(z, trial(z, log_snr, *condition), log_snr)
            by_flow[convention] = float((x_hat[0] - x_hat[1]).square().sum() / (z[0] - z[1]).square().sum())
    return by_flow


def check_direction(network: ForeignNetwork, shape: Shape) -> None:
    """Raises ValueError where another direction than the network's convention fits; warns where none does.

    A table of betas has no direction to mistake.
    """
    flow = network.convention
    if not isinstance(flow, Flow):
        return
    by_flow = responses(network, shape, flow)
    best = min(by_flow, key=lambda convention: by_flow[convention])
    if by_flow[best] > BLUR:
        warnings.warn(
            f"at the noise end x_hat follows z whatever the direction of time (response {by_flow[best]:.2g} at best): "
            "this network seems untrained, so its direction is not known",
            stacklevel=3,
        )
    elif by_flow[flow] > 2 * by_flow[best]:
        raise ValueError(
            f"time runs another way: at the noise end x_hat follows z under {flow}, and is a blur under {best}. Pass "
            "that as the convention, or its name, 'repa' or 'sit'"
        )
