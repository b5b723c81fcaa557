"""What the studies share: where results are kept, the bench, Markdown tables, and cells that are measured once.

A cell is a model under a plan, measured once and kept as a file in docs/results/cells with its cost, its surroundings,
and the hash of the weights it was measured on. Pages are made of the files alone, so a model that is retired keeps its
line; nothing is measured over the file of other weights (`require_same`). Seconds are measured apart from the images,
all cells in one go, so that they compare (`time_cells`).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from released import ROOT, require_released

import dualrate as dr
from dualrate.cli.console import reporter
from dualrate.compare.contender import Contender
from dualrate.compare.speed import saturating_batch, speed
from dualrate.compare.work import Bench, MeasuredContender
from dualrate.config.serial import from_plain, to_plain
from dualrate.drawing.drawer import Drawer
from dualrate.drawing.evaluator import evaluator, messages, training_progress
from dualrate.drawing.measure import measure
from dualrate.experiment.experiment import DataConfig
from dualrate.metrics.architectures import Architecture
from dualrate.metrics.evaluate import Evaluator
from dualrate.metrics.train_features import BATCH_SIZE, feature_net_in
from dualrate.report.rows import Row
from dualrate.report.table import significant
from dualrate.system.device import keep_freed_memory
from dualrate.system.environment import environment
from dualrate.system.files import write_whole
from dualrate.system.progress import Reporter, image_progress

RESULTS, RUNS = ROOT / "docs" / "results", ROOT / "runs"
CELLS, IMAGES, SECONDS = RESULTS / "cells", RESULTS / ".images", RESULTS / "seconds.json"
DAY = 24 * 3600.0
COUNT = 5000  # images of a cell
SHOWN = 20  # of them on a grid
TIMED, ROUNDS = 125, 3  # images of a timing, one batch; how often each is timed
Net = tuple[type[Architecture], int, int]  # of a judge: architecture, seed, epochs
JUDGES = "fashion-mnist,fashion-mnist-b,fashion-mnist-c"  # of Fashion-MNIST, those that ship
PRETRAINED = "efficientnet"  # and the judge that nobody here trained
NOT_MEASURED = "Not measured yet.\n"


# Starting, reading, keeping


def command(doc: str | None) -> argparse.ArgumentParser:
    """The parser of a study with this docstring."""
    return argparse.ArgumentParser(description=(doc or "").splitlines()[0])


def dualrate(arguments: Sequence[str]) -> None:
    """Runs a `dualrate` command, printed first, in the repository, where classes of studies/ can be named.

    Raises SystemExit with its status where it fails, and what `require_released` raises.
    """
    require_released(*arguments)
    print("dualrate", shlex.join(arguments), flush=True)
    paths = [str(ROOT / "studies"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    program = [sys.executable, "-m", "dualrate_command"]
    if status := subprocess.run([*program, *arguments], cwd=ROOT, env=environment, check=False).returncode:
        raise SystemExit(status)


def on_one_thread() -> None:
    """As all that is timed here was."""
    keep_freed_memory()
    torch.set_num_threads(1)


@cache
def load(model: str | Path) -> dr.Model:
    """model: a directory, below the repository. Raises ValueError for weights that are there no more."""
    require_released(model)
    return dr.load(ROOT / model)


def require_same(file: Path, model: dr.Model) -> None:
    """Raises ValueError if the file holds what was measured on other weights than the model's."""
    if json.loads(file.read_text())["weights"] != model.weights_hash:
        raise ValueError(
            f"{file} was measured on other weights than {model.name} has here: bring those back (git log --follow), or "
            "delete the file to measure these"
        )


def nets_in(folder: Path, nets: Mapping[str, Net], data: DataConfig, progress: Reporter) -> str:
    """Judges of these names in a folder, as `evaluators` and `compare` name them; trained where they are missing."""
    train, test = (data.images(split, messages(progress.note)) for split in ("train", "test"))
    for name, (kind, seed, epochs) in nets.items():
        how = {"kind": kind, "seed": seed, "epochs": epochs, "name": name}
        feature_net_in(folder / name, train, test, **how, progress=training_progress(progress, BATCH_SIZE))
        progress.close()  # the next has a rate of its own
    return ",".join(str(folder / name) for name in nets)


def keep(file: Path, indent: int | None = None, **results: Any) -> None:
    """Results as JSON, with the surroundings they were measured in."""
    save(file, json.dumps({"environment": environment(), **results}, indent=indent) + "\n")


def save(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, text)


def bench_of(contenders: Sequence[Contender], features: Path) -> Bench:
    """Ready to measure these contenders; the first one's data judge, and `features` holds what they draw."""
    progress = reporter()
    models = {run: load(run) for run in dict.fromkeys(contender.run for contender in contenders)}
    judge = evaluator(models[contenders[0].run].experiment.data, features=None, progress=progress)
    bench = Bench(models, [judge], features, progress)
    bench.estimate(contenders)
    return bench


def timed(one: MeasuredContender, bench: Bench) -> Row:
    """Its row with seconds in batches from whose size on larger ones gain nothing."""
    drawer = bench.drawer(one.contender)
    seconds = speed(drawer, saturating_batch(drawer))
    return replace(one.row, seconds_per_image=seconds.batched, batch_size=seconds.batch)


# Tables


def markdown(header: Sequence[str], lines: Iterable[Sequence[str]], texts: int) -> str:
    """A table whose first columns are `texts`, the others numbers."""
    rule = ["---" if i < texts else "---:" for i in range(len(header))]
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, rule, *lines)) + "\n"


def within(numbers: Sequence[float]) -> str:
    """A value and the ends of its interval."""
    value, low, high = map(significant, numbers)
    return f"{value} [{low}, {high}]"


def page_of(name: str, pages: Iterable[Path]) -> Path:
    """The page with a place for the table of this name. Raises ValueError if none has."""
    return pages_with(name, pages)[0]


def pages_with(name: str, pages: Iterable[Path]) -> list[Path]:
    """Those with a place for the table of this name. Raises ValueError if none has."""
    found = [page for page in pages if f"<!-- {name} -->\n" in page.read_text()]
    if not found:
        raise ValueError(f"no page has a place for the table {name!r}: <!-- {name} --> ... <!-- end of {name} -->")
    return found


def place(name: str, table: str, page: Path) -> None:
    """Puts a table where the page has a place for it."""
    between = re.compile(rf"(?<=<!-- {name} -->\n).*?(?=<!-- end of {name} -->)", re.DOTALL)
    save(page, between.sub(lambda _: table, page.read_text()))


# Cells


@dataclass(frozen=True)
class Cell:
    """network: as in the table; model: a directory below the repository; heavy: H, None for every step.

    first: the first seed; a cell's images have seeds first ... first + COUNT - 1
    """

    network: str
    model: str
    steps: int
    heavy: int | None = None
    ddim: bool = False
    first: int = 0

    @property
    def key(self) -> str:
        sampler = "ddim" if self.ddim else "ancestral"
        name = f"{Path(self.model).name}-{self.steps}-{self.steps if self.heavy is None else self.heavy}-{sampler}"
        return f"{name}-from-{self.first}" if self.first else name

    @property
    def drawer(self) -> Drawer:
        model, plan = load(self.model), dr.StepPlan.uniform(self.steps, self.heavy)
        return Drawer(model, (dr.DDIM if self.ddim else dr.Ancestral)(model.gaussian), plan, name=self.network)

    @property
    def file(self) -> Path:
        return CELLS / f"{self.key}.json"

    @property
    def here(self) -> bool:
        """Whether its model is."""
        return (ROOT / self.model / "experiment.json").exists()


def row_of(cell: Cell) -> Row | None:
    """The measured row; None if there is none, or it is of other seeds."""
    if not cell.file.exists():
        return None
    row = replace(from_plain(Row, json.loads(cell.file.read_text())["row"]), network=cell.network)
    if row.score.fingerprint.seeds != f"{cell.first}-{cell.first + COUNT - 1}":
        return None
    return replace(row, seconds_per_image=_seconds().get(cell.key, row.seconds_per_image))


def to_measure(cells: Sequence[Cell]) -> list[Cell]:
    """Those whose model is here and whose row is not. Raises ValueError where a row is of other weights than these."""
    here = [cell for cell in cells if cell.here]
    for cell in here:
        if cell.file.exists():
            require_same(cell.file, load(cell.model))
    return [cell for cell in here if row_of(cell) is None]


def measure_cell(cell: Cell, judge: Evaluator[Any], progress: Reporter) -> None:
    """Writes the cell's file, and its first images for the grid."""
    progress.note(f"{cell.key}: {COUNT} images")
    drawer, seeds = cell.drawer, range(cell.first, cell.first + COUNT)
    row = measure(drawer, seeds, judge, progress=image_progress(progress)).row
    progress.close()
    progress.note(f"  {row.score.metric} {row.score.value:.3f} [{row.score.low:.3f}, {row.score.high:.3f}]")
    IMAGES.mkdir(exist_ok=True)
    np.save(IMAGES / f"{cell.key}.npy", drawer.draw(seeds[:SHOWN]).images)
    keep(cell.file, 1, weights=drawer.model.weights_hash, row=to_plain(row))


def time_cells(cells: Sequence[Cell], progress: Reporter) -> None:
    """Seconds per image of every cell: the median over rounds of a batch each, so that all see the same load."""
    drawers = {cell.key: replace(cell.drawer, batch_size=TIMED) for cell in cells if cell.here}
    durations: dict[str, list[float]] = {key: [] for key in drawers}
    for round_ in range(ROUNDS):
        for i, (key, drawer) in enumerate(drawers.items()):
            durations[key].append(drawer.draw(range(TIMED)).seconds / TIMED)
            progress.update(round_ * len(drawers) + i + 1, ROUNDS * len(drawers), {"images": TIMED})
    progress.close()
    keep(SECONDS, 1, seconds_per_image={key: statistics.median(times) for key, times in durations.items()})
    _seconds.cache_clear()


@cache
def _seconds() -> dict[str, float]:
    return json.loads(SECONDS.read_text())["seconds_per_image"] if SECONDS.exists() else {}
