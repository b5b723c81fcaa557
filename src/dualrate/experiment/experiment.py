"""An experiment: every choice of a training run, as frozen dataclasses. Trained, it is a `Model` (experiment/model.py).

Recipes are functions that return an `Experiment`. Its method's configuration, a `MethodConfig`, prepares its training
and says which plans the trained model serves. Two trainings in a row, a codec and a model of its latents, are `Stages`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dualrate.codecs.codec import CodecConfig, CodecFolder, NoCodec
from dualrate.config.ranges import Ranged, many
from dualrate.config.serial import to_plain
from dualrate.data.condition_rows import Given, HeldOut
from dualrate.data.conditions import Condition, Conditioned, Conditioning, OfPicture, Unconditional, read_conditions
from dualrate.data.folders import images_below
from dualrate.data.latent_set import is_encoded, read_latents
from dualrate.data.loader import Augment, Encoded, TrainingSet
from dualrate.data.source import DataProgress, Split, resolved, silent
from dualrate.denoisers.denoiser import Denoiser, modules_of
from dualrate.diffusion.context import Batch, Shape
from dualrate.diffusion.process import GaussianProcess, Process, require_gaussian
from dualrate.diffusion.schedule import Cosine
from dualrate.diffusion.weighting import Sigmoid, Weighting
from dualrate.experiment.data_config import DataConfig
from dualrate.experiment.modality import maker_of
from dualrate.experiment.network_configs import NetworksConfig
from dualrate.experiment.plan_support import Serves
from dualrate.experiment.summary import networks_line, on_paper, sampling_line, title, training_line
from dualrate.experiment.upgrade import identified
from dualrate.system.device import own_defaults
from dualrate.system.files import read_bytes
from dualrate.system.folders import some_of
from dualrate.system.progress import Reporter
from dualrate.training.config import FitConfig
from dualrate.training.method import Method


def _kind(alphabet: str, codec: str) -> str:
    """codec: its fingerprint; empty for pixels"""
    if codec:
        return f"latents by the codec {codec[:12]} (sha256)"
    return f"a text of the {len(alphabet)} characters {alphabet!r}" if alphabet else "a set of pictures"


@dataclass(frozen=True)
class Start:
    """Inputs that a method gets from the run when training starts or resumes.

    fresh:    whether training starts, and the method fills in the first weights; false where it resumes
    bfloat16: whether networks will run under autocast
    load:     the `Model` of a run, or of released weights, by its directory, on the device
    batch:    the training batch of an iteration, on the device
    note:     shows the user a message
    """

    fresh: bool
    device: torch.device
    bfloat16: bool
    load: Callable[[str], Any]
    batch: Callable[[int], Batch]
    note: Callable[[str], None]


@dataclass(frozen=True)
class Prepared:
    """A method, ready for `fit`.

    weights:  which weights it started from, or learns from, by role: for the run's history
    identity: what identifies the run besides its experiment, such as the teacher's weights; replaces equal fields
    watch:    adds warnings to a reporter
    """

    method: Method
    weights: Mapping[str, str] = field(default_factory=dict)
    identity: Mapping[str, Any] = field(default_factory=dict)
    watch: Callable[[Reporter], Reporter] = lambda progress: progress


class MethodConfig(ABC):
    """How a run trains. A subclass is a frozen dataclass: its fields are part of the run's identity."""

    weighting: Weighting = Sigmoid()  # of the loss; `dualrate plan` weighs errors by it too

    @property
    @abstractmethod
    def serves(self) -> Serves:
        """The plans and steps that the trained model takes."""

    @property
    def drops_labels(self) -> bool:
        """Whether the null class, which guidance goes away from, is trained: so says a field `label_dropout`."""
        return getattr(self, "label_dropout", 0) > 0

    def adapted(self, denoiser: Denoiser) -> Denoiser:
        """The networks' denoiser as this method trains it. It may change which samplers may reuse a context."""
        return denoiser

    def check(self, experiment: Experiment) -> None:  # noqa: B027  # most have nothing to refuse
        """Raises ValueError for an experiment that this method cannot train."""

    @abstractmethod
    def prepare(self, experiment: Experiment, start: Start) -> Prepared:
        """Networks and method. Raises ValueError for runs that it cannot start, or learn, from."""


@dataclass(frozen=True)
class Experiment(Ranged):
    """Every choice of a run."""

    name: str
    """Name of the run: letters, digits, _ . and -."""
    networks: NetworksConfig
    method: MethodConfig
    fit: FitConfig
    data: DataConfig = DataConfig()
    process: Process = GaussianProcess(Cosine())
    codec: CodecConfig = NoCodec()
    condition: Conditioning = Unconditional()

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_condition()
        side = self.codec.data_shape(self.shape)[1]
        if self.data.augment.translate >= side:
            raise ValueError(
                f"images of side {side} are shifted by at most {side - 1} pixels, got translate "
                f"{self.data.augment.translate}"
            )
        if self.networks.noise != self.process.planes:
            raise ValueError(
                f"the networks of {self.name} read {self.networks.noise} planes of noise, its process has "
                f"{self.process.planes}: make them the same (NoisePlanes, TokensConfig.noise)"
            )
        self.codec.check(self.process, self.shape)
        self.method.check(self)

    def _check_condition(self) -> None:
        expected, condition = self.networks.given, self.condition
        if not isinstance(condition, Condition) or expected is None:
            if expected is not None or isinstance(condition, Condition):
                what = "take a condition: give one" if expected is not None else "take no condition: drop it"
                raise ValueError(f"the networks of {self.name} {what} (Experiment.condition)")
            return
        if self.num_classes and not condition.labelled:
            raise ValueError(f"a conditional model has no labels: set num_classes of {self.name} to 0")
        if not condition.codec.fingerprint and (shape := condition.shape(self.shape)) != tuple(expected):
            raise ValueError(f"{condition} makes conditions of {shape} (C, H, W), the networks take {expected}")
        condition.check(self.codec.data_shape(self.shape), self.data.augment)

    def __repr__(self) -> str:
        lines = f"Experiment {title(self)}", networks_line(*on_paper(self)), training_line(self), sampling_line(self)
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return self.serves.default_plan().html(repr(self))

    @property
    def gaussian(self) -> GaussianProcess:
        """The process, for what works with Gaussian noise alone. Raises ValueError for another process."""
        return require_gaussian(self.process, self.name)

    @property
    def shape(self) -> Shape:
        """(C, H, W) of what the networks see: of an image, or of its latent."""
        return self.networks.shape

    def load(self, split: Split, progress: DataProgress | None = None) -> TrainingSet:
        """One split of its data, images, latents or what they are. Raises as `DataConfig.load`."""
        items = self.condition.items(self.data, split, progress or silent)
        return self.data.load(split, progress) if items is None else items

    def seen(self, images: TrainingSet, split: Split = "train") -> TrainingSet:
        """A split, by default of training, as a method sees it: images or cached latents, or images that the codec
        encodes; with the conditions of the images.
        """
        if self.codec.instant:
            images = Encoded(images, self.codec, self.codec.build(nn.ModuleDict(), "cpu"))
        return self._conditioned(self.condition, images, split) if isinstance(self.condition, Condition) else images

    def _conditioned(self, condition: Condition, images: TrainingSet, split: Split) -> Conditioned:
        partners = condition.partners(self.data.source, split, label=self.data.label, on_bad=self.data.on_bad)
        return condition.conditioned(images, partners)

    def check_data(self, images: TrainingSet) -> list[str]:
        """Warnings: sentences on what is unusual about the training set, but no error.

        Raises ValueError unless it is of this codec and shape, with labels that the networks know.
        """
        codec, networks = self.codec, f"the networks of {self.name}"
        num_classes = 0 if self.condition.labelled else self.num_classes  # else the condition gives the labels
        kind, expected = _kind(images.alphabet, images.codec.fingerprint), _kind(codec.alphabet, codec.fingerprint)
        if kind != expected:
            way = "encode the images by that (dualrate data encode)" if codec.fingerprint else "begin a new run"
            raise ValueError(f"{images.name} is {kind}, and {self.name} is trained on {expected}: {way}")
        if images.frames_each != self.networks.frames:
            raise ValueError(
                f"{images.name} has {many(images.frames_each, 'frame')} in an image, {networks} make "
                f"{self.networks.frames}: train clip-latents or clip-decoder on clips, and other recipes on images"
            )
        shape = codec.data_shape(self.shape)
        if self.condition.target(images.shape) != shape:
            raise ValueError(
                f"{images.name} has images of {images.shape} (C, H, W), {networks} take {shape}: pass --data.size "
                f"{shape[1]} --data.channels {shape[0]}, of latents encode other images, or change the networks"
            )
        if num_classes and images.labels is None:
            raise ValueError(
                f"{images.name} has no labels, but {networks} are conditioned on {many(num_classes, 'class')}: set "
                "num_classes of every network to 0 (of dualrate train: --networks.model.num-classes 0)"
            )
        if images.num_classes > num_classes > 0:
            raise ValueError(f"{images.name} has {images.num_classes} classes, {networks} know only {num_classes}")
        warnings, size = [], self.fit.batch_size
        labels = images.labels.tolist() if images.labels is not None else ()
        if missing := sorted({*range(num_classes)} - {*labels}):
            warnings.append(
                f"{images.name} has no image of {len(missing)} of the networks' {many(num_classes, 'class')}: "
                f"{some_of(missing, 10)}"
            )
        if len(images) < size:
            warnings.append(
                f"{images.name} has {many(len(images), 'image')}, fewer than a batch of {size}: they repeat in it"
            )
        return warnings

    @property
    def identity(self) -> dict[str, Any]:
        """Its fields as plain values, but for where its codec's folder is: a run is resumed only by the same."""
        plain = {name: value for name, value in to_plain(self).items() if name not in ("codec", "condition")}
        return identified(plain | self.codec.identity | self.condition.identity)

    @property
    def drawing(self) -> dict[str, Any]:
        """Its identity without the settings of training. Kept features of images are named by this and the weights."""
        return {name: value for name, value in self.identity.items() if name != "fit"}

    @property
    def num_classes(self) -> int:
        """0 for an unconditional model."""
        return self.networks.num_classes

    @property
    def noun(self) -> str:
        """The word for one item of its data."""
        return maker_of(self).noun

    @property
    def serves(self) -> Serves:
        """The plans and steps that the trained model takes."""
        return self.method.serves

    def with_codec(self, folder: str | Path | None, sampler: str | None = None, steps: int | None = None) -> Experiment:
        """Its codec read from another folder; of a decoder, the codec of its latents. As `Model.with_codec`."""
        condition = self.condition.with_codec(None if folder is None else str(folder), sampler, steps)
        if condition is not None:
            return replace(self, condition=condition)
        codec = self.codec
        if folder is not None and not codec.fingerprint:
            raise ValueError(f"{self.name} has no codec in a folder: drop the codec")
        codec = (codec if folder is None else CodecFolder(str(folder), codec.fingerprint)).under(sampler, steps)
        return replace(self, codec=codec)

    def given(self, device: torch.device | str) -> Given | HeldOut | None:
        """Conditions that a conditional model draws images of: the conditions of held-out images, by number.

        Raises what reading a codec and the images raises.
        """
        condition = self.condition
        if not isinstance(condition, Condition):
            return None
        if (conditions := condition.held_out(self.data.source)) is not None:
            return conditions
        codec, items = condition.codec.build(nn.ModuleDict(), device), condition.items(self.data, "test")
        test = self._conditioned(condition, self.data.items("test") if items is None else items, "test")
        return HeldOut(test.images, test.partner_images or test.images, condition.build(device), device, codec)

    def read_given(self, place: str | Path) -> Given:
        """The conditions in a picture, or in a folder of them in the order of their paths.

        Raises ValueError for a model that is not given pictures, no pictures, and, with both shapes, for one that does
        not fit; OSError for a file that cannot be read.
        """
        path, condition, expected = resolved(place), self.condition, self.networks.given
        if not isinstance(condition, OfPicture) or expected is None:
            raise ValueError(f"{self.name} {condition.no_pictures}")
        files = images_below(path) if path.is_dir() else [path]
        if not files:
            raise ValueError(f"{path} holds no pictures to make images of")
        pictures = ((str(file), read_bytes(file)) for file in files)
        return Given(read_conditions(pictures, condition, expected), files=tuple(map(str, files)))

    def build(self) -> tuple[nn.ModuleDict, Denoiser]:
        """Networks with weights drawn from the run's seed, and their denoiser."""
        with own_defaults(), torch.random.fork_rng([]):
            torch.default_generator.manual_seed(self.fit.seed)
            networks, denoiser = self.parts()
        return networks.to(memory_format=torch.channels_last), denoiser  # pyright: ignore[reportCallIssue]

    def parts(self) -> tuple[nn.ModuleDict, Denoiser]:
        """Networks with random weights, and the denoiser that its method trains of them.

        Raises ValueError where a role has no network, or the denoiser one of its own: it would neither be trained nor
        stored.
        """
        networks, denoiser = self.networks.build(self.process)
        if any(role not in networks for role in self.networks.roles):
            raise ValueError(
                f"{type(self.networks).__name__} has the roles {', '.join(self.networks.roles)}, and its build returns "
                f"networks by the names {', '.join(networks)}: return one for each role, or set roles, of one network "
                "('model',)"
            )
        trained = set(networks.parameters())
        for part in modules_of(denoiser):
            if any(each.requires_grad and each not in trained for each in part.parameters(recurse=False)):
                raise ValueError(
                    f"the denoiser of {type(self.networks).__name__} calls a {type(part).__name__} that is in none of "
                    f"the networks {', '.join(networks)}, and would neither be trained nor stored: make it part of one"
                )
        return networks, self.condition.around(self.method.adapted(denoiser))


def on_codec_of_data(experiment: Experiment) -> Experiment:
    """Gives an experiment the codec whose latents its data are, unless it has it already. Raises as `read_latents`."""
    source = experiment.data.source
    if not is_encoded(source):
        return experiment
    codec = read_latents(source, "train").codec
    return experiment if experiment.codec.fingerprint == codec.fingerprint else replace(experiment, codec=codec)


@dataclass(frozen=True)
class Stages:
    """Two trainings: a codec on images, then a model of its latents. Each is a separate run (`runs/train.py`).

    Raises ValueError for a base model of other latents than the first stage's, or with other data.
    """

    name: str
    """Of the two: letters, digits, _ . and -."""
    first: Experiment
    """Trains the codec: encoder, prior and decoder together."""
    base: Experiment
    """The model of its latents. These are its data."""

    def __post_init__(self) -> None:
        first, base = self.first, self.base
        if first.codec.data_shape(first.shape) == first.shape:
            raise ValueError(f"{first.name} trains no codec, so there are no latents for a second stage")
        if (base.shape, base.process.end) != (first.shape, first.process.end):
            raise ValueError(
                f"the latents of {first.name} are {first.shape} (C, H, W) at log-SNR {first.process.end}, {base.name} "
                f"takes {base.shape} at {base.process.end}: make networks and the schedules' log_snr_max alike"
            )
        if replace(base.data, augment=Augment()) != DataConfig():
            raise ValueError(f"{base.name} is trained on the first stage's latents: give the images as --first.data")

    def __repr__(self) -> str:
        return f"Stages {self.name}\n  first     {title(self.first)}\n  base      {title(self.base)}"

    def on_latents(self, folder: Path) -> Experiment:
        """The base model's, on latents in a folder. Raises as `read_latents`."""
        return on_codec_of_data(replace(self.base, data=replace(self.base.data, source=str(folder))))
