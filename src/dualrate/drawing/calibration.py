"""A model's covariance table: measured on data once, kept beside its weights (`sampling/covariance.py`)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from dualrate.data.loader import TrainingSet
from dualrate.denoisers.denoiser import Denoiser
from dualrate.diffusion.process import GaussianProcess
from dualrate.diffusion.random import Draws
from dualrate.diffusion.values import Reuse
from dualrate.drawing.drawer import SubsetBatch, SubsetPart, subset_parts
from dualrate.experiment.experiment import Model
from dualrate.planning.planner import Call, every_call
from dualrate.runs.store import COVARIANCE
from dualrate.sampling.covariance import TRUSTED, Bands, CovarianceTable, probed
from dualrate.system.device import pays
from dualrate.system.files import open_tensors, whole, write_tensors
from dualrate.system.progress import Reporter
from dualrate.system.workers import Mapper, in_turn

LOWEST, HIGHEST = -12, 12  # log-SNRs of the table, one apart, within the schedule's; beyond, the nearest is taken
NOTED = ("weights", "images", "shape", "rings", "clamped")  # in the file's metadata, beside its digest
ROWS = 32  # images at a time
SEED = 3 << 40  # of the noise; far from the seeds of images, and from the planner's


def calibrate(
    model: Model, *, images: int, rings: int, progress: Reporter, mapper: Mapper = in_turn
) -> CovarianceTable:
    """Measures a model's table on training images and writes it beside its weights.

    mapper: measures parts of ROWS images
    Raises ValueError for more images than there are, or too few for a mean; OSError where it cannot be written.
    """
    _require_posterior_mean(model)
    _ = model.gaussian  # of whose noise a table is
    if model.path is None:
        raise ValueError(f"{model.name} was not loaded from a directory, so there is no place to keep its table")
    if images < 2:
        raise ValueError(f"a table is a mean over images: ask for at least 2, got {images}")
    source = model.experiment.data.load("train")
    how = {"bfloat16": pays(model.device), "mapper": mapper}
    table = _measured(model, source, images, Bands(model.shape, rings), progress, **how)
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
    size, parts = len(log_snr), list(subset_parts(model, source, count, ROWS))
    found: dict[SubsetPart, tuple[Tensor, Tensor]] = {}

    def tell(at: int) -> None:
        done = sum(map(len, found))
        progress.update(len(found) * size + at, len(parts) * size, {"images": done + at * min(ROWS, count) // size})

    here = tell if mapper is in_turn else None  # a worker tells of whole parts
    t = (*schedule.time(log_snr).tolist(), 0.0)
    for part, measured in mapper(partial(_of_part, model, bands, t, bfloat16, here), parts):
        found[part] = measured
        tell(0)
    progress.close()
    total = torch.zeros(2, size, size + 1, bands.count, dtype=torch.float64)
    for part in parts:
        total += found[part][0] / count
    estimates = torch.cat([found[part][1] for part in parts])
    if model.denoiser.reuse is Reuse.FREE:  # no context, or any, is the same to it
        each = torch.arange(size)
        total[:] = total[:, each, each][:, :, None]
        estimates[:] = estimates[:, each, each][:, :, None]
    variance, ratio = total[0].clamp_min(1e-12), total[1] / total[0].clamp_min(1e-12)
    below, above = _clamped(estimates, variance, ratio)
    return CovarianceTable(bands, log_snr, variance.float(), ratio.float(), below, above)


def _of_part(
    model: Model,
    bands: Bands,
    t: tuple[float, ...],
    bfloat16: bool,
    tell: Callable[[int], None] | None,
    part: SubsetPart,
) -> tuple[Tensor, Tensor]:
    """Of some images: sums (2, M, M + 1, K) float64 of squared errors and estimates; every estimate (B, M, M + 1, K).

    tell: called with the times that are done
    """
    denoiser, batch, size = model.ready(bfloat16=bfloat16).denoiser, part.on(model.device), len(t) - 1
    total = torch.zeros(2, size, size + 1, bands.count, dtype=torch.float64)
    draws, estimates = Draws(SEED, batch.row), torch.zeros(len(batch), size, size + 1, bands.count)
    with torch.autocast(model.device.type, torch.bfloat16, enabled=bfloat16):
        for call in every_call(denoiser, model.gaussian, t, batch.x, batch.cond, draws):
            if denoiser.reuse is Reuse.FREE and call.i != call.j:
                continue
            with torch.no_grad():
                energy, estimate = _of_call(denoiser, model.gaussian, bands, batch, call, draws)
            total[0, call.i, call.j] = energy.double().sum(0).cpu()
            total[1, call.i, call.j] = estimate.double().sum(0).cpu()
            estimates[:, call.i, call.j] = estimate.cpu()
            if call.j == call.i and tell is not None:
                tell(call.i + 1)
    return total, estimates


def _of_call(
    denoiser: Denoiser, process: GaussianProcess, bands: Bands, batch: SubsetBatch, call: Call, draws: Draws
) -> tuple[Tensor, Tensor]:
    """(B, K) squared error and estimate of every image in every band."""
    aged = call.context.aged()
    normal = draws.normal(f"probe {call.i} {call.j}", *batch.x.shape[1:])
    x_hat, estimate = probed(
        process, bands, lambda z, t: denoiser.denoise(z, t, aged, batch.cond), call.z, call.t, normal
    )
    if call.context.x_hat is not None:  # what a heavy call computed itself is what a step uses
        x_hat = call.context.x_hat
    with torch.autocast(batch.x.device.type, enabled=False):
        return bands.mean(bands.transform(batch.x - x_hat).square()), estimate


def _clamped(estimates: Tensor, variance: Tensor, ratio: Tensor) -> tuple[float, float]:
    """Shares of single images' estimates below 0 and above the data's variance, where derivatives are trusted."""
    used = (ratio >= TRUSTED[0]) & (ratio <= TRUSTED[1])
    seen = estimates[:, used]
    most = variance[0, 0].expand_as(variance)[used]
    if seen.numel() == 0:
        return 0.0, 0.0
    return (seen < 0).float().mean().item(), (seen > most).float().mean().item()


def write_table(table: CovarianceTable, file: Path, weights: str, images: int) -> None:
    """Whole or not at all: a kill leaves the old one or the new one."""
    tensors = {"log_snr": table.log_snr, "variance": table.variance, "ratio": table.ratio}
    noted = {
        "weights": weights,
        "images": str(images),
        "shape": " ".join(map(str, table.bands.shape)),
        "rings": str(table.bands.rings),
        "clamped": f"{table.below} {table.above}",
    }
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
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
        raise ValueError(
            f"{model.name} is a distilled student: its x_hat is no posterior mean, so it has no covariance"
        )


def read_table(model: Model) -> CovarianceTable:
    """The table beside a model's weights.

    Raises ValueError if there is none, or it is damaged, or of other weights; OSError if it cannot be read.
    """
    _require_posterior_mean(model)
    where = model.path or Path(model.name)
    if not (where / COVARIANCE).is_file():
        raise ValueError(f"{where} has no {COVARIANCE}: measure it with `dualrate plan calibrate {where}`")
    try:
        with open_tensors(where / COVARIANCE) as file:
            noted = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in ("log_snr", "variance", "ratio")}
        channels, height, width = map(int, noted["shape"].split())
        bands = Bands((channels, height, width), int(noted["rings"]))
        below, above = map(float, noted["clamped"].split())
        size = len(tensors["log_snr"])
        if any(tensors[name].shape != (size, size + 1, bands.count) for name in ("variance", "ratio")):
            raise ValueError(f"its tensors are not those of {size} noise levels and {bands.count} bands")
        has_digest = sorted(noted) != sorted(NOTED)  # tables of before have none
        if has_digest and noted.get("content") != _digest(tensors, noted):
            raise ValueError("its content has changed")
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"{where / COVARIANCE} is damaged: {error}; measure it again with `dualrate plan calibrate {where}`"
        ) from error
    if noted.get("weights") != model.weights_hash:
        raise ValueError(
            f"{where / COVARIANCE} is of other weights: measure it again with `dualrate plan calibrate {where}`"
        )
    return CovarianceTable(bands, tensors["log_snr"], tensors["variance"], tensors["ratio"], below, above)
