"""A model of diffusers in a run: alone, or as the encoder beside a light network.

The encoder's features are read off its blocks by hooks, which stand there for the time of one call.

    feature = sum over taps of project(norm(block's output)) + pixels(x_hat)       at the light network's positions

Every tap is normalised over its channels, since scales differ by depth. Nothing has a bias, so nothing of an absent
context reaches the light network. That is one of two:

    Retrofitted   a fresh U-ViT that corrects x_hat(tau): the context is (feature, x_hat)
    OwnBlocks     the model's own first and last blocks, for classes whose blocks run in a row on tokens h_1, ..., h_L:
                  block 1 of z_t, + (h_(L-K+1) - h_1 at tau) + embedding(log_snr_tau), the last K - 1 blocks, the head.
                  It begins as the encoder sharing of Delta-DiT (Chen et al. 2024, arXiv 2406.01125)

The embedding begins at zero. All weights are in the run's checkpoints, so the run needs the folder no more.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dualrate.codecs.codec import CodecFolder, NoCodec
from dualrate.config.ranges import Channels, Range, Ranged, Side
from dualrate.data.condition_rows import Given
from dualrate.data.conditions import Conditioning, Unconditional
from dualrate.data.source import read_utf8
from dualrate.denoisers.denoiser import Denoiser, DualRate, Plain
from dualrate.diffusion.context import Shape
from dualrate.diffusion.prediction import x_from_v
from dualrate.diffusion.process import GaussianProcess, Process
from dualrate.experiment.data_config import DataConfig
from dualrate.experiment.experiment import Experiment
from dualrate.experiment.network_configs import NetworksConfig
from dualrate.methods.denoising import DenoisingConfig
from dualrate.networks.blocks import NoiseEmbedding, layer_norm, zero_init
from dualrate.networks.dual import Features, LightBody, LightNetwork, disconnect
from dualrate.networks.uvit import UViTConfig
from dualrate.pipelines.classes.kind import BLOCKS
from dualrate.pipelines.condition import Prompts
from dualrate.pipelines.foreign import GUIDED, Adopted, ForeignConfig, adopted
from dualrate.pipelines.network import ForeignNetwork
from dualrate.pipelines.prompt_set import EncodedPrompts
from dualrate.pipelines.text_encoders import TextFolder, encoders_fingerprint
from dualrate.training.config import FitConfig


@dataclass(frozen=True)
class Tap(Ranged):
    """The output of a block of the network: (B, channels, side, side), or that many tokens."""

    block: Annotated[int, Range(0, 10_000)]
    """Which, in the order in which they run."""
    channels: Channels
    side: Side


@contextmanager
def outputs(blocks: Sequence[nn.Module]) -> Iterator[list[Any]]:
    """Note the blocks' outputs while the context is open: the latest of each, None before its first."""
    seen: list[Any] = [None] * len(blocks)

    def note(place: int, block: nn.Module, inputs: Any, output: Any) -> None:
        seen[place] = output

    with ExitStack() as hooks:
        for place, block in enumerate(blocks):
            hooks.enter_context(block.register_forward_hook(partial(note, place)))
        yield seen


@torch.no_grad()
def taps_of(network: ForeignNetwork, shape: Shape, blocks: Sequence[int] | None = None) -> list[Tap]:
    """The taps on these blocks; None: at a third and two thirds of the depth, and the last. Runs the network once.

    Raises ValueError for a network that has no such blocks, and as `NetworkSpec.check_blocks` and `tapped`.
    """
    network.kind.check_blocks(network.net)
    parts = network.blocks
    if blocks is None:
        blocks = sorted({max(len(parts) * share // 3 - 1, 0) for share in (1, 2, 3)})
    if wrong := [block for block in blocks if not 0 <= block < len(parts)]:
        raise ValueError(f"{type(network.net).__name__} has blocks 0 to {len(parts) - 1}, got {wrong}")
    device = next(network.parameters()).device
    with outputs([parts[block] for block in blocks]) as seen:
        network(torch.zeros(1, *shape, device=device), torch.zeros(1, device=device), *network.example(1))
    maps = [network.kind.tapped(output) for output in seen]
    return [Tap(block, tap_map.shape[1], tap_map.shape[2]) for block, tap_map in zip(blocks, maps, strict=True)]


class Projection(nn.Module):
    """A tap's map at the light network's positions. (B, C, side, side) -> (B, width, positions, positions)."""

    def __init__(self, tap: Tap, width: int, positions: int) -> None:
        super().__init__()
        stride = 1 if tap.side % positions else tap.side // positions
        self.positions = positions
        self.conv = nn.Conv2d(tap.channels, width, stride, stride=stride, bias=False)

    def forward(self, h: Tensor) -> Tensor:
        h = self.conv(layer_norm(h.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
        return h if h.shape[2] == self.positions else F.adaptive_avg_pool2d(h, self.positions)


class TappedEncoder(nn.Module):
    """forward: (z_tau, log_snr_tau, *condition) -> ((feature, x_hat), v), for a `LightBody` that corrects x_hat."""

    def __init__(self, net: ForeignNetwork, light: UViTConfig, taps: Sequence[Tap]) -> None:
        super().__init__()
        self.net, self.taps, width = net, tuple(taps), light.levels[0].channels
        self.projections = nn.ModuleList(Projection(tap, width, light.sides(0)[0]) for tap in taps)
        self.pixels = nn.Conv2d(light.image_channels, width, light.patch, stride=light.patch, bias=False)

    def forward(self, z: Tensor, log_snr: Tensor, *condition: Tensor | None) -> tuple[tuple[Tensor, ...], Tensor]:
        """z: (B, C, H, W); log_snr: (B,); condition: the model's."""
        parts = self.net.blocks
        with outputs([parts[tap.block] for tap in self.taps]) as seen:
            v = self.net(z, log_snr, *condition)
        x_hat = x_from_v(z, v, log_snr)
        feature = self.pixels(x_hat)
        for project, output in zip(self.projections, seen, strict=True):
            feature = feature + project(self.net.kind.tapped(output))
        return (feature, x_hat), v


COUNT = "num_layers"  # of a configuration


def shorter(model: ForeignConfig, blocks: int) -> ForeignConfig:
    """The model with so many blocks. Raises ValueError for a class whose blocks are not in a row, and too many."""
    config = json.loads(model.config)
    if model.kind != "DiTTransformer2DModel":
        raise ValueError(f"a light network of own blocks is known for DiTTransformer2DModel, got {model.kind}")
    if not 2 <= blocks < config[COUNT]:
        raise ValueError(f"of {config[COUNT]} blocks 2 to {config[COUNT] - 1} make a light network, got {blocks}")
    return replace(model, config=json.dumps({**config, COUNT: blocks}, sort_keys=True))


def of_shorter(weights: Mapping[str, Tensor], whole: int, blocks: int) -> dict[str, Tensor]:
    """Weights by name for the network of `blocks` blocks: those of the first and the last `blocks - 1` of `whole`."""
    places = {0: 0, **{whole - blocks + place: place for place in range(1, blocks)}}
    shorter_weights = {}
    for name, tensor in weights.items():
        before, is_block, after = name.partition(f"{BLOCKS}.")
        place, _, rest = after.partition(".")
        if not is_block:
            shorter_weights[name] = tensor
        elif int(place) in places:
            shorter_weights[f"{before}{BLOCKS}.{places[int(place)]}.{rest}"] = tensor
    return shorter_weights


class OwnEncoder(nn.Module):
    """forward: (z_tau, log_snr_tau, label) -> ((context,), v); context: (B, n, C). blocks: of the light network."""

    def __init__(self, net: ForeignNetwork, blocks: int) -> None:
        super().__init__()
        self.net, self.last = net, len(net.blocks) - blocks

    def forward(self, z: Tensor, log_snr: Tensor, label: Tensor | None) -> tuple[tuple[Tensor, ...], Tensor]:
        """z: (B, C, H, W); log_snr: (B,)."""
        parts = self.net.blocks
        with outputs([parts[0], parts[self.last]]) as seen:
            v = self.net(z, log_snr, label)
        return (seen[1] - seen[0],), v


class OwnLight(LightNetwork):
    """A context joins after the first block. The embedding of tau begins at zero."""

    def __init__(self, net: ForeignNetwork) -> None:
        super().__init__()
        inner: Any = net.net
        self.net, self.tau = net, NoiseEmbedding(inner.inner_dim)
        zero_init(self.tau.mlp[-1])

    def joined(
        self, z: Tensor, log_snr: Tensor, label: Tensor | None, features: Features, tau: Tensor, present: Tensor | None
    ) -> Tensor:
        added = features[0] + tau[:, None]

        def join(block: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            return output + added

        with self.net.blocks[0].register_forward_hook(join):
            return self.net(z, log_snr, label)


COLOURS = (1, 3)  # channels of images


class OfForeign(NetworksConfig):
    """Networks of which the first is a model of diffusers."""

    @property
    def foreign(self) -> ForeignConfig:
        """The model of diffusers."""
        return getattr(self, self.roles[0])

    @property
    def shape(self) -> Shape:
        return self.foreign.shape

    @property
    def given(self) -> Shape | None:
        """(1, 1, D) of a prompt, where its class takes texts."""
        return self.foreign.prompt.shape if self.foreign.prompt.parts else None

    @property
    def guided_already(self) -> bool:
        return self.foreign.guided_already

    @property
    def ages(self) -> bool:
        return not self.single_rate  # what sees a prompt sees states, too

    @property
    def blind_alone(self) -> bool:
        return self.given is not None and not self.single_rate  # the taps tell of a prompt, and nothing else does

    @property
    def num_classes(self) -> int:
        return self.foreign.num_classes

    @property
    def null_class(self) -> bool:
        return self.foreign.null

    def backbone(self, networks: nn.ModuleDict, role: str) -> nn.Module:
        return networks.get_submodule(f"{role}.net")


@dataclass(frozen=True)
class OneForeign(OfForeign):
    """A model of diffusers, called at every step."""

    model: ForeignConfig

    def build(self, process: Process) -> tuple[nn.ModuleDict, Denoiser]:
        network = self.model.build()
        return nn.ModuleDict({"model": network}), Plain(network, process)

    def backbone(self, networks: nn.ModuleDict, role: str) -> nn.Module:
        return networks[role]

    @property
    def roles(self) -> tuple[str, ...]:
        return ("model",)


@dataclass(frozen=True)
class Retrofitted(OfForeign):
    """A model of diffusers as the encoder, and a light network that corrects its x_hat."""

    encoder: ForeignConfig
    light: UViTConfig
    taps: tuple[Tap, ...]
    """Whose outputs the light network is given, beside x_hat."""

    def __post_init__(self) -> None:
        encoder, light = ((network.shape, network.num_classes) for network in (self.encoder, self.light))
        if encoder != light:
            raise ValueError(f"encoder and light network differ in (C, H, W) and classes: {encoder} and {light}")

    def build(self, process: Process) -> tuple[nn.ModuleDict, Denoiser]:
        encoder = TappedEncoder(self.encoder.build(), self.light, self.taps)
        light = LightBody(self.light, residual=True)
        return nn.ModuleDict({"encoder": encoder, "light": light}), DualRate(encoder, light, process)

    @property
    def roles(self) -> tuple[str, ...]:
        return ("encoder", "light")

    @property
    def configs(self) -> Mapping[str, UViTConfig]:
        return {"light": self.light}

    def disconnect(self, networks: nn.ModuleDict) -> None:
        """Let the light network begin as it is alone, at the start of training."""
        disconnect(networks["encoder"], networks["light"])


@dataclass(frozen=True)
class OwnBlocks(OfForeign, Ranged):
    """A model of diffusers as the encoder, and a light network that starts as some of its blocks."""

    encoder: ForeignConfig
    blocks: Annotated[int, Range(2, 10_000)]
    """Of the light network: the model's first, and its last."""

    def __post_init__(self) -> None:
        super().__post_init__()
        shorter(self.encoder, self.blocks)

    def build(self, process: Process) -> tuple[nn.ModuleDict, Denoiser]:
        encoder = OwnEncoder(self.encoder.build(), self.blocks)
        light = OwnLight(shorter(self.encoder, self.blocks).build())
        return nn.ModuleDict({"encoder": encoder, "light": light}), DualRate(encoder, light, process)

    def starting(self, role: str, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        whole = json.loads(self.encoder.config)[COUNT]
        return weights if role == "encoder" else of_shorter(weights, whole, self.blocks)


def condition_of_folder(foreign: Adopted, path: Path) -> Conditioning:
    """The condition that a folder's model draws under. Raises ValueError for one of texts without its encoders."""
    if not foreign.network.prompt.parts:
        return Unconditional()
    return Prompts(foreign.network.prompt.size, str(path.resolve()), encoders_fingerprint(path))


def experiment_of(path: Path) -> Experiment:
    """A folder of diffusers as the experiment of a single-rate model that is trained; its VAE is the codec.

    Raises what `adopted`, `read_codec` and `condition_of_folder` raise; warns where images have channels of latents,
    which nothing decodes.
    """
    foreign = adopted(path)
    condition = condition_of_folder(foreign, path)
    if foreign.network.guided_already:
        warnings.warn(GUIDED.format(name=foreign.network.kind), stacklevel=2)
    codec = NoCodec() if foreign.folder.codec is None else CodecFolder.at(foreign.folder.codec)
    channels, side, _ = codec.build(nn.ModuleDict(), "cpu").image_shape(foreign.network.shape)
    if channels not in COLOURS:
        warnings.warn(
            f"{path} has no VAE, and its network draws {channels} channels: latents, it seems, which nothing decodes. "
            "Name the folder of a pipeline, with its vae",
            stacklevel=2,
        )
    return Experiment(
        path.resolve().name,
        OneForeign(foreign.network),
        DenoisingConfig(label_dropout=0.0 if foreign.network.num_classes and not foreign.network.null else 0.1),
        FitConfig(iterations=1),
        DataConfig("", size=side, channels=channels if channels in COLOURS else None),
        GaussianProcess(foreign.schedule),
        codec,
        condition,
    )


def encoder_of(experiment: Experiment) -> TextFolder:
    """The text encoders of a run. Raises ValueError for a model of no texts, and what `TextFolder.of` raises."""
    condition, networks = experiment.condition, experiment.networks
    if not isinstance(condition, Prompts) or not isinstance(networks, OfForeign):
        raise ValueError(f"{experiment.name} makes images of no texts: drop the prompt")
    return TextFolder.of(condition.folder, condition.encoder, networks.foreign)


def prompts_of(experiment: Experiment, named: str, device: torch.device | str) -> Given:
    """The prompts that a user names for a text-to-image model: a text, a file with a text per line, or a folder of
    prompts that were encoded before, whose held-out ones are taken. Texts are encoded as they are drawn.

    Raises ValueError for a model that is given none, a file that is no .txt file, is not there or is empty, and what
    `Prompts.partners` and `TextFolder.of` refuse; OSError for a file that cannot be read.
    """
    if os.path.isdir(named) and isinstance(experiment.condition, Prompts):
        return experiment.condition.held_out(named)
    is_file = os.path.isfile(named)
    if is_file != named.endswith(".txt") and (is_file or " " not in named):
        what = "is no .txt file" if is_file else "is not there"
        raise ValueError(
            f"{named} {what}: a prompt is a text, a .txt file with one a line, or a folder of encoded ones"
        )
    texts = read_utf8(Path(named)).splitlines() if is_file else [named]
    if not any(texts):
        raise ValueError(f"{named or 'the prompt'} has no text: give one, or a file with one a line")
    prompts = EncodedPrompts(texts, encoder_of(experiment), device)
    _ = prompts[np.zeros(1, np.int64)]  # refused before anything is drawn
    return Given(prompts, texts)


def text_folder(path: Path) -> tuple[TextFolder, Path]:
    """The text encoders of a pipeline's folder, and its VAE's folder.

    Raises what `adopted` raises, and ValueError for a pipeline without texts or without a VAE.
    """
    foreign = adopted(path)
    condition = condition_of_folder(foreign, path)
    if not isinstance(condition, Prompts) or foreign.folder.codec is None:
        what = "VAE, so it makes no latents" if isinstance(condition, Prompts) else "texts, it makes images of classes"
        raise ValueError(f"{path} has no {what}: drop --prompts, and name the codec by --codec FOLDER")
    return TextFolder(condition.folder, condition.encoder, foreign.network), foreign.folder.codec


def weights_of(path: Path) -> dict[str, Tensor]:
    """Weights of the networks of `experiment_of`, in float32; of a text-to-image model its empty prompt, too.

    Raises what `adopted` raises, and ValueError as `TextFolder.empty`.
    """
    foreign = adopted(path)
    weights = {f"model.net.{name}": tensor.float() for name, tensor in foreign.weights().state_dict().items()}
    condition = condition_of_folder(foreign, path)
    if isinstance(condition, Prompts):
        weights["model.empty"] = TextFolder(condition.folder, condition.encoder, foreign.network).empty("cpu")
    return weights
