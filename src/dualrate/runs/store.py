"""Runs and released weights: directories that hold an experiment and its weights. Loading executes no code.

RUN/experiment.json, history.jsonl, checkpoints/step-*/    a training run; metrics.jsonl, samples/ (image grids),
                                                           scores.jsonl, if asked to score, and classes.json, if the
                                                           classes of its images have names: a list of them
FOLDER/model_index.json, ...                               a pipeline of diffusers, which is read as a model too
WEIGHTS/experiment.json, model.safetensors, MANIFEST.json  released weights: the averaged ones, in bfloat16; the
                                                           manifest holds the sha256 of both files, and of
                                                           classes.json, which every reader checks
"""

from __future__ import annotations

import copyreg
import hashlib
import io
import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeGuard

import torch
from torch import Tensor

from dualrate.codecs.codec import Codec
from dualrate.config.imports import import_module, imported_modules
from dualrate.config.ranges import as_path, is_whole
from dualrate.config.serial import from_json, to_plain
from dualrate.data import fashion_mnist
from dualrate.data.condition_rows import Given
from dualrate.denoisers.catalogue import DENOISERS
from dualrate.experiment.experiment import Experiment
from dualrate.experiment.modality import ForeignModel, model_of
from dualrate.experiment.model import Model, as_codec
from dualrate.experiment.summary import stopped_early
from dualrate.experiment.switching import switched
from dualrate.experiment.teaching import fill
from dualrate.experiment.upgrade import upgraded
from dualrate.system import files
from dualrate.system.device import environment, own_defaults, pick_device
from dualrate.system.folders import MANIFEST, Damaged, Manifest
from dualrate.training import checkpoint

EXPERIMENT, WEIGHTS, HISTORY, METRICS = "experiment.json", "model.safetensors", "history.jsonl", "metrics.jsonl"
CLASSES = "classes.json"
RELEASED = (EXPERIMENT, WEIGHTS)  # what the manifest of released weights lists

Note = Callable[[str], None]


@dataclass(frozen=True)
class StoredModel:
    """Content of a directory. weights: averaged, in float32; state: of their checkpoint, None for released weights;
    class_names: as of a `Model`."""

    path: Path
    experiment: Experiment
    weights: dict[str, Tensor]
    iteration: int
    state: Mapping[str, Any] | None
    class_names: tuple[str, ...] = ()

    def model(self, device: torch.device | str | None = None) -> Model:
        """Model on a device, as of `pick_device`. Raises ValueError if the weights are of other networks than the
        experiment's.
        """
        file = self.path / EXPERIMENT
        with files.blaming(file if file.exists() else self.path):
            networks, denoiser = self.experiment.build()
        fill(networks, self.weights, f"{self.path}: the weights do not fit its experiment.json")
        networks.to(pick_device(device)).eval().requires_grad_(False)
        of = (self.path.name, self.experiment, networks, denoiser, self.iteration, _hash(self.weights), self.path)
        return Model(*of, class_names=self.class_names)


def load(path: str | Path, *, device: torch.device | str | None = None, note: Note | None = None) -> Model:
    """The model of a run (its newest intact checkpoint, averaged weights), of released weights, or of a folder of
    diffusers, in float32.

    device: None: the first GPU, or the CPU where there is none, as of the commands
    note: called with which iteration is read, and a warning if that is not the newest; without it, the warning is
          one of Python's
    Raises ValueError if the path is neither, OSError if its files are damaged or cannot be read.
    """
    with own_defaults():
        return read_stored(path, note).model(device)


def codec_of(
    path: str | Path, device: torch.device | str | None = None, sampler: str | None = None, steps: int | None = None
) -> Codec:
    """The codec of a run by its newest checkpoint, or of released weights. A decoder's codec is that of its latents,
    with itself as the decoder.

    device: as of `load`; sampler, steps: of its decoder, in place of those it has
    Raises as `load` and `as_codec`, and ValueError for a model of pixels.
    """
    codec = as_codec(load(path, device=device, note=lambda text: None), sampler, steps)
    if not codec.fingerprint:
        raise ValueError(f"{path} is a model of pixels, which has no codec: name a run that trains one")
    return codec


def called_by(model: Model, name: str | None) -> Model:
    """The model called by a denoiser of the catalogue, or, where the name is the directory of a run, after that one.

    Raises what `Model.with_denoiser`, `load` and `switched` raise.
    """
    if name is None or not is_run(name):
        return model.with_denoiser(name)
    return switched(model, _beside(as_path(name).resolve(), str(model.device)))


def is_run(name: str | None) -> bool:
    """Whether the name is the directory of a run that is to call a model, and no name of the catalogue."""
    return name is not None and name not in DENOISERS and as_path(name).is_dir()


@lru_cache(4)
def _beside(path: Path, device: str) -> Model:
    """Read once for all plans of a comparison."""
    return load(path, device=device, note=lambda text: None)


@dataclass(frozen=True)
class Place:
    """Directory from which another process loads a model, on its own device of the same kind.

    identity:   that it then has; denoiser: what calls its networks, if not their own
    modules:    of names in use that the other process imports first, as they are imported here
    experiment: of the model here, whose codecs may have been moved, and decode otherwise than those in the file, and
                whose networks may make fewer frames
    conditions, compiled, graphs: see `Model`
    """

    path: Path
    identity: str
    denoiser: str | None
    compiled: bool
    graphs: bool
    device: str
    modules: tuple[str, ...]
    experiment: Experiment
    conditions: Given | None = field(compare=False)  # which `identity` tells

    @cache  # noqa: B019  # kept as long as the process lives
    def model(self) -> Model:
        """Load it. Raises what `load` raises; ValueError if another model is there by now."""
        for module in self.modules:
            import_module(module)
        loaded = load(self.path, device=self.device, note=lambda text: None).with_experiment(self.experiment)
        loaded = loaded if self.conditions is None else loaded.with_given(self.conditions)
        model = called_by(loaded, self.denoiser)
        if model.identity != self.identity:
            raise ValueError(
                f"{self.path} has other weights by now, of iteration {model.iteration}: if it is being trained, "
                "use an export; a denoiser that was replaced here is found by its name (with_denoiser)"
            )
        return replace(model, compiled=self.compiled, graphs=self.graphs)


def _placed(model: Model) -> tuple[Callable[[Place], Model], tuple[Place]]:
    if model.path is None:
        raise ValueError(f"{model.name} was not loaded from a directory, where other processes could load it: use one")
    where = (model.path.resolve(), model.identity, model.called_by, model.compiled, model.graphs)
    codecs = (model.experiment.codec, model.experiment.condition.codec)
    modules = imported_modules(model.called_by, *(getattr(codec, "sampler", None) for codec in codecs))
    return Place.model, (Place(*where, model.device.type, modules, model.experiment, model.conditions),)


copyreg.pickle(Model, _placed)


def read_stored(path: str | Path, note: Note | None = None) -> StoredModel:
    """Read what `load` makes a model of. Raises what that raises, but for weights of other networks."""
    path = as_path(path)
    if (foreign := _foreign(path)) is not None:
        return StoredModel(path, foreign.experiment, foreign.weights(), 0, None, foreign.class_names)
    manifest = _manifest(path)
    experiment = _experiment(path, manifest)
    if manifest is not None:
        data, state, troubles = _content(path, WEIGHTS, manifest), None, []
        try:
            written = files.tensors_of(data)
            weights = {name: x.float() if x.dtype is torch.bfloat16 else x for name, x in written.items()}
            about = files.read_header(io.BytesIO(data)).get("__metadata__", {})  # to which the library gives no access
            iteration = _iteration(about.get("iteration", 0), WEIGHTS)
        except ValueError as error:
            raise _damaged(path, ValueError(f"{WEIGHTS}: {error}")) from error
    elif (path / WEIGHTS).is_file():
        raise _damaged(path, ValueError(f"it has no {MANIFEST}"))
    else:
        damaged: list[str] = []
        saved = checkpoint.latest(path / "checkpoints", lambda bad, error: damaged.append(str(error)))
        if saved is None:
            raise ValueError(f"{path} has no checkpoint yet: continue its training (dualrate train), then try again")
        weights, state = dict(saved.weights()), saved.state
        iteration = _iteration(state.get("iteration"), saved.path)
        troubles = [f"{damage}; iteration {iteration} is read, the newest that is intact" for damage in damaged]
    if note is None:
        for trouble in troubles:
            warnings.warn(trouble, stacklevel=3)  # of who calls `load`
    else:
        early = f"{stopped_early(experiment, iteration)}; ".removeprefix("; ")
        for text in (*(f"warning: {each}" for each in troubles), f"{early}reading {path} at iteration {iteration}"):
            note(text)
    return StoredModel(path, experiment, weights, iteration, state, _class_names(path, manifest, experiment))


def read_experiment(path: str | Path) -> Experiment:
    """The experiment of a run, of released weights, or that stands for a model of diffusers.

    Raises ValueError for a directory that is neither, OSError if the file is damaged or cannot be read.
    """
    path = as_path(path)
    foreign = _foreign(path)
    return _experiment(path, _manifest(path)) if foreign is None else foreign.experiment


def _foreign(path: Path) -> ForeignModel | None:
    """The model of another library in a folder that is no run."""
    return None if (path / EXPERIMENT).exists() else model_of(path)


def _manifest(path: Path) -> Manifest | None:
    """Manifest of released weights; None for anything else."""
    try:
        return Manifest.read(path, RELEASED)
    except Damaged as error:
        if not (path / EXPERIMENT).exists():  # something else of ours, such as a checkpoint
            return None
        raise _damaged(path, error) from error


def _experiment(path: Path, manifest: Manifest | None) -> Experiment:
    try:
        content = _content(path, EXPERIMENT, manifest)
    except OSError as error:
        if error.errno not in files.ABSENT:
            raise
        if within := [run.name for run in files.holders(path, EXPERIMENT)]:
            raise ValueError(
                f"{path} is no run, it holds {', '.join(within)}: name one, as {path / within[0]}"
            ) from error
        lack = f"it has no {EXPERIMENT}" if path.exists() else f"there is no {path.absolute()}"
        raise ValueError(f"{path} is no run: {lack}; train one, or use released weights") from error
    return from_json(Experiment, content, str(path / EXPERIMENT), upgraded)


def _class_names(path: Path, manifest: Manifest | None, experiment: Experiment) -> tuple[str, ...]:
    """Names of classes; where there is no file of them, as in older runs, those of Fashion-MNIST alone are known."""
    if CLASSES not in manifest.entries if manifest is not None else not (path / CLASSES).is_file():
        names = fashion_mnist.CLASS_NAMES if experiment.data.source == fashion_mnist.NAME else ()
        return names if experiment.num_classes == len(names) else ()
    return from_json(tuple[str, ...], _content(path, CLASSES, manifest), str(path / CLASSES))


def _content(path: Path, name: str, manifest: Manifest | None) -> bytes:
    try:
        limit = files.MOST_JSON if name == EXPERIMENT else files.MEMORY
        return files.read_bytes(path / name, limit) if manifest is None else manifest.content(name, limit)
    except Damaged as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> OSError:
    return OSError(f"{path} is damaged ({error}): fetch it again, or export it again from its run")


def _iteration(value: object, where: Path | str) -> int:
    """Iteration as an int. Raises ValueError for anything but a number from 0 on."""
    if not is_whole(str(value)):
        raise ValueError(f"{where} is of iteration {files.shown(repr(value), 60)}, expected a number from 0 on")
    return int(str(value))


def write_experiment(path: Path, experiment: Experiment) -> None:
    """Write experiment.json whole or not at all."""
    path.mkdir(parents=True, exist_ok=True)
    files.write_whole(path / EXPERIMENT, json.dumps(to_plain(experiment), indent=1) + "\n")


def write_class_names(path: Path, names: Sequence[str]) -> None:
    """Write classes.json whole or not at all, where classes are called otherwise than by their numbers."""
    if any(name != str(number) for number, name in enumerate(names)):
        files.write_whole(path / CLASSES, json.dumps(names) + "\n")


def note_start(run: Path, command: str, parts: Mapping[str, str] = MappingProxyType({})) -> None:
    """Appends the command and its surroundings to the run's history: one line per start.

    parts: what the networks' weights started from, where from anything
    """
    files.append_record(run / HISTORY, {"command": command, **parts, **environment()})


def read_logged(run: Path, ending: str) -> list[tuple[int, float]]:
    """(images seen, value) of every line of a run's log, by the first name in it that ends so; finite ones only.

    Raises ValueError, naming file and line, for one that is no line of a log.
    """
    points = []
    for where, line in files.read_records(run / METRICS):
        images, value = line.get("images"), next((v for k, v in line.items() if k.endswith(ending)), math.nan)
        if not (_is_number(images) and math.isfinite(images) and _is_number(value)):
            raise ValueError(f"{where} has images {images!r} and a value {value!r}, no numbers; remove that line")
        points.append((images, value))
    return [(images, value) for images, value in points if math.isfinite(value)]


def _is_number(value: object) -> TypeGuard[float]:
    return type(value) is float or (type(value) is int and abs(value) < 2**63)


def _hash(weights: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
