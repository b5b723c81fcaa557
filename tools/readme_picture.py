"""Draws docs/two-rates.webp, the moving picture of README: python tools/readme_picture.py

Left: the heavy and light calls of a pair, step by step, and what it draws. Right: a forecast whose members share the
heavy calls, at one point. Milliseconds are of this machine, one thread.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

import dualrate as dr
from dualrate.diffusion.context import Refresh
from dualrate.drawing.drawer import Drawer
from dualrate.forecasts.model import window_cost
from dualrate.sampling.trajectory import State

ROOT = Path(__file__).resolve().parent.parent
STEPS, HEAVY, IMAGES, ROWS = 16, 4, 16, 2
MEMBERS, FORECAST_STEPS, POINT, START = 16, 4, 20, 1
HEAVY_COLOUR, LIGHT_COLOUR = "#1f4e79", "#f0a202"
MILLISECONDS, LAST = 260, 3000  # that a frame is shown, and the last


def drawn(drawer: Drawer) -> tuple[list[np.ndarray], list[float]]:
    """The pictures after each step, (STEPS + 1) times in ROWS, and milliseconds of an image up to there."""
    states: list[np.ndarray] = []
    at: list[float] = []

    def watch(state: State) -> None:
        at.append(time.perf_counter())
        rows = np.split(state.z[:, 0].numpy().clip(-1, 1), ROWS)
        states.append(np.concatenate([np.concatenate(list(row), axis=1) for row in rows]))

    next(drawer.states(range(IMAGES)))  # warm
    next(drawer.states(range(IMAGES), watch=watch))
    return states, [1000 * (moment - at[0]) / IMAGES for moment in at]


def timeline(axes: Axes, refresh: Sequence[Refresh], done: int) -> None:
    """Bars of the calls, tall ones heavy, faint ones still to come."""
    for i, call in enumerate(refresh):
        heavy = call is Refresh.FULL
        axes.bar(
            i, 1 if heavy else 0.36, 0.8, color=HEAVY_COLOUR if heavy else LIGHT_COLOUR, alpha=1 if i < done else 0.2
        )
    axes.set_xlim(-0.6, STEPS - 0.4)
    axes.set_ylim(0, 1.05)


def main() -> None:
    torch.set_num_threads(1)
    pair = dr.load(ROOT / "weights" / "fashion-mnist-dual-45")
    drawer = dr.Choice(steps=STEPS, heavy=HEAVY).drawer(pair, precision="float32")
    pictures, milliseconds = drawn(drawer)
    macs, whole = [0, *drawer.macs_by_step], pair.call_cost.of(steps=STEPS, heavy=STEPS)

    waves = dr.load(ROOT / "weights" / "kuramoto-sivashinsky-dual")
    result = dr.forecast(
        waves, START + 1, frames=STEPS, members=MEMBERS, choice=dr.Choice(steps=FORECAST_STEPS), precision="float32"
    )
    assert result.truth is not None
    leads = np.array([0, *result.written.record.lead_times])
    past = result.written.starts.past[START, -1, 0, 0, POINT]
    futures = np.concatenate([np.full((MEMBERS, 1), past), result.ensemble[START, :, :, 0, 0, POINT]], axis=1)
    truth = np.concatenate([[past], result.truth[START, :, 0, 0, POINT]])
    cost = window_cost(dr.Choice(steps=FORECAST_STEPS).drawer(waves, members=MEMBERS)) / result.written.forecast.frames

    frames = []
    for i in range(STEPS + 1):
        figure = Figure(figsize=(10, 3.6), dpi=100, layout="constrained")
        canvas = FigureCanvasAgg(figure)
        parts: Any = figure.subfigures(1, 2, width_ratios=(1.25, 1), wspace=0.06)
        images, forecast = parts
        bars, shown = images.subplots(2, 1, height_ratios=(1, 1.3))
        timeline(bars, drawer.plan.refresh, i)
        bars.set_title(f"{STEPS} steps: {HEAVY} heavy calls and {STEPS - HEAVY} light ones", fontsize=11, loc="left")
        shown.imshow(pictures[i], cmap="gray", vmin=-1, vmax=1)
        counted = f"{macs[i] / 1e6:.0f} million multiply-adds, {milliseconds[i]:.1f} ms an image"
        shown.set_xlabel(f"{counted}; {macs[i] / whole:.0%} of {STEPS} heavy calls", fontsize=10)
        plume = forecast.subplots()
        plume.plot(leads[: i + 1], futures[:, : i + 1].T, color=LIGHT_COLOUR, alpha=0.6, linewidth=1)
        plume.plot(leads[: i + 1][: len(truth)], truth[: i + 1], color=HEAVY_COLOUR, linewidth=2)
        plume.set_xlim(0, leads[-1])
        plume.set_ylim(*(np.array([-1.05, 1.05]) * np.abs(futures).max()))
        plume.set_title(f"{MEMBERS} members of a forecast share heavy calls; dark: the truth", fontsize=11, loc="left")
        plume.set_xlabel(f"time; {cost / 1e6:.1f} million multiply-adds a frame", fontsize=10)
        for axes in (bars, shown):
            axes.set_xticks([])
        for axes in (bars, shown, plume):
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
        plume.spines["bottom"].set_visible(True)
        canvas.draw()
        frames.append(Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB"))
    file = ROOT / "docs" / "two-rates.webp"
    first, *rest = frames
    durations = [*[MILLISECONDS] * STEPS, LAST]
    first.save(file, save_all=True, append_images=rest, duration=durations, loop=0, quality=80, method=6)
    print(file, f"{file.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
