"""How to train, and how it ended: what `fit` takes and returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from dualrate.config.ranges import BatchSize, Iterations, Precision, Range, Ranged, Seed, Side
from dualrate.training.optim import OptimConfig

ROUNDING = ("micro_batch", "compile")  # change the weights by rounding and dropout masks alone, which is noted
# what may differ when a run is resumed: none of the rest changes the weights
FREE = frozenset({*ROUNDING, "log_every", "checkpoint_every", "keep", "sample_every", "max_seconds", "recompute_from"})


@dataclass(frozen=True)
class FitConfig(Ranged):
    """How to train."""

    iterations: Iterations
    """Updates of the weights in all; after them the run is finished."""
    batch_size: BatchSize = 128
    """Images per iteration."""
    micro_batch: BatchSize | None = None
    """Images per forward and backward pass of all processes together, for less memory; the whole batch if not given."""
    recompute_from: Side | None = None
    """Activation checkpointing: blocks on maps of this side or a larger one compute their activations again in the
    backward pass, for less memory and the same numbers. 1: all blocks; none if not given."""
    seed: Seed = 0
    """Of the first weights, the order of the images, and all noise."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    ema_halflife: Annotated[int, Range(1, 10**12)] = 50_000
    """Half-life of the averaged weights, in images."""
    precision: Precision = "auto"
    """Of the networks' matrix products; auto: bfloat16 where it pays, decided once per run."""
    compile: bool = False
    """Compile the networks' blocks, which takes a while and makes them faster."""
    log_every: Iterations = 50
    """Iterations between lines of the log, metrics.jsonl."""
    checkpoint_every: Iterations = 1000
    """Iterations between checkpoints."""
    keep: Annotated[int, Range(1, 1_000_000)] = 2
    """Number of checkpoints kept, the newest."""
    sample_every: Iterations = 2000
    """Iterations between grids of samples."""
    max_seconds: Annotated[float, Range(0, 1_000_000_000, above=True)] | None = None
    """Seconds of training, summed over resumes, after which to save and stop."""

    @property
    def limit(self) -> float | None:
        """Seconds of training after which the run ends; None where iterations alone end it."""
        return min((end for end in (self.max_seconds, self.optim.decay_seconds) if end is not None), default=None)

    def free(self) -> frozenset[str]:
        """Settings that may differ when a run is resumed."""
        fixed = self.optim.decay != "none" and self.optim.decay_seconds is None
        return FREE if fixed else FREE | {"iterations"}


@dataclass(frozen=True)
class FitResult:
    """iteration: iterations done in all; seconds: of training, summed over resumes; begun: iterations done before."""

    iteration: int
    stopped: Literal["done", "signal", "seconds"]
    seconds: float
    begun: int = 0
