"""Draws docs/two-rates.png, the picture of README: python tools/readme_picture.py

Left: when each network runs, by plan. Right: samples of one model under these plans, the same seeds in every row.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import dualrate as dr
from dualrate.diffusion.context import Refresh

ROOT = Path(__file__).resolve().parent.parent
STEPS, HEAVY, IMAGES = 16, (2, 4, 8), 10
HEAVY_COLOUR, LIGHT_COLOUR = "#1f4e79", "#f0a202"


def main() -> None:
    torch.set_num_threads(1)
    model = dr.load(ROOT / "weights" / "fashion-mnist-dual-45")
    figure = Figure(figsize=(11, 2.7), dpi=130)
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(HEAVY), 2, width_ratios=(1, 1.25))
    whole = model.call_cost.of(steps=STEPS, heavy=STEPS)
    for (timeline, pictures), heavy in zip(axes, reversed(HEAVY), strict=True):
        drawer = dr.Choice(steps=STEPS, heavy=heavy).drawer(model)
        plan = drawer.plan
        for i, refresh in enumerate(plan.refresh):
            called = refresh is Refresh.FULL
            timeline.bar(i, 1.0 if called else 0.38, width=0.8, color=HEAVY_COLOUR if called else LIGHT_COLOUR)
        timeline.set_xlim(-0.7, STEPS - 0.3)
        timeline.set_ylim(0, 1.1)
        timeline.set_ylabel(f"{heavy} heavy\ncalls", rotation=0, ha="right", va="center", fontsize=10)
        timeline.text(STEPS - 0.2, 0.5, f"{drawer.cost.macs / whole:.0%}", va="center", fontsize=10)
        images = drawer.draw(range(IMAGES)).images
        pictures.imshow(np.concatenate(list(images[:, 0]), axis=1), cmap="gray", vmin=0, vmax=255)
        for axis in (timeline, pictures):
            axis.set_xticks([])
            axis.set_yticks([])
            axis.spines[:].set_visible(False)
    axes[0][0].set_title("16 steps: heavy (tall) and light calls; FLOPs, of a heavy call at every step", fontsize=10)
    axes[0][1].set_title("the same seeds under each plan", fontsize=10)
    figure.tight_layout(w_pad=3)
    figure.savefig(ROOT / "docs" / "two-rates.png")


if __name__ == "__main__":
    main()
