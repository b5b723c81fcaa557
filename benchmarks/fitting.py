"""`fit` beside the training loop that one would write by hand: loss, backward, clip, AdamW, average, and nothing else.

An iteration of each in turn, A B A B ..., on the same batch of noise: `fit` asks for its next batch, and is answered
after an iteration by hand, which is not in its time.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

import dualrate as dr
from benchmarks.interleave import Rounds, Seconds, Spread, once, quotient, stamp
from benchmarks.workloads import noise_batch
from dualrate.diffusion.values import Batch
from dualrate.system.progress import Silent
from dualrate.training.loop import fit

WARM_UP = 3


@dataclass
class Turns:
    """Batches for `fit`, between which an iteration is made by hand. rounds: how long each took"""

    batch_of: Batch
    by_hand: Callable[[], object]
    device: torch.device
    rounds: Rounds = field(default_factory=lambda: {"fit": [], "hand": []})
    since: Seconds | None = None

    def batch(self, iteration: int) -> Batch:
        if self.since is not None:
            self.rounds["fit"].append(stamp(self.device) - self.since)
            self.rounds["hand"].append(once(self.by_hand, self.device))
        self.since = stamp(self.device)
        return self.batch_of


def loop_by_hand(experiment: dr.Experiment, batch: Batch, device: torch.device, bfloat16: bool) -> Callable[[], None]:
    """An iteration on a batch of its own networks."""
    assert isinstance(experiment.method, dr.DenoisingConfig)
    method, optim = experiment.method.build(experiment), experiment.fit.optim
    networks = method.networks.to(device)
    weights: list[torch.Tensor] = list(networks.parameters())
    average = [weight.detach().clone() for weight in weights]
    optimizer = torch.optim.AdamW(weights, lr=optim.lr, betas=optim.betas, fused=True)

    def iteration() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            loss = method.loss(batch, 0, batch.draws(0)).total
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, optim.clip)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            torch._foreach_lerp_(average, weights, 0.01)  # pyright: ignore[reportPrivateImportUsage]

    return iteration


def fit_over_loop(
    experiment: dr.Experiment, device: torch.device, bfloat16: bool, iterations: int
) -> dict[str, Spread]:
    """Time of an iteration of `fit` over that of the loop by hand; at best 1, at most 1.02 is wanted."""
    assert isinstance(experiment.method, dr.DenoisingConfig)
    batch, method = noise_batch(experiment, device), experiment.method.build(experiment)
    turns = Turns(batch, loop_by_hand(experiment, batch, device, bfloat16), device)
    precision = "bfloat16" if bfloat16 else "float32"
    never = {"checkpoint_every": 10**6, "sample_every": 10**6}
    config = replace(experiment.fit, iterations=iterations + WARM_UP, precision=precision, **never)
    with tempfile.TemporaryDirectory() as folder:
        fit(method, turns, config, Path(folder), identity={}, progress=Silent(), device=device)
    return quotient({name: rounds[WARM_UP - 1 :] for name, rounds in turns.rounds.items()}, "fit", "hand")
