"""Unified Latents on Fashion-MNIST: the price of a nat, c, against bits a pixel and what is reconstructed and drawn.

    OMP_NUM_THREADS=1 .venv/bin/python studies/unified_latents.py c1 c1.5 c2 c3     # trains and measures, in turn
    .venv/bin/python studies/unified_latents.py                                     # table and figure of what there is

A name is a first stage, `dualrate train fashion-mnist-latents-first --method.loss-factor c` with ITERATIONS and without
anything else changed, but for two ablations of the paper's: `no-gradient`, whose latents no prior's loss ever trains
(--method.priced-from beyond the end), and `log-snr-10`, z_0 of that log-SNR in place of 5. One of them takes about a
quarter of an hour of a core, measuring included; killed, it goes on. Runs are kept in runs/unified-latents, results in
docs/results/unified-latents, a file a name.

Measured: bits a pixel of z_0, at most, by the prior (1,000 held-out images), PSNR and rFD of COUNT reconstructions of
held-out images, from the same images, and the gFD of COUNT images drawn from the first stage's own prior, which is
small; a base model would draw better. All by three judges, the first shipped for this data set.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import JUDGES, RESULTS, RUNS, command, keep, markdown, on_one_thread, place, within
from matplotlib.figure import Figure

import dualrate as dr
from dualrate.cli.console import reporter
from dualrate.cli.train import run_training
from dualrate.codecs.diffusion import DiffusionDecoding
from dualrate.config.serial import to_plain
from dualrate.diffusion.process import NoisyEnd
from dualrate.diffusion.schedule import Cosine
from dualrate.drawing.choice import Choice
from dualrate.drawing.evaluator import evaluators
from dualrate.drawing.latent_scores import bits_per_pixel, nearness_of
from dualrate.drawing.measure import measure
from dualrate.experiment.experiment import Experiment
from dualrate.methods.unified_latents import UnifiedLatentsConfig
from dualrate.metrics.evaluate import Evaluator, round_trips
from dualrate.metrics.frechet import GaussianStats, bootstrap_interval, frechet_distance
from dualrate.recipes import latents as fashion_mnist_latents
from dualrate.report.figures import INK, PALETTE, mark, png
from dualrate.system.progress import Reporter, image_progress

ITERATIONS, COUNT, BITS_OF, STEPS = 2000, 3000, 1000, 16
WHERE, PAGE = RESULTS / "unified-latents", RESULTS / "latents.md"


@dataclass(frozen=True)
class Line:
    """loss_factor: c; log_snr: of z_0; priced: whether the prior's loss trains the encoder"""

    loss_factor: float
    log_snr: float = 5.0
    priced: bool = True

    def experiment(self, name: str, iterations: int) -> Experiment:
        made = fashion_mnist_latents.first(self.loss_factor)
        method, codec = made.method, made.codec
        assert isinstance(method, UnifiedLatentsConfig)
        assert isinstance(codec, DiffusionDecoding)
        return replace(
            made,
            name=f"unified-latents-{name}",
            method=method if self.priced else replace(method, priced_from=iterations),
            fit=replace(made.fit, iterations=iterations),
            process=NoisyEnd(Cosine(log_snr_max=self.log_snr)),
            codec=replace(codec, log_snr=self.log_snr),
        )


LINES = {
    **{f"c{c:g}": Line(c) for c in (1.0, 1.5, 2.0, 3.0)},
    "no-gradient": Line(3.0, priced=False),
    "log-snr-10": Line(3.0, log_snr=10.0),
}


def file_of(name: str, iterations: int) -> Path:
    return WHERE / (f"{name}.json" if iterations == ITERATIONS else f"{name}-{iterations}.json")


def run(name: str, iterations: int, count: int) -> None:
    """Train a first stage to its end, and measure it, unless its results are there.

    Raises ValueError for results of another number of images.
    """
    file, folder = file_of(name, iterations), RUNS / "unified-latents" / f"{name}-{iterations}"
    if file.exists():
        if (kept := json.loads(file.read_text())["count"]) != count:
            raise ValueError(f"{file} is of {kept} images, not of {count}: delete it to measure anew")
        return
    if run_training(LINES[name].experiment(name, iterations), folder, "cpu", None, 1).stopped != "done":
        raise SystemExit(75)
    progress = reporter()
    model = dr.load(folder, note=progress.note)
    keep(file, 1, weights=model.weights_hash, iterations=iterations, **scores(model, count, progress))
    progress.close()


def scores(model: dr.Model, count: int, progress: Reporter) -> dict[str, Any]:
    """Of a first stage."""
    judges = evaluators(model.experiment.data, JUDGES, progress=progress)
    held_out, shown = judges[0].held_out, image_progress(progress)
    assert held_out is not None
    rows, codec = torch.arange(min(count, len(held_out))), model.codec
    drawn = []
    for part in round_trips(codec, held_out, rows):
        drawn.append(part)
        shown(sum(map(len, drawn)), len(rows))
    progress.close()
    back, before = np.concatenate(drawn), held_out.images[rows.numpy()]
    bits = bits_per_pixel(model.denoiser, model.gaussian, codec, held_out, min(BITS_OF, len(held_out)))
    drawer = Choice(STEPS).drawer(model)
    row = measure(drawer, range(count), *judges, keep=_kept(model), progress=image_progress(progress)).row
    return {
        "count": count,
        "bits": to_plain(bits),
        "psnr": to_plain(nearness_of([(before, back)])),
        "rfd": {judge.metric: reconstruction(judge, before, back) for judge in judges},
        "gfd": {name: [own.score.value, own.score.low, own.score.high] for name, own in _by_metric(row).items()},
        "sampler": f"{drawer.sampler}, {STEPS} steps; decoder: {to_plain(model.experiment.codec)}",
    }


def _kept(model: dr.Model) -> Path:
    assert model.path is not None
    return model.path / "features"


def _by_metric(row: Any) -> dict[str, Any]:
    return {metric: row.judged_by(metric) for metric in row.scores}


def reconstruction(judge: Evaluator[Any], before: Any, back: Any) -> list[float]:
    """rFD, and its interval over the choice of images and noise: of 95%."""
    features, real = judge.net.features(back), judge.net.features(before)
    interval = bootstrap_interval(features, real, resamples=200, seed=0)  # of pairs
    return [frechet_distance(GaussianStats.of(features), GaussianStats.of(real)), interval.low, interval.high]


# Pages


def results() -> dict[str, dict[str, Any]]:
    """What has been measured, by name, in the order of LINES."""
    files = {name: file_of(name, ITERATIONS) for name in LINES}
    return {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}


def table(found: dict[str, dict[str, Any]]) -> str:
    """Markdown: a line for each name."""
    header = ["c", "bits a pixel", "PSNR, dB"]
    metrics = list(next(iter(found.values()))["rfd"])
    header += [f"{kind}{metric.removeprefix('FD')}" for kind in ("rFD", "gFD") for metric in metrics]
    lines = [
        [
            _called(name),
            f"{one['bits']['value']:.4f} ± {one['bits']['error']:.4f}",
            f"{one['psnr']['psnr']:.2f} ± {one['psnr']['error']:.2f}",
            *(within(one[kind][metric]) for kind in ("rfd", "gfd") for metric in metrics),
        ]
        for name, one in found.items()
    ]
    return markdown(header, lines, texts=1)


def _called(name: str) -> str:
    line = LINES[name]
    special = ["no prior gradient"] * (not line.priced) + [f"log-SNR {line.log_snr:g}"] * (line.log_snr != 5)
    return ", ".join([f"{line.loss_factor:g}", *special])


def figure(found: dict[str, dict[str, Any]]) -> Figure:
    """Bits a pixel against PSNR, and against rFD and gFD by the first judge, with 95% intervals, from 0 on."""
    made = Figure(figsize=(10, 3.2), layout="constrained")
    metric = next(iter(next(iter(found.values()))["rfd"]))
    values = {
        "PSNR, dB": lambda one: [one["psnr"]["psnr"] + k * 1.96 * one["psnr"]["error"] for k in (0, -1, 1)],
        f"r{metric}": lambda one: one["rfd"][metric],
        f"g{metric}, drawn from the prior": lambda one: one["gfd"][metric],
    }
    swept = [name for name in found if LINES[name] == Line(LINES[name].loss_factor)]
    for axes, (title, value) in zip(made.subplots(1, 3), values.items(), strict=True):
        axes.plot([found[n]["bits"]["value"] for n in swept], [value(found[n])[0] for n in swept], color=PALETTE[0])
        for i, (name, one) in enumerate(found.items()):
            color, marker = mark(0) if name in swept else mark(i)
            bits, (middle, low, high) = one["bits"]["value"], value(one)
            called = "labelled by c" if name == swept[0] else "_" if name in swept else f"c = {_called(name)}"
            axes.errorbar(
                bits, middle, [[middle - low], [high - middle]], fmt=marker, capsize=3, color=color, label=called
            )
            if name in swept:
                beside = ((5, 4), "left") if title.startswith("r") else ((-5, 6), "right")  # where the line is not
                said = dict(zip(("xytext", "ha"), beside, strict=True)) | {"fontsize": 8, "color": INK}
                axes.annotate(_called(name), (bits, middle), textcoords="offset points", **said)
        axes.set_ylim(bottom=0)
        axes.margins(x=0.15)
        axes.set_xlabel("bits a pixel of the latents, at most")
        axes.set_title(title, fontsize=9)
        if min(one["bits"]["value"] for one in found.values()) * 30 < max(o["bits"]["value"] for o in found.values()):
            axes.set_xscale("log")
    made.axes[0].legend(fontsize=8, loc="lower right")
    return made


def main() -> None:
    parser = command(__doc__)
    parser.add_argument("names", nargs="*", choices=[*LINES, []], help="first stages; none: table and figure")
    parser.add_argument("--iterations", type=int, default=ITERATIONS)
    parser.add_argument("--count", type=int, default=COUNT)
    options = parser.parse_args()
    on_one_thread()
    for name in options.names:
        run(name, options.iterations, options.count)
    if not options.names and (found := results()):
        print(table(found))
        place("unified-latents", table(found), PAGE)
        (RESULTS / "unified-latents.png").write_bytes(png(figure(found)))


if __name__ == "__main__":
    main()
