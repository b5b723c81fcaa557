"""Training a run: data, networks and trainer brought together in a directory that the same call resumes.

`train` first checks that it can write there and that the images fit the networks. `in_stages` trains in stages, each of
which resumes by itself:

    OUT/first    the run that trains the codec
    OUT/latents  latents of its images, once it is finished (`data/latent_set.py`)
    OUT/base     the run that trains a model of these latents, which is sampled from
"""

from __future__ import annotations

import gc
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from operator import index
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from dualrate.codecs.codec import Codec, CodecFolder, decoded
from dualrate.config.ranges import as_path, is_whole
from dualrate.config.serial import from_plain, to_plain, type_name
from dualrate.data.cache import cache_dir
from dualrate.data.finding import check_outside
from dualrate.data.images import ImageSet, to_uint8
from dualrate.data.latent_set import encode
from dualrate.data.loader import Batches, Prefetched, TrainingSet
from dualrate.data.source import DataProgress
from dualrate.diffusion.random import Draws
from dualrate.experiment.experiment import Experiment, Prepared, Stages, Start
from dualrate.experiment.modality import maker_of
from dualrate.experiment.model import COMPILED, Model
from dualrate.experiment.upgrade import upgraded
from dualrate.networks.blocks import in_bfloat16
from dualrate.runs import store
from dualrate.runs.release import facts
from dualrate.runs.store import EXPERIMENT, load, read_experiment
from dualrate.sampling.catalogue import ANCESTRAL, make_step
from dualrate.sampling.trajectory import sample_batches
from dualrate.system.device import keep_compiled, own_defaults, peak_memory, pick_device
from dualrate.system.folders import check_link, some_of
from dualrate.system.launch import device_of_process
from dualrate.system.progress import Reporter, Silent, reporter_here
from dualrate.training import checkpoint
from dualrate.training.config import FitResult
from dualrate.training.distributed import Share, World
from dualrate.training.log import Logger, MetricsFile, logged
from dualrate.training.loop import fit
from dualrate.training.resume import OtherRun

SAMPLES, FORECAST = "sample.json", "forecast.json"  # is in a folder of samples; in one of a forecast
OTHERS = {"model.safetensors": "released weights", SAMPLES: "samples", FORECAST: "a forecast"}  # by a file in a folder
OF_A_RUN = ("experiment.json", "checkpoints", ".lock")  # one of them is there as soon as a run has started
TRIAL = ".trial-"  # of files that are made to see whether any can be
LOGS = (".log", ".out", ".err")  # what a shell or a scheduler may have put there first


def check_out(name: str, out: Path) -> None:
    """Raises ValueError or OSError unless a run of this name can be trained in `out`. Leaves no trace.

    `out` may be new, empty but for logs, or hold a run; a link to a directory is followed.
    """
    if not re.fullmatch(r"\w[\w.-]{0,79}", name, flags=re.ASCII):
        raise ValueError(f"a run's name is 1 to 80 letters, digits and _ . - and no path, got {name!r}")
    check_link(out)
    existing = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise ValueError(f"{existing} is a file, so no run can be in {out}: choose another --out")
    try:
        with tempfile.TemporaryFile(dir=existing, prefix=TRIAL):  # which NFS shows while it is open, to all processes
            pass
    except OSError as error:
        raise OSError(f"nothing can be written to {existing} ({error.strerror}): choose another --out") from error
    names = sorted(path.name for path in out.iterdir()) if existing == out else []
    if contents := [what for name, what in OTHERS.items() if name in names]:
        raise ValueError(f"{out} holds {contents[0]}: choose another --out")
    foreign = [name for name in names if not name.endswith(LOGS) and not name.startswith((TRIAL, ".nfs"))]
    if foreign and not set(OF_A_RUN) & set(names):
        raise ValueError(f"{out} holds {some_of(foreign)} but no run: choose a new or empty directory as --out")


def check_importable(plain: Any) -> None:
    """Raises ValueError where a part of an experiment, as JSON, is of a class that no other process can import."""
    for module, name in re.findall(r'"type": "([^":]+):([^"]+)"', json.dumps(plain)):
        if module == "__main__" or "<locals>" in name:
            where = "in a notebook or script" if module == "__main__" else f"within a function of {module}"
            raise ValueError(
                f"{name.rpartition('.')[2]} is defined {where}, where no command finds it again: move it to the top of "
                "a file of its own, as my_parts.py; commands load the run by dualrate --import my_parts COMMAND ..."
            )


SCORES = "scores.jsonl"
SHOWN, SHOWN_STEPS = 40, 32  # images of a grid of samples; steps that they are drawn in, where any plan is served
OF_DATA = dict.fromkeys(
    ("data.source", "condition.source", "name"), "images"
)  # of what the images tell apart; recipes name a run after them
Score = Callable[[Model], tuple[str, float]]  # of the averaged weights: the metric's name, and its value


@own_defaults()
@torch.inference_mode(mode=False)
@torch.enable_grad()
def train(
    experiment: Experiment,
    out: str | Path,
    *,
    score: Score | None = None,
    score_every: int | None = None,
    progress: Reporter | None = None,
    decoding: Callable[[int, int, str], None] | None = None,
    device: torch.device | str | None = None,
    command: str = "dualrate.train",
    log: Logger | None = None,
    images: Dataset[Any] | None = None,
    world: World = World(),
) -> FitResult:
    """Train, or continue, the run in `out`, by the method of its experiment.

    Writes experiment.json, history.jsonl (`command` and its surroundings, a line per start), checkpoints/,
    metrics.jsonl, now and then a grid of samples under the averaged weights, and scores.jsonl if asked to score.
    score, score_every: what scores the averaged weights, and iterations between scores, a multiple of `sample_every`
    device: None: the first GPU, or the CPU where there is none, as of the commands; several processes have one each
    log: TensorBoard or Weights & Biases, which get the values of metrics.jsonl, too; `progress` may be a `Reporter` of
        your own (`dualrate.system.progress`)
    images: a data set to train on in place of the experiment's source, as `from_dataset` describes it
    world: the processes that train together (`training/distributed.py`), each in this call
    Raises ValueError if the data does not fit the networks, a run that the method needs does not, `out` holds another
    experiment or no run, or a part is of a class of a notebook or script; OSError if it cannot be written to.
    """
    if getattr(experiment, "fit", None) is None:
        raise TypeError(
            f"train takes an experiment, got a {type(experiment).__name__}: call a recipe, such as "
            'Auto("photos", size="tiny")() of dualrate.recipes.auto, or take the experiment of a model'
        )
    out, config = as_path(out, "out"), experiment.fit
    check_start(experiment, out, score_every)
    if images is None and not experiment.data.source:
        raise ValueError(f"{experiment.name} names no images to train on: give --data.source FOLDER (or a file)")
    progress = progress or (reporter_here() if world.leads else Silent())
    device = device_of_process(pick_device(None)) if device is None else pick_device(device)
    gc.collect()  # networks and data of a training before, in a notebook, which refer to each other
    with world.leader_first():
        loaded = experiment.load("train", decoding) if images is None else from_dataset(images)
        remarks = experiment.check_data(loaded)
        data = experiment.seen(loaded)
    prepared = _prepared(experiment, data, out, device, world, progress)
    method = prepared.method
    model = Model(experiment.name, experiment, method.networks.to(device), method.denoiser(), 0, weights_hash="")
    _check_ends(experiment, model.codec)
    watched = prepared.watch(progress)
    log, plain = log if world.leads else None, to_plain(experiment)
    board = None if log is None else logged(log, watched, out, plain, config.log_every)
    rows = Share(config.batch_size, config.micro_batch, world).rows
    hooks = _Hooks(model, out, data.class_names, score, score_every, progress)
    about = hooks.about(len(rows), world.size)
    share = Batches(data, config.batch_size, config.seed, experiment.data.augment, rows)

    def on_start(begun: int) -> None:
        for line in (*about, *remarks):
            progress.note(line)
        hooks.started(begun)
        store.note_start(out, command, prepared.weights)
        if board is not None:
            board.begin(begun)

    if config.compile:
        keep_compiled(cache_dir() / COMPILED)
    with Prefetched(share, device) as batches, torch.autocast(device.type, enabled=False):  # but for its own
        result = fit(
            method,
            batches,
            config,
            out,
            identity=_identity(experiment, data, prepared),
            places=_places(method.networks),
            upgrade=upgraded,
            progress=board or watched,
            on_start=on_start,
            on_sample=hooks.sampled,
            device=device,
            world=world,
        )
    if peak := peak_memory(device):
        progress.note(f"peak memory {peak / 2**20:.0f} MiB")
    return result


def check_start(experiment: Experiment, out: Path, score_every: int | None) -> None:
    """Raises ValueError or OSError, before any data are read, for a training that cannot start, or go on, in `out`."""
    check_out(experiment.name, out)
    check_outside(out, experiment.data.source)
    plain = to_plain(experiment)
    if from_plain(Experiment, plain) != experiment:
        raise ValueError(f"the parts of {experiment.name} must be frozen dataclasses, to be read back as they are")
    if (out / EXPERIMENT).exists():
        earlier, wanted = (type_name(type(each.method)) for each in (read_experiment(out), experiment))
        if earlier != wanted:
            place = f"{out} holds a run trained by {earlier}, not by {wanted}"
            raise OtherRun(place, ["method.type"], ": choose a new directory as --out")
    else:
        check_importable(plain)
    every = experiment.fit.sample_every
    if score_every is not None and score_every % every:
        raise ValueError(f"--eval-every is a multiple of --fit.sample-every ({every}), got {score_every}")


def _prepared(
    experiment: Experiment, data: TrainingSet, out: Path, device: torch.device, world: World, progress: Reporter
) -> Prepared:
    """The method, with networks to start, or go on, from."""
    config = experiment.fit
    whole = Batches(data, config.batch_size, config.seed, experiment.data.augment)
    precision = checkpoint.precision(out / "checkpoints") if config.precision == "auto" else config.precision
    start = Start(
        fresh=world.of_leader(len(checkpoint.saved_paths(out / "checkpoints"))) == 0,
        device=device,
        bfloat16=bool(world.of_leader(in_bfloat16(precision, device))),
        load=partial(load, device=device, note=progress.note),
        batch=lambda iteration: whole.batch(iteration).to(device),
        note=progress.note,
    )
    return experiment.method.prepare(experiment, start)


def _check_ends(experiment: Experiment, codec: Codec) -> None:
    """Raises ValueError unless the process ends where the codec decodes."""
    if experiment.process.end != codec.log_snr:
        raise ValueError(
            f"the codec decodes latents of log-SNR {codec.log_snr}, the process of {experiment.name} ends at "
            f"{experiment.process.end} (None: without noise): give a NoisyEnd with a schedule of that log_snr_max, as "
            "in recipes/fashion_mnist_latents.py, or a GaussianProcess"
        )


def _identity(experiment: Experiment, data: TrainingSet, prepared: Prepared) -> dict[str, Any]:
    """Everything that a run must be of to be gone on with."""
    method = to_plain(experiment.method) | dict(prepared.identity)
    return {**experiment.identity, "images": data.fingerprint, "method": method}


def _places(roles: Iterable[str]) -> dict[str, str]:
    """Fields of an identity that name a place, by the field that tells what is there apart."""
    return OF_DATA | {
        place: f"networks.{role}.fingerprint"
        for role in roles
        for place in (f"networks.{role}.source", f"method.{role}_from")
    }


@dataclass(frozen=True, eq=False)
class _Hooks:
    """Files of a run that are written as it trains. model: of the averaged weights, where it is called"""

    model: Model
    out: Path
    class_names: tuple[str, ...]
    score: Score | None
    score_every: int | None
    progress: Reporter

    def about(self, rows: int, processes: int) -> list[str]:
        """Lines on the training, for people. rows: of a batch in this process"""
        model, config = self.model, self.model.experiment.fit
        experiment = model.experiment
        what = f"iterations of {config.batch_size} {experiment.noun}s"
        if config.iterations is None:
            what = f"as many {what} as {config.limit:g} s of training allow"
        else:
            limit = "" if config.limit is None else f", or as many as {config.limit:g} s of training allow"
            what = f"{config.iterations} {what}{limit}"
        with torch.random.fork_rng([]):  # dropout draws numbers
            summary = facts(model)
        lines = [f"{experiment.name}: {what}, in {self.out}", f"{summary['networks']}; {summary['cost']}"]
        if experiment.networks.ages:
            lines.append(
                "loss: the light network's; context_loss: its part with a context; encoder_loss: the heavy one's"
            )
        return lines + [f"{processes} processes, {rows} images of a batch in the first"] * (processes > 1)

    def started(self, begun: int) -> None:
        """Write what the run is, and drop what is of a continuation that was lost."""
        store.write_experiment(self.out, self.model.experiment)
        if self.model.num_classes:
            store.write_class_names(self.out, self.class_names)
        for picture in (self.out / "samples").glob("*.png"):
            if is_whole(picture.stem) and int(picture.stem) > begun:
                picture.unlink(missing_ok=True)
        MetricsFile(self.out / SCORES, begun, self.progress.note)  # which drops such scores

    def sampled(self, iteration: int) -> None:
        """Write samples, and a score where one is due."""
        picture = self.out / "samples" / f"{iteration:07d}.png"
        if not picture.exists():
            save_samples(self.model, picture)
        if self.score is None or self.score_every is None or iteration % self.score_every:
            return
        scores = self.out / SCORES
        if not (scores.exists() and f'{{"iteration": {iteration},' in scores.read_text()):
            metric, value = self.score(replace(self.model, iteration=iteration))
            MetricsFile(scores, iteration - 1, self.progress.note).write({"iteration": iteration, metric: value})
            self.progress.note(f"iteration {iteration}: {metric} {value:.3f}")


def from_dataset(dataset: Dataset[Any]) -> ImageSet:
    """The images of a map-style `torch.utils.data.Dataset`, read once and kept in memory as 8-bit pixels.

    An item is an image or a pair (image, label). Images are tensors or arrays of one shape (C, H, W), C = 1 or 3, of
    uint8, or of floats in [-1, 1], which are rounded to 8 bits. Labels are whole numbers from 0. Random transforms of
    the data set are drawn once; the experiment's `data.augment` changes images anew at each use.
    Raises ValueError for anything else, with the shape and type of the item.
    """
    pixels: list[Tensor] = []
    labels: list[int] = []
    lowest = 0.0
    for i in range(len(dataset)):  # pyright: ignore[reportArgumentType]  # torch leaves out __len__
        item = dataset[i]
        image, label = (*item, None)[:2] if isinstance(item, (tuple, list)) and len(item) < 3 else (item, None)
        x = torch.as_tensor(image) if isinstance(image, (Tensor, np.ndarray)) else None
        shaped = x is not None and (x.shape == pixels[0].shape if pixels else x.ndim == 3 and x.shape[0] in (1, 3))
        if x is None or not shaped or not (x.dtype == torch.uint8 or (x.is_floating_point() and (x.abs() <= 1).all())):
            got = type(image).__name__ if x is None else f"{x.dtype} {tuple(x.shape)}"
            expected = tuple(pixels[0].shape) if pixels else "(C, H, W), C = 1 or 3"
            raise ValueError(f"item {i} of dataset is {got}; expected {expected} of uint8 or of floats in [-1, 1]")
        lowest = min(lowest, -1.0 if x.dtype == torch.uint8 else float(x.min()))
        pixels.append(x if x.dtype == torch.uint8 else to_uint8(x))
        if label is not None:
            try:
                labels.append(index(label))
            except TypeError as error:
                raise ValueError(f"item {i} of dataset has the label {label!r}; expected a whole number") from error
    if not pixels:
        raise ValueError("dataset is empty")
    if labels and len(labels) < len(pixels):
        raise ValueError(f"{len(labels)} of the {len(pixels)} images of dataset have labels; expected all or none")
    if lowest == 0:
        raise ValueError("dataset has no value below 0, as images in [0, 1]; give 2 * x - 1, or uint8")
    names = tuple(map(str, range(max(labels) + 1))) if labels else ()
    return ImageSet(torch.stack(pixels).numpy(), np.array(labels, np.int64) if labels else None, names, "dataset")


def resume_threads(run: Path) -> None:
    """Take the number of threads of the run's last start, unless DUALRATE_THREADS or OMP_NUM_THREADS asks for one.

    A resumed run's bits depend on it.
    """
    if os.environ.get("DUALRATE_THREADS") != "auto":
        return
    with suppress(Exception):  # no run yet, or a line that a kill cut off
        threads = int(json.loads((run / store.HISTORY).read_text().splitlines()[-1])["threads"])
        if 0 < threads <= 1024:
            torch.set_num_threads(threads)


def save_samples(model: Model, file: Path) -> None:
    """A grid of images, or a file of what else samples are, from the same noise every time; of a decoder, of held-out
    images."""
    experiment, seeds, (plan, *_) = model.experiment, range(SHOWN), model.serves.ladder([SHOWN_STEPS])
    labels = [seed % model.num_classes for seed in seeds] if model.num_classes else None
    step = make_step(model.serves.sampler or ANCESTRAL, model.process)

    def samples() -> Tensor:
        parts = model.denoiser, step, model.process.served(plan), model.shape, seeds, labels
        drawn = torch.cat(list(sample_batches(*parts, device=model.device, given=model.given)))
        return decoded(model.codec, drawn, Draws(0, torch.tensor(seeds, device=model.device)))

    file.parent.mkdir(exist_ok=True)
    maker_of(experiment).save(experiment, samples, file)


FIRST, LATENTS, BASE = "first", "latents", "base"
SHARD_BYTES = 2**22  # of latents: a kill loses no more


def in_stages(
    stages: Stages,
    out: str | Path,
    *,
    device: torch.device | str | None = None,
    progress: DataProgress = lambda done, total, message: None,
) -> Iterator[tuple[Experiment, Path]]:
    """Each experiment and the directory to train it in, to its end before the next one is asked for.

    device:   as of `train`
    progress: of encoding the images, both splits, mirrored too where the base model's data are
    Raises ValueError for an `out` that is a run itself, and what `encode` raises: ValueError too for latents that an
    earlier state of the first stage made.
    """
    out = as_path(out)
    if (out / EXPERIMENT).exists():
        raise ValueError(f"{out} is a run of one stage: name another --out for the two")
    yield stages.first, out / FIRST
    codec = CodecFolder.at(out / FIRST, device)  # where it is now: the latents say where it was
    data = stages.first.data
    encode(
        data.source,
        out / LATENTS,
        codec,
        **data.preparation,
        mirrored=stages.base.data.augment.flip,
        shard_bytes=SHARD_BYTES,
        device=device,
        batch_size=64,
        progress=progress,
    )
    yield replace(stages.on_latents(out / LATENTS), codec=codec), out / BASE
