"""First stages of latents of clips, of several frames or of one each: what they hold, and what they keep.

`python -m studies.clips OUT latents` trains and scores them, with the clips of that study.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

import dualrate as dr
from dualrate.drawing.latents import bits_per_pixel, round_trip_nearness
from dualrate.experiment.data_config import DataConfig
from dualrate.forecasts.clip_recipe import ClipStages
from dualrate.methods.unified_latents import UnifiedLatentsConfig
from studies.common import Row, add_rows, markdown
from studies.contest import Contest, Setting
from studies.systems import interval

LATENTS, SETTLED = 400.0, 60.0  # seconds of a first stage; of one that settles batch and rate
EACH: tuple[Any, ...] = ("4", "1")  # frames of a latent
FACTORS = "3", "12", "48"  # of the loss, the first one while batch and rate are searched
SETTINGS = Setting(2, 1e-3), Setting(2, 2e-3), Setting(4, 2e-3)
PRICED = 3  # the part of its updates after which a first stage prices its latents
KEPT, TOGETHER, RESAMPLES = 64, 4, 2000  # clips that latents are scored on; of a mean; resamples of these
KEEPING = "frames a latent", "loss factor", "updates", "bits a pixel", "PSNR, dB", "less that of 1 frame at equal bits"


@dataclass(frozen=True)
class Latents(Contest):
    """First stages of latents of a source's clips. network: frames of a latent; method: the loss factor"""

    def untimed(self, network: str, method: str, seed: int) -> dr.Experiment:
        return ClipStages(DataConfig(str(self.out.parent / f"{self.name}-packed")), each=int(network))().first

    def experiment(self, network: Any, method: str, setting: Setting, updates: int, seed: int) -> dr.Experiment:
        stage = super().experiment(network, method, setting, updates, seed)
        assert isinstance(stage.method, UnifiedLatentsConfig)
        priced = replace(stage.method, loss_factor=float(method), priced_from=updates // PRICED)
        return replace(stage, method=priced, fit=replace(stage.fit, log_every=10))

    def speed(self, network: Any, method: str, batch: int) -> float:
        """Milliseconds of an update, the same for all loss factors."""
        return super().speed(network, FACTORS[0], batch)

    def search_settings(self, seconds: float) -> None:
        """Adds the mean loss of the second half of short trainings, by batch and rate, where it is not there yet."""
        for network, setting in product(EACH, SETTINGS):
            which = self.which("setting", network, FACTORS[0], setting, seconds, 0)
            if not self.rows_with(**which):
                row = self.fit(which)
                lines = [json.loads(line) for line in (self.folder(which) / "metrics.jsonl").read_text().splitlines()]
                losses = [line["model/loss"] for line in lines if line["iteration"] > row["updates"] / 2]
                add_rows(self.out, [row | {"part": "setting", "loss": round(float(np.mean(losses)), 4)}])

    def compare(self, seconds: float) -> None:
        """Trains and scores what is not there yet."""
        for factor, network in product(FACTORS, EACH):
            best = min(self.rows_with(part="setting", network=network), key=lambda row: row["loss"])
            which = self.which("latents", network, factor, Setting(best["batch"], best["rate"]), seconds, 0)
            if not self.rows_with(**which):
                row: Row = {"part": "latents"} | self.fit(which) | keeps(dr.load(str(self.folder(which))))
                add_rows(self.out, [row])
                print(self.name, network, factor, of_groups(row["bits"])[0], of_groups(row["psnr"])[0], flush=True)


def keeps(model: dr.Model) -> dict[str, Any]:
    """Bits of a pixel of a frame, its colours together, and PSNR in dB, means of each `TOGETHER` held-out clips."""
    clips = model.experiment.data.images("test", lambda *_: None)
    bits, near = [], []
    for part in np.arange(min(len(clips), KEPT) // TOGETHER * TOGETHER).reshape(-1, TOGETHER):
        some = replace(clips, images=clips.images[part])
        bits.append(bits_per_pixel(model.denoiser, model.gaussian, model.codec, some, TOGETHER).value)
        near.append(round_trip_nearness(model.codec, some, TOGETHER).value)
    return {"bits": np.round(bits, 5).tolist(), "psnr": np.round(near, 4).tolist()}


def latents_table(rows: Sequence[Row]) -> str:
    """A line for each first stage: what it holds, what it keeps, and beside it latents of one frame at equal bits."""
    lines = []
    for row in sorted(rows, key=lambda row: (row["network"], float(row["method"]))):
        rivals = [other for other in rows if other["network"] == "1" != row["network"]]
        less = psnr_less(row, rivals)
        lines.append(
            [
                row["network"],
                row["method"],
                row["updates"],
                interval(of_groups(row["bits"]), 3),
                interval(of_groups(row["psnr"]), 2),
                "" if less is None else interval(less, 2),
            ]
        )
    return markdown(KEEPING, lines, texts=2)


def of_groups(values: Sequence[float]) -> NDArray[np.float64]:
    """(1 + R,) the mean, then those of groups of clips drawn anew, the same for all rows."""
    picked = np.random.default_rng(0).integers(0, len(values), (RESAMPLES, len(values)))
    table = np.array(values)
    return np.concatenate([[table.mean()], table[picked].mean(1)])


def psnr_less(row: Row, rivals: Sequence[Row]) -> NDArray[np.float64] | None:
    """(1 + R,) PSNR less that of rivals at equal bits, a straight line between these; None beyond them."""
    own, ordered = of_groups(row["bits"]), sorted(rivals, key=lambda rival: np.mean(rival["bits"]))
    bits, near = ([of_groups(rival[name]) for rival in ordered] for name in ("bits", "psnr"))
    if not bits or not bits[0][0] <= own[0] <= bits[-1][0]:
        return None
    there = [np.interp(x, *line) for x, *line in zip(own, np.stack(bits, 1), np.stack(near, 1), strict=True)]
    return of_groups(row["psnr"]) - np.array(there)
