"""A trained experiment, `Model`: networks, their denoiser and the choices that they were trained by."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cached_property
from operator import index
from pathlib import Path
from secrets import token_hex
from typing import Any, SupportsIndex

import torch
from torch import Tensor, nn

from dualrate.codecs.codec import Codec, decode_macs
from dualrate.codecs.diffusion import Decoding, OtherDecoder, decoding_of
from dualrate.config.ranges import is_whole
from dualrate.data.cache import cache_dir
from dualrate.data.condition_rows import Given, HeldOut
from dualrate.data.conditions import Condition
from dualrate.denoisers.catalogue import denoiser_named
from dualrate.denoisers.denoiser import Denoiser, abilities
from dualrate.diffusion.context import Reuse, Shape
from dualrate.diffusion.process import GaussianProcess, Process
from dualrate.experiment.experiment import Experiment
from dualrate.experiment.plan_support import Serves
from dualrate.experiment.summary import cost_of_calls, networks_line, on_paper, sampling_line, title, training_line
from dualrate.networks.blocks import copied
from dualrate.sampling.cost import CallCost, call_cost
from dualrate.system.device import compile_calls, graph_calls, settle_products
from dualrate.system.folders import some_of
from dualrate.system.packages import package_calls

COMPILED = "compiled"  # in the cache, networks that were compiled
QUICK = 20_000_000  # parameters of networks of which a call takes no time worth mentioning
DECODING = "sde-dpm++2m:0.1", 16  # sampler and steps of a decoder as a codec, where none are asked for


@dataclass(frozen=True)
class Model:
    """A trained model, ready to sample: networks, the denoiser that calls them, and the experiment that they are from.

    iteration: of the checkpoint; weights_hash: sha256 of all weights; under another denoiser, with its name
    compiled, graphs: whether sampling compiles its networks, and records CUDA graphs, at their first calls
    path:      the directory that it was loaded from
    called_by: name of its denoiser, where that is not the networks' own
    conditions: that it draws images of, instead of held-out images' own
    class_names: of its training images' classes, by number; empty where nothing says them
    hashed:    the denoiser that weights_hash stands for, and that hash; None: this model's. A model of another denoiser
               under the same hash gets a hash that no other has: nothing tells what that denoiser computes
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
    hashed: tuple[Denoiser, str] | None = field(default=None, repr=False, compare=False)
    _ready: dict[bool, tuple[Any, ...]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        denoiser, weights_hash = self.hashed or (self.denoiser, "")
        if denoiser is not self.denoiser and weights_hash == self.weights_hash:
            name = f"{weights_hash} under {type(self.denoiser).__name__} {token_hex(8)}"
            object.__setattr__(self, "weights_hash", name)
        object.__setattr__(self, "hashed", (self.denoiser, self.weights_hash))

    def __str__(self) -> str:
        """Which weights these are, for people."""
        return f"{self.path or self.name} at iteration {self.iteration}, weights {self.weights_hash[:12]}"

    def __repr__(self) -> str:
        experiment, cost = self.experiment, vars(self).get("call_cost")
        if cost is None and sum(self.parameters.values()) <= QUICK:
            cost = cost_of_calls(experiment, self.denoiser, self.device)
        lines = (
            f"Model {title(experiment)}",
            networks_line(self.parameters, cost or on_paper(experiment, self.called_by)[1]),
            training_line(experiment, self.iteration),
            sampling_line(experiment, self.called_by),
            f"  weights   {self.weights_hash[:12]}, {'not saved' if self.path is None else f'in {self.path}'}",
        )
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return self.serves.default_plan().html(repr(self))

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

    def with_experiment(self, experiment: Experiment) -> Model:
        """The same weights as another experiment has them called, by networks of the same parameters."""
        if experiment.networks == self.experiment.networks:
            return replace(self, experiment=experiment)
        networks, denoiser = experiment.build()
        networks.load_state_dict(self.networks.state_dict())
        networks.to(self.device).eval().requires_grad_(False)
        return replace(self, experiment=experiment, networks=networks, denoiser=denoiser, hashed=None)

    def with_given(self, given: Given) -> Model:
        """The same model, given these conditions. Raises ValueError for others than it takes, or none to give."""
        expected, condition = self.experiment.networks.given, self.experiment.condition
        if expected is None or not isinstance(condition, Condition):
            raise ValueError(f"{self.name} makes samples of noise alone: drop the conditions")
        if tuple(given.y.shape[1:]) != tuple(expected):
            takes = f"(N, {', '.join(map(str, expected))})"
            raise ValueError(f"{self.name} takes conditions of shape {takes}, got {tuple(given.y.shape)}")
        if isinstance(given.y, Tensor):
            given = replace(given, y=condition.accepted(given.y))
        return replace(self, conditions=given)

    @property
    def serves(self) -> Serves:
        return self.experiment.serves

    @property
    def guides(self) -> bool:
        """Whether there is something to guide against: a null class that was trained."""
        return self.num_classes > 0 and self.experiment.networks.null_class and self.experiment.method.drops_labels

    @property
    def untrained_alone(self) -> bool:
        """Whether its light network never trained without a context. Another run's network, called then, did."""
        light = self.called_by is None and not abilities(self.denoiser).alone_differs
        return light and self.denoiser.reuse is Reuse.MARKOV and not self.serves.drops

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
        weights = list(self.networks.state_dict().values())
        now = [(weight.data_ptr(), cast and not weight.is_inference() and weight._version) for weight in weights]
        if cast not in self._ready or self._ready[cast][1] != now:  # else its weights were changed since
            networks, denoiser = copied((self.networks, self.denoiser), self.networks, bfloat16=cast)
            for network in networks.values():
                if self.compiled:
                    (package_calls if self.device.type == "cpu" else compile_calls)(network, cache_dir() / COMPILED)
                if self.graphs:
                    graph_calls(network)
            ready = replace(self, networks=networks, denoiser=denoiser, compiled=False, graphs=False, hashed=None)
            self._ready[cast] = ready, now, weights  # with which no later ones lie there
        return self._ready[cast][0]

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
