"""`dualrate demo`: an ensemble forecast, images and a training, in minutes, on one page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Annotated, Any

from dualrate.comparison.candidates import RunRequest
from dualrate.comparison.compare import compare
from dualrate.comparison.results import COLUMNS, ComparisonResults, verdict
from dualrate.config.ranges import Minutes, Range, Ranged
from dualrate.drawing.choice import Choice, sample
from dualrate.drawing.cost import drawing_bytes
from dualrate.drawing.evaluators import messages
from dualrate.forecasts.folder import shown
from dualrate.forecasts.forecast import forecast
from dualrate.forecasts.model import forecast_of
from dualrate.forecasts.pictures import lines_figure
from dualrate.options.console import command_line, reporter
from dualrate.recipes import fashion_mnist
from dualrate.report.figures import svg
from dualrate.report.html import page
from dualrate.report.image_grid import image_grid
from dualrate.report.table import Table, scored, significant, with_article
from dualrate.runs.store import EXPERIMENT, load
from dualrate.runs.train import train
from dualrate.system.files import write_whole
from dualrate.system.progress import Reporter

Plan = tuple[str, str, str]  # a name, a directory of weights, a plan
FORECASTS: tuple[Plan, ...] = tuple(  # the pair, then single networks at its score and at its cost
    (name, f"kuramoto-sivashinsky-{weights}", steps)
    for name, weights, steps in (
        ("pair", "dual", "4"), ("large", "large", "8"), ("large", "large", "16"), ("large", "large", "4"),
        ("pair", "dual", "8"), ("large", "large", "2"), ("pair", "dual", "2"),
    )
)  # fmt: skip
IMAGES: tuple[Plan, ...] = (  # each network's main plan first, which are measured before all others
    ("pair", "fashion-mnist-dual-45", "16/4"),
    ("small", "fashion-mnist-medium-25", "16"),
    ("medium", "fashion-mnist-medium-45", "9"),
    ("pair", "fashion-mnist-dual-45", "8/2"),
    ("small", "fashion-mnist-medium-25", "8"),
    ("pair", "fashion-mnist-dual-45", "32/8"),
    ("large", "fashion-mnist-heavy-annealed", "8"),
    ("light", "fashion-mnist-light", "11"),
)
MEMBERS, STARTS = 16, 256  # of the forecasts
FEWEST = 192  # images of a plan: twice the features of the network that scores them
QUICK = 3  # plans of a part of a quick demo
MEASURING = 4  # minutes of images at most: a slow or busy machine measures fewer plans, and the same command continues
PICTURES, ROW = 40, 10  # of the model that is trained here
IDEA = (
    "A diffusion model makes a sample in many steps, and calls a large network in each. A pair of networks can share "
    "that work: a heavy one is called now and then, a light one at every step. Here is where that pays, and where not."
)
MEASURED = "It is being measured: this page is written anew after each part."
EXPECTED = (
    "A quiet core makes 400 to 600 iterations in two minutes: clothes are recognisable then, and some are torn or "
    "shapeless. Here there were {}. The networks above trained for two hours."
)


@dataclass(frozen=True)
class Section:
    """A part of the page. drawings: SVG and caption; gallery: pixels and caption; table: a `Table`; details: a page."""

    title: str
    lead: str
    text: Sequence[str] = ()
    drawings: Sequence[tuple[str, str]] = ()
    gallery: Sequence[tuple[Any, str]] = ()
    table: Any = None
    details: str = ""


@dataclass(frozen=True)
class Demo(Ranged):
    """Two rates at work: an ensemble forecast, images beside single networks, and a training of two minutes."""

    quick: bool = False
    """A first look, in a few minutes: fewer plans, forecasts and images, and a training of 20 seconds."""
    out: Path | None = None
    """Directory for the page, report.html, and the trained model's run. The same command continues there. Default:
    demo, or with --quick demo/quick."""
    weights: Path = Path("weights")
    """Directory of the released weights; those that are missing are left out."""
    minutes: Minutes | None = None
    """Minutes of training. Default: 2, or with --quick a third of one."""
    count: Annotated[int, Range(FEWEST, 10_000_000)] | None = None
    """Images per plan, 192 or more, which their score needs. Default: 1000, or with --quick 192."""

    @property
    def place(self) -> Path:
        """Directory of the page."""
        return self.out or Path("demo", *["quick"] * self.quick)

    @property
    def num_images(self) -> int:
        return self.count or (FEWEST if self.quick else 1000)

    def run(self) -> None:
        progress, report, sections = reporter(), self.place / "report.html", {}
        self.place.mkdir(parents=True, exist_ok=True)
        anew = not report.exists()  # else the earlier one stays until this is whole
        parts = self._forecasts(progress), self._images(progress), self._training(progress)
        for section in chain(*(islice(part, 1) for part in parts), *parts):  # all pictures before what takes long
            sections[section.title] = section
            if anew:
                self._write(report, sections)
        self._write(report, sections)
        for section in sections.values():
            print(f"{section.title}. {section.lead}\n")
        print(report)

    def _write(self, report: Path, sections: Mapping[str, Section]) -> None:
        content = page("demo.html", title="dualrate at work", idea=IDEA, sections=[*sections.values()])
        write_whole(report, content)

    def _requests(self, plans: Sequence[Plan], progress: Reporter) -> list[str]:
        """The requests to `compare`, of the weights that are there."""
        plans = plans[: QUICK if self.quick else None]
        present = {name for _, name, _ in plans if (self.weights / name / EXPERIMENT).is_file()}
        if missing := sorted({name for _, name, _ in plans} - present):
            progress.note(f"weights not found, so not measured: {', '.join(missing)}")
        return [f"{name}={self.weights / model}:{plan}" for name, model, plan in plans if model in present]

    def _forecasts(self, progress: Reporter) -> Iterator[Section]:
        """A picture of an ensemble by two rates from its first start; then that, beside single networks."""
        requests = self._requests(FORECASTS, progress)
        if not (self.weights / FORECASTS[0][1]).is_dir():  # the pair, which the section is of
            return
        _, name, steps = FORECASTS[0]
        model = load(self.weights / name, note=progress.note)
        frames = forecast_of(model).frames
        drawn = forecast(model, 1, frames=frames, members=MEMBERS, choice=Choice(steps=int(steps)), note=progress.note)
        figure = lines_figure(shown(drawn.ensemble, drawn.truth, drawn.written.record, forecast_of(model), MEMBERS))
        title = "A forecast with many members"
        drawings = [
            (svg(figure), f"{MEMBERS} members by two rates, and what came, from the first start that was held out.")
        ]
        yield Section(title, MEASURED, drawings=drawings)
        count = min(STARTS, 32) if self.quick else STARTS
        results = compare(
            requests, self.place / "forecasts.html", members=MEMBERS, count=count, progress=progress,
            command=command_line(),
        )  # fmt: skip
        first, *rest = verdict(results)
        memory, weights = memory_of(results)
        yield Section(
            title,
            first,
            [
                " ".join(rest),
                "A chaotic wave. Its past is known at every fourth point, with noise, so the future is open: the "
                "members show what can come. The pair reads the past once, with its heavy network, and draws all "
                "members with the light one. CRPS is how far the members are from the truth: less is better.",
                f"Memory is what all tensors take together at most, while the {MEMBERS} members of one start are "
                f"drawn, counted here. The weights come on top: {weights}.",
            ],
            drawings,
            table=short_table(results, memory),
            details="forecasts.html",
        )

    def _images(self, progress: Reporter) -> Iterator[Section]:
        """Images by two rates; then some beside those of single networks."""
        requests = self._requests(IMAGES, progress)
        if not requests:
            return
        yield self._first_images(requests[0])
        results = compare(
            requests, self.place / "images.html", minutes=MEASURING, screen=self.num_images, count=self.num_images,
            progress=progress, command=command_line(),
        )  # fmt: skip
        first, *rest = verdict(results)
        both = results.dual_rate, results.baselines
        sides = [min(side, key=lambda measured: measured.row.score.value) for side in both if side]
        yield Section(
            "Images",
            first,
            [
                " ".join(rest),
                "Small pictures of clothes. The pair runs its heavy network at some of the steps, and the light "
                "one at all. FD is the distance between drawn and real images: less is better.",
                *results.unfinished,
            ],
            gallery=[
                (image_grid(side.images, COLUMNS), f"{side.row.network} in {side.row.num_steps} steps")
                for side in sides
                if len(side.images)
            ],
            table=short_table(results),
            details="images.html",
        )

    def _first_images(self, request: str) -> Section:
        first = RunRequest.parse(request)
        images = first.choice.drawer(load(first.run)).draw(range(PICTURES)).images
        says = f"{first.network} in {first.choice.steps} steps"
        return Section("Images", MEASURED, gallery=[(image_grid(images, ROW), says)])

    def _training(self, progress: Reporter) -> Iterator[Section]:
        """A word on a training of some minutes; then what it draws. Raises KeyboardInterrupt where that is stopped."""
        seconds = 60 * (self.minutes or (1 / 3 if self.quick else 2))
        long = f"{seconds:.3g} seconds" if seconds < 60 else f"{seconds / 60:g} minute{'s' * (seconds > 60)}"
        title, run = f"Trained here, in {long}", self.place / f"run-{seconds:g}s"  # a run cannot be prolonged
        yield Section(title, "A small network, trained from nothing when all else is measured.")
        progress.note(f"training a small network for {long} in {run}")
        with closing(progress):
            trained = train(fashion_mnist.first(seconds), run, progress=progress, decoding=messages(progress.note))
        if trained.stopped == "signal":
            raise KeyboardInterrupt(f"training interrupted and saved in {run}; the same command continues it")
        images = sample(load(run), PICTURES, steps=16)
        yield Section(
            title,
            "A small network, trained from nothing. Each column is a kind of clothes.",
            [EXPECTED.format(trained.iteration)],
            gallery=[(image_grid(images, ROW), f"{PICTURES} images in 16 steps, one network at every step")],
        )


def memory_of(results: ComparisonResults) -> tuple[dict[str, float], str]:
    """MB of the tensors by which each plan draws the members of one start, by its key; those of weights, in words."""
    models = {measured.candidate.network: load(measured.candidate.run) for measured in results.scored}
    memory = {}
    for measured in results.scored:
        drawer = measured.candidate.drawer(models[measured.candidate.network])
        memory[measured.candidate.key] = drawing_bytes(replace(drawer, members=MEMBERS, batch_size=MEMBERS)) / 1e6
    sizes = {
        name: sum(weight.numel() * weight.element_size() for weight in model.networks.parameters()) / 1e6
        for name, model in models.items()
    }
    return memory, ", ".join(f"{name} {significant(size)} MB" for name, size in sizes.items())


def short_table(results: ComparisonResults, memory: Mapping[str, float] | None = None) -> Table:
    """The columns that need no explanation, the best score first. memory: a column, MB by a candidate's key"""
    best_first = sorted(results.scored, key=lambda measured: measured.row.score.value)
    noun = results.yardstick.noun
    columns = {
        "network": lambda row: row.network,
        "steps (heavy)": lambda row: f"{row.num_steps} ({row.num_heavy})",
        best_first[0].row.score.metric: lambda row: scored(row.score),
        "million multiply-adds": lambda row: significant(row.macs / 1e6),
        f"ms {with_article(noun)}": lambda row: significant(1000 * row.seconds_per_image),
    }
    cells = [tuple(cell(measured.row) for cell in columns.values()) for measured in best_first]
    header = tuple(columns)
    if memory is not None:
        header = (*header, f"MB for {MEMBERS} members")
        cells = [(*line, significant(memory[each.candidate.key])) for line, each in zip(cells, best_first, strict=True)]
    return Table(header, tuple(cells), ("Brackets: 95% intervals.",), texts=1)
