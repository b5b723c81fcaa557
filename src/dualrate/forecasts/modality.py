"""Fields over time, as the engine asks for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

from torch import Tensor

from dualrate.config.ranges import WorkerCount
from dualrate.data.loader import TrainingSet
from dualrate.data.source import DataProgress, Split
from dualrate.experiment.modality import Modality
from dualrate.report.evaluation import Evaluation
from dualrate.system.progress import Reporter, image_progress


class OfFields(Modality):
    """A sample is the frames after some known ones."""

    noun = "forecast"
    other_scores = "a forecast of fields has other scores"

    def reads(self, source: str) -> bool:
        from dualrate.forecasts.sources import is_fields

        return is_fields(source)

    def makes(self, experiment: Any) -> bool:
        from dualrate.forecasts.condition import Forecast

        return isinstance(experiment.condition, Forecast)

    def read(self, data: Any, split: Split, progress: DataProgress) -> TrainingSet:
        from dualrate.forecasts.condition import Forecast

        return Forecast().read_fields(data, split, progress=progress)

    def images(self, data: Any, split: Split, progress: DataProgress) -> NoReturn:
        raise ValueError(f"{data.source} holds fields, which are no images: dualrate forecast RUN scores forecasts")

    def files(self, model: Any) -> NoReturn:
        raise ValueError("a forecast makes fields, not pictures: draw it by dualrate forecast RUN, dr.forecast(model)")

    def save(self, experiment: Any, samples: Tensor, file: Path) -> None:
        super().save(experiment, experiment.condition.shown(samples), file)

    def score(self, drawer: Any, count: int | None, seed: int, workers: WorkerCount, progress: Reporter) -> Evaluation:
        """Score one window from each of `count` held-out starts."""
        from dualrate.forecasts.evaluation import window_scores
        from dualrate.system.workers import mapper

        with mapper(workers, drawer.model.device) as over:
            how = {"seed": seed, "progress": image_progress(progress, "frames"), "mapper": over}
            scores = window_scores(drawer, count, **how)
        return Evaluation(scores, scores.plain(), tuple(scores.tables))

    def service(self, model: Any) -> Any:
        from dualrate.forecasts.service import ForecastService

        return ForecastService(model) if self.makes(model.experiment) else None

    def yardstick(self) -> Any:
        from dualrate.forecasts.comparison import ForecastYardstick

        return ForecastYardstick


MODALITY = OfFields()
