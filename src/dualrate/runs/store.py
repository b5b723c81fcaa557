"""Runs and released weights: directories that hold an experiment and its weights. Loading executes no code.

RUN/experiment.json, history.jsonl, checkpoints/step-*/    a training run
WEIGHTS/experiment.json, model.safetensors                 released weights: the averaged ones, in bfloat16
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from dualrate.denoiser import Denoiser
from dualrate.experiment import Experiment, OneNetwork
from dualrate.models.dual import disconnect
from dualrate.process import GaussianProcess
from dualrate.runs.environment import environment
from dualrate.serial import from_plain, to_plain
from dualrate.training import checkpoint

HISTORY = "history.jsonl"


@dataclass(frozen=True)
class Model:
    """A trained model, ready to sample.

    iteration: of the checkpoint; weights_hash: sha256 of all weights, for fingerprints
    path:      the directory that it was loaded from
    """

    name: str
    experiment: Experiment
    networks: nn.ModuleDict
    denoiser: Denoiser
    iteration: int
    weights_hash: str
    path: Path | None = None

    @property
    def process(self) -> GaussianProcess:
        return self.experiment.process

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        return self.experiment.shape

    @property
    def num_classes(self) -> int:
        return self.experiment.num_classes

    @property
    def parameters(self) -> dict[str, int]:
        """How many each network has."""
        return {name: sum(p.numel() for p in network.parameters()) for name, network in self.networks.items()}


def load(path: str | Path, *, device: torch.device | str = "cpu") -> Model:
    """The model of a run (its newest intact checkpoint, averaged weights) or of released weights, in float32.

    Raises ValueError if the path is neither, OSError if its files are damaged.
    """
    path = Path(path)
    experiment = read_experiment(path)
    weights, iteration = _read_weights(path)
    networks, denoiser = experiment.build()
    try:
        networks.load_state_dict(weights)
    except RuntimeError as error:
        what = " ".join(str(error).split())[:200]
        raise ValueError(f"{path}: the weights do not fit its experiment.json: {what} ...") from error
    networks.to(device).eval().requires_grad_(False)
    return Model(path.name, experiment, networks, denoiser, iteration, _hash(weights), path)


def read_experiment(path: Path) -> Experiment:
    """The experiment of a run or of released weights. Raises ValueError for a directory that is neither."""
    file = path / "experiment.json"
    if not file.is_file():
        raise ValueError(
            f"{path} is no run: it has no experiment.json. Train one (dualrate train fashion-mnist-dual --out {path}), "
            "or use released weights (weights/...)"
        )
    try:
        return from_plain(Experiment, json.loads(file.read_text()), str(file))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{file} is not JSON: {error}") from error


def write_experiment(path: Path, experiment: Experiment) -> None:
    """Write experiment.json aside, then rename: a kill leaves the old one or the new one."""
    path.mkdir(parents=True, exist_ok=True)
    temporary = path / ".experiment.json.tmp"
    temporary.write_text(json.dumps(to_plain(experiment), indent=1) + "\n")
    temporary.replace(path / "experiment.json")


def note_start(run: Path, command: str, parts: Mapping[str, str] = MappingProxyType({})) -> None:
    """Appends the command and its surroundings to the run's history: one line per start.

    parts: what the networks' weights started from, where from anything
    """
    start = {"command": command, **parts, **environment()}
    with (run / HISTORY).open("a") as file:
        file.write(json.dumps(start) + "\n")


def read_losses(run: Path) -> list[tuple[int, float]]:
    """(images seen, loss) of every line of a run's log with a finite loss of its first phase; empty if it has none."""
    return _read_logged(run, "/loss")


def read_moment_gaps(run: Path) -> list[tuple[int, float]]:
    """(images seen, mean square of the moment gap) as a student met it; empty for a run that was not distilled."""
    return _read_logged(run, "student/moment_gap")


def _read_logged(run: Path, ending: str) -> list[tuple[int, float]]:
    """(images seen, value) of every line of a run's log, by the first name in it that ends so; finite ones only."""
    file = run / "metrics.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    found = [(line["images"], next((v for k, v in line.items() if k.endswith(ending)), math.nan)) for line in lines]
    return [(images, value) for images, value in found if math.isfinite(value)]


def export(run: str | Path, out: Path) -> None:
    """Write a run's averaged weights as released weights: bfloat16 safetensors, no optimiser, no raw weights."""
    run = Path(run)
    experiment = read_experiment(run)
    weights, iteration = _read_weights(run)
    write_experiment(out, experiment)
    rounded = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in weights.items()}
    file = out / "model.safetensors"
    safetensors.torch.save_file(rounded, file, metadata={"iteration": str(iteration)})
    file.chmod(0o644)  # the library writes it for its owner alone; released weights are for everyone


def start_from(networks: nn.ModuleDict, encoder: str | Path | None, light: str | Path | None) -> dict[str, str]:
    """Start parts of a dual-rate model from single-rate runs' averaged weights. Says for each which weights those were.

    An encoder without a head leaves its run's where it is. A trained light network starts without any influence of the
    context (`disconnect`), so training goes on from where it was.
    Raises ValueError if a run's network is not the part's.
    """
    told = {}
    for part, run in (("encoder", encoder), ("light", light)):
        if run is not None:
            told[part] = _start_part(networks, part, Path(run))
    if light is not None:
        disconnect(networks["encoder"], networks["light"])
    return told


def _start_part(networks: nn.ModuleDict, part: str, run: Path) -> str:
    source = read_experiment(run).networks
    if not isinstance(source, OneNetwork):
        raise ValueError(f"{run} is a dual-rate model; {part}_from takes a single-rate one")
    weights, iteration = _read_weights(run)
    net = networks.get_submodule(f"{part}.net")
    own = {name.removeprefix("model."): tensor for name, tensor in weights.items()}
    if not any(name.startswith("head.") for name in net.state_dict()):
        own = {name: tensor for name, tensor in own.items() if not name.startswith("head.")}
    try:
        net.load_state_dict(own)
    except RuntimeError as error:
        what = " ".join(str(error).split())[:200]
        raise ValueError(f"{run}: its network is not this experiment's {part}: {what} ...") from error
    return f"{run} at iteration {iteration}, weights {_hash(weights)[:12]}"


def _read_weights(path: Path) -> tuple[dict[str, Tensor], int]:
    """Weights in float32 and the iteration they are from."""
    released = path / "model.safetensors"
    if released.is_file():
        try:
            with safetensors.safe_open(released, framework="pt") as file:
                weights = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
                return weights, int((file.metadata() or {}).get("iteration", 0))
        except SafetensorError as error:
            raise OSError(f"{released} is damaged: {error}") from error
    saved = checkpoint.latest(path / "checkpoints")
    if saved is None:
        raise ValueError(f"{path} has no checkpoint yet: train it on (dualrate train), then try again")
    return dict(saved.weights()), int(saved.state["iteration"])


def _hash(weights: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].detach().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
