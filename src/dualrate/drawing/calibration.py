"""A model's covariance table: measured on data once, kept beside its weights (`sampling/covariance.py`)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from dualrate.data.loader import ByteBatch, TrainingSet
from dualrate.denoisers.denoiser import read
from dualrate.diffusion.context import Cond, Reuse
from dualrate.diffusion.random import Draws
from dualrate.drawing.drawer import measured_on, real_batches
from dualrate.experiment.model import Model
from dualrate.runs.store import COVARIANCE
from dualrate.sampling.covariance import Bands, CovarianceTable, probed
from dualrate.sampling.planner import every_call
from dualrate.system.device import pays
from dualrate.system.files import open_tensors, whole, write_tensors
from dualrate.system.progress import Reporter
from dualrate.system.workers import Mapper, in_turn

LOWEST, HIGHEST = -12, 12  # log-SNRs of the table, one apart, within the schedule's; beyond, the nearest is taken
TENSORS = ("log_snr", "variance", "ratio")
ROWS = 16  # images at a time
SEED = 3 << 40  # of the noise; far from the seeds of images, and from the planner's


def calibrate(
    model: Model, *, images: int, rings: int, progress: Reporter, mapper: Mapper = in_turn
) -> CovarianceTable:
    """Measures a model's table on training images, of a conditional model on held-out ones with their conditions, and
    writes it beside its weights.

    mapper: measures batches of ROWS images
    Raises ValueError for more images than there are; OSError where it cannot be written.
    """
    _require_posterior_mean(model)
    _ = model.gaussian  # of whose noise a table is
    if model.path is None:
        raise ValueError(f"{model.name} was not loaded from a directory, so there is no place to keep its table")
    source, bands = measured_on(model), Bands(model.shape, rings)
    table = _measured(model, source, images, bands, progress, bfloat16=pays(model.device), mapper=mapper)
    write_table(table, model.path / COVARIANCE, model.weights_hash, images)
    return table


def _measured(
    model: Model,
    source: TrainingSet,
    count: int,
    bands: Bands,
    progress: Reporter,
    *,
    bfloat16: bool = False,
    mapper: Mapper = in_turn,
) -> CovarianceTable:
    schedule = model.process.schedule
    lowest, highest = schedule.log_snr(torch.tensor([1.0, 0.0], dtype=torch.float64)).tolist()
    log_snr = torch.arange(max(LOWEST, math.ceil(lowest)), min(HIGHEST, math.floor(highest)) + 1, dtype=torch.float64)
    size, t = len(log_snr), (*schedule.time(log_snr).tolist(), 0.0)
    total, done = torch.zeros(2, size, size + 1, bands.count, dtype=torch.float64), 0
    batches = [*real_batches(model, source, count, ROWS)]
    for batch, sums in mapper(partial(_of_batch, model, bands, t, bfloat16), batches):
        total += sums / count
        done += len(batch.x)
        progress.update(done, count, {"images": done})
    progress.close()
    if model.denoiser.reuse is Reuse.FREE:  # no context, or any, is the same to it
        each = torch.arange(size)
        total[:] = total[:, each, each][:, :, None]
    variance, ratio = total[0].clamp_min(1e-12), total[1] / total[0].clamp_min(1e-12)
    return CovarianceTable(bands, log_snr, variance.float(), ratio.float())


def _of_batch(model: Model, bands: Bands, t: tuple[float, ...], bfloat16: bool, batch: ByteBatch) -> Tensor:
    """Sums over images, (2, M, M + 1, K) float64, of squared errors and of estimates."""
    denoiser, process, size = model.ready(bfloat16=bfloat16).denoiser, model.gaussian, len(t) - 1
    images = batch.to(model.device)
    cond, draws = Cond(images.label, model.given and model.given(images.sample)), Draws(SEED, images.sample)
    sums = torch.zeros(2, size, size + 1, bands.count, dtype=torch.float64)
    with torch.no_grad(), torch.autocast(model.device.type, torch.bfloat16, enabled=bfloat16):
        cond = read(denoiser, cond)
        for call in every_call(denoiser, process, t, images.x, cond, draws):
            if denoiser.reuse is Reuse.FREE and call.i != call.j:
                continue
            context, normal = call.context.aged(), draws.normal(f"probe {call.i} {call.j}", *images.x.shape[1:])
            x_hat, estimate = probed(
                process,
                bands,
                lambda z, t, context=context: denoiser.denoise(z, t, context, cond),
                call.z,
                call.t,
                normal,
            )
            if call.context.x_hat is not None:  # what a heavy call computed itself is what a step uses
                x_hat = call.context.x_hat
            with torch.autocast(model.device.type, enabled=False):
                sums[0, call.i, call.j] = bands.mean(bands.transform(images.x - x_hat).square()).cpu().double().sum(0)
            sums[1, call.i, call.j] = estimate.cpu().double().sum(0)
    return sums


def write_table(table: CovarianceTable, file: Path, weights: str, images: int) -> None:
    """Write a table whole or not at all: a kill leaves the old one or the new one."""
    tensors = {name: getattr(table, name).contiguous() for name in TENSORS}
    noted = {
        "weights": weights,
        "images": str(images),
        "shape": " ".join(map(str, table.bands.shape)),
        "rings": str(table.bands.rings),
    }
    with whole(file) as aside:
        write_tensors(aside, tensors, noted | {"content": _digest(tensors, noted)})


def _digest(tensors: Mapping[str, Tensor], noted: Mapping[str, str]) -> str:
    """sha256 of tensors and of what is noted with them, but for this digest."""
    digest = hashlib.sha256(repr(sorted((k, v) for k, v in noted.items() if k != "content")).encode())
    for name in sorted(tensors):
        digest.update(tensors[name].numpy().tobytes())
    return digest.hexdigest()


def _require_posterior_mean(model: Model) -> None:
    if not model.serves.any_plan:
        raise ValueError(f"{model.name} is a distilled student: its x_hat is no posterior mean, it has no covariance")


def read_table(model: Model) -> CovarianceTable:
    """The table beside a model's weights.

    Raises ValueError if there is none, or it is damaged, or of other weights; OSError if it cannot be read.
    """
    _require_posterior_mean(model)
    where = model.path or Path(model.name)
    file, again = where / COVARIANCE, f"measure it again with `dualrate plan calibrate {where}`"
    if not file.is_file():
        raise ValueError(f"{where} has no {COVARIANCE}: measure it with `dualrate plan calibrate {where}`")
    try:
        with open_tensors(file) as opened:
            noted = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in TENSORS}
        if noted["content"] != _digest(tensors, noted):
            raise ValueError("its content has changed")
        channels, height, width = map(int, noted["shape"].split())
        bands = Bands((channels, height, width), int(noted["rings"]))
    except (KeyError, ValueError) as error:
        raise ValueError(f"{file} is damaged: {error}; {again}") from error
    if noted.get("weights") != model.weights_hash:
        raise ValueError(f"{file} was measured for other weights: {again}")
    return CovarianceTable(bands, **tensors)
