"""Checkpoints: for how long training stops for one, and how much memory going on from one takes.

    python -m benchmarks.checkpoints [--gib 1] [--saves 5] [--every 30]

Trained is a pile of weights whose loss costs next to nothing, by the real trainer, with `--saves` checkpoints of
`--gib` each. The stop is what the first iteration after a checkpoint takes longer than the others do; those during
which it is written may be slower, too, where the writing takes a core from them. Going on is a process of its own; its
memory is what it held at most, over what it held before.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from benchmarks.child import ROOT
from dualrate.denoisers.denoiser import Denoiser
from dualrate.diffusion.random import Draws
from dualrate.diffusion.values import Batch
from dualrate.system.device import keep_freed_memory, peak_memory
from dualrate.training.config import FitConfig
from dualrate.training.loop import fit
from dualrate.training.method import Loss, Phase

CPU, SIDE = torch.device("cpu"), 1024
STATES = 4  # weights, their average, two moments


class Pile:
    """A method that pushes weights down."""

    def __init__(self, gib: float) -> None:
        count = max(round(gib * 2**30 / (STATES * 4 * SIDE**2)), 1)
        weights = nn.ParameterList(nn.Parameter(torch.full((SIDE, SIDE), 0.5)) for _ in range(count))
        self.networks, self.auxiliaries = nn.ModuleDict({"pile": weights}), nn.ModuleDict()

    def phases(self, iteration: int) -> Sequence[Phase]:
        return [Phase("model", tuple(self.networks.parameters()), self.loss)]

    def loss(self, batch: Batch, iteration: int, draws: Draws) -> Loss:
        return Loss(torch.stack([weight.mean() for weight in self.networks.parameters()]).mean())

    def denoiser(self) -> Denoiser:
        raise NotImplementedError

    def batch(self, iteration: int) -> Batch:
        return Batch(torch.zeros(1, 2), None, torch.tensor([iteration]))


class Clock:
    """A progress that remembers when iterations ended."""

    def __init__(self) -> None:
        self.at = [time.perf_counter()]

    def update(self, iteration: int, total: int, logs: Mapping[str, float]) -> None:
        self.at.append(time.perf_counter())

    def note(self, text: str) -> None:
        print(text, file=sys.stderr)

    def close(self) -> None:
        pass


def train(folder: Path, pile: Pile, saves: int, every: int) -> list[float]:
    """Seconds of each iteration; none where all of it is saved already."""
    config = FitConfig(
        saves * every + every // 2, batch_size=1, checkpoint_every=every, sample_every=10**6, precision="float32"
    )
    clock = Clock()
    fit(pile, pile, config, folder, identity={}, progress=clock)
    return [end - start for start, end in zip(clock.at[:-1], clock.at[1:], strict=True)]


def stops(seconds: Sequence[float], every: int) -> list[float]:
    """How much longer each iteration took that followed a checkpoint."""
    usual = statistics.median(seconds)
    return [seconds[after] - usual for after in range(every, len(seconds), every)]


def recovery(folder: Path, gib: float, saves: int, every: int) -> dict[str, float]:
    """Bytes at most over those of the networks before, and seconds, of going on from the newest checkpoint."""
    keep_freed_memory()
    pile = Pile(gib)
    before, start = peak_memory(CPU), time.perf_counter()
    train(folder, pile, saves, every)
    return {"bytes": peak_memory(CPU) - before, "seconds": time.perf_counter() - start}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--gib", type=float, default=1.0, help="of a checkpoint")
    parser.add_argument("--saves", type=int, default=5)
    parser.add_argument("--every", type=int, default=30, help="iterations")
    parser.add_argument("--folder", type=Path, help="where the run is written; default: a temporary one")
    parser.add_argument("--going-on", action="store_true", help="only go on, from what --folder holds")
    options = parser.parse_args()
    size = (options.gib, options.saves, options.every)
    torch.set_num_threads(1)
    if options.going_on:
        print(json.dumps(recovery(options.folder, *size)))
        return
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        seconds = train(folder, Pile(options.gib), options.saves, options.every)
        found, usual = stops(seconds, options.every), statistics.median(seconds)
        extra = (sum(seconds) - len(seconds) * usual) / len(found)
        print(f"an iteration takes {usual:.3f} s; {len(found)} checkpoints of {options.gib} GiB")
        print(f"training stops for {statistics.median(found):.2f} s ({min(found):.2f} to {max(found):.2f})")
        print(f"with iterations that are slower meanwhile a checkpoint costs {extra:.2f} s")
        command = [sys.executable, "-m", "benchmarks.checkpoints", "--going-on", "--folder", str(folder)]
        for name, value in zip(("--gib", "--saves", "--every"), size, strict=True):
            command += [name, str(value)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        went_on = json.loads(done.stdout.splitlines()[-1])
        print(f"going on takes {went_on['seconds']:.1f} s and {went_on['bytes'] / 2**30:.2f} GiB over the networks'")


if __name__ == "__main__":
    main()
