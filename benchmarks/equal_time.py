"""Do the recipes of Fashion-MNIST take equal processor time? An iteration of each, in turn, times its iterations.

    OMP_NUM_THREADS=1 .venv/bin/python -m benchmarks.equal_time

User and system time of one thread, in bfloat16, medians over rounds: what else runs slows all of a round alike.
"""

from __future__ import annotations

import os
import statistics
import sys

import torch

from benchmarks.workloads import training
from dualrate.cli.train import RECIPES
from dualrate.machine.malloc import keep_freed_memory
from dualrate.recipes import fashion_mnist

ROUNDS = 24


def spent() -> float:
    return sum(os.times()[:2])


def main() -> None:
    torch.set_num_threads(1)
    keep_freed_memory()
    experiments = [RECIPES[f"fashion-mnist-{name}"]() for name in fashion_mnist.ITERATIONS]
    work = {one.name: training(one, torch.device("cpu"), bfloat16=True) for one in experiments}
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for done in range(-1, ROUNDS):  # one to warm up
        for name, iterate in work.items():
            before = spent()
            iterate()
            if done >= 0:
                seconds[name].append(spent() - before)
        print(f"{done + 1}/{ROUNDS}", file=sys.stderr)
    for one in experiments:
        median = statistics.median(seconds[one.name])
        print(f"{one.name:26} {median:.3f} s x {one.fit.iterations:,} = {one.fit.iterations * median:,.0f} s")


if __name__ == "__main__":
    main()
