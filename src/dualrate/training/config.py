"""How to train, and how it ended: what `fit` takes and returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from dualrate.training.optim import OptimConfig

# what may differ when a run is resumed: none of it changes the weights; micro_batch does by rounding and dropout masks,
# which is told
FREE = frozenset({"log_every", "checkpoint_every", "keep", "sample_every", "max_seconds", "micro_batch"})


@dataclass(frozen=True)
class FitConfig:
    """How to train.

    micro_batch:  rows per forward and backward pass; None: the whole batch
    ema_halflife: of the averaged weights, in images
    precision:    of the networks' matrix products; "auto": bfloat16 where it pays, decided once per run
    keep:         number of checkpoints kept
    max_seconds:  of training, summed over resumes, after which to save and stop
    """

    iterations: int
    batch_size: int = 128
    micro_batch: int | None = None
    seed: int = 0
    optim: OptimConfig = field(default_factory=OptimConfig)
    ema_halflife: int = 50_000
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: bool = False
    log_every: int = 50
    checkpoint_every: int = 1000
    keep: int = 2
    sample_every: int = 2000
    max_seconds: float | None = None

    def __post_init__(self) -> None:
        counts = {
            "iterations": self.iterations,
            "batch_size": self.batch_size,
            "micro_batch": 1 if self.micro_batch is None else self.micro_batch,
            "ema_halflife": self.ema_halflife,
            "log_every": self.log_every,
            "checkpoint_every": self.checkpoint_every,
            "keep": self.keep,
            "sample_every": self.sample_every,
        }
        if wrong := {name: count for name, count in counts.items() if count < 1}:
            raise ValueError(f"got {wrong}; each must be at least 1")

    def free(self) -> frozenset[str]:
        """Names of the settings that may differ when a run is resumed."""
        return FREE | {"iterations"} if self.optim.decay == "none" else FREE


@dataclass(frozen=True)
class FitResult:
    """iteration: iterations done in all; seconds: of training, summed over resumes."""

    iteration: int
    stopped: Literal["done", "signal", "seconds"]
    seconds: float
