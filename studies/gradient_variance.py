"""Variance of the dual-rate gradient per second of computing, for k light draws per heavy call (docs/results.md).

    OMP_NUM_THREADS=1 .venv/bin/python studies/gradient_variance.py

At fixed weights, over batches of ROWS rows of the light network: ROWS / k images with k draws each. What an optimiser
can buy is (variance of a batch's gradient) x (seconds of a batch): lower is better. Seconds are CPU time of one thread.
Two ways to drop contexts: of every second image, as `TimeSampler` does, and of every draw by itself at random, which
encodes more images; there the encoder's own loss is weighted down, so that both train the same objective.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import torch
from common import command, load, on_one_thread
from released import WEIGHTS
from torch import Tensor

import dualrate as dr
from dualrate.data.images import load_images
from dualrate.data.loader import Batches
from dualrate.diffusion.random import Draws
from dualrate.methods.times import BatchTimes, TimeSampler
from dualrate.recipes import fashion_mnist

ROWS = 64


class ByDraw(TimeSampler):
    """Drops the context of every draw with probability `dropout`, independently."""

    def __call__(self, draws: Draws) -> BatchTimes:
        times = super().__call__(draws)
        kept = draws.repeated(self.draws).uniform("dropout") >= self.dropout
        return BatchTimes(times.t, times.tau, torch.nonzero(kept).flatten(), times.before)


def main() -> None:
    parser = command(__doc__)
    parser.add_argument("--model", default=WEIGHTS / "fashion-mnist-retrofit", type=Path)
    parser.add_argument("--batches", default=100, type=int)
    options = parser.parse_args()
    on_one_thread()
    model, images = load(options.model), load_images("fashion-mnist", split="train")
    recipe = replace(fashion_mnist.dual(), networks=model.experiment.networks)
    denoising = recipe.method
    assert isinstance(denoising, dr.DenoisingConfig)
    weights = model.networks.state_dict()
    print("| contexts dropped | k | images x draws | CPU s | variance, light | encoder | x s, light | encoder |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for what, sampler in (("of images", TimeSampler), ("of draws", ByDraw)):
        for k in (1, 2, 4):
            own = 0.5 / (1 - 0.5**k) if sampler is ByDraw else 1.0
            method = replace(denoising, times=sampler(heavy=(4, 32), draws=k), encoder_weight=own)
            experiment = replace(recipe, method=method)
            batches = Batches(images, ROWS // k, experiment.fit.seed, experiment.data.augment)
            seconds, variances = measure(experiment, weights, batches, options.batches)
            products = [f"{variance * seconds:.2e}" for variance in variances]
            cells = [what, k, f"{ROWS // k} x {k}", f"{seconds:.3f}", *(f"{v:.2e}" for v in variances), *products]
            print(f"| {' | '.join(map(str, cells))} |", flush=True)


def measure(
    experiment: dr.Experiment, weights: dict[str, Tensor], batches: Batches, count: int
) -> tuple[float, list[float]]:
    """CPU seconds of a batch, and the trace of its gradient's covariance for the light network and the encoder."""
    assert isinstance(experiment.method, dr.DenoisingConfig)
    method = experiment.method.build(experiment)
    method.networks.load_state_dict(weights)
    parts = [list(method.networks[name].parameters()) for name in ("light", "encoder")]
    total, squares, seconds = [torch.zeros(()) for _ in parts], [0.0 for _ in parts], 0.0
    for i in range(-1, count):  # one to warm up
        batch = batches.batch(max(i, 0))
        start = time.thread_time()
        with torch.autocast("cpu", torch.bfloat16):
            loss = method.loss(batch, 0, Draws(0, batch.sample)).total
        loss.backward()
        if i >= 0:
            seconds += time.thread_time() - start
            for j, parameters in enumerate(parts):
                gradient = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
                total[j] = total[j] + gradient
                squares[j] += gradient.square().sum().item()
        method.networks.zero_grad()
    variances = [(s - t.square().sum().item() / count) / (count - 1) for s, t in zip(squares, total, strict=True)]
    return seconds / count, variances


if __name__ == "__main__":
    main()
