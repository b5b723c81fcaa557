"""Fields over time, as the engine asks for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

from torch import Tensor

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

    def save(self, experiment: Any, samples: Callable[[], Tensor], file: Path) -> None:
        if (forecast := experiment.condition).of_data is forecast:  # channels of latents show nothing
            super().save(experiment, lambda: forecast.shown(samples()), file)

    def score(self, drawer: Any, count: int | None, seed: int, progress: Reporter) -> Evaluation:
        """Score one window from each of `count` held-out starts; clips also by a distance from those of training."""
        from dualrate.forecasts.clip_distance import clip_distance
        from dualrate.forecasts.evaluation import forecast_scores, window_members
        from dualrate.forecasts.model import forecast_of, window_cost
        from dualrate.system.workers import mapper

        model, forecast = drawer.model, forecast_of(drawer.model)
        how = {"seed": seed, "progress": image_progress(progress, "frames"), "mapper": mapper(model.device)}
        starts, x = window_members(drawer, count, **how)
        scores, macs = forecast_scores(model, starts, x), window_cost(drawer) / forecast.frames
        plain, lines = scores.plain() | {"macs_per_frame": macs}, [f"{macs / 1e6:.4g} million multiply-adds a frame"]
        if forecast.of_clips:
            distance = clip_distance(model, starts, x, progress)
            plain |= {"clips": distance if isinstance(distance, str) else asdict(distance)}
            lines.append(str(distance))
        return Evaluation(scores, plain, tuple(scores.tables), "\n".join(lines))

    def service(self, model: Any) -> Any:
        from dualrate.forecasts.service import ForecastService

        return ForecastService(model) if self.makes(model.experiment) else None

    def coding(self, drawer: Any) -> int:
        forecast = drawer.model.experiment.condition
        coder = forecast.coder(drawer.model.device)
        return round(coder.reading / drawer.members + forecast.frames * coder.writing)

    def yardstick(self) -> Any:
        from dualrate.forecasts.comparison import ForecastYardstick

        return ForecastYardstick


MODALITY = OfFields()
