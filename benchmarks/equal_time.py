"""Do the recipes of a data set take equal processor time? An iteration of each, in turn, times its iterations.

    OMP_NUM_THREADS=1 .venv/bin/python -m benchmarks.equal_time [fashion-mnist|natural16]

User and system time of one thread, in bfloat16, medians over rounds: what else runs slows all of a round alike.
"""

from __future__ import annotations

import argparse

import torch

from benchmarks.interleave import Spread, interleaved
from benchmarks.workloads import training
from dualrate.cli.train import RECIPES
from dualrate.recipes import fashion_mnist, natural16
from dualrate.system.device import keep_freed_memory

ROUNDS = 24
NAMES = {"fashion-mnist": fashion_mnist.ITERATIONS, "natural16": natural16.ITERATIONS}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recipes", nargs="?", choices=NAMES, default="fashion-mnist")
    of = parser.parse_args().recipes
    torch.set_num_threads(1)
    keep_freed_memory()
    device, experiments = torch.device("cpu"), [RECIPES[f"{of}-{name}"]() for name in NAMES[of]]
    work = {one.name: training(one, device, bfloat16=True) for one in experiments}
    rounds = interleaved(work, device, seconds=0, least=ROUNDS)
    for one in experiments:
        spread = Spread.of([seconds.cpu for seconds in rounds[one.name]])
        print(f"{one.name:24} {spread} s x {one.fit.iterations:,} = {one.fit.iterations * spread.median:,.0f} s")


if __name__ == "__main__":
    main()
