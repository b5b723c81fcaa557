"""Models that a study trains by commands and measures: one file of results each, a table, a figure, rows of images.

A study is a folder of docs/results with results and one of runs with models, and a page that has places for tables.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from common import COUNT, JUDGES, RESULTS, ROOT, RUNS, SHOWN, command, dualrate, keep, markdown, on_one_thread, within
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

import dualrate as dr
from dualrate.cli.console import reporter
from dualrate.drawing.choice import Choice
from dualrate.drawing.drawer import Drawer
from dualrate.drawing.evaluator import evaluators
from dualrate.drawing.measure import measure
from dualrate.experiment.experiment import DataConfig
from dualrate.metrics.evaluate import Evaluator
from dualrate.report.figures import INK, log_axis, mark
from dualrate.report.image_grid import save_grid
from dualrate.system.progress import Reporter, image_progress

Found = dict[str, dict[str, Any]]
Scores = dict[str, tuple[float, float, float]]  # a value and the ends of its 95% interval, by what it is of
Judges = Callable[[DataConfig, Reporter], Sequence[Evaluator[Any]]]


def fashion_judges(data: DataConfig, progress: Reporter) -> tuple[Evaluator[Any], ...]:
    """The three that ship for Fashion-MNIST."""
    return evaluators(data, JUDGES, progress=progress)


@dataclass(frozen=True)
class Line:
    """A row of a table.

    run:        a trained model, below the repository: what the study trains itself is runs/<study>/<name>
    command:    what trains it, but for iterations and --out; none: it is there
    iterations: of that
    choice:     of plan and sampler
    """

    called: str
    run: str
    command: str = ""
    iterations: int = 0
    choice: Choice = Choice()


@dataclass(frozen=True)
class Study:
    """name: of its folders; judges: of the images that a model was trained on; precision: of training and drawing;
    count: images of a model, where nothing is said.
    """

    name: str
    lines: dict[str, Line]
    judges: Judges
    precision: Literal["auto", "float32"] = "auto"
    count: int = COUNT

    def file_of(self, name: str) -> Path:
        return RESULTS / self.name / f"{name}.json"

    def run_of(self, name: str) -> Path:
        return ROOT / self.lines[name].run

    def run(self, name: str, count: int) -> None:
        """Train a model to its end, and measure it, unless its results are there.

        Raises ValueError for results of another number of images.
        """
        file, line = self.file_of(name), self.lines[name]
        if file.exists():
            if (kept := json.loads(file.read_text())["count"]) != count:
                raise ValueError(f"{file} is of {kept} images, not of {count}: delete it to measure anew")
            return
        if line.command:
            how = ["--fit.iterations", str(line.iterations), "--fit.precision", self.precision, "--out", line.run]
            dualrate([*shlex.split(line.command), *how])
        progress = reporter()
        model = dr.load(self.run_of(name), note=progress.note)
        drawer = replace(line.choice.drawer(model), precision=self.precision)
        scores = self.scores(drawer, name, count, progress)
        keep(
            file,
            1,
            weights=model.weights_hash,
            steps=drawer.plan.num_steps,
            sampler=str(drawer.sampler),
            macs=drawer.cost.macs,
            count=count,
            scores=scores,
        )
        progress.close()

    def scores(self, drawer: Drawer, name: str, count: int, progress: Reporter) -> Scores:
        """Of the first `count` images that a line's model draws."""
        judges = self.judges(drawer.model.experiment.data, progress)
        kept = RUNS / self.name / f"{name}.features"
        kept.parent.mkdir(parents=True, exist_ok=True)
        row = measure(drawer, range(count), *judges, keep=kept, progress=image_progress(progress)).row
        scores = {judge.metric: row.judged_by(judge.metric).score for judge in judges}
        return {metric: (score.value, score.low, score.high) for metric, score in scores.items()}

    def results(self, names: Iterable[str]) -> Found:
        """What has been measured of these, by name, in the order of `lines`."""
        files = {name: self.file_of(name) for name in self.lines if name in set(names)}
        return {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}

    def table(self, found: Found) -> str:
        """Markdown: a line for each model, those of one name together."""
        metrics = list(next(iter(found.values()))["scores"])
        made = [
            [called, str(steps), f"{2 * one['macs'] / 1e9:.3g}", *(within(one["scores"][metric]) for metric in metrics)]
            for called, by_steps in self.by_name(found).items()
            for steps, one in sorted(by_steps.items())
        ]
        return markdown(["model", "steps", "GFLOPs", *metrics], made, texts=1)

    def figure(self, found: Found, cost: str = "steps") -> Figure:
        """Score by every judge against cost, "steps" or "GFLOPs", both in logarithms, with 95% intervals."""
        metrics = list(next(iter(found.values()))["scores"])
        made = Figure(figsize=(11, 4.2), layout="constrained")
        for axes, metric in zip(made.subplots(1, len(metrics)), metrics, strict=True):
            for i, (called, by_steps) in enumerate(self.by_name(found).items()):
                color, marker = mark(i)
                steps = sorted(by_steps)
                value, low, high = (np.array([by_steps[n]["scores"][metric][of] for n in steps]) for of in range(3))
                errors = (value - low, high - value)
                x = steps if cost == "steps" else [2 * by_steps[n]["macs"] / 1e9 for n in steps]
                axes.errorbar(x, value, errors, color=color, marker=marker, capsize=3, label=called)
            log_axis(axes, "x")
            log_axis(axes, "y")
            axes.set(xlabel=cost, title=metric)
            if cost == "steps":
                axes.set_xticks(ticks := sorted({one["steps"] for one in found.values()}), ticks)
                axes.xaxis.set_minor_locator(NullLocator())
            axes.grid(color=INK, alpha=0.12)
        handles, labels = made.axes[0].get_legend_handles_labels()
        made.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)
        return made

    def is_here(self, name: str) -> bool:
        """Whether its model is, not its results alone."""
        return (self.run_of(name) / "experiment.json").exists()

    def picture(self, names: Sequence[str], scale: int) -> None:
        """A row of the first SHOWN images of each, of the same noise, unless a model is missing."""
        if missing := [name for name in names if not self.is_here(name)]:
            print(f"no new images: these models are not here: {', '.join(missing)}")
            return
        drawers = [self.lines[name].choice.drawer(dr.load(self.run_of(name))) for name in names]
        images = np.concatenate([drawer.draw(range(SHOWN)).images for drawer in drawers])
        save_grid(images, RESULTS / f"{self.name}-samples.png", columns=SHOWN, scale=scale)
        print("a row of images each:", *names)

    def command(self, doc: str | None, pages: Callable[[], None]) -> None:
        """The study as a command: names, which it trains and measures in turn; none: its pages."""
        parser = command(doc)
        parser.add_argument("names", nargs="*", choices=[*self.lines, []], help="models; none: tables and figures")
        parser.add_argument("--count", type=int, default=self.count)
        options = parser.parse_args()
        on_one_thread()
        for name in options.names:
            self.run(name, options.count)
        if not options.names:
            pages()

    def by_name(self, found: Found) -> dict[str, dict[int, dict[str, Any]]]:
        """What has been measured, by what the rows are called and by steps."""
        made: dict[str, dict[int, dict[str, Any]]] = {}
        for name, one in found.items():
            made.setdefault(self.lines[name].called, {})[one["steps"]] = one
        return made
