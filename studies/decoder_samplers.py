"""Under which sampler, and on which times, each decoder of a latent reconstructs best: before they are compared.

    OMP_NUM_THREADS=1 .venv/bin/python studies/decoder_samplers.py [NAME ...]  # of runs/decoder-NAME; all, if not given

Every decoder of `make reproduce-train MODEL=decoder-NAME`, every one of HOW on every one of GRIDS, STEPS steps: rFD of
COUNT held-out images by three judges, the same images and noise for all. The least of so many noisy scores is a little
too low for each alike; the report draws others. Killed, it goes on; two may run at once, of other names.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

from common import (
    JUDGES,
    RESULTS,
    ROOT,
    RUNS,
    command,
    keep,
    load,
    markdown,
    on_one_thread,
    place,
    require_same,
    save,
)

from dualrate.cli.console import reporter
from dualrate.diffusion.plan import StepPlan
from dualrate.diffusion.schedule import Cosine
from dualrate.drawing.choice import Choice
from dualrate.drawing.evaluator import evaluators
from dualrate.drawing.measure import measure
from dualrate.recipes import latents as fashion_mnist_decoders
from dualrate.sampling.catalogue import at_gamma, sampler_named
from dualrate.sampling.grids import grid_times
from dualrate.system.progress import image_progress

STEPS, COUNT, FIRST = 6, 1000, 1_000_000
HOW = ("ancestral", "ddim", "dpm++2m", "sde-dpm++2m:0.1", "sde-dpm++2m:0.2")
USUAL = "sde-dpm++2m:0.1", "blend:0.5"  # where nothing is measured yet
GRIDS = ("t", "blend:0.5", "log-snr")
WHERE, PAGE = RESULTS / "decoder-samplers", RESULTS / "decoders.md"
DECODERS = {  # and the numbers of steps that they are compared at
    "light": (4, 8, 16),
    "small": (4, 6, 8, 12, 16),
    "medium": (4, 6, 8, 12),
    "heavy": (4, 6, 8),
    "dual": (3, 4, 6, 8, 12, 16),
    "dual-medium": (3, 4, 6, 8, 12, 16),
    "retrofit": (4, 6, 8, 12),
}


def file_of(name: str) -> Path:
    return WHERE / f"{name}.json"


def study(name: str) -> None:
    """rFD of one decoder under all of them, kept as they come."""
    progress, model = reporter(), load(RUNS / f"decoder-{name}")
    file, found = file_of(name), {}
    if file.exists():
        require_same(file, model)
        kept = json.loads(file.read_text())
        if (kept["steps"], kept["count"]) != (STEPS, COUNT):
            raise ValueError(
                f"{file} is of {kept['steps']} steps and {kept['count']} images: delete it to measure anew"
            )
        found = kept["found"]
    judges = evaluators(model.experiment.data, JUDGES, progress=progress)
    for how, grid in product(HOW, GRIDS):
        if f"{how} {grid}" in found:
            continue
        sampler, gamma = at_gamma(how)
        drawer = Choice(STEPS, sampler=sampler, gamma=gamma, grid=grid).drawer(model)
        row = measure(drawer, range(FIRST, FIRST + COUNT), *judges, progress=image_progress(progress)).row
        progress.close()
        found[f"{how} {grid}"] = {metric: score.value for metric, score in row.scores.items()}
        progress.note(
            f"{name}, {how}, {grid}: {', '.join(f'{value:.3f}' for value in found[f'{how} {grid}'].values())}"
        )
        keep(file, 1, weights=model.weights_hash, steps=STEPS, count=COUNT, found=found)


def order(found: dict[str, dict[str, float]]) -> list[str]:
    """Best first, by the mean of the judges' logarithms."""
    return sorted(found, key=lambda key: sum(map(math.log, found[key].values())))


def entries(counts: Mapping[str, Sequence[int]] = DECODERS) -> list[str]:
    """What a comparison is to measure: every decoder under its best sampler, on its best times, in so many steps."""
    return [entry(name, steps) for name, all_ in counts.items() for steps in all_]


def entry(name: str, steps: int) -> str:
    how, grid = USUAL
    if file_of(name).exists():
        how, grid = order(json.loads(file_of(name).read_text())["found"])[0].split()
    plan = str(steps) if grid == sampler_named(at_gamma(how)[0]).grid else plan_of(name, steps, grid)
    return f"{name}=runs/decoder-{name}:{plan}@{how}"


def plan_of(name: str, steps: int, grid: str) -> str:
    """The file of a plan on times that are not usual, which is written where it is not there."""
    times = grid_times(grid, Cosine(), steps)
    dual = name not in fashion_mnist_decoders.SIZES
    rate = f"{steps}-1" if dual else f"{steps}"
    file = RESULTS / "plans" / "decoders" / rate / f"{grid.replace(':', '-')}.json"  # a name for each of a curve
    if not file.exists():
        save(file, (StepPlan.at(times, [0]) if dual else StepPlan.spread(times)).to_json() + "\n")
    return str(file.relative_to(ROOT))


def table() -> str:
    """Markdown: for every decoder each sampler on its best times, the best first."""
    lines = []
    for name in DECODERS:
        if not file_of(name).exists():
            continue
        found = json.loads(file_of(name).read_text())["found"]
        best: dict[str, str] = {}  # by sampler
        for key in order(found):
            best.setdefault(key.split()[0], key)
        lines += [
            [name if i == 0 else "", *key.split(), *(f"{value:.3g}" for value in found[key].values())]
            for i, key in enumerate(best.values())
        ]
    return markdown(["decoder", "sampler", "times", *(f"r{judge}" for judge in JUDGES.split(","))], lines, texts=3)


def main() -> None:
    parser = command(__doc__)
    parser.add_argument("names", nargs="*", default=[*DECODERS], help=", ".join(DECODERS))
    names = parser.parse_args().names
    on_one_thread()
    for name in names:
        study(name)
    place("decoder samplers", table(), PAGE)


if __name__ == "__main__":
    main()
