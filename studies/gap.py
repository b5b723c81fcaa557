"""How far apart are models in the error of x_hat, by log-SNR, on held-out images?

    OMP_NUM_THREADS=1 .venv/bin/python studies/gap.py runs/natural16-heavy runs/natural16-medium-45 runs/natural16-light

Every model denoises the same noised test images, under its averaged weights in float32; one that reuses a context has
a fresh one. The first model's mean squared error of a pixel, x in [-1, 1]; of every other one how far it lies above, in
percent. All differences are taken image by image, standard errors are over images. The row "loss" is the objective of
training, as far as these levels of noise reach:

    1/2 integral of e^log_snr w(log_snr) E|x - x_hat|^2 dlog_snr,   by the trapezoidal rule

w is the weight that the first model was trained with. Whether the models had equal time is the runs' affair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from common import command, keep, load, markdown, on_one_thread
from numpy.typing import NDArray

import dualrate as dr
from dualrate.cli.console import reporter
from dualrate.data.images import ImageSet
from dualrate.denoisers.denoiser import posterior_mean
from dualrate.diffusion.prediction import Weighting
from dualrate.diffusion.random import Draws
from dualrate.drawing.drawer import subset_batches
from dualrate.drawing.likelihood import Estimate
from dualrate.system.progress import Reporter

LOWEST, HIGHEST = -10, 10  # log-SNRs, one apart
COUNT, ROWS = 500, 50  # images, and at a time
SEED = 4 << 40  # of the noise; far from the seeds of images


@torch.no_grad()
def errors(
    model: dr.Model, images: ImageSet, count: int, log_snr: NDArray[np.float64], progress: Reporter
) -> NDArray[np.float64]:
    """(count, L): |x - x_hat|^2, a mean over the pixels of every image at every one of the L log-SNRs."""
    times = model.process.schedule.time(torch.tensor(log_snr, device=model.device))
    parts = []
    for batch in subset_batches(model, images, count, ROWS):
        draws, found = Draws(SEED, batch.row), []
        for level, time in zip(log_snr, times, strict=True):
            t, noise = time.expand(len(batch)), draws.normal(f"log-SNR {level:g}", *batch.x.shape[1:])
            z = model.process.add_noise(batch.x, t, noise.to(batch.x.dtype))
            x_hat = posterior_mean(model.denoiser, z, t, batch.cond)
            found.append((batch.x - x_hat).double().square().flatten(1).mean(1).cpu())
        parts.append(torch.stack(found, 1))
        progress.update(sum(map(len, parts)), count, {"images": sum(map(len, parts))})
    progress.close()
    return torch.cat(parts).numpy()


def losses(errors: NDArray[np.float64], log_snr: NDArray[np.float64], weighting: Weighting) -> NDArray[np.float64]:
    """(M,): the objective of each of M images (module docstring) from errors (M, L)."""
    levels = torch.tensor(log_snr)
    return 0.5 * torch.trapezoid(weighting.snr_weight(levels) * torch.tensor(errors), levels).numpy()


def mean(values: NDArray[np.float64]) -> Estimate:
    """Of one value for each image, (M,), M >= 2."""
    return Estimate.of(torch.from_numpy(values))


def excess(values: NDArray[np.float64], base: NDArray[np.float64]) -> Estimate:
    """By what share the mean of `values` lies above that of `base`, (M,) each, of the same images.

    The error of a ratio R of means, to first order: that of the mean of values - R base, over the mean of base.
    """
    ratio = float(values.mean() / base.mean())
    return Estimate(ratio - 1, mean(values - ratio * base).error / float(base.mean()))


def gaps(columns: Sequence[NDArray[np.float64]]) -> list[Estimate]:
    """The first model's mean, then the excess of every other, from one value for each image, (M,), of every model."""
    first, *others = columns
    return [mean(first), *(excess(other, first) for other in others)]


def table(names: Sequence[str], rows: dict[str, list[Estimate]]) -> str:
    """Markdown: the first model's error, then percents above it."""
    header = ["log-SNR", f"{names[0]}, MSE", *(f"{name}, %" for name in names[1:])]
    return markdown(header, ([level, *_cells(row)] for level, row in rows.items()), texts=1)


def _cells(row: Sequence[Estimate]) -> list[str]:
    first, *others = row
    shares = (f"{100 * one.value:+.2f} ± {100 * one.error:.2f}" for one in others)
    return [f"{first.value:.3g} ± {first.error:.1g}", *shares]


def measure(models: Sequence[dr.Model], images: ImageSet, count: int, progress: Reporter) -> dict[str, list[Estimate]]:
    """`gaps` at every log-SNR, and of the loss. Raises what `subset_batches` raises."""
    log_snr = np.arange(LOWEST, HIGHEST + 1.0)
    found = [errors(model, images, count, log_snr, progress) for model in models]
    rows = {f"{level:g}": gaps([one[:, i] for one in found]) for i, level in enumerate(log_snr)}
    weighting = models[0].experiment.method.weighting
    return rows | {"loss": gaps([losses(one, log_snr, weighting) for one in found])}


def _facts(model: dr.Model) -> dict[str, object]:
    """macs: of the call that is judged, a heavy one where there are two."""
    macs = model.call_cost.of(1, 1)
    return {"name": model.name, "iteration": model.iteration, "weights": model.weights_hash, "macs": macs}


def main() -> None:
    parser = command(__doc__)
    parser.add_argument("runs", nargs="+", help="runs or released weights, the one to compare with first")
    parser.add_argument("--data", help="their data, where it lies elsewhere now; else the first run's")
    parser.add_argument("--count", type=int, default=COUNT, help="test images")
    parser.add_argument("--out", type=Path, help="a JSON file for the numbers")
    options = parser.parse_args()
    on_one_thread()
    models = [load(run) for run in options.runs]
    data = models[0].experiment.data
    images = replace(data, source=options.data or data.source).images("test")
    rows = measure(models, images, options.count, reporter())
    plain = {level: [asdict(one) for one in row] for level, row in rows.items()}
    facts = [_facts(model) for model in models]
    if options.out:
        of = {"images": images.name, "data": images.fingerprint, "count": options.count}
        keep(options.out, 1, **of, models=facts, measured=plain)
    print(table([model.name for model in models], rows))


if __name__ == "__main__":
    main()
