"""Forecasts on a server: one window of frames, from held-out starts by number or from an array that a request carries.

A start has the key seed + number, so members are those of `dualrate forecast` with that seed. Their CRPS is told where
the truth is known: of each start, frame and variable, in the data's units, points weighted as in `scores`.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dualrate.denoisers.denoiser import Denoiser
from dualrate.drawing.drawer import Drawer
from dualrate.experiment.model import Model
from dualrate.forecasts.condition import SHOWN_ROWS
from dualrate.forecasts.film import pixels_of
from dualrate.forecasts.forecast import starts_of
from dualrate.forecasts.model import drawn_forecast, forecast_of, frame_shape
from dualrate.forecasts.pictures import plain_maps
from dualrate.forecasts.rolling_process import Rolling
from dualrate.forecasts.rollout import MemberBatch, windows_after
from dualrate.forecasts.starts import Starts, held_out_starts
from dualrate.metrics.ensembles import fair_crps
from dualrate.sampling.trajectory import State
from dualrate.serving.work import Answer, Service, Work

LEAST_BYTES, MOST_BYTES = 2**18, 2**25  # of an array in a request; between them 24 a number of one start
MOST_NUMBERS = 2**22  # of an answer


@dataclass(frozen=True, eq=False)
class FirstWindow(Work):
    """The first window after some starts. rows: their numbers"""

    starts: Starts
    rows: range

    @property
    def truth(self) -> NDArray[np.float32] | None:
        """(n, known frames, C, H, W); None: it is not known."""
        truth = self.starts.truth
        return None if truth is None else np.stack([truth(i) for i in self.rows]).astype(np.float32)

    def titles(self, drawer: Drawer) -> list[str]:
        members = [f"start {i}, member {m}" for i in self.rows for m in range(drawer.members)]
        return members + [f"start {i}, truth" for i in self.rows if self.starts.truth is not None]

    def draw(self, drawer: Drawer, denoiser: Denoiser, watch: Callable[[State], None]) -> NDArray[Any]:
        """(n, m, f, C, H, W), in the data's units."""
        batch = MemberBatch.of(self.starts, self.rows, range(drawer.members))
        keys = torch.tensor(self.seeds, device=drawer.model.device)
        return next(windows_after(drawer, denoiser, batch, keys, watch))[1].numpy()

    def preview(self, drawer: Drawer, x_hat: Tensor) -> Tensor:
        return drawn_forecast(drawer.model).shown(x_hat)

    def answer(self, drawer: Drawer, samples: NDArray[Any]) -> Answer:
        forecast, truth = forecast_of(drawer.model), self.truth
        count, frames, shape = samples.shape[0] * samples.shape[1], samples.shape[2], samples.shape[3:]
        shown, arrays = [samples.reshape(count, frames, *shape)], {"frames": samples}
        facts: dict[str, Any] = {"lead_times": forecast.lead_times(frames), "variables": forecast.names}
        if truth is not None:
            length, weights = truth.shape[1], torch.from_numpy(forecast.geometry.weights(shape))
            arrays["truth"] = truth
            unseen = np.full((len(truth), frames - length, *shape), np.nan, np.float32)
            shown.append(np.concatenate((truth, unseen), 1))
            x, y = weights * torch.from_numpy(samples[:, :, :length]), weights * torch.from_numpy(truth)
            crps = fair_crps(x.movedim(1, 3).flatten(0, 2), y.flatten(0, 2)).view(y.shape[:3]).numpy()
            facts["crps"] = np.where(np.isfinite(crps), crps.astype(object), np.array(None)).tolist()
        return Answer(self._pictures(np.concatenate(shown), of_clips=forecast.of_clips), arrays, facts)

    @staticmethod
    def _pictures(frames: NDArray[Any], *, of_clips: bool) -> NDArray[np.uint8]:
        """Frames (N, f, C, H, W) as pictures, those of one below the other: of fields the first variable."""
        if of_clips:
            return pixels_of(frames).swapaxes(1, 2).reshape(len(frames), frames.shape[2], -1, frames.shape[4])
        rows = SHOWN_ROWS if frames.shape[3] == 1 else 1
        return plain_maps(frames[:, :, 0].repeat(rows, 2))


class ForecastService(Service):
    """Takes `start`: the number of a held-out start, after which others follow, or an array of starts as nested lists
    or as the content of an .npy file in base64, checked as of `dualrate forecast --from`.

    Raises ValueError for windows that roll.
    """

    takes = "start"
    usual = 1, 8

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        if isinstance(model.process, Rolling):
            raise ValueError(f"{model.name} makes windows that roll, and the page one at once: use dualrate forecast")
        self.frames, self.held_out = forecast_of(model).frames, None
        with suppress(ValueError, OSError):  # its data are elsewhere
            self.held_out = replace(held_out_starts(model, self.frames), training=None)
        numbers = forecast_of(model).past * math.prod(frame_shape(model))
        self.bytes = min(MOST_BYTES, max(LEAST_BYTES, 24 * numbers))

    @property
    def picture(self) -> tuple[int, int]:
        _, height, width = frame_shape(self.model)
        return self.frames * (SHOWN_ROWS if height == 1 else height), width

    def work(self, wish: Any, seed: int, count: int | None, members: int, most: int) -> Work:
        starts, first = self.held_out, 0 if wish is None else wish
        if isinstance(first, int):
            if starts is None:
                raise ValueError(f"start is an array for {self.model.name}: its held-out data are not here")
            rows = range(first, first + (count or 1))
            if first < 0 or rows.stop > len(starts):
                raise ValueError(f"start is a number of 0 to {len(starts) - 1} held-out starts, got {rows[-1]}")
        else:
            starts = self._read(wish)
            rows = range(len(starts))
            if count not in (None, len(rows)):
                raise ValueError(f"start is an array of {len(rows)} start(s), and images {count}: drop images")
        numbers = len(rows) * members * math.prod(self.model.shape)
        if numbers > MOST_NUMBERS:
            raise ValueError(f"start, with its members, has {numbers:,} numbers as an answer, at most {MOST_NUMBERS:,}")
        return FirstWindow(range(seed + rows.start, seed + rows.stop), starts, rows)

    def _read(self, wish: Any) -> Starts:
        try:
            array = base64.b64decode(wish, validate=True) if isinstance(wish, str) else np.asarray(wish)
            return starts_of(self.model, array, self.frames, lambda text: None)
        except (ValueError, OSError) as error:
            raise ValueError(f"start is no array to start from: {error}") from error
