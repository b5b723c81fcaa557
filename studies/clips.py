"""Clips of 64 x 64 pixels: latents of four frames against latents of one, and frames that come next.

    python -m studies.clips OUT simulate --source flow        the clips, OUT/flow, and the same packed
    python -m studies.clips OUT latents --source flow         first stages of Unified Latents, and what they keep
    python -m studies.clips OUT search                        batch and rate of every way to make what comes next
    python -m studies.clips OUT train --seeds 0 1 2
    python -m studies.clips OUT samplers                      sampler and noise of every number of steps, by seed 0
    python -m studies.clips OUT score                         of each training, in the best way of every number of steps
    python -m studies.clips OUT times                         milliseconds of a frame, all plans in turn
    python -m studies.clips OUT                               rows into docs/results/clips.json.xz, tables into clips.md
    python -m studies.clips                                   the tables, of the rows that are kept

The source is moving sprites unless another is named, and the ways are all (--only dual:diffusion-1). Each verb goes on
where it was. A second of training is so many updates of a quiet core, as of `studies.contest`.

Scores are of the held-out clips of even numbers; those of odd numbers choose batch, rate, sampler and noise. A start of
each clip is at one of its frames whatever the way, so that all ways make the same frames.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import dualrate as dr
from dualrate.drawing.evaluators import feature_net
from dualrate.experiment.data_config import DataConfig
from dualrate.forecasts.clip_distance import windows_of
from dualrate.forecasts.clip_set import Cut, prepare_clips
from dualrate.forecasts.condition import Forecast
from dualrate.forecasts.film import pixels_of
from dualrate.forecasts.model import forecast_of
from dualrate.forecasts.recipe import RECIPES, Clips
from dualrate.forecasts.rollout import roll_out
from dualrate.forecasts.simulations import SIMULATIONS, Kolmogorov
from dualrate.forecasts.starts import Starts
from dualrate.forecasts.systems import System
from dualrate.metrics.evaluate import Evaluator
from dualrate.report.table import with_interval
from dualrate.system.progress import Silent
from studies.clip_latents import LATENTS, SETTLED, Latents, latents_table
from studies.common import RESULTS, Row, add_rows, keep, kept_in, markdown, on_one_thread, place, rows_of
from studies.contest import Network, Setting, mean
from studies.equal_score import at_equal_score, resampled
from studies.roll_outs import RollOuts, crps, first, name_of, plan_of, sampler_of, scored_members
from studies.systems import interval

PAGE, FILE = RESULTS / "clips.md", RESULTS / "clips.json.xz"
SIDE, WINDOW = 64, 16  # pixels of a side; frames of a clip that is packed
Plan = tuple[str, str, int]  # a network, a method, steps
WAYS: tuple[tuple[Network, str], ...] = tuple(product(("single", "dual"), ("diffusion-1", "diffusion-4", "rolling-4")))
USUAL: dict[str, Row] = {"diffusion": {"steps": 4}, "rolling": {"steps": 2}}  # that choose batch and rate
CELLS: tuple[Row, ...] = (
    *({"sampler": "sde-dpm++2m", "gamma": gamma, "grid": "t"} for gamma in (0.0, 0.5, 1.0)),
    {"sampler": "ancestral", "grid": "t"},
)
BATCHES, FIRST, RATE = (4, 8, 16), (8, 16), 2e-3  # of the search, and where it begins
SECONDS, SEARCHED = 200.0, 40.0  # of a training; of one of the search
PAST, AHEAD, MEMBERS, CHOOSING = 2, 8, 4, 24  # known frames; those ahead; members; starts of the search
MORE_STEPS = 16  # of frame after frame alone
EARLIEST = 4  # frames before a start, whatever is known of them
TIMED, ROUNDS = 16, 5  # starts that are timed together, and how often
VERBS = "simulate", "latents", "search", "train", "samplers", "score", "times"
SHOWN = "latents", "setting", "search", "score", "baseline", "time"  # parts that are kept
SEARCH = (
    "network", "method", "cells", "batches", "rates", "best batch, rate", "updates", "million multiply-adds a frame",
    "CRPS",
)  # fmt: skip
HEADER = (
    "network", "method", "batch, rate", "sampler", "steps", "million multiply-adds a frame", "ms a frame", "CRPS",
    "of frame 1", "Frechet distance", "CRPS less the best", "large at equal CRPS: multiply-adds; ms",
)  # fmt: skip


@dataclass(frozen=True)
class Source:
    """Clips that are simulated. train, test: trajectories; levels: values that are black and white"""

    system: System
    train: int
    test: int
    frames: int = 20
    levels: tuple[float, float] = (0.0, 255.0)
    channels: int = 3


SOURCES = {
    "sprites": Source(SIMULATIONS["moving-sprites"][0], 500, 128),
    "flow": Source(Kolmogorov(), 108, 20, 6 * WINDOW, (-14.0, 14.0), 1),
}


def simulate(name: str, out: Path) -> None:
    """Write the clips of a source, losslessly, and the same packed in windows."""
    source = SOURCES[name]
    low, high = source.levels
    for i, clip in enumerate(source.system.simulate(source.train + source.test, source.frames, 0)):
        file = out / name / ("train" if i < source.train else "test") / f"{i}.webp"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_clip(pixels_of((clip.astype(np.float64) - low) * (255 / (high - low))), file)
    prepare_clips(str(out / name), out / f"{name}-packed", Cut(WINDOW), size=SIDE, channels=source.channels)  # pyright: ignore[reportArgumentType]


def write_clip(frames: NDArray[np.uint8], file: Path) -> None:
    """Write frames (T, C, H, W) as an animated WEBP, without loss."""
    start, *rest = (Image.fromarray(frame.repeat(3 // len(frame), 0).transpose(1, 2, 0)) for frame in frames)
    start.save(file, "WEBP", save_all=True, append_images=rest, duration=100, lossless=True, quality=0, method=0)


@dataclass(frozen=True)
class Next(RollOuts):
    """Trainings that make the next frames of a source's clips. ways: networks and methods that verbs are about"""

    ways: Sequence[tuple[Network, str]] = WAYS

    @property
    def data(self) -> DataConfig:
        return DataConfig(f"clips:{self.out.parent / self.name}", size=SIDE, channels=SOURCES[self.name].channels)  # pyright: ignore[reportArgumentType]

    def untimed(self, network: Network, method: str, seed: int) -> dr.Experiment:
        """The recipe of clips. Frames that roll are no differences, and a single frame sees no other one."""
        by, frames = method.split("-")
        recipe = replace(RECIPES["clips"][1], data=self.data, past=PAST, frames=int(frames), rate=network)
        if by == "rolling":
            recipe = replace(recipe, trained_by="rolling", difference=False, window="causal")
        elif frames == "1":
            recipe = replace(recipe, window="channels")
        return experiment_of(recipe)

    def search_settings(self, seconds: float) -> None:
        """Batch, then rate, then neighbours of the best, until none of them is better."""
        for network, method in self.ways:
            attempt = partial(self.try_out, network, method, seconds=seconds)
            for batch in FIRST:
                attempt(Setting(batch, RATE))
            self.descend(network, method, BATCHES, attempt)  # pyright: ignore[reportArgumentType]

    def try_out(self, network: Network, method: str, setting: Setting, seconds: float) -> None:
        """Trains and scores a cell of the search, unless it is there."""
        which = self.which("search", network, method, setting, seconds, 0)
        if self.rows_with(**which):
            return
        trained = self.fit(which)
        row = (
            {"part": "setting"}
            | trained
            | self.rolled(dr.load(str(self.folder(which))), USUAL[method.split("-")[0]], True)
        )
        add_rows(self.out, [row])
        print(*which.values(), f"{mean(row):.4f}", flush=True)

    def trainings(self, seeds: Sequence[int], seconds: float) -> Iterator[Row]:
        for seed, (network, method) in product(seeds, self.ways):
            yield self.which("final", network, method, self.best(network, method), seconds, seed)  # pyright: ignore[reportArgumentType]

    def steps(self, method: str) -> tuple[int, ...]:
        return super().steps(method) + (MORE_STEPS,) * (method == "diffusion-1")

    def rolled(self, model: dr.Model, cell: Row, search: bool) -> Row:
        past, truth = self.starts(search, forecast_of(model).past)
        row, x = scored_members(model, cell, past, truth, MEMBERS)
        return row if search else row | self.distance(past, x)

    def starts(self, search: bool, count: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """So many known frames (N, count, C, H, W) of held-out clips, and those ahead (N, AHEAD, C, H, W)."""
        clips = held_out(self.data)[search::2][: CHOOSING if search else None]
        past, truth = [], []
        for i, clip in enumerate(clips):
            now = EARLIEST + i % (len(clip) - AHEAD - EARLIEST + 1)
            past.append(clip[now - count : now])
            truth.append(clip[now : now + AHEAD])
        return np.stack(past), np.stack(truth)

    def distance(self, past: NDArray[np.float32], x: NDArray[Any]) -> Row:
        """Frechet distance of known frames with members (N, M, T, C, H, W) from windows of the training clips."""
        judge, (count, members) = judge_of(self.data), x.shape[:2]
        known = np.broadcast_to(past[:, None, -PAST:], (count, members, PAST, *past.shape[2:]))
        clips = pixels_of(np.concatenate([known, x], 2)).reshape(count * members, -1, *x.shape[4:])
        return {"distance": round(judge.value(judge.net.features(clips))[0], 4)}

    def baselines(self) -> None:
        """Adds rows of the last known frame again and again, and of the truth."""
        if self.rows_with(part="baseline"):
            return
        past, truth = self.starts(False, PAST)
        std = np.array(task_of(self.data).statistics.std)[:, None, None]
        for name, x in (("last frame", past[:, -1:].repeat(AHEAD, 1)), ("truth", truth)):
            error = abs(x - truth) / std
            row = {"part": "baseline", "method": name, "crps": error.mean((2, 3, 4)).round(4).tolist()}
            add_rows(self.out, [row | self.distance(past, x[:, None].repeat(MEMBERS, 1))])

    def times(self) -> None:
        """Adds milliseconds of a frame of a member, of all plans that are scored: medians of rounds in turn."""
        plans = {plan_of(row): row for row in self.rows_with(part="score", seed=0)}
        seconds: dict[Any, list[float]] = {plan: [] for plan in plans}
        drawers = {}
        for plan, row in plans.items():
            model = dr.load(str(self.folder(row)))
            cell = {name: row[name] for name in ("steps", "sampler", "gamma", "grid") if name in row}
            drawers[plan] = dr.Choice(**cell).drawer(model, batch_size=TIMED, members=1, precision="float32")
        for _, plan in product(range(ROUNDS), plans):
            drawer = drawers[plan]
            past = self.starts(True, forecast_of(drawer.model).past)[0][:TIMED]
            starts = Starts(past, "held-out clips")
            begun = time.process_time()
            _ = list(roll_out(drawer, starts, AHEAD))
            seconds[plan].append(1000 * (time.process_time() - begun) / (len(past) * AHEAD))
        names = "network", "method", "steps"
        add_rows(
            self.out,
            [
                {"part": "time", **dict(zip(names, plan, strict=True)), "ms": round(float(np.median(each)), 4)}
                for plan, each in seconds.items()
            ],
        )


@cache
def experiment_of(recipe: Clips) -> dr.Experiment:
    """The recipe's experiment, for which all its clips are read."""
    return recipe(Silent())


@cache
def held_out(data: DataConfig) -> list[NDArray[np.float32]]:
    """The held-out clips, long ones in pieces of `WINDOW` frames or a few more."""
    fields = Forecast(PAST, AHEAD).read_fields(data, "test")
    clips = [fields.frames(i, 0, each.shape[0]) for i, each in enumerate(fields.trajectories)]
    return [piece for clip in clips for piece in np.array_split(clip, len(clip) // WINDOW)]


@cache
def task_of(data: DataConfig) -> Forecast:
    """Known frames and all that are ahead, as one window."""
    return Forecast(PAST, AHEAD).of(Forecast(PAST, AHEAD).read_fields(data, "train"))


@cache
def judge_of(data: DataConfig) -> Evaluator[Any]:
    """A network of windows that is trained on those of the training clips, which it measures distances from."""
    task = task_of(data)
    train, test = (windows_of(task.read_fields(data, split, task.statistics), task) for split in ("train", "test"))
    return Evaluator(feature_net(train, test, progress=Silent()), train, test)


def settings_table(rows: Sequence[Row]) -> str:
    """The best cell of each way's search, of which intervals are over clips alone."""
    lines = []
    for way in WAYS:
        cells = [row for row in rows if row["part"] == "setting" and (row["network"], row["method"]) == way]
        if cells:
            best = min(cells, key=mean)
            score = resampled([best], lambda row: row["network"], crps)[best["network"]]
            tried = [len({row[name] for row in cells}) for name in ("batch", "rate")]
            setting = f"{best['batch']}, {best['rate']:g}"
            lines.append(
                [*named(way), len(cells), *tried, setting, best["updates"], f"{best['macs']:.0f}", interval(score, 3)]
            )
    return markdown(SEARCH, lines)


def named(way: tuple[str, str]) -> tuple[str, str]:
    """A way as the page calls it."""
    return "two rates" if way[0] == "dual" else "large", name_of(way[1])


def costs(rows: Sequence[Row]) -> tuple[dict[Plan, float], dict[Plan, float]]:
    """Million multiply-adds and milliseconds a frame; those of scoring where a plan was not timed."""
    scored = [row for row in rows if row.get("part") == "score"]
    macs = {plan_of(row): row["macs"] for row in scored}
    timed = {plan_of(row): row["ms"] for row in rows if row.get("part") == "time"}
    ms = {
        plan: timed.get(plan) or float(np.median([row["ms"] for row in scored if plan_of(row) == plan]))
        for plan in macs
    }
    return macs, ms


def table(rows: Sequence[Row]) -> str:
    """Frame after frame in each number of steps, other ways in their best one; the kept rows have all.

    Means over trainings, intervals over these and starts. Ratio: what the cheapest large plan of this CRPS costs.
    """
    scored = [row for row in rows if row.get("part") == "score"]
    means, firsts = resampled(scored, plan_of, crps), resampled(scored, plan_of, first)
    best = means[min(means, key=lambda plan: means[plan][0])]
    macs, ms = costs(rows)
    large = [plan for plan in means if plan[0] == "single"]
    lines: list[list[object]] = []
    baselines = {row["method"]: row for row in rows if row.get("part") == "baseline"}
    for row in sorted(baselines.values(), key=mean, reverse=True):
        numbers = f"{mean(row):.3f}", f"{first(row).mean():.3f}", f"{row['distance']:.2f}"
        lines.append(["", row["method"], *[""] * 5, *numbers, "", ""])
    shown = []
    for way in WAYS:
        plans = sorted(plan for plan in means if plan[:2] == way)
        shown += plans if way[1] == "diffusion-1" else sorted(plans, key=lambda plan: means[plan][0])[:1]
    for plan in shown:
        some = [row for row in scored if plan_of(row) == plan]
        distances = [row["distance"] for row in some]
        ratios = ""
        if plan[0] == "dual":
            ratios = "; ".join(str(at_equal_score(means, cost, plan, large)) for cost in (macs, ms))
        lines.append(
            [
                *named(plan[:2]),
                f"{some[0]['batch']}, {some[0]['rate']:g}",
                sampler_of(some[0]),
                plan[2],
                f"{macs[plan]:.0f}",
                f"{ms[plan]:.1f}",
                interval(means[plan], 3),
                interval(firsts[plan], 3),
                with_interval(float(np.mean(distances)), min(distances), max(distances), places=2),
                interval(means[plan] - best, 3),
                ratios,
            ]
        )
    return markdown(HEADER, lines, texts=4)


def page() -> None:
    """The tables of the rows that are kept."""
    rows = kept_in(FILE)
    for name in SOURCES:
        some = [row for row in rows if row["source"] == name]
        if latents := [row for row in some if row["part"] == "latents"]:
            place(f"latents {name}", latents_table(latents), PAGE)
        if any(row["part"] == "setting" and "crps" in row for row in some):
            place(f"search {name}", settings_table([row for row in some if "crps" in row]), PAGE)
        if any(row["part"] == "score" for row in some):
            place(f"clips {name}", table(some), PAGE)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("verb", choices=VERBS, nargs="?")
    parser.add_argument("--source", choices=SOURCES, default="sprites")
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="+", choices=[":".join(way) for way in WAYS])
    options = parser.parse_args()
    if options.verb is None:
        if options.out is not None:
            folders = [(name, options.out / f"{name}-{part}") for name in SOURCES for part in ("latents", "next")]
            rows = [row | {"source": name} for name, folder in folders for row in rows_of(folder)]
            keep(FILE, [row for row in rows if row.get("part") in SHOWN])
        page()
        return
    on_one_thread()
    latents = Latents(options.source, options.out / f"{options.source}-latents")
    ways = [way for way in WAYS if ":".join(way) in (options.only or [":".join(way)])]
    ahead = Next(options.source, options.out / f"{options.source}-next", ways)
    seconds = options.seconds or SECONDS
    match options.verb:
        case "simulate":
            simulate(options.source, options.out)
        case "latents":
            latents.search_settings(min(SETTLED, options.seconds or SETTLED))
            latents.compare(options.seconds or LATENTS)
        case "search":
            ahead.search_settings(options.seconds or SEARCHED)
        case "train":
            ahead.train_all(options.seeds, seconds)
        case "samplers":
            ahead.search_samplers(seconds, CELLS)
        case "score":
            ahead.baselines()
            ahead.score(options.seeds, seconds)
        case "times":
            ahead.times()


if __name__ == "__main__":
    main()
