"""An experiment: every choice of a training run, as frozen dataclasses. A `Model` is a trained experiment.

Recipes are functions that return an `Experiment`. Its method's configuration, a `MethodConfig`, prepares its training
and says which plans the trained model serves. Two trainings in a row, a codec and a model of its latents, are `Stages`.
"""

from __future__ import annotations

import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cached_property
from operator import index
from pathlib import Path
from typing import Any, Literal, SupportsIndex

import torch
from torch import Tensor, nn

from dualrate.codecs.codec import Codec, CodecConfig, CodecFolder, NoCodec, decode_macs
from dualrate.codecs.diffusion import Decoding, OtherDecoder, decoding_of
from dualrate.config.ranges import Ranged, Side, is_whole
from dualrate.config.serial import to_plain
from dualrate.data.cache import cache_dir
from dualrate.data.conditions import Condition, Given, HeldOut, Latent, Unconditional, read_conditions
from dualrate.data.images import ImageSet, load_images
from dualrate.data.latent_set import encoded_images, is_encoded, read_latents
from dualrate.data.loader import Augment, Encoded, TrainingSet
from dualrate.data.source import DataProgress, Split, images_below, resolved, silent
from dualrate.denoisers.catalogue import denoiser_named
from dualrate.denoisers.denoiser import Denoiser, modules_of
from dualrate.diffusion.prediction import Sigmoid, Weighting
from dualrate.diffusion.process import GaussianProcess, Process, require_gaussian
from dualrate.diffusion.schedule import Cosine
from dualrate.diffusion.values import Batch, Reuse, Shape
from dualrate.experiment.modality import maker_of, reader_of
from dualrate.experiment.network_configs import NetworksConfig
from dualrate.experiment.plan_support import Serves
from dualrate.networks.blocks import copied
from dualrate.sampling.cost import CallCost, call_cost
from dualrate.system.device import compile_calls, graph_calls, own_defaults, settle_products
from dualrate.system.files import read_bytes
from dualrate.system.folders import some_of
from dualrate.system.progress import Reporter
from dualrate.training.config import FitConfig
from dualrate.training.method import Method


@dataclass(frozen=True)
class DataConfig(Ranged):
    """Images, a text, or fields over time."""

    source: str = "fashion-mnist"
    """Images: fashion-mnist, a folder (of images, of archives, or written by dualrate data prepare), a .tar, .parquet
    or .npz file. Text: a .txt file, or python-docs, the language reference that comes with Python. Fields over time: a
    .npz, .npy, .h5, .nc or .zarr file, kuramoto-sivashinsky, kolmogorov or moving-fashion-mnist. Empty: unknown."""
    size: Side | None = None
    """Side that images are resized to. Default: their own. For text: characters per piece. Default: 64."""
    channels: Literal[1, 3] | None = None
    """1 for grey, 3 for colour. Default: as the images are."""
    on_bad: Literal["fail", "skip"] = "fail"
    """An image that cannot be read ends the program (fail) or is left out (skip)."""
    label: str | None = None
    """Column of the labels in Parquet files, by default label, labels, fine_label, class or target; or array of the
    labels in .npz, by default labels or arr_1."""
    augment: Augment = Augment()

    def at(self, source: str) -> DataConfig:
        """Copies this with another source; for latents, with their own size and labels, `augment` alone is kept."""
        return replace(DataConfig(augment=self.augment) if is_encoded(source) else self, source=source)

    def load(self, split: Split, progress: DataProgress | None = None) -> TrainingSet:
        """The items that networks are trained on: one split of the images, or of their cached latents.

        Raises ValueError for latents with a size of their own, what `read_latents` and `load_images` raise.
        """
        if not is_encoded(self.source):
            return self.items(split, progress)
        self.refuse("holds latents, which have their size and labels", "size", "channels", "label")
        return read_latents(self.source, split)

    def items(self, split: Split, progress: DataProgress | None = None) -> TrainingSet:
        """One split of the images, or of what else the source holds. Raises as `images` and `Modality.read`."""
        modality = reader_of(self.source)
        return self.images(split, progress) if modality is None else modality.read(self, split, progress or silent)

    def images(self, split: Split, progress: DataProgress | None = None) -> ImageSet:
        """One split of the images: of latents those that they were made of. Raises as `load` and `load_images`."""
        if not self.source:
            raise ValueError(
                "this model does not say which images it was trained on: score it beside a run of theirs (dualrate "
                "compare RUN MODEL --mixed), against statistics (evaluate --features inception --reference FILE), or "
                "images of texts by the texts (evaluate --prompt FILE --features CLIP)"
            )
        if is_encoded(self.source):
            return encoded_images(self.source, split, progress)
        if (modality := reader_of(self.source)) is not None:
            return modality.images(self, split, progress or silent)
        return load_images(self.source, split=split, progress=progress, **self.preparation)

    def refuse(self, what: str, *names: str) -> None:
        """Raises ValueError where one of these settings is given. what: the source holds, which takes none of them"""
        if options := [f"--data.{name}" for name in names if getattr(self, name) != getattr(DataConfig(), name)]:
            raise ValueError(f"{self.source} {what}: drop {' and '.join(options).replace('augment', 'augment.*')}")

    @property
    def preparation(self) -> dict[str, Any]:
        """How images become what networks see, as `load_images` and `encode` take it."""
        return {"size": self.size, "channels": self.channels, "on_bad": self.on_bad, "label": self.label}


def _kind(alphabet: str, codec: str) -> str:
    """codec: its fingerprint; empty for pixels"""
    if codec:
        return f"latents by the codec {codec[:12]} (sha256)"
    return f"a text of the {len(alphabet)} characters {alphabet!r}" if alphabet else "a set of pictures"


COMPILED = "compiled"  # in the cache, networks that were compiled
DECODING = "sde-dpm++2m:0.1", 16  # sampler and steps of a decoder as a codec, where none are asked for


@dataclass(frozen=True)
class Start:
    """Inputs that a method gets from the run when training starts or resumes.

    fresh:    whether training starts, and the method fills in the first weights; false where it resumes
    bfloat16: whether networks will run under autocast
    load:     the model of a run, or of released weights, by its directory, on the device
    batch:    the training batch of an iteration, on the device
    note:     shows the user a message
    """

    fresh: bool
    device: torch.device
    bfloat16: bool
    load: Callable[[str], Model]
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
    condition: Condition = Unconditional()

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
        expected = self.networks.given
        if (expected is not None) != (self.condition != Unconditional()):
            what = "take a condition: give one" if expected is not None else "take no condition: drop it"
            raise ValueError(f"the networks of {self.name} {what} (Experiment.condition)")
        if expected is None:
            return
        if self.num_classes and not self.condition.labelled:
            raise ValueError(f"a conditional model has no labels: set num_classes of {self.name} to 0")
        if not self.condition.codec.fingerprint and (shape := self.condition.shape(self.shape)) != tuple(expected):
            raise ValueError(f"{self.condition} makes conditions of {shape} (C, H, W), the networks take {expected}")
        self.condition.check(self.codec.data_shape(self.shape), self.data.augment)

    @property
    def gaussian(self) -> GaussianProcess:
        """The process, for what works with Gaussian noise alone. Raises ValueError for another process."""
        return require_gaussian(self.process, self.name)

    @property
    def shape(self) -> Shape:
        """(C, H, W) of what the networks see: of an image, or of its latent."""
        return self.networks.shape

    def seen(self, images: TrainingSet, split: Split = "train") -> TrainingSet:
        """A split, by default of training, as a method sees it: images or cached latents, or images that the codec
        encodes; with the conditions of the images.
        """
        if self.codec.instant:
            images = Encoded(images, self.codec, self.codec.build(nn.ModuleDict(), "cpu"))
        if self.networks.given is None:
            return images
        return self.condition.conditioned(images, self._partners(split))

    def _partners(self, split: Split) -> TrainingSet | None:
        return self.condition.partners(self.data.source, split, label=self.data.label, on_bad=self.data.on_bad)

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
        shape = codec.data_shape(self.shape)
        if self.condition.target(images.shape) != shape:
            raise ValueError(
                f"{images.name} has images of {images.shape} (C, H, W), {networks} take {shape}: pass --data.size "
                f"{shape[1]} --data.channels {shape[0]}, of latents encode other images, or change the networks"
            )
        if num_classes and images.labels is None:
            raise ValueError(
                f"{images.name} has no labels, but {networks} are conditioned on {num_classes} classes: set "
                "num_classes of every network to 0 (of dualrate train: --networks.model.num-classes 0)"
            )
        if images.num_classes > num_classes > 0:
            raise ValueError(f"{images.name} has {images.num_classes} classes, {networks} know only {num_classes}")
        warnings, size = [], self.fit.batch_size
        labels = images.labels.tolist() if images.labels is not None else ()
        if missing := sorted({*range(num_classes)} - {*labels}):
            warnings.append(
                f"{images.name} has no image of {len(missing)} of the networks' {num_classes} classes: "
                f"{some_of(missing, 10)}"
            )
        if len(images) < size:
            warnings.append(
                f"{images.name} has {len(images)} image(s), fewer than a batch of {size}: they repeat in it"
            )
        return warnings

    @property
    def identity(self) -> dict[str, Any]:
        """Its fields as plain values, but for where its codec's folder is: a run is resumed only by the same."""
        plain = {name: value for name, value in to_plain(self).items() if name not in ("codec", "condition")}
        return plain | self.codec.identity | self.condition.identity

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
        if latents := self.condition.codec.fingerprint:
            if sampler is not None or steps is not None:
                raise ValueError(f"{self.name} is a decoder, which draws by --sampler and --steps: drop the codec's")
            return replace(self, condition=Latent(CodecFolder(str(folder), latents)))
        codec = self.codec
        if folder is not None and not codec.fingerprint:
            raise ValueError(f"{self.name} has no codec in a folder: drop the codec")
        codec = (codec if folder is None else CodecFolder(str(folder), codec.fingerprint)).under(sampler, steps)
        return replace(self, codec=codec)

    def given(self, device: torch.device | str) -> Given | HeldOut | None:
        """Conditions that a conditional model draws images of: the conditions of held-out images, by number.

        Raises what reading a codec and the images raises.
        """
        if self.networks.given is None:
            return None
        if (conditions := self.condition.held_out(self.data.source)) is not None:
            return conditions
        codec = self.condition.codec.build(nn.ModuleDict(), device)
        test = self.condition.conditioned(self.data.items("test"), self._partners("test"))
        return HeldOut(test.images, test.partner_images or test.images, self.condition.build(device), device, codec)

    def read_given(self, place: str | Path) -> Given:
        """The conditions in a picture, or in a folder of them in the order of their paths.

        Raises ValueError for a model that is given nothing, no pictures, and, with both shapes, for one that does not
        fit; OSError for a file that cannot be read.
        """
        path = resolved(place)
        if self.networks.given is None:
            raise ValueError(f"{self.name} makes images of noise alone: drop the conditions")
        files = images_below(path) if path.is_dir() else [path]
        if not files:
            raise ValueError(f"{path} holds no pictures to make images of")
        pictures = ((str(file), read_bytes(file)) for file in files)
        return Given(read_conditions(pictures, self.condition, self.networks.given), files=tuple(map(str, files)))

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
        return networks, self.method.adapted(denoiser)


@dataclass(frozen=True)
class Model:
    """A trained model, ready to sample: networks, the denoiser that calls them, and the experiment that they are from.

    iteration: of the checkpoint; weights_hash: sha256 of all weights; under another denoiser, with its name
    compiled, graphs: whether sampling compiles its networks, and records CUDA graphs, at their first calls
    path:      the directory that it was loaded from
    called_by: name of its denoiser, where that is not the networks' own
    conditions: that it draws images of, instead of held-out images' own
    class_names: of its training images' classes, by number; empty where nothing says them
    """

    name: str
    experiment: Experiment
    networks: nn.ModuleDict
    denoiser: Denoiser
    iteration: int
    weights_hash: str
    path: Path | None = None
    called_by: str | None = None
    compiled: bool = False
    graphs: bool = False
    conditions: Given | None = None
    class_names: tuple[str, ...] = ()
    _ready: dict[bool, Model] = field(default_factory=dict, init=False, repr=False, compare=False)  # by bfloat16

    def __str__(self) -> str:
        """Which weights these are, for people."""
        return f"{self.path or self.name} at iteration {self.iteration}, weights {self.weights_hash[:12]}"

    @property
    def process(self) -> Process:
        return self.experiment.process

    @property
    def identity(self) -> str:
        """Its weights and the conditions that it is given, for fingerprints."""
        return self.weights_hash if self.conditions is None else f"{self.weights_hash} of {self.conditions.digest}"

    @property
    def gaussian(self) -> GaussianProcess:
        """The process, for what works with Gaussian noise alone. Raises ValueError for another process."""
        return self.experiment.gaussian

    @property
    def shape(self) -> Shape:
        """(C, H, W) of what the networks see: of an image, or of its latent."""
        return self.experiment.shape

    @cached_property
    def codec(self) -> Codec:
        """The codec between latents and images, read when it is first asked for. Raises as `CodecConfig.build`."""
        return self.experiment.codec.build(self.networks, self.device)

    @cached_property
    def given(self) -> Given | HeldOut | None:
        """`conditions`, or as `Experiment.given`, on the networks' device, read when it is first asked for."""
        return self.conditions or self.experiment.given(self.device)

    @property
    def image_shape(self) -> Shape:
        """(C, H, W) of an image."""
        return self.codec.image_shape(self.shape)

    @property
    def num_classes(self) -> int:
        return self.experiment.num_classes

    def class_number(self, label: SupportsIndex | str) -> int:
        """The number of a class: of a text the class of that name, of a number, or its digits, that number itself.

        Raises ValueError for a class that the model does not know, and for a number that could as well be meant as a
        name: its class is called by another one, or another class by it.
        """
        if not self.num_classes:
            raise ValueError(f"{self.name} has no classes: drop the label")
        names = [unicodedata.normalize("NFC", name) for name in self.class_names]
        if isinstance(label, str):
            label = unicodedata.normalize("NFC", label)
            same = [number for number, name in enumerate(names) if name == label]
            if len(same) == 1:
                return same[0]
            if same:
                raise ValueError(f"{self.name} has several classes called {label!r}: give a number, {some_of(same)}")
            if not is_whole(label.removeprefix("-")):
                names_to_give = get_close_matches(label, names) or names or [f"0 to {self.num_classes - 1}"]
                raise ValueError(f"{self.name} has no class {label!r}: give {some_of(names_to_give, 10)}")
            label = int(label)
        try:
            number = None if isinstance(label, bool) else index(label)
        except TypeError:
            number = None
        if number is None:
            raise ValueError(f"a class is given by its number, a whole one, or its name, got {label!r}")
        called = {place: int(name) for place, name in enumerate(names) if is_whole(name)}
        namesakes = [place for place in called if called[place] == number != place]
        if namesakes or called.get(number, number) != number:
            places = [place for place in (number, *namesakes) if 0 <= place < len(names)]
            readings = [f"class number {place} is called {names[place]!r}" for place in places]
            raise ValueError(f"label {number} is unclear: {', '.join(readings)}; give a name, as a text")
        if not 0 <= number < self.num_classes:
            raise ValueError(f"{self.name} knows the classes 0 to {self.num_classes - 1}, got label {number}")
        return number

    def with_denoiser(self, name: str | None) -> Model:
        """The same networks called by a denoiser of `denoisers/catalogue.py`; None: by their own.

        Raises ValueError for a name that is none, and a denoiser that these networks cannot have.
        """
        if name is None:
            return self
        try:
            denoiser = denoiser_named(name)(self.denoiser, self.process)
        except ValueError as error:
            raise ValueError(f"{self.name} cannot be called by {name}: {error}; drop the denoiser") from error
        if missing := [part for part in ("reuse", "encode", "denoise") if not hasattr(denoiser, part)]:
            raise ValueError(f"{name} makes no denoiser: what it returned has no {' and no '.join(missing)}")
        return replace(self, denoiser=denoiser, weights_hash=f"{self.weights_hash} under {name}", called_by=name)

    def with_codec(self, folder: str | Path | None, sampler: str | None = None, steps: int | None = None) -> Model:
        """The same model, its codec read from another folder; None: from where training found it.

        Of a decoder: the codec of its latents.
        sampler, steps: of the codec's decoder, in place of its own
        Raises ValueError for a model whose codec is in no folder, and for steps of one whose codec has no decoder that
        draws. Another codec is refused when it is read.
        """
        if folder is None and sampler is None and steps is None:
            return self
        return replace(self, experiment=self.experiment.with_codec(folder, sampler, steps))

    def with_given(self, given: Given) -> Model:
        """The same model, given these conditions. Raises ValueError for others than it takes, or none to give."""
        expected = self.experiment.networks.given
        if expected is None:
            raise ValueError(f"{self.name} makes samples of noise alone: drop the conditions")
        if tuple(given.y.shape[1:]) != tuple(expected):
            takes = f"(N, {', '.join(map(str, expected))})"
            raise ValueError(f"{self.name} takes conditions of shape {takes}, got {tuple(given.y.shape)}")
        if isinstance(given.y, Tensor):
            given = replace(given, y=self.experiment.condition.accepted(given.y))
        return replace(self, conditions=given)

    @property
    def serves(self) -> Serves:
        return self.experiment.serves

    @property
    def guides(self) -> bool:
        """Whether there is something to guide against: a null class that was trained."""
        networks, method = self.experiment.networks, self.experiment.method
        return self.num_classes > 0 and networks.null_class and method.drops_labels

    @property
    def blind_alone(self) -> bool:
        """Whether a step without a context sees nothing of the condition. Another run's network sees it all."""
        return self.experiment.networks.blind_alone and self.called_by is None

    @property
    def device(self) -> torch.device:
        """The device of its networks."""
        return next(self.networks.parameters()).device

    def ready(self, *, bfloat16: bool) -> Model:
        """The model that sampling calls, which shares its weights with this one; compiled or recorded, if this says so.

        bfloat16: to be called under autocast, whose casts of weights are then made once, here, where they may be
        """
        settle_products(self.device, bfloat16=bfloat16)
        trains = any(weight.requires_grad for weight in self.networks.parameters())  # then autocast keeps its casts
        cast = bfloat16 and self.experiment.networks.bfloat16_weights and not trains
        if not (cast or self.compiled or self.graphs):
            return self
        if cast not in self._ready:
            networks, denoiser = copied((self.networks, self.denoiser), self.networks, bfloat16=cast)
            for network in networks.values():
                if self.compiled:
                    compile_calls(network, cache_dir() / COMPILED)
                if self.graphs:
                    graph_calls(network)
            self._ready[cast] = replace(self, networks=networks, denoiser=denoiser, compiled=False, graphs=False)
        return self._ready[cast]

    def arithmetic(self, *, bfloat16: bool) -> str:
        """How its networks compute when sampled from, in words: a part of what images are of."""
        return ("bfloat16" if bfloat16 else "float32") + ", compiled" * self.compiled + ", CUDA graphs" * self.graphs

    @cached_property
    def call_cost(self) -> CallCost:
        """Multiply-adds of a call of its denoiser, and of an image's decoding."""
        label, condition = 0 if self.num_classes else None, self.experiment.networks.given
        cost = call_cost(self.denoiser, self.process.state_shape(self.shape), label, self.device, given=condition)
        return replace(cost, decode=decode_macs(self.codec, self.shape))

    @property
    def reuses_context(self) -> bool:
        """Whether there is a heavy call whose context later steps use: then plans say where it is made."""
        return self.denoiser.reuse is not Reuse.FREE

    @property
    def parameters(self) -> dict[str, int]:
        """How many each network has."""
        return {name: sum(p.numel() for p in network.parameters()) for name, network in self.networks.items()}


def as_codec(model: Model, sampler: str | None = None, steps: int | None = None) -> Codec:
    """The codec that models of latents draw with: the model's own; of a decoder its latents' codec, decoded by it.

    sampler, steps: of the decoder, in place of its own or of DECODING
    Raises what reading the codec of its latents raises, and ValueError for a sampler that a decoder cannot have, or one
    of a codec whose decoder does not draw.
    """
    latents = model.experiment.condition.codec
    if latents.fingerprint:
        decoding = Decoding.by(model.denoiser, model.process, *DECODING).under(sampler, steps)
        return OtherDecoder(latents.build(model.networks, model.device), decoding, model.weights_hash)
    codec = model.codec
    if sampler is None and steps is None:
        return codec
    decoding = decoding_of(codec)
    if decoding is None:
        raise ValueError(f"{model.name} has no decoder that takes steps: drop its sampler and its steps")
    return OtherDecoder(codec, decoding.under(sampler, steps), codec.fingerprint)


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

    def on_latents(self, folder: Path) -> Experiment:
        """The base model's, on latents in a folder. Raises as `read_latents`."""
        return on_codec_of_data(replace(self.base, data=replace(self.base.data, source=str(folder))))
