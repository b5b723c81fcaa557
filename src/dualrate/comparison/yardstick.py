"""Measuring of candidates, and the columns and figures that their rows get: for images, and where a wing overrides it.

A comparison has one `Yardstick`, which the modality of its models names (experiment/modality.py). The loop that spends
the minutes, and continues after a kill, is comparison.py's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dualrate.comparison.rows import MeasuredCandidate
from dualrate.config.ranges import GuidanceWeight, Images, Members, Minutes, Precision, Ranged
from dualrate.drawing.drawer import Drawer
from dualrate.drawing.evaluators import evaluators
from dualrate.drawing.measure import Measurement, check, drawn_alike, measure, scored_together, stores
from dualrate.drawing.samples import strips
from dualrate.experiment.experiment import Experiment
from dualrate.experiment.modality import maker_of
from dualrate.experiment.model import Model
from dualrate.metrics.evaluate import RESAMPLING_SEED, Evaluator
from dualrate.report.figures import ranks_figure
from dualrate.report.image_grid import side_by_side
from dualrate.sampling.cost import CallCost
from dualrate.system.progress import ImageProgress, Reporter
from dualrate.system.workers import Mapper, in_turn, mapper, share_of_time

SCREENED, COUNTED = 1000, 5000  # images of a candidate, at first and on the front
SCREEN_SEED = 1_000_000  # of the first image of a screening; a final score starts at 0
INCREMENT = 250  # images by which a candidate has fewer, where time is short
DATA = "training data"


@dataclass(frozen=True)
class Terms(Ranged):
    """Terms of a comparison."""

    minutes: Minutes = 60
    """Minutes of measuring. Run the same command again to do the rest."""
    screen: Images | None = None
    """Images per plan in the first round, which compares the usual plans. Default: 1000, or --count if that is less."""
    count: Images | None = None
    """Images per plan, for the best plans (Pareto front). Default: 5000; for forecasts 50 starts."""
    features: str | Path | None = None
    """Metrics, separated by commas: names of shipped feature networks, inception, efficientnet, or directories.
    The first one screens and orders. Default: the data set's own."""
    mixed: bool = False
    """Allow runs trained on other data than the first. All are then scored against the first run's images."""
    baselines: bool = False
    """Also evaluate training-free baselines of the most expensive single network: caches (DeepCache, FORA, TaylorSeer,
    ToCa, DuCa), and each lighter network of this command for its first steps (RUN+LIGHT)."""
    precision: Precision = "auto"
    """Precision of the networks; auto: bfloat16 where it pays. Compare rows only at one precision."""
    guidance: GuidanceWeight = 1.0
    """Classifier-free guidance weight of all models that can be guided; students have their own."""
    members: Members = 1
    """Samples of each condition. They share a heavy call, and are scored together."""
    equal_classes: bool = False
    """Draw every class equally often, not by its share in the training images."""


class Yardstick:
    """Images, as far as nothing is overridden; a class of it tells the columns of rows that were measured before.

    noun, unit: what one sample is called; what is counted while samples are drawn
    keeps:      whether what is drawn is of use once its row is kept
    screen, count: samples of a candidate, at first (0: none) and on the front
    """

    noun, unit, keeps = "image", "images", True

    def __init__(self, models: Sequence[Model], terms: Terms, progress: Reporter) -> None:
        """Raises ValueError for terms and models that do not fit together."""
        self.models, self.terms, self.progress = models, terms, progress
        self.device, self.noun = models[0].device, models[0].experiment.noun
        self.count = terms.count or COUNTED
        self.screen = terms.screen or min(SCREENED, self.count)
        self.mapper: Mapper = in_turn
        self.evaluators: Sequence[Evaluator[Any]] = ()
        if self.screen > self.count:
            raise ValueError(
                f"got {self.screen} images to screen and {self.count} on the front: screen on no more than are on it"
            )
        check_alike([model.experiment for model in models], mixed=terms.mixed)

    def prepare(self) -> None:
        """Find what scores, which may be trained first, and the processes that draw.

        Raises ValueError for samples that could not be scored.
        """
        configs = [model.experiment.data for model in self.models]
        data = next((config for config in configs if config.source), configs[0])  # a folder of diffusers has no source
        features, least = self.terms.features, self.count if self.terms.features else self.screen
        self.evaluators = evaluators(data, features, device=self.device, progress=self.progress, count=least)
        check(self.evaluators[:1], self.screen, details=False)
        check(self.evaluators, self.count, details=True)
        self.mapper = mapper(self.device)

    def see_real(self) -> None:
        """Take the real images' features by every metric, once."""
        for evaluator in self.evaluators:
            if evaluator.reference is not None:
                count = len(evaluator.reference_images)
                self.progress.note(f"{evaluator.metric}: features of the {count} images to compare with")
            evaluator.prepare(self.mapper)
            self.progress.close()  # the next one has its own rate

    def evaluators_of(self, seeds: range) -> Sequence[Evaluator[Any]]:
        """All of them for the front, the first alone for a screening."""
        return self.evaluators if seeds.start < SCREEN_SEED else self.evaluators[:1]

    def as_measured(self, drawer: Drawer) -> Drawer:
        """The drawer as it is measured."""
        return drawn_alike(drawer, self.evaluators)

    def origin(self, drawer: Drawer) -> str:
        """Name of what is drawn: another one for whatever is drawn otherwise."""
        return drawer.origin(self.evaluators[0].net.identity).digest

    def identity(self, drawer: Drawer, seeds: range) -> list[object]:
        """All that decides the row of these seeds."""
        content: list[object] = [RESAMPLING_SEED, drawer.expected_cost.macs]
        content += [drawer.members] if drawer.members > 1 else []
        for metric in self.evaluators_of(seeds):
            real = (metric.reference, metric.held_out)
            content.append(drawer.origin(metric.net.identity).json())
            content += [images.fingerprint if images else "" for images in real]
        return content

    def counts(self, first: int, most: int) -> list[int]:
        """Numbers of samples that a candidate may have where time is short, the largest first."""
        fewest = 2 * max(evaluator.net.dim for evaluator in self.evaluators_of(range(first, first + most)))
        return [most, *reversed([n for n in range(INCREMENT, most, INCREMENT) if n >= fewest])]

    def seconds(self, drawer: Drawer, seeds: range, place: Path, calls: CallCost) -> float:
        """Estimate of the time to draw what the place lacks of these seeds. calls: seconds of a call"""
        missing = set(seeds)
        if place.exists():
            nets = [evaluator.net for evaluator in self.evaluators_of(seeds)]
            missing = set().union(*(store.missing(seeds) for store in stores(drawer, nets, place)))
        images = len(missing)
        if seeds.start < SCREEN_SEED:  # all members of some
            images += (drawer.members - 1) * len(scored_together(drawer, seeds))
        return drawer.expected_cost.total(calls) * images * share_of_time(self.device)

    def measure(self, drawer: Drawer, seeds: range, place: Path, progress: ImageProgress) -> Measurement:
        """Draw samples of these seeds and score them; a place that a killed call left is continued.

        progress: called with what is drawn, in `unit`, and all of it; it may raise `OutOfTime`
        """
        on_front = seeds.start < SCREEN_SEED
        how = {"details": on_front, "ensemble": on_front, "progress": progress, "mapper": self.mapper}
        return measure(drawer, seeds, *self.evaluators_of(seeds), keep=place, **how)

    def draw(self, drawer: Drawer, count: int) -> float:
        """Seconds of networks and sampler for the members of so many seeds, drawn now."""
        return drawer.draw(range(count)).seconds

    def samples(self, drawer: Drawer, count: int) -> dict[str, Any]:
        """Fields of a `MeasuredCandidate` that show the first samples."""
        images, columns = strips(drawer, range(count), drawer.draw(range(count)).images)
        experiment, frames = drawer.model.experiment, drawer.model.experiment.networks.frames
        passage = maker_of(experiment).passage(experiment, images)
        columns = columns or (1 if frames > 1 else None)
        return {"images": side_by_side(images, frames), "columns": columns, "passage": passage}

    @staticmethod
    def columns(measured: MeasuredCandidate) -> dict[str, str]:
        """Cells of a row by the names of columns that only such rows have."""
        columns = {}
        if (ensemble := measured.row.ensemble) is not None:
            crps, energy, *_ = ensemble.errors
            columns |= {
                "M": str(ensemble.members),
                "CRPS x 1000": f"{1000 * ensemble.crps:.2f} +- {1000 * crps:.2f}",
                "energy x 1000": f"{1000 * ensemble.energy:.2f} +- {1000 * energy:.2f}",
                "PSNR of mean": f"{ensemble.psnr_mean:.2f}",
                "spread / skill": f"{ensemble.spread_skill:.2f}",
            }
        if (details := measured.row.score.details) is not None:
            kernel, shares = details.kernel, details.precision_recall
            columns |= {
                f"{details.kernel_metric} x 1000": f"{1000 * kernel.value:.2f} +- {1000 * kernel.standard_error:.2f}",
                "precision": f"{shares.precision:.3f}",
                "recall": f"{shares.recall:.3f}",
            }
        return columns

    @staticmethod
    def notes(finished: Sequence[MeasuredCandidate]) -> list[str]:
        """Sentences on these columns."""
        if not any(measured.row.ensemble for measured in finished):
            return []
        return [
            "M: samples of each condition, which share its heavy call. CRPS, energy: fair scores, lower is better, "
            "with standard errors over conditions. PSNR: dB. spread / skill: 1 is calibrated"
        ]

    @staticmethod
    def figures(finished: Sequence[MeasuredCandidate]) -> list[tuple[Any, str]]:
        """Further figures of a page, each with its caption."""
        rows = [measured.row for measured in finished]
        ranks = {f"{row.network} {row.plan}": row.ensemble.ranks for row in rows if row.ensemble is not None}
        says = "Ranks of the truth among samples: flat at 1 is calibrated; high at both ends is too sure."
        return [(ranks_figure(ranks), says)] if ranks else []


def check_alike(experiments: Sequence[Experiment], *, mixed: bool) -> None:
    """Raises ValueError for models of other images than the first one's. mixed: allow other training data."""
    first, *rest = experiments
    for experiment in rest:
        for what, value in _compared(first).items():
            if _compared(experiment)[what] != value and not (mixed and what == DATA):
                hint = ". If these are the same images, add --mixed" if what == DATA else ""
                raise ValueError(
                    f"{first.name} and {experiment.name} do not compare: their {what} are {value} and "
                    f"{_compared(experiment)[what]}{hint}"
                )


def _compared(experiment: Experiment) -> Mapping[str, str]:
    """Properties that runs of a comparison have in common, by their names."""
    data = experiment.data
    return {
        "images (shape) and classes": f"{experiment.codec.data_shape(experiment.shape)} {experiment.num_classes}",
        "conditions": str(experiment.condition.identity or "none"),
        DATA: f"{data.source or 'unknown images'} (size {data.size}, channels {data.channels})",
    }
