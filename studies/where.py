"""The figure of docs/results/where.md, of the settings in where.json, and what predicts them.

    python -m studies.where                            the figure, and the excess of each setting
    python -m studies.where RUN... --count 512         losses of x_hat by noise level, as where.json has them

A setting: name; members of a condition; ratio [low, high] of compute at equal quality, high null where no single
network reaches the pair's score; losses of the light network alone and of a single network of the heavy one's size, on
the same held-out images with the same noise, means over trainings. Without losses the runs are gone.

    excess = sum of the light network's losses / sum of the large one's - 1
"""

import argparse
import json
from pathlib import Path

import torch
from matplotlib.figure import Figure

import dualrate as dr
from dualrate.denoisers.denoiser import posterior_mean, read
from dualrate.diffusion.prediction import x_loss_weight
from dualrate.diffusion.random import Draws
from dualrate.diffusion.values import Cond
from dualrate.drawing.drawer import measured_on, real_batches
from dualrate.experiment.experiment import Model
from dualrate.report.figures import png
from dualrate.system.files import write_whole

RESULTS = Path("docs/results")
LEVELS = 12  # of noise: the middles of as many parts of [0, 1]
THIRDS = [slice(first, first + LEVELS // 3) for first in range(0, LEVELS, LEVELS // 3)]


@torch.no_grad()
def losses(model: Model, count: int) -> list[float]:
    """Mean of |x - x_hat|^2 a number, with the weight of the training loss, at each of LEVELS noise levels.

    count: held-out images, spread evenly. All models of a process see the same noise.
    """
    images = model.experiment.data.load("test") if model.given is None else measured_on(model)
    t, found = (torch.arange(LEVELS, dtype=torch.float64) + 0.5) / LEVELS, torch.zeros(LEVELS, dtype=torch.float64)
    for rows in real_batches(model, images, count, 128):
        batch = rows.to(model.device)
        cond = read(model.denoiser, Cond(batch.label, model.given and model.given(batch.sample)))
        for level, time in enumerate(t):
            noise = Draws(level, batch.sample).normal("noise", *batch.x.shape[1:])
            z = model.process.add_noise(batch.x, time, noise)
            error = (posterior_mean(model.denoiser, z, time, cond) - batch.x).square().flatten(1).mean(1)
            found[level] += error.double().sum() / count
    weight = x_loss_weight(model.experiment.method.weighting, model.process.schedule, t)
    return (weight * found).tolist()


def excess(losses: dict[str, list[float]], levels: slice = slice(None)) -> float:
    """Of the light network over the large one, at some of the noise levels."""
    return sum(losses["light"][levels]) / sum(losses["large"][levels]) - 1


def figure(settings: list[dict]) -> Figure:
    made = Figure((9.5, 3.6), layout="constrained")
    bars, scatter = made.subplots(1, 2, width_ratios=(3, 2))
    for i, one in enumerate(reversed(settings)):
        low, ratio, high = one["low"], one["ratio"], one["high"]
        colour = "C2" if low > 1 else "C3" if high is not None and high < 1 else "C7"
        filled = colour if one["members"] > 1 else "white"
        end = 1.6 * max(ratio, low) if high is None else high
        bars.plot([low, end], [i, i], color=colour, linewidth=2)
        bars.plot([ratio], [i], "o", color=colour, markerfacecolor=filled)
        if high is None:
            bars.plot([end], [i], ">", color=colour)
        if one.get("losses"):
            at = 100 * excess(one["losses"])
            scatter.plot([at, at], [low, end], color=colour, linewidth=2)
            scatter.plot([at], [ratio], "o", color=colour, markerfacecolor=filled)
            if high is None:
                scatter.plot([at], [end], "^", color=colour)
    bars.set_yticks(range(len(settings)), [one["name"] for one in reversed(settings)], fontsize=8)
    for axes, at, scale in ((bars, bars.axvline, bars.set_xscale), (scatter, scatter.axhline, scatter.set_yscale)):
        at(1, color="black", linewidth=0.8)
        scale("log")
        axes.grid(alpha=0.3)
    bars.set_xlabel("compute at equal quality, best single network / two rates", loc="right")
    scatter.set_xscale("symlog", linthresh=10, linscale=2)
    scatter.set_xticks([-10, -5, 0, 5, 10, 100], ["-10", "-5", "0", "5", "10", "100"])
    scatter.set(xlabel="light network's excess, %", ylabel="the same ratio")
    scatter.minorticks_off()
    scatter.set_xlim(-11, 110)
    return made


if __name__ == "__main__":
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*")
    parser.add_argument("--count", type=int, default=512)
    arguments = parser.parse_args()
    for run in arguments.runs:
        print(json.dumps({"run": Path(run).name, "losses": losses(dr.load(run), arguments.count)}), flush=True)
    if not arguments.runs:
        settings = json.loads((RESULTS / "where.json").read_text())
        write_whole(RESULTS / "where.png", png(figure(settings)))
        for one in settings:
            if losses_of := one.get("losses"):
                parts = [f"{100 * excess(losses_of, part):+.1f}" for part in (slice(None), *THIRDS)]
                print(f"{one['name']}: {parts[0]}%; low, middle, high noise {', '.join(parts[1:])}")
