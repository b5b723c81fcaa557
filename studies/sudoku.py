"""Image Sudoku, 4 x 4: whether two rates pay where a sample needs reasoning over its whole condition.

    python -m studies.sudoku OUT --seconds 240 --seeds 0    trains and scores what OUT lacks
    python -m studies.sudoku OUT page                       the table of the page, of kept rows if OUT has none

A board of digits is an image of 32 x 32 pixels. Its condition is the board with 4 to 8 of its cells left, and a mask of
these. Of the 288 boards 48 are held out. A sample is right if it keeps the clues and if every row, column and box holds
each digit once; most conditions have several right answers. A cell of a sample is the digit that it is nearest to.

Networks are DiTs in which a cell is a token. The pair's encoder has the large network's size and sees the condition
alone, once; its light network has one block, or two. Noise is shifted by -4.2, so that the 64 pixels of a cell do not
show it at once, and the loss counts states of a log-SNR of -8 as it counts others: with the usual weights, where a
board must be solved counts for nothing. One thread in float32, equal CPU seconds. A training that was interrupted goes
on.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from operator import itemgetter
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

import dualrate as dr
from benchmarks.workloads import in_cpu_seconds, whole
from dualrate.data.condition_rows import Given, Make
from dualrate.data.conditions import Condition, masked
from dualrate.diffusion.context import Batch, Shape
from dualrate.diffusion.process import GaussianProcess
from dualrate.diffusion.random import Draws
from dualrate.diffusion.schedule import Cosine
from dualrate.diffusion.weighting import Sigmoid
from dualrate.experiment.experiment import Start
from dualrate.experiment.network_configs import NetworksConfig, OneConditional, TwoConditional
from dualrate.methods.crps import OneCallConfig
from dualrate.methods.times import GivenTimes, SingleTime
from dualrate.networks.dit import DiTConfig
from dualrate.report.table import with_interval
from dualrate.system.progress import Silent
from dualrate.training import checkpoint
from dualrate.training.config import OptimConfig
from dualrate.training.loop import fit
from studies.captions import wilson
from studies.common import RESULTS, Row, add_rows, command, kept, markdown, on_one_thread, place, rows_of

SIDE, CELL, HELD_OUT, SCORED, MEMBERS = 4, 8, 48, 512, 16
CLUES, STEPS = (4, 8), (1, 2, 4, 8, 16)
IMAGE: Shape = (1, SIDE * CELL, SIDE * CELL)
KEPT, PAGE = RESULTS / "sudoku.json.xz", RESULTS / "sudoku.md"


@cache
def boards() -> Tensor:
    """(288, 4, 4) int64: every filled board, in digits 0 to 3, in an order that a fixed seed shuffles."""
    lines = list(itertools.permutations(range(SIDE)))
    filled = torch.tensor(list(itertools.product(lines, repeat=SIDE)))
    filled = filled[is_solved(filled)]
    return filled[torch.randperm(len(filled), generator=torch.Generator().manual_seed(1))]


def is_solved(board: Tensor) -> Tensor:
    """(N,) bool: whether each row, column and box of boards (N, 4, 4) holds each digit once."""
    boxes = board.unflatten(2, (2, 2)).unflatten(1, (2, 2)).transpose(2, 3).flatten(3).flatten(1, 2)
    groups = torch.cat((board, board.transpose(1, 2), boxes), 1)  # (N, 12, 4)
    return (groups.sort(2).values == torch.arange(SIDE)).flatten(1).all(1)


@cache
def digits() -> Tensor:
    """(4, 8, 8) in [-1, 1]: the pictures of 1 to 4."""
    pictures = []
    for digit in "1234":
        picture = Image.new("L", (CELL, CELL))
        ImageDraw.Draw(picture).text((CELL / 2, CELL / 2), digit, 255, ImageFont.load_default(9), anchor="mm")
        pictures.append(np.asarray(picture))
    return torch.from_numpy(np.stack(pictures)) / 127.5 - 1


def drawn(board: Tensor) -> Tensor:
    """Boards (N, 4, 4) as images (N, 1, 32, 32)."""
    return digits()[board].transpose(2, 3).reshape(-1, *IMAGE)


def read_off(x: Tensor) -> Tensor:
    """(N, 4, 4): the board that images (N, 1, 32, 32) are nearest to."""
    cells = x.reshape(-1, SIDE, CELL, SIDE, CELL).transpose(2, 3).reshape(-1, CELL**2)
    return torch.cdist(cells, digits().flatten(1)).argmin(1).view(-1, SIDE, SIDE)


@dataclass(frozen=True)
class Clues(Condition):
    """Cells of the board, and a mask of them; how many, and which, is uniform."""

    def shape(self, image: Shape) -> Shape:
        return (2, *image[1:])

    def build(self, device: torch.device | str) -> Make:
        return clues


def clues(x: Tensor, draws: Draws) -> Tensor:
    """(N, 2, 32, 32) of images (N, 1, 32, 32)."""
    chance, (least, most) = draws.uniform("clues", 1 + SIDE**2), CLUES
    count = least + (chance[:, :1] * (most - least + 1)).long()
    cells = chance[:, 1:].argsort(1).argsort(1) < count
    mask = cells.view(-1, 1, SIDE, SIDE).to(x.dtype)
    return masked(x, mask.repeat_interleave(CELL, 2).repeat_interleave(CELL, 3))


@dataclass(frozen=True)
class Puzzles:
    """Batches of boards, as a function of the iteration."""

    board: Tensor
    size: int
    seed: int

    def batch(self, iteration: int) -> Batch:
        sample = iteration * self.size + torch.arange(self.size)
        draws = Draws(self.seed, sample, sample)
        x = drawn(self.board[draws.integer("board", len(self.board))])
        return Batch(x, None, sample, here=sample, given=clues(x, draws))


SIZES = {"large": (64, 4), "wide": (96, 4), "medium": (64, 2), "light": (64, 1)}  # channels and blocks
PAIRS = {"two rates": "light", "two rates, two light blocks": "medium"}  # their light networks
MODELS = (
    ("two rates", "diffusion"), ("large", "diffusion"), ("wide", "diffusion"), ("light", "diffusion"),
    ("two rates", "energy"), ("large", "energy"), ("wide", "energy"), ("light", "energy"),
    ("two rates, two light blocks", "diffusion"),
)  # fmt: skip


def experiment(size: str, trained_by: str, seconds: float, seed: int, lr: float) -> dr.Experiment:
    net = {name: DiTConfig(IMAGE[1], 1, *wide, patch=CELL, head_dim=16) for name, wide in SIZES.items()}
    shape = Clues().shape(IMAGE)
    if size in PAIRS:
        networks: NetworksConfig = TwoConditional(net["large"], net[PAIRS[size]], shape)
    else:
        networks = OneConditional(net[size], shape)
    times = GivenTimes(draws=4) if size in PAIRS else SingleTime()
    method = dr.DenoisingConfig(times, Sigmoid(-8), label_dropout=0.0)
    config = dr.FitConfig(
        None,
        batch_size=64,
        max_seconds=seconds,
        optim=OptimConfig(lr=lr),
        ema_halflife=5000,
        seed=seed,
        precision="float32",
        sample_every=10**9,
    )
    name = f"sudoku-{size.replace(',', '').replace(' ', '-')}-{trained_by}-{lr:g}-{seed}"
    by = method if trained_by == "diffusion" else OneCallConfig(score="energy")
    return dr.Experiment(name, networks, by, config, process=GaussianProcess(Cosine(shift=-4.2)), condition=Clues())


def trained(experiment: dr.Experiment, out: Path) -> tuple[dr.Model, float]:
    """A model with its averaged weights, and the seconds that it trained for."""
    batches = Puzzles(boards()[HELD_OUT:], experiment.fit.batch_size, experiment.fit.seed)
    start = Start(True, torch.device("cpu"), False, dr.load, batches.batch, print)
    method = experiment.method.prepare(experiment, start).method
    folder, identity = out / experiment.name, {"name": experiment.name}
    with in_cpu_seconds():
        result = whole(fit(method, batches, experiment.fit, folder, identity=identity, progress=Silent()))
    networks, denoiser = experiment.build()
    networks.load_state_dict(checkpoint.load(checkpoint.saved_paths(folder / "checkpoints")[-1]).weights())
    networks.eval().requires_grad_(False)
    return dr.Model(experiment.name, experiment, networks, denoiser, result.iteration, ""), result.seconds


def scored(model: dr.Model, steps: int | None) -> Row:
    """A row of one sample of each of SCORED conditions: how many are right; what one costs, alone and of 16."""
    board = boards()[:HELD_OUT][torch.arange(SCORED) % HELD_OUT]
    y = clues(drawn(board), Draws(1, torch.arange(SCORED)))
    model = replace(model, conditions=Given(y))
    ways = {count: dr.Choice(steps=steps).drawer(model, members=count, precision="float32") for count in (1, MEMBERS)}
    begun = time.process_time()
    images = ways[1].draw(range(SCORED)).images
    ms = 1000 * (time.process_time() - begun) / SCORED
    answer, open_cells = read_off(torch.from_numpy(images) / 127.5 - 1), y[:, 1, ::CELL, ::CELL] == 0
    right = is_solved(answer) & ((answer == board) | open_cells).flatten(1).all(1)
    return {
        "steps": ways[1].plan.num_steps,
        "macs": {count: drawer.cost.macs / 1e6 for count, drawer in ways.items()},
        "ms": ms,
        "right": int(right.sum()),
        "cells": float((answer == board)[open_cells].float().mean()),
    }


def train(out: Path, seconds: float, seeds: Sequence[int], rates: Sequence[float]) -> None:
    """Runs every training that has no row yet."""
    on_one_thread()
    out.mkdir(parents=True, exist_ok=True)
    done = {row["name"] for row in rows_of(out)}
    for seed, lr, (size, trained_by) in itertools.product(seeds, rates, MODELS):
        trial = experiment(size, trained_by, seconds, seed, lr)
        if trial.name in done:
            continue
        model, spent = trained(trial, out)
        training = {"name": trial.name, "size": size, "trained_by": trained_by, "lr": lr, "seed": seed}
        training |= {"seconds": spent, "seen": model.iteration * trial.fit.batch_size}
        rows = [training | scored(model, steps) for steps in (STEPS if model.serves.any_plan else (None,))]
        add_rows(out, rows)
        print(*rows, sep="\n", flush=True)


def table(rows: Sequence[Row]) -> str:
    """A line for the steps of a network and time, at its best learning rate, that solve more boards than all fewer do.

    The best row first, none that solves at most one board in a hundred. Intervals are Wilson's.
    """
    ordered = sorted(rows, key=itemgetter("right", "cells", "size", "trained_by", "lr", "steps"))
    best = {(row["size"], row["trained_by"], int(row["seconds"]), row["steps"]): row for row in ordered}
    shown = [
        row
        for key, row in best.items()
        if row["right"] > SCORED / 100
        and all(
            row["right"] > cheaper["right"] for fewer, cheaper in best.items() if fewer[:3] == key[:3] and fewer < key
        )
    ]
    head = ("network", "trained by", "seconds", "steps", "boards right", "cells right")
    head += ("million multiply-adds a sample, of 1", "of 16")
    lines = []
    for row in sorted(shown, key=ordered.index, reverse=True):
        share = with_interval(*wilson(row["right"], SCORED), places=2)
        cells = [row["size"], row["trained_by"], int(row["seconds"]), row["steps"], share, f"{row['cells']:.2f}"]
        lines.append([*cells, *(f"{row['macs'][str(count)]:.1f}" for count in (1, MEMBERS))])
    return markdown(head, lines)


def page(out: Path) -> None:
    """Places the table of docs/results/sudoku.md, of OUT or of the kept rows."""
    place("scores", table(kept(KEPT, out)), PAGE)


def main() -> None:
    parser = command(__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("verb", nargs="?", choices=("train", "page"), default="train")
    parser.add_argument("--seconds", type=float, default=240, help="CPU seconds of a training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 3e-3], help="learning rates")
    options = parser.parse_args()
    if options.verb == "train":
        train(options.out, options.seconds, options.seeds, options.rates)
        return
    page(options.out)


if __name__ == "__main__":
    main()
