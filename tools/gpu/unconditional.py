"""Does a pair beat single networks on unconditional CIFAR-10, at equal GPU time?

It runs only if the gate of natural images opens.

A medium network, a light one, and the pair of both train for two calls each, alone on the GPU. At the end of its
second call each is scored under plans of 8 to 64 steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import dualrate as dr
from tools.gpu import training
from tools.gpu.cifar10 import feature_net, images, mean_loss, score, statistics, validation
from tools.gpu.natural_images import NAME as GATE
from tools.gpu.natural_images import experiment, is_open, network
from tools.gpu.piece import Job, Piece, read

NAME = "unconditional"
SHARE = 330.0  # seconds of training in a call, beside decoding, compiling and scores
MEDIUM, LIGHT = network(64, (128, 160), 2, 2, classes=0), network(48, (64, 96), 2, 2, classes=0)
TIMES = dr.TimeSampler(heavy=(1, 8), first=(0.6, 0.9))
CONTENDERS = {
    "light": (dr.OneNetwork(LIGHT), dr.DenoisingConfig(label_dropout=0)),
    "medium": (dr.OneNetwork(MEDIUM), dr.DenoisingConfig(label_dropout=0)),
    "pair": (dr.TwoNetworks(MEDIUM, LIGHT), dr.DenoisingConfig(TIMES, label_dropout=0)),
}
CALLS = [(share, name) for share in (1, 2) for name in CONTENDERS]
STEPS = (8, 16, 32, 64)


def following(out: Path) -> tuple[int, str] | None:
    """The first call whose row is missing."""
    rows = read(out, NAME).get("rows", {})
    return next(((share, name) for share, name in CALLS if f"{name} {share}" not in rows), None)


def small(name: str) -> dr.OneNetwork | dr.TwoNetworks:
    """For a smoke test."""
    large, little = (network(width, (32, 32), 1, 1, classes=0) for width in (16, 8))
    return dr.TwoNetworks(large, little) if name == "pair" else dr.OneNetwork(large if name == "medium" else little)


def contender(job: Job, name: str, share: int) -> dr.Experiment:
    networks, method = CONTENDERS[name]
    made = experiment(job, f"{NAME}-{name}", small(name) if job.smoke else networks, method, share * SHARE)
    fit = replace(made.fit, sample_every=10**6, optim=replace(made.fit.optim, decay="linear", decay_seconds=2 * SHARE))
    return replace(made, fit=replace(fit, iterations=share) if job.smoke else fit)


def late(steps: int, heavy: int) -> dr.StepPlan:
    """The light network alone in the first quarter of the steps, then so many heavy calls, evenly spread."""
    first = steps // 4
    return dr.StepPlan.at(steps, [first + i * (steps - first) // heavy for i in range(heavy)])


def run(job: Job) -> bool:
    found = following(job.out)
    if found is None:
        return True
    share, name = found
    made = contender(job, name, share)
    training.unpack(job.out, made.name, job.work / made.name)
    train, held_out = images(job, "train"), images(job, "test")
    result = training.train(job, made, train)
    training.leave(job, made.name)
    denoiser, pair = training.averaged(job, made), name == "pair"
    validated = validation(
        denoiser, made.gaussian, held_out.first(2 if job.smoke else 2048), labelled=False, age=1 / 16 if pair else 0
    )
    row = {"seen": result.iteration * made.fit.batch_size, "seconds": result.seconds, "loss": mean_loss(validated)}
    net = feature_net(job, f"{NAME}-features", train)  # in the first call, so that all are scored in the same features
    if share == 2:
        reference = statistics(net, train.pixels)
        for steps in STEPS[:1] if job.smoke else STEPS:
            for heavy in (max(1, steps // 8), steps // 4) if pair else (0,):
                plan = late(steps, heavy) if heavy else dr.StepPlan.uniform(steps)
                job.row(
                    f"{name} {steps}/{heavy or steps}",
                    lambda plan=plan: score(job, denoiser, made.gaussian, plan, net, reference, labelled=False),
                )
    job.put(f"{name} {share}", row)
    return following(job.out) is None


def reads(out: Path) -> Sequence[str]:
    found = following(out)
    return [f"{NAME}.json", f"{NAME}-features*", f"{GATE}.json", f"{NAME}-{found[1] if found else ''}.*"]


PIECE = Piece(
    NAME,
    "does a pair beat its two networks alone on unconditional CIFAR-10, at equal GPU time",
    run,
    calls=len(CALLS),
    data=True,
    closed=is_open,
    reads=reads,
)
