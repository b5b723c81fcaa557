"""The demo's page, made of what the demo measured and of nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dualrate.demo.turns import ROUND, MeasuredPlan
from dualrate.experiment.experiment import Model
from dualrate.metrics.evaluate import Evaluator
from dualrate.report import table as headline
from dualrate.report.figures import loss_figure, quality_figure
from dualrate.report.html import Drawing, Element, Facts, Gallery, Picture, Points, Section, Text, page
from dualrate.report.image_grid import image_grid
from dualrate.report.rows import Row
from dualrate.report.table import Table, floor_note, significant, table
from dualrate.system.environment import environment
from dualrate.system.progress import duration

COLUMNS = 10
SINGLE = ("heavy", "medium", "small", "light alone")
ENCODER = "medium"  # the network that dual-rate calls now and then, at every step
MODELS = (
    "Dual-rate is a network of medium's size and a light one, trained together. Heavy, medium, small and light alone "
    "are single networks of 1, 0.45, 0.25 and 0.17 of heavy's cost, trained as long. Each is under the sampler that "
    "suits it best."
)
PLANS = "32/8: 32 steps, 8 of them with a heavy call; 32 alone: the whole model at every step."


@dataclass(frozen=True)
class SmallRun:
    """The model trained by the demo: images of seeds 0, 1, ..., seconds of training, (images seen, loss)."""

    model: Model
    images: np.ndarray
    seconds: float
    losses: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class DemoResults:
    """real: held-out images, classes as in the grids; missing: names of weights that were not there.

    left: plans that there was no time for
    """

    measured: Sequence[MeasuredPlan]
    real: np.ndarray
    small: SmallRun
    models: Mapping[str, Model]
    missing: Sequence[str]
    left: Sequence[str]
    judge: Evaluator

    @property
    def rows(self) -> list[Row]:
        return [one.row for one in self.measured]


def demo_page(results: DemoResults) -> str:
    return page(
        "Dual-rate diffusion, measured on this machine",
        [
            Section("", _headline(results)),
            Section("Samples from the same seeds", _samples(results)),
            Section("Every plan", [table(results.rows)]),
            Section("Quality against compute", _figures(results.rows)),
            Section(f"After {_minutes(results.small.seconds)} of training", _small(results.small)),
            Section("How it was measured", _method(results)),
        ],
    )


def _headline(results: DemoResults) -> list[Element]:
    """Dual-rate against the best of all single networks, and against its encoder alone."""
    rows = results.rows
    dual, encoder, singles = (
        [row for row in rows if row.network in networks] for networks in (["dual-rate"], [ENCODER], SINGLE)
    )
    pairs = [(row, rival) for row in dual if (rival := headline.best_within(row, singles))]
    if pairs:
        of_encoder = [(row, headline.nearest(row, encoder)) for row in dual if encoder]
        points = list(dict.fromkeys(headline.compare(*pair).sentence for pair in [*pairs, *of_encoder]))
        elements = [Text(_lead(pairs), "lead"), Text(MODELS, "note"), Points(points)]
    else:
        elements = [Text(PLANS), Points([headline.describe(row) for row in rows])]
    return [*elements, *_missing(results), *_left(results), Text(_reading(rows), "note")]


def _lead(pairs: Sequence[tuple[Row, Row]]) -> str:
    """How often a plan beats its rival, and the first pair in full: first in an order older than the scores."""
    row, rival = pairs[0]
    score = row.score
    return (
        f"Dual-rate against the best single network of no higher cost, {score.fingerprint.count} images each: "
        f"{headline.tally(pairs)}. With {row.num_steps} steps and {row.num_heavy} heavy calls (below: "
        f"{headline.plan_of(row)}) it has {score.metric} {headline.scored(row)} at {headline.costs(row)} an image; "
        f"{rival.network}, one network called at each of {rival.num_steps} steps (below: {headline.plan_of(rival)}), "
        f"has {headline.scored(rival)} at {headline.costs(rival)}."
    )


def _missing(results: DemoResults) -> list[Element]:
    if not results.missing:
        return []
    instead = "" if results.models else " The small model that this demo trained was measured instead."
    return [Text(f"Weights not found, so not measured: {', '.join(results.missing)}.{instead}")]


def _left(results: DemoResults) -> list[Element]:
    if not results.left:
        return []
    return [Text(f"Not measured, for lack of time on this machine: {', '.join(results.left)}.")]


def _reading(rows: Sequence[Row]) -> str:
    score = rows[0].score
    return (
        f"{score.metric} is the Frechet distance to the training images in the features of a small classifier: lower "
        f"is better, and it is not FID. {headline.capital(floor_note(score))}. Brackets are {100 * score.level:.0f}% "
        "intervals; a win is claimed only where they do not overlap and the cost is no higher, which is: at most "
        f"{headline.COMPARABLE:g} times the other's."
    )


def _samples(results: DemoResults) -> list[Element]:
    pictures = [
        Picture(
            _grid(one.images),
            f"{headline.name(one.row)} · {one.row.score.metric} {significant(one.row.score.value)}",
        )
        for one in sorted(results.measured, key=lambda one: one.row.macs)
    ]
    return [
        Text("The same place in every grid is the same seed and the same class; they are the first seeds, not chosen."),
        Gallery([*pictures, Picture(_grid(results.real), "real held-out images of these classes")]),
    ]


def _figures(rows: Sequence[Row]) -> list[Element]:
    labels = "Labels are N/H: steps, and heavy calls among them; N alone: the whole model at every step."
    return [
        Drawing(quality_figure(rows, "flops"), f"Counted: matrix products and convolutions. {labels}"),
        Drawing(quality_figure(rows, "seconds"), "Measured here, the plans taking turns: medians over the rounds."),
    ]


def _small(small: SmallRun) -> list[Element]:
    losses: list[Element] = []
    if len(small.losses) > 1:
        losses = [Drawing(loss_figure(small.losses, "images seen"), "Training loss of both networks together.")]
    fit = small.model.experiment.fit
    text = (
        f"This demo trained a small dual-rate model itself: {small.model.iteration} iterations of {fit.batch_size} "
        f"images in {duration(small.seconds)}. Its samples, 32 steps with 8 heavy calls:"
    )
    return [Text(text), Gallery([Picture(_grid(small.images), "averaged weights, seeds as above")]), *losses]


def _method(results: DemoResults) -> list[Element]:
    card, fingerprint = results.judge.net.card, results.rows[0].score.fingerprint
    accuracy = "" if card.accuracy is None else f", {100 * card.accuracy:.1f}% right on the test images"
    facts = {
        **environment(),
        "feature net": f"{card.name} {card.identity[:12]}{accuracy}",
        "reference": f"{fingerprint.reference_count} images of {fingerprint.reference}",
        "seeds, labels": f"{fingerprint.seeds}, {fingerprint.labels}",
        "fingerprint": fingerprint.short(),
    }
    text = (
        f"Every plan drew {fingerprint.count} images from the same seeds and labels, without guidance, {ROUND} at a "
        "time, in turns. Milliseconds are wall time, the median over the rounds: other programs on the machine show in "
        "them, in those of all plans alike; FLOPs do not depend on the machine."
    )
    return [Text(text), Facts(list(facts.items())), _models(results)]


def _models(results: DemoResults) -> Table:
    models = {**results.models, "trained in this run": results.small.model}
    header = ("model", "weights", "iterations", "parameters", "MMACs, heavy call", "MMACs, light call")
    return Table(header, tuple(_model(name, model) for name, model in models.items()), ())


def _model(name: str, model: Model) -> tuple[str, ...]:
    cost = model.call_cost
    parameters = sum(model.parameters.values())
    heavy, light = (f"{macs / 1e6:.1f}" if macs else "-" for macs in (cost.heavy, cost.light))
    return name, model.weights_hash[:12], str(model.iteration), f"{parameters:,}", heavy, light


def _grid(images: np.ndarray) -> np.ndarray:
    return image_grid(images, COLUMNS, gap=1)


def _minutes(seconds: float) -> str:
    minutes = seconds / 60
    return f"{minutes:.0f} minutes" if round(minutes) > 1 else f"{seconds:.0f} seconds"
