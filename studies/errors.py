"""Errors of a run's x_hat by noise level and age of the context, beside another run's: what a change of training buys.

    OMP_NUM_THREADS=1 .venv/bin/python studies/errors.py weights/fashion-mnist-retrofit --out errors.json

x of test images, t ~ U(0, 1), z_t and, for each range of ages tau - t, z_tau on one forward path (the same z_t for all
ages, so that they are compared in pairs; times with tau above 1 are left out). Of every x_hat, as means per pixel with
their standard errors over the images:

    data    |x - x_hat|^2                              heavy   |x_hat_heavy(z_t) - x_hat|^2
    excess  |x - x_hat|^2 - |x - x_hat_heavy(z_t)|^2   pair by pair; its expectation is that of `heavy`, where the heavy
            run is right

Ages are compared within a noise level: over all of them, an older context has fewer and less noisy times.

A single-rate run has no contexts, so all of it stands under "none".
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import torch
from common import ROOT, command, keep, load, markdown, on_one_thread
from torch import Tensor

import dualrate as dr
from dualrate.cli.console import reporter
from dualrate.denoisers.denoiser import posterior_mean
from dualrate.diffusion.random import Draws
from dualrate.diffusion.values import Context
from dualrate.drawing.drawer import subset_batches
from dualrate.drawing.likelihood import Estimate
from dualrate.methods.times import stratified_uniform
from dualrate.system.progress import Reporter

SEED = 1 << 41  # of the noise
LOG_SNR = (-math.inf, -6.0, -4.0, -2.0, 0.0, 2.0, 4.0, 6.0, math.inf)
AGES = ((0.0, 1 / 16), (1 / 16, 1 / 8), (1 / 8, 1 / 4), (1 / 4, 1 / 2), (1 / 2, 1.0))
OWN, NONE, ALL = "at t", "none", "all"  # a context computed at z_t itself; no context; every noise level
HEADER = ["log-SNR", "age", "count", "data", "heavy", "excess"]


@dataclass(frozen=True)
class Cell:
    """Means per pixel over `count` images, each at a time of its own, as in the module's docstring."""

    log_snr: str
    age: str
    count: int
    data: Estimate
    heavy: Estimate
    excess: Estimate

    def texts(self) -> list[str]:
        """Its line of the table; errors in units of 1e-4."""
        numbers = (f"{1e4 * e.value:.2f} ± {1e4 * e.error:.2f}" for e in (self.data, self.heavy, self.excess))
        return [self.log_snr, self.age, str(self.count), *numbers]


def main() -> None:
    parser = command(__doc__)
    parser.add_argument("run", help="directory of a run, or of released weights")
    parser.add_argument("--against", default="weights/fashion-mnist-heavy-annealed", help="the heavy run")
    parser.add_argument("--images", default=2000, type=int, help="test images, a time for each")
    parser.add_argument("--out", type=Path, help="a JSON file for the cells")
    options = parser.parse_args()
    on_one_thread()
    model, heavy = load(ROOT / options.run), load(ROOT / options.against)
    cells = measure(model, heavy, options.images, reporter())
    print(f"{model} against {heavy}; errors in 1e-4\n\n{markdown(HEADER, (cell.texts() for cell in cells), texts=2)}")
    if options.out:
        weights = {"run": model.weights_hash, "heavy": heavy.weights_hash}
        keep(options.out, 1, weights=weights, cells=[asdict(cell) for cell in cells])
    else:
        print(json.dumps([asdict(cell) for cell in cells]))


def measure(model: dr.Model, heavy: dr.Model, images: int, progress: Reporter, *, batch_size: int = 50) -> list[Cell]:
    """Every cell with two images or more, ages within noise levels.

    Raises ValueError for a heavy run of another process, and for more images than there are.
    """
    if heavy.process != model.process:
        raise ValueError(f"{heavy.name} has another process than {model.name}: compare runs of one process")
    found: dict[tuple[str, str], list[Tensor]] = defaultdict(list)
    source, done = model.experiment.data.load("test"), 0
    for part in subset_batches(model, source, images, batch_size):
        draws = Draws(SEED, torch.arange(done, done + len(part), device=model.device))
        for level, age, errors in errors_of(model, heavy, part.x, part.cond, draws):
            found[level, age].append(errors)
        done += len(part)
        progress.update(done, images, {"images": done})
    progress.close()
    order = {name: i for i, name in enumerate((*map(named, levels()), ALL))}
    ages = {name: i for i, name in enumerate((OWN, *map(named, AGES), NONE))}
    joined = {key: torch.cat(parts) for key, parts in found.items()}
    cells = [cell(*key, errors) for key, errors in joined.items() if len(errors) > 1]
    return sorted(cells, key=lambda c: (order[c.log_snr], ages[c.age]))


@torch.no_grad()
def errors_of(
    model: dr.Model, heavy: dr.Model, x: Tensor, cond: dr.Cond, draws: Draws
) -> Iterator[tuple[str, str, Tensor]]:
    """(noise level, age, (K, 3): data, heavy, excess of each image there)."""
    process, shape = model.process, x.shape[1:]
    t = stratified_uniform(draws)
    z_t = process.add_noise(x, t, draws.normal("z_t", *shape))
    taught = posterior_mean(heavy.denoiser, z_t, t, cond)
    log_snr = process.schedule.log_snr(t)
    for age, rows, x_hat in estimates(model, z_t, t, cond, draws):
        data, known = (((of[rows] - x_hat).square().flatten(1).mean(1)) for of in (x, taught))
        excess = data - (x - taught)[rows].square().flatten(1).mean(1)
        errors = torch.stack((data, known, excess), 1).double().cpu()
        yield ALL, age, errors
        for low, high in levels():
            inside = ((log_snr[rows] > low) & (log_snr[rows] <= high)).cpu()
            yield named((low, high)), age, errors[inside]


def estimates(
    model: dr.Model, z_t: Tensor, t: Tensor, cond: dr.Cond, draws: Draws
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(age, rows (K,), x_hat of these rows) without a context, and where contexts are reused of each age."""
    rows = torch.arange(len(t), device=t.device)
    yield NONE, rows, model.denoiser.denoise(z_t, t, Context(), cond)
    if not model.reuses_context:
        return
    yield OWN, rows, posterior_mean(model.denoiser, z_t, t, cond)
    for young, old in AGES:
        tau = t + young + (old - young) * draws.uniform(f"age {young}")
        rows = torch.nonzero(tau <= 1).flatten()
        noise = draws.normal(f"z_tau {young}", *z_t.shape[1:])
        z_tau = model.process.transition(z_t, t, tau.clamp(max=1)).sample(noise)[rows]
        context = model.denoiser.encode(z_tau, tau[rows], cond[rows]).aged()
        yield named((young, old)), rows, model.denoiser.denoise(z_t[rows], t[rows], context, cond[rows])


def cell(level: str, age: str, errors: Tensor) -> Cell:
    return Cell(level, age, len(errors), *(Estimate.of(column) for column in errors.unbind(1)))


def levels() -> list[tuple[float, float]]:
    """Ranges of log-SNR, noise first."""
    return list(pairwise(LOG_SNR))


def named(ends: tuple[float, float]) -> str:
    return f"{ends[0]:g} to {ends[1]:g}"


if __name__ == "__main__":
    main()
