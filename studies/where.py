"""The table and the figure of docs/results/where.md, of the rows that other pages keep, and what predicts them.

    python -m studies.where                            table, figure, and the settings of where.json
    python -m studies.where RUN... --count 512         losses of x_hat by noise level, as where.json has them

Losses are of the light network alone and of a single network of the heavy one's size, on the same held-out images with
the same noise, means over trainings. Of settings without losses the runs are gone.

    excess = sum of the light network's losses / sum of the large one's - 1
"""

import argparse
import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

import dualrate as dr
from dualrate.denoisers.denoiser import posterior_mean, read
from dualrate.diffusion.context import Cond
from dualrate.diffusion.random import Draws
from dualrate.diffusion.weighting import x_loss_weight
from dualrate.drawing.drawer import measured_on, real_batches
from dualrate.experiment.model import Model
from dualrate.report.figures import png
from dualrate.system.files import write_whole
from studies import captions, clips, forecasts, sudoku
from studies.common import RESULTS, kept_in, markdown, place, save
from studies.conditions import Plan, by_plan, mean, plan_of
from studies.equal_score import Ratio, at_equal_score, resampled
from studies.systems import crps

LEVELS = 12  # of noise: the middles of as many parts of [0, 1]
HIGH = slice(LEVELS - LEVELS // 3, LEVELS)  # the noisiest third
COSTS = ("macs", "ms")
FAR = 1.6  # times: the length of an arrow
Losses = Mapping[str, Sequence[float]]  # of "light" and "large"


Ratios = Mapping[int, Sequence[Ratio]]  # by the samples of a condition: of multiply-adds and of milliseconds


def of_conditions(plan: Plan, task: str) -> Ratios:
    """Ratios against all single networks of a task of images."""
    rows = [row for row in kept_in(RESULTS / "conditions.json.xz") if row["task"].startswith(task)]
    groups, scores = by_plan(rows), resampled(rows, plan_of, crps)
    rivals = [key for key in groups if key[0] != "dual"]
    costs = {(of, count): {key: mean(groups[key], of, count) for key in groups} for of in COSTS for count in (1, 16)}
    return {count: [at_equal_score(scores, costs[of, count], plan, rivals) for of in COSTS] for count in (1, 16)}


def of_contest(system: str, plan: Plan) -> Ratios:
    """Ratios against all single networks of the contest, each at its own best."""
    rows = kept_in(RESULTS / f"contest-{system}.json.xz")
    cost, scores = forecasts.costs(rows), resampled(forecasts.entries(rows), forecasts.plan_of, crps)
    ratios = {count: [forecasts.ratio_of(scores, cost[of, count], plan) for of in COSTS] for count in (1, 16)}
    return {count: [ratio for ratio in both if ratio is not None] for count, both in ratios.items()}


def of_captions(rival: str) -> Ratios:
    """Ratios of the retrofit at 16/4 against the model or the smaller one."""
    rows = kept_in(RESULTS / "captions.json.xz")
    wrong = captions.wrong(rows)
    rivals = captions.rivals(wrong, rival)
    costs = [{row["way"]: row[of] for row in rows} for of in COSTS]
    return {1: [at_equal_score(wrong, cost, "retrofit, 16/4", rivals, captions.curve_of) for cost in costs]}


def of_sudoku() -> Ratios:
    """Ratios of two rates in one step, after 600 seconds, by the share of boards that are wrong, without an interval:
    boards were not kept one by one. Milliseconds of 16 samples were not taken.
    """
    rows = {(row["size"], row["steps"]): row for row in kept_in(sudoku.KEPT) if int(row["seconds"]) == 600}
    scores = {plan: np.repeat(1 - row["right"] / sudoku.SCORED, 2) for plan, row in rows.items()}
    singles = [plan for plan in rows if plan[0] not in sudoku.PAIRS]

    def ratio(cost: Callable[[Mapping[str, Any]], float]) -> Ratio:
        return at_equal_score(scores, {plan: cost(row) for plan, row in rows.items()}, ("two rates", 1), singles)

    macs = {count: ratio(lambda row, count=count: row["macs"][str(count)]) for count in (1, 16)}
    return {1: [macs[1], ratio(lambda row: row["ms"])], 16: [macs[16]]}


def of_clips(source: str) -> Ratios:
    """Ratios of two rates in 4 steps, frame after frame, against the large network by any method."""
    rows = [row for row in kept_in(clips.FILE) if row.get("source") == source]
    scores = resampled([row for row in rows if row.get("part") == "score"], clips.plan_of, crps)
    large = [plan for plan in scores if plan[0] == "single"]
    return {1: [at_equal_score(scores, cost, ("dual", "diffusion-1", 4), large) for cost in clips.costs(rows)]}


def of_settled() -> Ratios:
    """Middle and range of all plans and metrics."""
    savings = json.loads((RESULTS / "settled-25.json").read_text())["savings"]
    return {1: [over([saving[f"{of} ratio"] for saving in savings]) for of in ("FLOPs", "time in batches")]}


def of_decoder() -> Ratios:
    """Middle and range of the metrics, in 4 steps."""
    savings = json.loads((RESULTS / "decoders.json").read_text())["savings"]
    (four,) = (saving["judges"] for saving in savings if (saving["network"], saving["plan"]) == ("dual-medium", "4/1"))
    return {1: [over([saving[of]["ratio"] for saving in four.values()]) for of in ("FLOPs", "time in batches")]}


def over(values: Sequence[float]) -> Ratio:
    return Ratio(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Setting:
    """evidence: on which page; losses: their name in where.json

    excess: in words, where there are no losses
    """

    name: str
    ratios: Callable[[], Ratios]
    evidence: str
    losses: str = ""
    excess: str = ""


KS, SHORT = "kuramoto-sivashinsky", "[3 trainings, 256 starts](forecasts.md)"
LEADS = "[1 or 3 trainings, 256 starts](forecasts.md#frames-that-are-each-made-by-themselves)"
KF, FLOW = "kolmogorov", "[1 or 3 trainings, 128 starts](forecasts.md#in-two-dimensions)"
SPHERE = "[1 or 3 trainings, 64 starts](forecasts.md#on-a-sphere)"
MOVING = "[3 trainings, {}](clips.md#what-comes-next)".format
MINUTES = "[2 trainings, 256 conditions](conditions.md#{})".format
SHAPES = "[1 training, 512 captions](captions.md)"
DIFFUSION, CRPS = ("dual", "diffusion", 4), ("dual", "crps", 1)
SETTINGS = (
    Setting(
        "unconditional, Fashion-MNIST (middle and range of 4 plans, 4 metrics, upper bounds too)", of_settled,
        "[3 trainings, 50,000 images](settled.md)", "unconditional",
    ),
    Setting(
        "decoder, Fashion-MNIST, 4 steps (middle and range of 3 metrics)", of_decoder,
        "[1 training, 10,000 images](decoders.md)", "decoder",
    ),
    Setting("forecast, diffusion in 4 steps", partial(of_contest, KS, DIFFUSION), SHORT, "forecasts"),
    Setting("forecast, one call by CRPS", partial(of_contest, KS, CRPS), SHORT),
    Setting("lead times one by one, diffusion in 4 steps", partial(of_contest, f"{KS}-leads", DIFFUSION), LEADS),
    Setting("lead times one by one, one call by CRPS", partial(of_contest, f"{KS}-leads", CRPS), LEADS),
    Setting(
        "forecast in 2-D, diffusion in 4 steps", partial(of_contest, KF, DIFFUSION), FLOW, "forecasts-kolmogorov",
    ),
    Setting("forecast in 2-D, one call by CRPS", partial(of_contest, KF, CRPS), FLOW),
    Setting("forecast on a sphere, diffusion in 4 steps", partial(of_contest, "sphere", DIFFUSION), SPHERE),
    Setting("forecast on a sphere, one call by CRPS", partial(of_contest, "sphere", CRPS), SPHERE),
    Setting("clips of sprites, diffusion in 4 steps", partial(of_clips, "sprites"), MOVING("64 clips")),
    Setting("clips of a flow, diffusion in 4 steps", partial(of_clips, "flow"), MOVING("20 trajectories")),
    *(
        setting
        for task in ("super-resolution", "inpainting")
        for setting in (
            Setting(
                f"{task}, CIFAR-10, diffusion in 8 steps",
                partial(of_conditions, ("dual", "diffusion", 8), task), MINUTES(task), task,
            ),
            Setting(f"{task}, one call by CRPS", partial(of_conditions, CRPS, task), MINUTES(task)),
        )
    ),
    Setting(
        "image Sudoku, up to 0.41 of boards right", of_sudoku, "[1 training, 512 boards](sudoku.md)",
        excess="about -3%, of training losses",
    ),
    *(
        Setting(
            f"captions, a retrofit at 16/4 against {rival}", partial(of_captions, name), SHAPES,
        )
        for name, rival in (("small", "a smaller model"), ("model", "the model itself"))
    ),
)  # fmt: skip


HEADER = (
    "setting", "evidence", "excess: all noise; high noise",
    "ratio of multiply-adds, one sample", "of 16", "ratio of milliseconds, one sample", "of 16",
)  # fmt: skip


def table(settings: Sequence[tuple[Setting, Ratios]], losses: Mapping[str, Losses]) -> str:
    lines = []
    for setting, ratios in settings:
        texts = {
            (of, count): str(ratio) for count, both in ratios.items() for of, ratio in zip(COSTS, both, strict=False)
        }
        cells = [texts.get((of, count), "") for of in COSTS for count in (1, 16)]
        excess = excesses(losses[setting.losses]) if setting.losses else setting.excess
        lines.append([setting.name, setting.evidence, excess, *cells])
    return markdown(HEADER, lines, texts=2)


def excesses(losses: Losses) -> str:
    return "; ".join(f"{100 * excess(losses, part):+.1f}%" for part in (slice(None), HIGH))


def as_json(settings: Sequence[tuple[Setting, Ratios]], losses: Mapping[str, Losses]) -> str:
    """The text of where.json; null: never."""
    lines = []
    for setting, ratios in settings:
        for count, (ratio, *_) in ratios.items():
            values = {name: None if math.isinf(value) else value for name, value in ratio._asdict().items()}
            lines.append({"name": setting.name, "samples": count, **values, "losses": setting.losses or None})
    rows = ",\n".join(f"  {json.dumps(line)}" for line in lines)
    entries = ",\n".join(f"  {json.dumps(name)}: {json.dumps(values)}" for name, values in losses.items())
    return f'{{\n "settings": [\n{rows}\n ],\n "losses": {{\n{entries}\n }}\n}}\n'


@torch.no_grad()
def losses(model: Model, count: int) -> list[float]:
    """Mean of |x - x_hat|^2 a number, with the weight of the training loss, at each of LEVELS noise levels.

    count: held-out images, spread evenly. All models of a process see the same noise.
    """
    images = model.experiment.data.load("test") if model.given is None else measured_on(model)
    t, errors = (torch.arange(LEVELS, dtype=torch.float64) + 0.5) / LEVELS, torch.zeros(LEVELS, dtype=torch.float64)
    for rows in real_batches(model, images, count, 128):
        batch = rows.to(model.device)
        cond = read(model.denoiser, Cond(batch.label, model.given and model.given(batch.sample)))
        for level, time in enumerate(t):
            noise = Draws(level, batch.sample).normal("noise", *batch.x.shape[1:])
            z = model.process.add_noise(batch.x, time, noise)
            error = (posterior_mean(model.denoiser, z, time, cond) - batch.x).square().flatten(1).mean(1)
            errors[level] += error.double().sum() / count
    weight = x_loss_weight(model.experiment.method.weighting, model.process.schedule, t)
    return (weight * errors).tolist()


def excess(losses: Losses, levels: slice = slice(None)) -> float:
    """Excess of the light network's losses over the large one's, at some of the noise levels."""
    return sum(losses["light"][levels]) / sum(losses["large"][levels]) - 1


def figure(settings: Sequence[tuple[Setting, Ratios]], losses: Mapping[str, Losses]) -> Figure:
    """An arrow stands where an interval has no end; a ratio that is never reached is at its lower end."""
    canvas = Figure((9.5, 5), layout="constrained")
    bars, scatter = canvas.subplots(1, 2, width_ratios=(3, 2))
    lines = [
        (setting, ratios, count, ratios[count][0])
        for setting, ratios in settings
        for count in ratios
        if 0 < ratios[count][0].low < math.inf or ratios[count][0].at_most
    ]
    for i, (setting, _, count, ratio) in enumerate(reversed(lines)):
        colour = "C2" if ratio.low > 1 else "C3" if ratio.high < 1 else "C7"
        filled = colour if count > 1 else "white"
        point = ratio.value if math.isfinite(ratio.value) else ratio.low
        low = ratio.low or point / FAR
        high = ratio.high if math.isfinite(ratio.high) else FAR * point
        ends = [(low, "<v")] * (not ratio.low) + [(high, ">^")] * math.isinf(ratio.high)
        panels = [(bars, float(i))]
        if setting.losses:
            panels.append((scatter, 100 * excess(losses[setting.losses])))
        for axes, line in panels:
            vertical = axes is scatter
            shapes = [([low, high], "-", colour), ([point], "o", filled)]
            shapes += [([end], arrows[vertical], colour) for end, arrows in ends]
            for values, shape, face in shapes:
                points = [line] * len(values), values
                axes.plot(*(points if vertical else points[::-1]), shape, color=colour, lw=2, markerfacecolor=face)
    names = [
        f"{setting.name.partition(' (')[0]}{f', M = {count}' if len(ratios) > 1 else ''}"
        for setting, ratios, count, _ in lines
    ]
    bars.set_yticks(range(len(lines)), names[::-1], fontsize=7)
    for axes, at, scale in ((bars, bars.axvline, bars.set_xscale), (scatter, scatter.axhline, scatter.set_yscale)):
        at(1, color="black", linewidth=0.8)
        scale("log")
        axes.grid(alpha=0.3)
    bars.set_xlabel("compute at equal quality, best single network / two rates", loc="right")
    scatter.set_xscale("symlog", linthresh=10, linscale=2)
    scatter.set_xticks([-10, -5, 0, 5, 10, 100], ["-10", "-5", "0", "5", "10", "100"])
    scatter.set(xlabel="excess at all noise, %", ylabel="the same ratio")
    scatter.minorticks_off()
    scatter.set_xlim(-11, 110)
    return canvas


def page() -> None:
    """Writes the table, the figure and where.json, whose losses stay."""
    losses = json.loads((RESULTS / "where.json").read_text())["losses"]
    settings = [(setting, setting.ratios()) for setting in SETTINGS]
    place("where", table(settings, losses), RESULTS / "where.md")
    write_whole(RESULTS / "where.png", png(figure(settings, losses)))
    save(RESULTS / "where.json", as_json(settings, losses))


if __name__ == "__main__":
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*")
    parser.add_argument("--count", type=int, default=512)
    arguments = parser.parse_args()
    for run in arguments.runs:
        print(json.dumps({"run": Path(run).name, "losses": losses(dr.load(run), arguments.count)}), flush=True)
    if not arguments.runs:
        page()
