"""The demo's page, made of what the demo measured and of nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dualrate.cost import call_cost
from dualrate.metrics.evaluate import Evaluator
from dualrate.report import headline
from dualrate.report.figures import loss_figure, quality_figure
from dualrate.report.grid import grid
from dualrate.report.html import Block, Drawing, Facts, Gallery, Picture, Points, Section, Text, page
from dualrate.report.rows import Row
from dualrate.report.table import Table, floor_note, significant, table
from dualrate.runs.environment import environment
from dualrate.runs.store import Model
from dualrate.training.log import duration

COLUMNS = 10


@dataclass(frozen=True)
class Column:
    """A measured row and its first images, (n, C, H, W) uint8, those of seeds 0, 1, ..."""

    row: Row
    images: np.ndarray


@dataclass(frozen=True)
class SmallRun:
    """The model trained by the demo: images of seeds 0, 1, ..., seconds of training, (images seen, loss)."""

    model: Model
    images: np.ndarray
    seconds: float
    losses: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Findings:
    """real: held-out images, classes as in the grids; missing: names of weights that were not there."""

    columns: Sequence[Column]
    real: np.ndarray
    small: SmallRun
    models: Mapping[str, Model]
    missing: Sequence[str]
    judge: Evaluator

    @property
    def rows(self) -> list[Row]:
        return [column.row for column in self.columns]


def demo_page(findings: Findings) -> str:
    return page(
        "Dual-rate diffusion, measured on this machine",
        [
            Section("", _headline(findings)),
            Section("Samples from the same seeds", _samples(findings)),
            Section("Every plan", [table(findings.rows)]),
            Section("Quality against compute", _figures(findings.rows)),
            Section(f"After {_minutes(findings.small.seconds)} of training", _small(findings.small)),
            Section("How it was measured", _method(findings)),
        ],
    )


def _headline(findings: Findings) -> list[Block]:
    """At the most similar cost first; then every dual-rate plan against the heavy one of the most similar cost."""
    rows = findings.rows
    heavy, dual, light = (
        [row for row in rows if row.network == network] for network in ("heavy", "dual-rate", "light alone")
    )
    blocks: list[Block] = []
    if heavy and dual:
        first = headline.closest_pair(dual, heavy)
        others = [headline.compare(row, headline.nearest(row, heavy)) for row in dual]
        others += [headline.closest_pair(dual, light)] if light else []
        blocks.append(Text(f"At the most similar cost, {first.long}", "lead"))
        blocks.append(Points([other.short for other in others if other != first]))
    else:
        blocks.append(Points([headline.describe(row) for row in rows]))
    return [*blocks, *_missing(findings), Text(_reading(rows), "note")]


def _missing(findings: Findings) -> list[Block]:
    if not findings.missing:
        return []
    instead = "" if findings.models else " The small model that this demo trained was measured instead."
    return [Text(f"Weights not found, so not measured: {', '.join(findings.missing)}.{instead}")]


def _reading(rows: Sequence[Row]) -> str:
    score = rows[0].score
    return (
        f"{score.metric} is the Frechet distance to the training images in the features of a small classifier: lower "
        f"is better, and it is not FID. {headline.capital(floor_note(rows))}. Brackets are {100 * score.level:.0f}% "
        "intervals; a win is claimed only where they are apart and the cost is at most "
        f"{headline.COMPARABLE:g} times the other's."
    )


def _samples(findings: Findings) -> list[Block]:
    pictures = [
        Picture(
            _grid(column.images),
            f"{headline.name(column.row)} · {column.row.score.metric} {significant(column.row.score.value)}",
        )
        for column in findings.columns
    ]
    return [
        Text("The same place in every grid is the same seed and the same class; they are the first seeds, not chosen."),
        Gallery([*pictures, Picture(_grid(findings.real), "real held-out images of these classes")]),
    ]


def _figures(rows: Sequence[Row]) -> list[Block]:
    labels = "Labels are N/H: steps, and heavy calls among them; N alone: the whole model at every step."
    return [
        Drawing(quality_figure(rows, "flops"), f"Counted: matrix products and convolutions. {labels}"),
        Drawing(quality_figure(rows, "seconds"), "Measured in this run, one plan after the other."),
    ]


def _small(small: SmallRun) -> list[Block]:
    losses: list[Block] = []
    if len(small.losses) > 1:
        losses = [Drawing(loss_figure(small.losses, "images seen"), "Training loss of both networks together.")]
    fit = small.model.experiment.fit
    text = (
        f"This demo trained a small dual-rate model itself: {small.model.iteration} iterations of {fit.batch_size} "
        f"images in {duration(small.seconds)}. Its samples, 32 steps with 8 heavy calls:"
    )
    return [Text(text), Gallery([Picture(_grid(small.images), "averaged weights, seeds as above")]), *losses]


def _method(findings: Findings) -> list[Block]:
    card, fingerprint = findings.judge.net.card, findings.rows[0].score.fingerprint
    accuracy = "" if card.accuracy is None else f", {100 * card.accuracy:.1f}% right on the test images"
    facts = {
        **environment(),
        "feature net": f"{card.name} {card.identity[:12]}{accuracy}",
        "reference": f"{fingerprint.reference_count} images of {fingerprint.reference}",
        "seeds, labels": f"{fingerprint.seeds}, {fingerprint.labels}",
        "fingerprint": fingerprint.short(),
    }
    text = (
        f"Every plan drew {fingerprint.count} images from the same seeds and labels, without guidance. Seconds are "
        "wall time, so other programs on the machine show in them; FLOPs do not depend on the machine."
    )
    return [Text(text), Facts(list(facts.items())), _models(findings)]


def _models(findings: Findings) -> Table:
    models = {**findings.models, "trained in this run": findings.small.model}
    header = ("model", "weights", "iterations", "parameters", "MMACs, heavy call", "MMACs, light call")
    return Table(header, tuple(_model(name, model) for name, model in models.items()), ())


def _model(name: str, model: Model) -> tuple[str, ...]:
    cost = call_cost(model.denoiser, model.shape, 0 if model.num_classes else None)
    parameters = sum(model.parameters.values())
    heavy, light = (f"{macs / 1e6:.1f}" if macs else "-" for macs in (cost.heavy, cost.light))
    return name, model.weights_hash[:12], str(model.iteration), f"{parameters:,}", heavy, light


def _grid(images: np.ndarray) -> np.ndarray:
    return grid(images, COLUMNS, gap=1)


def _minutes(seconds: float) -> str:
    minutes = seconds / 60
    return f"{minutes:.0f} minutes" if round(minutes) > 1 else f"{seconds:.0f} seconds"
