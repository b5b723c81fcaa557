"""CPU time of a training iteration, with and without kept memory (docs/results.md).

    OMP_NUM_THREADS=1 .venv/bin/python -m benchmarks.iteration_cost heavy [--keep]

User and system time of one thread, so that other work on the machine matters little. The images are noise.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import replace

import torch

from benchmarks.workloads import beside_frozen_encoder, training
from dualrate.experiment.experiment import Experiment
from dualrate.methods.denoising import DenoisingConfig
from dualrate.methods.times import TimeSampler
from dualrate.recipes import fashion_mnist, natural16
from dualrate.system.device import keep_freed_memory

REPEATS = 10
DUAL = fashion_mnist.dual()


def shared(draws: int) -> Experiment:
    """The dual-rate recipe, each context used at so many times."""
    assert isinstance(DUAL.method, DenoisingConfig)
    return replace(DUAL, method=replace(DUAL.method, times=TimeSampler((4, 32), draws=draws)))


RECIPES = {  # the experiment, and images of a batch: always 128 rows of the light network
    "heavy": (fashion_mnist.single("heavy"), 128),
    "dual": (DUAL, 128),
    "light": (fashion_mnist.single("light"), 128),
    "retrofit": (beside_frozen_encoder(DUAL), 128),
    "shared-2": (shared(2), 64),
    "shared-4": (shared(4), 32),
    **{f"natural16-{name}": (natural16.single(name), 128) for name in natural16.NETWORKS},
    "natural16-dual": (natural16.dual(), 128),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recipe", choices=RECIPES)
    parser.add_argument("--keep", action="store_true", help="keep freed memory, as the command line does")
    options = parser.parse_args()
    if options.keep:
        keep_freed_memory()
    experiment, images = RECIPES[options.recipe]
    experiment = replace(experiment, fit=replace(experiment.fit, batch_size=images))
    iterate = training(experiment, torch.device("cpu"), bfloat16=True)
    iterate()
    before = os.times()
    for _ in range(REPEATS):
        iterate()
    after = os.times()
    user, system = (after.user - before.user) / REPEATS, (after.system - before.system) / REPEATS
    print(
        f"{options.recipe}, memory {'kept' if options.keep else 'returned'}: user {user:.3f} s, system {system:.3f} s"
    )


if __name__ == "__main__":
    main()
