"""Do networks of growing size differ on natural images? It decides whether a pair can pay on unconditional CIFAR-10.

Three networks learn class-conditional CIFAR-10 on one GPU at once, for the same time. A pair replaces most calls of a
heavy network by those of a light one. Where the smallest network's loss is within 2% of the largest's at equal images
seen, and the excess does not grow, there is nothing to win, and no claim is pursued further.
"""

from __future__ import annotations

import math
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import dualrate as dr
from dualrate.training.config import OptimConfig
from tools.gpu import training
from tools.gpu.cifar10 import CLASSES, images, mean_loss, validation
from tools.gpu.piece import FAILED, Job, Piece, Row, read

NAME, GATE = "natural_images", "gate"
LEAST = 0.02  # excess of the smallest network's loss over the largest's that is worth a pair
HELD_OUT = 2048
RESERVE = 130.0  # seconds of a call for compiling, validations and saving


def network(
    conv: int, transformers: tuple[int, int], blocks: int, middle: int, classes: int = CLASSES
) -> dr.UViTConfig:
    """`blocks` blocks at 32 x 32 and at 16 x 16, `middle` at 8 x 8."""
    levels = (
        dr.Level("conv", conv, blocks),
        dr.Level("transformer", transformers[0], blocks),
        dr.Level("transformer", transformers[1], middle),
    )
    return dr.UViTConfig(32, 3, levels, num_classes=classes, embedding=256, head_dim=32)


SIZES = {
    "1.8M": network(48, (64, 128), 2, 3),
    "9M": network(96, (192, 288), 2, 4),
    "25M": network(128, (288, 448), 2, 6),
}
SMOKE = {name: network(8 * width, (32, 32), 1, 1) for name, width in (("1.8M", 1), ("9M", 2), ("25M", 3))}


def experiment(job: Job, name: str, networks: Any, method: dr.DenoisingConfig, seconds: float) -> dr.Experiment:
    """On batches of 512 for so many seconds of training."""
    fit = dr.FitConfig(
        2 if job.smoke else None,
        batch_size=2 if job.smoke else 512,
        optim=OptimConfig(lr=4e-4, warmup=1 if job.smoke else 500, decay="none"),
        compile=not job.smoke,
        checkpoint_every=10**6,
        sample_every=1 if job.smoke else 500,
        max_seconds=seconds,
    )
    return dr.Experiment(name, networks, method, fit)


def train(job: Job, size: str) -> None:
    """One network: a row with its validation for every 256,000 images, in a file of its own."""
    mine = job.named(size)
    if read(mine.out, mine.name).get("done"):
        return
    mine.rows.clear()
    net = (SMOKE if job.smoke else SIZES)[size]
    made = experiment(job, f"cifar10-{size}", dr.OneNetwork(net), dr.DenoisingConfig(), max(job.left - RESERVE, 1))
    held_out = images(job, "test").first(2 if job.smoke else HELD_OUT)

    def look(seen: int, denoiser: dr.Denoiser) -> None:
        found = validation(denoiser, made.gaussian, held_out)
        mine.put(str(seen), {"loss": mean_loss(found), "bins": found})

    result = training.train(job, made, images(job, "train"), look)
    parameters = sum(p.numel() for p in made.build()[0].parameters())
    last = str(result.iteration * made.fit.batch_size)
    mine.put(last, {**mine.rows[last], "parameters": parameters, "seconds": result.seconds})
    mine.write(done=True)


def curves(out: Path) -> dict[str, dict[int, Row]]:
    """By network: what was found, by images seen."""
    files = {size: read(out, f"{NAME}-{size}") for size in SIZES}
    return {size: {int(seen): row for seen, row in found.get("rows", {}).items()} for size, found in files.items()}


def gate(found: dict[str, dict[int, Row]]) -> Row:
    """The smallest network's excess loss over the largest, at the most images that both saw and at half of them."""
    small, large = found["1.8M"], found["25M"]
    common = sorted(small.keys() & large.keys())
    if not common:
        return {"open": False, "why": "the networks have no number of images in common"}
    last, middle = common[-1], min(common, key=lambda seen: abs(seen - common[-1] / 2))
    excess = {seen: small[seen]["loss"] / large[seen]["loss"] - 1 for seen in (middle, last)}
    grows = excess[last] > excess[middle]
    return {"open": not excess[last] < LEAST or grows, "seen": last, "excess": excess[last], "half": excess[middle]}


def picture(found: dict[str, dict[int, Row]], file: Path) -> None:
    """Loss against images seen, and the excess over the best network by log-SNR."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    last = max(set.intersection(*(set(rows) for rows in found.values())), default=0)
    for size, rows in found.items():
        seen = sorted(rows)
        left.loglog(seen, [rows[one]["loss"] for one in seen], label=size)
        if last:
            pairs = zip(rows[last]["bins"], found["25M"][last]["bins"], strict=True)
            excess = [(mine["log_snr"], 100 * (mine["error"] / best["error"] - 1)) for mine, best in pairs]
            right.plot(*zip(*excess, strict=True), label=size)
    left.set(xlabel="images seen", ylabel="validation loss")
    right.set(xlabel="log-SNR", ylabel=f"excess error after {last:,} images (%)")
    left.legend()
    figure.savefig(file, dpi=120)


def run(job: Job) -> bool:
    for split in ("train", "test"):
        images(job, split)  # decodes once, for all processes
    if job.smoke:
        for size in SIZES:
            train(job, size)
    else:
        with ProcessPoolExecutor(len(SIZES), mp_context=get_context("spawn")) as pool:
            for ended in [pool.submit(train, job, size) for size in SIZES]:
                if error := ended.exception():
                    job.put("processes", {FAILED: f"{type(error).__name__}: {error}"[:500]})
    found = curves(job.out)
    job.put(GATE, gate(found))
    picture(found, job.out / f"{NAME}.png")
    return all(read(job.out, f"{NAME}-{size}").get("done") for size in SIZES)


def is_open(out: Path) -> str:
    """Why an unconditional pair should not be trained; nothing if the gate is open."""
    found = read(out, NAME)
    verdict = found.get("rows", {}).get(GATE, {})
    excess = verdict.get("excess", math.nan)
    if not found.get("done"):
        return f"it waits for {NAME}"
    return "" if verdict["open"] else f"the gate is closed: a small network's excess loss is {100 * excess:.1f}%"


PIECE = Piece(NAME, "do larger networks learn natural images better, at equal images seen", run, data=True)
