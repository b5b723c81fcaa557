"""What differs between samples and real images, frequency by frequency, without any judge that was trained.

    OMP_NUM_THREADS=1 .venv/bin/python studies/spectra.py medium-45=weights/fashion-mnist-medium-45:14@sde-dpm++2m:0.2

Entries are those of `dualrate compare`. In the bands of an orthonormal DCT (`Bands`), of `--count` images each, x in [-1, 1], against all training images:

    power    variance of the coefficients over images, summed over the band, over that of the training images
    shape    Frechet distance of the band's coefficients, over the band's variance in the training images

Both in percent; a model that draws what it was trained on has 100 and about what as many test images have ("test"),
whose own shape distance is what this number of images gives by chance. Samples are kept in runs/spectra.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from common import RUNS, command, keep, load, markdown, on_one_thread
from torch import Tensor

from dualrate.cli.console import reporter
from dualrate.compare.contenders import Entry
from dualrate.data.images import to_float
from dualrate.metrics.frechet import GaussianStats, frechet_distance
from dualrate.sampling.covariance import Bands
from dualrate.system.files import whole
from dualrate.system.progress import image_progress

RINGS = 8


def banded(images: Tensor, bands: Bands) -> list[GaussianStats]:
    """A Gaussian of every band's coefficients, lowest frequencies first. images: (N, C, H, W) uint8."""
    coefficients = torch.cat([bands.transform(to_float(part).double()) for part in images.split(1000)])
    return [GaussianStats.of(coefficients[:, bands.index == band]) for band in range(bands.count)]


def differences(found: list[GaussianStats], real: list[GaussianStats]) -> Iterator[tuple[float, float]]:
    """(power, shape) of every band, in percent."""
    for own, its in zip(found, real, strict=True):
        variance = its.cov.trace().item()
        yield 100 * own.cov.trace().item() / variance, 100 * frechet_distance(own, its) / variance


def drawn(entry: Entry, count: int) -> Tensor:
    """(count, C, H, W) uint8: its images of seeds 0 to count - 1, drawn once."""
    model, progress = load(entry.run), reporter()
    contender = entry.named_contender(model)
    file = RUNS / "spectra" / f"{contender.key}-{model.weights_hash[:12]}-{count}.npy"
    if not file.exists():
        progress.note(f"{contender.key}: {count} images")
        samples = contender.drawer(model).draw(range(count), image_progress(progress))
        progress.close()
        file.parent.mkdir(parents=True, exist_ok=True)
        with whole(file) as aside, aside.open("wb") as stream:
            np.save(stream, samples.images)
    return torch.from_numpy(np.load(file))


def main() -> None:
    parser = command(__doc__)
    parser.add_argument("entries", nargs="+", help="[NAME=]RUN:PLAN[@SAMPLER[:GAMMA]], as `dualrate compare` takes")
    parser.add_argument("--count", type=int, default=5000, help="images of each")
    parser.add_argument("--out", type=Path, help="a JSON file for the numbers")
    options = parser.parse_args()
    on_one_thread()
    entries = [Entry.parse(text) for text in options.entries]
    named = {entry: f"{entry.network} {Path((entry.plan or '').replace('/', '-')).stem}" for entry in entries}
    if len(set(named.values())) < len(entries):
        parser.error(
            f"two columns would have one name, of {', '.join(named.values())}: name the entries, NAME=RUN:PLAN"
        )
    first = load(entries[0].run)
    train, test = (torch.tensor(first.experiment.data.images(split).images) for split in ("train", "test"))
    bands = Bands(first.shape, RINGS)
    real = banded(train, bands)
    columns = {"test": list(differences(banded(test[: options.count], bands), real))}
    for entry in entries:
        columns[named[entry]] = list(differences(banded(drawn(entry, options.count), bands), real))
    sizes = torch.bincount(bands.index.flatten()).tolist()
    lines = (
        [str(band), str(size), *(f"{power:.1f} / {shape:.2f}" for power, shape in (c[band] for c in columns.values()))]
        for band, size in enumerate(sizes)
    )
    print(markdown(("band", "numbers", *(f"{name}: power / shape" for name in columns)), lines, texts=1))
    if options.out:
        keep(options.out, 1, count=options.count, sizes=sizes, columns=columns)


if __name__ == "__main__":
    main()
