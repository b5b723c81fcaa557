"""Is the paper's curve to be had, on CIFAR-10 by the paper's own protocol, and do baselines that it lacks do as well?

Four networks learn the same number of class-conditional images: a heavy one, a light one, the pair of both, and one in
the middle. One learning rate, chosen on mid and pair alike. The pair by the paper's protocol: heavy calls on a fixed
even grid, the first at t = 1; context dropped with p = 0.5; features concatenated; the light network at every step.
What light alone lacks at high noise stands in a row, with a prediction, before a call that trains the pair.

A call does the next parts that fit, in the order of `run`. A part is a trial of a learning rate, a minute of a
training, or 10,000 images of a plan; a kill loses no more. Rows of images are compared by `outcome`.
"""

from __future__ import annotations

import math
import shutil
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file

import dualrate as dr
from dualrate.drawing.choice import GAMMA
from dualrate.recipes.published import as_published
from dualrate.recipes.tasks import reduced
from dualrate.sampling.catalogue import SAMPLERS, make_step
from dualrate.sampling.cost import call_cost, expected_costs
from dualrate.sampling.grids import grid_times
from dualrate.system.device import pays
from dualrate.system.files import whole
from dualrate.training.config import OptimConfig
from dualrate.training.loop import NonFiniteError
from tools.gpu import judges, outcome, training
from tools.gpu.cifar10 import CLASSES, SHAPE, images, mean_loss, network, validation
from tools.gpu.piece import CIFAR10, Job, Piece, Row, read

NAME, RATE, PREDICTION = "paper_curve", "rate", "prediction"
BATCH, ITERATIONS = 512, 7031  # 3.6 million images
RATES, SEARCHED, TRIAL = (4e-4, 1e-3, 2e-3), ("mid", "pair"), 20.0
TRAINED = {0: ("heavy", "light", "pair", "mid"), 1: ("pair", "mid")}  # by seed, in order
AGES = (0.0, 1 / 32, 1 / 16, 1 / 8)  # of the pair's context, in time, at which its loss is measured
COUNT, SETS, AT_ONCE = 10_000, 5, 2000
MICROSECONDS = {"heavy": 40, "mid": 27, "light": 15}  # a call of an image on an H200 (docs/results/gpu.md)
GRACE, OFTEN = 60.0, 60.0  # seconds that a row may take after the end; between two states of a training
PAYS = (0.03, 0.13)  # excess at high noise: below the first two rates did not pay, above the second they did
PLANS = {
    "ancestral": (
        *outcome.DECIDING,
        *("pair 64/16", "pair 128/8", "pair 64/8", "heavy 128/128", "pair 256/16"),
        *("mid 32/32", "mid 64/64", "mid 128/128"),
    ),
    "sde-dpm++2m": (
        *("pair 8/2", "pair 12/3", "pair 16/4", "pair 32/8", "pair 64/16"),
        *(f"{name} {steps}/{steps}" for name in MICROSECONDS for steps in (4, 6, 8, 12, 16, 24, 32, 64)),
    ),
}


def networks(name: str, *, smoke: bool = False) -> dr.OneNetwork | dr.TwoNetworks:
    """Networks of the piece `conditions`, with classes; the pair's before it takes the paper's form."""
    heavy = network(8, (32, 32), 1, 1, CLASSES) if smoke else network(64, (128, 256), 1, 4, CLASSES)
    light = reduced(heavy, "light")
    if name == "pair":
        return dr.TwoNetworks(heavy, light)
    return dr.OneNetwork({"heavy": heavy, "mid": reduced(heavy, "medium"), "light": light}[name])


def experiment(job: Job, name: str, rate: float, seed: int = 0, seconds: float | None = None) -> dr.Experiment:
    """A training of ITERATIONS, over which the rate falls by a cosine; or a trial of so many seconds."""
    times = dr.TimeSampler(heavy=(4, 32)) if name == "pair" else dr.DenoisingConfig().times
    few = 1 if seconds else 4
    fit = dr.FitConfig(
        few if job.smoke else None if seconds else ITERATIONS,
        batch_size=2 if job.smoke else BATCH,
        seed=seed,
        optim=OptimConfig(lr=rate, warmup=1 if job.smoke else ITERATIONS // 20, decay="cosine"),
        ema_halflife=250_000,
        compile=not job.smoke,
        checkpoint_every=1 if job.smoke else 250,
        sample_every=1 if job.smoke else 250,
        max_seconds=None if job.smoke else seconds,
    )
    label = f"{NAME}-{name}-{seed}" + (f"-{rate:g}" if seconds else "")
    alone = dr.Experiment(label, networks(name, smoke=job.smoke), dr.DenoisingConfig(times, label_dropout=0), fit)
    return replace(as_published(alone), name=label) if name == "pair" else alone


# Training


def has_images(job: Job) -> bool:
    """Whether CIFAR-10 came along."""
    return job.smoke or job.beside(CIFAR10).is_file()


def averages(name: str, seed: int) -> str:
    """The file of a network's averaged weights, in bfloat16."""
    return f"{NAME}-{name}-{seed}.safetensors"


def losses(job: Job, experiment: dr.Experiment, denoiser: dr.Denoiser, ages: Sequence[float]) -> dict[str, Row]:
    """Losses of held-out images by the context's age: the mean, and that of twelve noise levels."""
    held_out = images(job, "test").first(2 if job.smoke else 2048)
    levels = {age: validation(denoiser, experiment.gaussian, held_out, age=age) for age in ages}
    return {f"{age:g}": {"loss": mean_loss(rows), "levels": rows} for age, rows in levels.items()}


def trial(job: Job, name: str, rate: float) -> Row:
    """The held-out loss after a short training."""
    short, age = experiment(job, name, rate, seconds=TRIAL), AGES[2] if name == "pair" else 0.0
    try:
        result = training.train(job, short, images(job, "train"))
    except NonFiniteError as error:
        return {"diverged": str(error)}
    (loss,) = losses(job, short, training.averaged(job, short)[1], [age]).values()
    return {"loss": loss["loss"], "seen": result.iteration * short.fit.batch_size}


def best_rate(rows: Mapping[str, Row]) -> Row:
    """The rate with the least product of the two losses. One that diverged has none."""
    trials = {rate: [rows[f"rate {rate:g}, {name}"] for name in SEARCHED] for rate in RATES}
    products = {rate: math.prod(row.get("loss", math.inf) for row in pair) for rate, pair in trials.items()}
    return {"rate": min(products, key=products.__getitem__)}


def learned(job: Job, name: str, seed: int) -> bool:
    """Train a network, or go on, until it is done or the call is over. Returns whether it is done."""
    if (row := f"{name}, training {seed}") in job.rows:
        return True
    if job.left <= 0 or not (job.has(RATE) and has_images(job)):
        return False
    whole_training = experiment(job, name, job.rows[RATE]["rate"], seed)
    label, left_at = whole_training.name, time.time()

    def look(seen: int, denoiser: dr.Denoiser) -> None:
        nonlocal left_at
        if job.left <= 0:
            signal.raise_signal(signal.SIGINT)  # the trainer saves, and stops
        elif time.time() - left_at > OFTEN:
            training.leave(job, label)
            left_at = time.time()

    training.take_up(job, label)
    result = training.train(job, whole_training, images(job, "train"), look)
    if result.stopped != "done":
        training.leave(job, label)
        return False
    built, denoiser = training.averaged(job, whole_training)
    weights = {key: training.half(value).cpu().contiguous() for key, value in built.state_dict().items()}
    with whole(job.out / averages(name, seed)) as aside:
        save_file(weights, aside)
    seen = {"seen": result.iteration * whole_training.fit.batch_size, "seconds": result.seconds}
    by_age = losses(job, whole_training, denoiser, AGES if name == "pair" else AGES[:1])
    job.put(row, {**seen, "rate": whole_training.fit.optim.lr, "losses": by_age})
    shutil.rmtree(training.state_of(job, label), ignore_errors=True)
    return True


def prediction(rows: Mapping[str, Row]) -> Row:
    """Excess of light alone over heavy alone, by thirds of t, and what that says of the pair."""
    light, heavy = (rows[f"{name}, training 0"]["losses"]["0"]["levels"] for name in ("light", "heavy"))
    thirds = {"all": slice(None), "low": slice(4), "middle": slice(4, 8), "high": slice(8, None)}
    excess = {part: mean_loss(light[third]) / mean_loss(heavy[third]) - 1 for part, third in thirds.items()}
    says = "nothing: excess at high noise lies between what paid and what did not"
    if not PAYS[0] <= excess["high"] <= PAYS[1]:
        says = f"the pair will {'not ' if excess['high'] < PAYS[0] else ''}be below both baselines"
    return {"excess": excess, "says": says}


# Scores


class Drawing(NamedTuple):
    """A set of images. plan: network, steps and heavy calls, such as "pair 128/16"."""

    sampler: str
    plan: str
    training: int = 0
    number: int = 0

    @property
    def row(self) -> str:
        return outcome.key(*self)

    @property
    def parts(self) -> tuple[str, int, int]:
        """Network, steps, heavy calls."""
        name, _, calls = self.plan.partition(" ")
        steps, heavy = map(int, calls.split("/"))
        return name, steps, heavy

    @property
    def seconds(self) -> float:
        """About how long it takes on an H200."""
        name, steps, heavy = self.parts
        calls = heavy * MICROSECONDS["heavy"] + steps * MICROSECONDS["light"] if name == "pair" else 0
        return COUNT * 1e-6 * (calls or steps * MICROSECONDS[name])

    def steps(self, process: dr.GaussianProcess, smoke: bool) -> tuple[dr.Step, dr.StepPlan]:
        """The sampler's step, and times with even heavy calls, the first at t = 1."""
        name, steps, heavy = self.parts
        if smoke:
            steps, heavy = max(1, steps // 16), max(1, heavy // 16)
        if self.sampler == "ancestral":
            return make_step(self.sampler, process), dr.StepPlan.uniform(steps, heavy)
        usual = SAMPLERS[self.sampler]
        times = grid_times(usual.step.reusing if name == "pair" else usual.step.grid, process.schedule, steps)
        return make_step(self.sampler, process, GAMMA), dr.StepPlan.spread(times, heavy)


def drawings(seed: int) -> Iterator[Drawing]:
    """All sets of a training's networks, in the order of what they decide."""
    if seed == 0:
        yield from (Drawing(sampler, plan) for sampler, plans in PLANS.items() for plan in plans)
    deciding = outcome.DECIDING if seed == 0 else (outcome.PAIR, outcome.BASELINES[1])
    for number in range(1 if seed == 0 else 0, SETS):
        yield from (Drawing("ancestral", plan, seed, number) for plan in deciding)


def score(job: Job, drawing: Drawing, weights: Path, panel: judges.Judges) -> Row:
    """Distances of 10,000 images, and what one costs."""
    trained = experiment(job, drawing.parts[0], RATES[0])
    built, denoiser = trained.build()
    built.load_state_dict({key: value.float() for key, value in load_file(weights).items()})
    built.to(job.device).eval().requires_grad_(False)
    step, plan = drawing.steps(trained.gaussian, job.smoke)
    cost = expected_costs(call_cost(denoiser, SHAPE, 0, job.device), denoiser.reuse, step, plan, SHAPE, label=0)[-1]
    count = 4 if job.smoke else COUNT
    seeds = range(drawing.number * count, (drawing.number + 1) * count)
    how = {"batch_size": AT_ONCE, "device": job.device, "bfloat16": pays(job.device)}
    parts = dr.sample_batches(denoiser, step, plan, SHAPE, seeds, [seed % CLASSES for seed in seeds], **how)
    pixels = torch.cat([((x + 1) * 127.5).round().clamp(0, 255).byte() for x in parts])
    return {"fd": panel.distances(pixels), "macs": cost.macs, "light": cost.light_calls, "heavy": cost.heavy_calls}


def scored(job: Job, seed: int) -> bool:
    """Score what is not scored yet, of the networks that are here. Returns whether all of a training's rows are."""
    file, panel = job.beside(judges.FILE), None
    for drawing in drawings(seed):
        weights = job.out / averages(drawing.parts[0], seed)
        if job.has(drawing.row) or drawing.seconds > job.left + GRACE or not (file.is_file() and weights.is_file()):
            continue
        panel = panel or judges.Judges(file, job.device)
        job.row(drawing.row, partial(score, job, drawing, weights, panel))
    return all(job.has(drawing.row) for drawing in drawings(seed))


# Calls


def advance(job: Job) -> bool:
    """Do what fits into a call. Returns whether nothing is left."""
    announced = PREDICTION in job.rows  # before this call
    trials = [(f"rate {rate:g}, {name}", name, rate) for name, rate in product(SEARCHED, RATES)]
    if has_images(job) and not job.has(RATE):
        for row, name, rate in trials:
            job.row(row, partial(trial, job, name, rate))
        if all(job.has(row) for row, *_ in trials):
            job.row(RATE, lambda: best_rate(job.rows))
    for seed, names in TRAINED.items():
        for name in names:
            if name == "pair" and not announced:
                print("commit what came back, with its prediction; the next call trains the pair")
                return False
            if not learned(job, name, seed):
                return False
            if name == "light":
                job.row(PREDICTION, lambda: prediction(job.rows))
        if not scored(job, seed):
            return False
    return True


def run(job: Job) -> bool:
    if job.smoke and not job.beside(judges.FILE).is_file():
        judges.write(judges.untrained(), images(job, "train").pixels, job.beside(judges.FILE))
    done = advance(job)
    job.put("outcome", outcome.decided(job.rows))
    print(outcome.page(job.rows))
    picture(job.rows, job.out / f"{NAME}.png")
    return done


def picture(rows: Mapping[str, Row], file: Path) -> None:
    """Losses over the heavy network's by noise level; and distances against multiply-adds under either sampler."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 3.6), layout="constrained")
    noise, *axes = figure.subplots(1, 3)
    losses = {name: rows[row]["losses"] for name in TRAINED[0] if (row := f"{name}, training 0") in rows}
    for name, (age, loss) in ((name, item) for name, by_age in losses.items() for item in by_age.items()):
        pairs = zip(loss["levels"], losses["heavy"]["0"]["levels"], strict=True)
        points = [(ours["log_snr"], 100 * (ours["loss"] / theirs["loss"] - 1)) for ours, theirs in pairs]
        noise.plot(*zip(*points, strict=True), label=f"{name}, age {age}")
    noise.set(xlabel="log-SNR", ylabel="loss over the heavy network's (%)")
    for axis, (sampler, plans) in zip(axes, PLANS.items(), strict=True):
        axis.set(xlabel="billion multiply-adds an image", ylabel="FD-EfficientNet-Lite0", title=sampler)
        drawn = [drawing for plan in plans if "fd" in rows.get((drawing := Drawing(sampler, plan)).row, {})]
        for name in dict.fromkeys(drawing.parts[0] for drawing in drawn):
            curve = [rows[drawing.row] for drawing in drawn if drawing.parts[0] == name]
            points = sorted((row["macs"] / 1e9, row["fd"]["Lite0"]) for row in curve)
            axis.loglog(*zip(*points, strict=True), "o" if name == "pair" else "o-", label=name)
    for axis in (noise, *axes):
        if axis.has_data():
            axis.legend(fontsize=7)
    figure.savefig(file, dpi=120)


def following(out: Path) -> tuple[list[str], list[str]]:
    """Inputs of the next call: files that are made here, and patterns of files in the folder of findings."""
    rows = read(out, NAME).get("rows", {})
    for seed, names in TRAINED.items():
        for name in names:
            if f"{name}, training {seed}" not in rows:
                scores_too = (seed, name) == (0, "mid")
                return [CIFAR10, *[judges.FILE] * scores_too], [f"{NAME}-{name}-{seed}.state"]
        if any("fd" not in rows.get(drawing.row, {}) for drawing in drawings(seed)):
            return [judges.FILE], [averages(name, seed) for name in names]
    return [], []


PIECE = Piece(
    NAME,
    "is the paper's curve to be had by its own protocol, and do baselines that it lacks do as well",
    run,
    calls=9,
    loads=lambda out: following(out)[0],
    reads=lambda out: following(out)[1],
    package="efficientnet_lite_pytorch",
)
