"""The figure of docs/results/where.md, of the settings in where.json.

    python -m studies.where

A setting: name, of how many samples a condition; ratio [low, high] of compute at equal quality, high null where no
single network reaches the pair's score; light: the best score of a single network of the light one's cost over the best
of any single network; note.
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


def figure(settings: list[dict]) -> Figure:
    made = Figure((9.5, 3.8), layout="constrained")
    bars, scatter = made.subplots(1, 2, sharey=False, width_ratios=(3, 2))
    for i, one in enumerate(reversed(settings)):
        low, ratio, high = one["low"], one["ratio"], one["high"]
        colour = "C2" if low > 1 else "C3" if high is not None and high < 1 else "C7"
        end = 1.6 * max(ratio, low) if high is None else high
        bars.plot([low, end], [i, i], color=colour, linewidth=2)
        bars.plot([ratio], [i], "o", color=colour)
        scatter.plot([one["light"]] * 2, [low, end], color=colour, linewidth=2)
        scatter.plot([one["light"]], [ratio], "o", color=colour)
        if high is None:
            bars.plot([end], [i], ">", color=colour)
            scatter.plot([one["light"]], [end], "^", color=colour)
    bars.set_yticks(range(len(settings)), [one["name"] for one in reversed(settings)], fontsize=8)
    for axes, at, scale in ((bars, bars.axvline, bars.set_xscale), (scatter, scatter.axhline, scatter.set_yscale)):
        at(1, color="black", linewidth=0.8)
        scale("log")
        axes.grid(alpha=0.3)
    bars.set_xlabel("compute at equal quality: best single network / two rates")
    scatter.set(xlabel="score: light alone / best single", ylabel="the same ratio", xscale="log")
    scatter.set_xticks([1, 1.2, 1.5, 2], ["1", "1.2", "1.5", "2"])
    scatter.minorticks_off()
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
        write_whole(RESULTS / "where.png", png(figure(json.loads((RESULTS / "where.json").read_text()))))
