"""A recipe for your own images: networks and training that fit their size, colours and classes.

    tiny     minutes of a laptop, to see that all works
    small    about an hour of a CPU core
    base     for a GPU

Side     the median short side of the images, rounded down to one of `SIDES`, which halve down to a grid of 4 to 8
         positions a side; at most `Tier.most` unless `--data.size` asks for more. Every image is cropped to the square
         in its middle and resized, as `data.decode` says.
Patches  of 1, 2 or 4 pixels: the smallest that leave the finest level at most `Tier.finest` positions a side.
Levels   each halves the one before, down to the middle, of transformer blocks. Levels above are convolutional; those of
         base at 16 x 16 or less are transformer blocks.
Light    `UViTConfig.lighter`: three quarters of the convolutions' widths, and one convolution block in the middle. It
         makes a third of the multiply-adds at most: so at large sides its finest level has a block less.
Widths   a level holds what it is given: at least as many channels as a patch has numbers.
Latents  (dualrate data encode) are taken unchanged: the networks have their side and channels.
Colours  grey if every image that was looked at is, else three channels.
Classes  of the labels; one class is none.
Mirror   no image is mirrored in training: writing, faces of clocks and left shoes have no mirror image. Photographs of
         most things have one, and `--data.augment.flip` then doubles the data.
Noise    the cosine schedule up to 32 pixels a side; above, interpolated between that of 32 and the image's own side, as
         for ImageNet.

All of it is a function of the data, the size and the rate, so the same command resumes.
"""

from __future__ import annotations

import glob
import re
from dataclasses import dataclass, replace
from os import PathLike
from statistics import median_low
from typing import Literal

from dualrate.config.ranges import Ranged, as_path, many
from dualrate.data.conditions import Condition
from dualrate.data.images import Look, look_at
from dualrate.data.latent_set import is_encoded, read_latents
from dualrate.data.source import resolved
from dualrate.diffusion.context import Shape
from dualrate.diffusion.process import GaussianProcess
from dualrate.diffusion.schedule import Cosine, Interpolated
from dualrate.experiment.data_config import DataConfig
from dualrate.experiment.experiment import Experiment
from dualrate.experiment.network_configs import OneNetwork, TwoNetworks
from dualrate.methods.denoising import DenoisingConfig
from dualrate.methods.times import SingleTime, TimeSampler
from dualrate.networks.conditional import ratios
from dualrate.networks.uvit import Level, UViTConfig
from dualrate.recipes.fashion_mnist import BETTER_ALONE
from dualrate.recipes.shared import training
from dualrate.recipes.students import DISTILLING, StudentRecipe
from dualrate.recipes.tasks import OF_A_TASK, Rate, TrainedBy, conditional_networks, task_named
from dualrate.system.progress import PlainReporter, Reporter
from dualrate.training.config import FitConfig

Size = Literal["tiny", "small", "base"]

SIDES = (8, *(m * 2**k for k in range(1, 6) for m in (5, 6, 7, 8)))  # 8, 10, 12, 14, 16, 20, ... 256
NOISE_SIDE = 32  # up to which the schedule is the cosine


@dataclass(frozen=True)
class Tier:
    """A size of the heavy network, and how it trains.

    conv:         channels of convolutional levels
    transformers: channels of a level at 16 x 16 and of the middle; the first None: such a level is convolutional
    blocks:       of a level, of the middle
    finest:       positions a side of the finest level, at most, with patches of up to 4
    most:         pixels a side, unless more are asked for
    """

    conv: int
    transformers: tuple[int | None, int]
    blocks: tuple[int, int]
    fit: FitConfig
    finest: int = 16
    most: int = 64
    embedding: int = 128
    dropout: float = 0.0


TIERS: dict[Size, Tier] = {
    "tiny": Tier(48, (None, 128), (1, 3), training(2000, 64, 2e-3, 100, ema_halflife=10_000, sample_every=500)),
    "small": Tier(
        64,
        (None, 192),
        (1, 6),
        training(16_000, 32, 3e-3, 300, ema_halflife=50_000, checkpoint_every=1000, sample_every=4000),
    ),
    "base": Tier(
        128,
        (256, 512),
        (2, 8),
        training(50_000, 256, 4e-4, 1000, ema_halflife=300_000, compile=True, checkpoint_every=1000, sample_every=5000),
        finest=32,
        most=128,
        embedding=512,
        dropout=0.1,
    ),
}


@dataclass(frozen=True)
class Auto(Ranged):
    """A model for your own images. The recipe looks at them first. Give --data.source with --help to see the other
    options, with the values that were chosen for these images."""

    data: DataConfig = DataConfig(source="")
    size: Size = "small"
    """Size of the networks. tiny: minutes on a laptop. small: about an hour of a CPU core. base: for a GPU."""
    rate: Rate | None = None
    """single: one network at every step; the default without a --task, where it is better on small images. dual: a
    heavy network now and then (with a --task once, by default), and a light one at every step. With a --task also
    medium, light: one smaller network at every step; both: a heavy network once, another now and then, and a light one
    at every step."""
    task: str | None = None
    """The condition that images are made from: super-resolution:4, inpainting:16 (the side of the hole), colour, or
    pairs:SOURCE, the image of the same name in another folder, or in another column (FILE.parquet#COLUMN). Default:
    none."""
    trained_by: TrainedBy = "diffusion"
    """Of a --task. diffusion: the denoising loss. residual: a regression once, then diffusion of its residual by a
    network that also gets the regression's features. corrdiff: the same without the features. crps, energy: a sample in
    one call, trained by a score of two draws. regression: the mean, in one call."""

    def __post_init__(self) -> None:
        if isinstance(self.data, str | PathLike):  # the images alone
            object.__setattr__(self, "data", DataConfig(str(as_path(self.data))))
        super().__post_init__()
        if self.task is None and (self.rate in OF_A_TASK or self.trained_by != "diffusion"):
            raise ValueError(f"--rate {self.rate} and --trained-by {self.trained_by} need a condition: give a --task")
        if self.task is not None:
            task_named(self.task)

    @property
    def chosen_rate(self) -> Rate:
        """The rate, or its default."""
        return self.rate or ("dual" if self.task else "single")

    def __call__(self, progress: Reporter | None = None) -> Experiment:
        """The experiment for these images. Raises what `look_at` and `experiment` raise, and ValueError for no source.

        progress: called with a description of the images and of their preparation
        """
        if not self.data.source:
            raise ValueError("auto fits a model to your images, so it needs them: --data.source FOLDER (or a file)")
        progress = progress or PlainReporter()
        if is_encoded(self.data.source):
            latents = read_latents(self.data.source, "train")
            progress.note(f"{latents.name}: {many(len(latents), 'image')} as latents of {latents.shape} (C, H, W)")
            if self.task is not None:
                raise ValueError(f"a --task needs images, and {self.data.source} holds latents: name the images")
            chosen = _of_shape(latents.shape, latents.num_classes, self.data, self.size, self.chosen_rate)
            progress.note(rates(chosen))
            return replace(chosen, codec=latents.codec)
        look = look_at(self.data.source, self.data.label)
        chosen = experiment(look, self.data, self.size, "single" if self.task else self.chosen_rate)
        if self.task is not None:
            chosen = self._of_task(chosen, task_named(self.task).fitted(look, chosen.shape))
        progress.note(f"{account(look, self.data, chosen)}\n{rates(chosen)}")
        if self.task is None and chosen.networks.ages:
            progress.note(f"{BETTER_ALONE}: --rate single")
        return chosen

    def _of_task(self, single: Experiment, task: Condition) -> Experiment:
        (model,) = single.networks.configs.values()
        heavy = replace(model, num_classes=0)
        ratios(task.shape(single.shape), heavy)  # refuses sides that do not fit
        networks, method = conditional_networks(task, single.shape, heavy, self.chosen_rate, self.trained_by)
        kind, _, of = str(self.task).partition(":")
        what = f"{kind}-{name_of(of)[:20]}" if of else kind
        parts = (name_of(self.data.source)[:30], what, self.size, self.chosen_rate, self.trained_by)
        name = "-".join(parts[: 4 if self.trained_by == "diffusion" else 5])
        return replace(single, name=name, networks=networks, method=method, condition=task)


def experiment(look: Look, data: DataConfig, size: Size = "small", rate: Rate = "dual") -> Experiment:
    """The experiment that fits the images that were looked at.

    data: where they are; its size and channels hold if they are given
    Raises ValueError for a side that is none of `SIDES`, and for images that are smaller than all of those.
    """
    side = data.size
    if side is None:
        short = median_low(min(shape[1:]) for shape in look.shapes)
        if short < SIDES[0]:
            raise ValueError(
                f"the images of {look.name} have a short side of {short} pixels; the networks need {SIDES[0]} or more: "
                f"--data.size {SIDES[0]} enlarges them"
            )
        side = max(side for side in SIDES if side <= min(short, TIERS[size].most))
    channels = data.channels or (1 if all(shape[0] == 1 for shape in look.shapes) else 3)
    return _of_shape((channels, side, side), look.num_classes, replace(data, size=side, channels=channels), size, rate)


def _of_shape(shape: Shape, num_classes: int, data: DataConfig, size: Size, rate: Rate) -> Experiment:
    """An experiment whose networks see this shape, (C, H, W). Raises ValueError for a side that is none of `SIDES`."""
    channels, side, width = shape
    if side != width or side not in SIDES:
        raise ValueError(
            f"auto has no networks for {side} x {width}. Pass another --data.size, or encode images of another --size: "
            f"a side is one of {', '.join(map(str, SIDES))}"
        )
    heavy = network(TIERS[size], side, channels, num_classes if num_classes > 1 else 0)
    single = rate == "single"
    return Experiment(
        f"{name_of(data.source)}-{size}-{rate}",
        OneNetwork(heavy) if single else TwoNetworks(heavy, heavy.lighter()),
        DenoisingConfig(times=SingleTime() if single else TimeSampler(heavy=(4, 32))),
        TIERS[size].fit,
        data,
        process=GaussianProcess(Cosine() if side <= NOISE_SIDE else Interpolated.between(NOISE_SIDE, side, side)),
    )


def network(tier: Tier, side: int, channels: int, num_classes: int) -> UViTConfig:
    """The heavy network for images of one of `SIDES`."""
    patch = next((p for p in (1, 2) if side // p <= tier.finest), 4)
    grids = [side // patch]
    while grids[-1] > 8 or len(grids) == 1:
        grids.append(grids[-1] // 2)
    (outer, middle), (blocks, depth) = tier.transformers, tier.blocks
    levels = [
        Level("transformer", outer, blocks) if outer and grid <= 16 else Level("conv", tier.conv, blocks)
        for grid in grids[:-1]
    ]
    levels.append(Level("transformer", middle, depth, tier.dropout))
    return UViTConfig(side, channels, tuple(levels), num_classes, patch=patch, embedding=tier.embedding, head_dim=64)


def name_of(source: str) -> str:
    """A run's name for a source: its own or, of a pattern, its folder's, in the characters that one may have."""
    path = resolved(source)
    while glob.has_magic(path.name) and not path.exists():
        path = path.parent
    name = path.stem if path.suffix.lower() in (".npz", ".parquet", ".tar") else path.name
    return re.sub(r"[^A-Za-z0-9_]+", "-", name).strip("-")[:60] or "images"


def account(look: Look, requested: DataConfig, chosen: Experiment) -> str:
    """A description of the images and of their preparation, for people. requested: before anything was chosen"""
    made_of, shorts = chosen.data, ""
    if requested.size is None:  # else the images need not be opened
        sides = sorted(min(shape[1:]) for shape in look.shapes)
        shorts = f", short sides of {sides[0]} to {sides[-1]} pixels"
    classes = many(look.num_classes, "class") if look.num_classes else "no labels"
    colour, mirrored = "grey" if made_of.channels == 1 else "in colour", "half" if made_of.augment.flip else "none"
    condition = chosen.networks.given
    of = "" if condition is None else f"\neach is made of a condition of {' x '.join(map(str, condition))} (C, H, W)"
    return (
        f"{look.name}: {many(look.raw.count, 'image')}, {classes}{shorts}\n"
        f"each becomes {made_of.size} x {made_of.size}, {colour}: the square in its middle, resized (data.size)\n"
        f"mirrored in training: {mirrored} (data.augment.flip){of}"
    )


def rates(chosen: Experiment) -> str:
    """How much lighter the light network is, for people; or that there is one network."""
    networks = chosen.networks.configs
    if not {"encoder", "light"} <= networks.keys():
        return "one network at every step"
    ratio = networks["encoder"].macs / networks["light"].macs
    return f"a call of the heavy network costs {ratio:.1f} times the multiply-adds of one of the light network"


def distilled() -> StudentRecipe:
    """Students of any single-rate model; a dual-rate one gets a light network in proportion to its teacher's."""
    return StudentRecipe(None, None, DISTILLING)


RECIPES = {"auto": ("networks that fit your own images, after a look at them", Auto())}
