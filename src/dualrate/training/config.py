"""How to train, and how it ended: what `fit` takes and returns."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from dualrate.config.ranges import (
    BatchSize,
    BelowOne,
    Factor,
    FirstIterations,
    Iterations,
    LossWeight,
    Precision,
    Range,
    Ranged,
    Seed,
    Side,
)

ROUNDING = ("micro_batch", "compile")  # change the weights by rounding and dropout masks alone, which is noted
# what may differ when a run is resumed: none of the rest changes the weights
FREE = frozenset({*ROUNDING, "log_every", "checkpoint_every", "keep", "sample_every", "recompute_from"})


@dataclass(frozen=True)
class OptimConfig(Ranged):
    """AdamW and its learning rate."""

    lr: Factor = 1e-3
    """Peak learning rate."""
    betas: tuple[BelowOne, BelowOne] = (0.9, 0.99)
    """How much of its old value each moving average keeps per iteration: of the gradient, of its square."""
    eps: Annotated[float, Range(1e-16, 1)] = 1e-8
    """Added to the root of the averaged square."""
    weight_decay: LossWeight = 0.0
    """Weight decay: an iteration shrinks every weight by this share times the learning rate."""
    warmup: FirstIterations = 500
    """Iterations of linear warm-up. If the rate falls over seconds, warm-up takes at most a twentieth of them."""
    decay: Literal["auto", "none", "cosine", "linear"] = "auto"
    """none: the rate stays at its peak. cosine, linear: it falls to 0 over max_seconds where they are given, else from
    the end of warm-up to the last iteration. auto: cosine over seconds, none over iterations."""
    decay_seconds: Annotated[float, Range(0, 1_000_000_000, above=True)] | None = None
    """Seconds of training, summed over resumes, over which the rate falls and after which training is finished.
    Default: max_seconds. Give both where max_seconds ends a part of a longer training."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decay_seconds is not None and self.decay == "none":
            raise ValueError(f"decay_seconds {self.decay_seconds:g} needs a decay: add --fit.optim.decay cosine")

    clip: Annotated[float, Range(0, math.inf, above=True)] = 1.0
    """Largest global norm of the gradient; inf for no clipping."""


@dataclass(frozen=True)
class FitConfig(Ranged):
    """How to train."""

    iterations: Iterations | None
    """Updates of the weights in all; then the run is finished. None: as many as max_seconds allow."""
    batch_size: BatchSize = 128
    """Images per iteration."""
    micro_batch: BatchSize | None = None
    """Images per forward and backward pass, over all processes together. Fewer need less memory. Default: the whole
    batch."""
    recompute_from: Side | None = None
    """Activation checkpointing: blocks on maps of this side or a larger one compute their activations again in the
    backward pass, for less memory and the same numbers. 1: all blocks; none if not given."""
    seed: Seed = 0
    """Seed of the first weights, the order of the images, and all noise."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    ema_halflife: Annotated[int, Range(1, 10**12)] = 50_000
    """Half-life of the averaged weights, in images. To suit short runs it is at most a 20th of the images seen so
    far."""
    precision: Precision = "auto"
    """Precision of the networks' matrix products. auto: bfloat16 where it is faster, decided once per run."""
    compile: bool = False
    """Compile the networks' blocks. This takes a while at the start, and makes them faster."""
    log_every: Iterations = 50
    """Iterations between lines of the log, metrics.jsonl."""
    checkpoint_every: Iterations = 1000
    """Iterations between checkpoints."""
    keep: Annotated[int, Range(1, 1_000_000)] = 2
    """Number of checkpoints to keep, the newest."""
    sample_every: Iterations = 2000
    """Iterations between grids of samples."""
    max_seconds: Annotated[float, Range(0, 1_000_000_000, above=True)] | None = None
    """Seconds of training, summed over resumes, after which to save and stop. The learning rate falls to 0 over this
    time, so the run cannot be prolonged, but with --fit.optim.decay none. If iterations are not given, there are as
    many as the time allows, so two such runs differ."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.iterations is None and self.limit is None:
            raise ValueError("a run needs an end: give --fit.iterations or --fit.max-seconds")

    @property
    def limit(self) -> float | None:
        """Seconds of training after which the run ends; None where iterations alone end it."""
        return min((end for end in (self.max_seconds, self.optim.decay_seconds) if end is not None), default=None)

    @property
    def falling(self) -> float | None:
        """Seconds of training in which the learning rate falls; None where it falls with iterations, or not at all."""
        if self.optim.decay == "none":
            return None
        return self.max_seconds if self.optim.decay_seconds is None else self.optim.decay_seconds

    @property
    def ends_by_clock(self) -> bool:
        """Whether the training is over when its seconds are: the learning rate has fallen to 0 then."""
        return self.limit is not None and self.limit == self.falling

    def resolved(self) -> FitConfig:
        """These settings, with the decay that "auto" stands for."""
        auto = "none" if self.falling is None else "cosine"
        return replace(self, optim=replace(self.optim, decay=auto)) if self.optim.decay == "auto" else self

    def free(self) -> frozenset[str]:
        """Settings that may differ when a run is resumed: none with which the learning rate falls."""
        if self.resolved().optim.decay == "none" or self.optim.decay_seconds is not None:
            return FREE | {"iterations", "max_seconds"}
        return FREE if self.falling is None else FREE | {"iterations"}

    def on_seconds(self, before: Mapping[str, Any]) -> str:
        """The reason why a run begun with these settings does not go on with this limit of seconds, and what works;
        nothing if that is not what differs.
        """
        seconds, decay = before["max_seconds"], before["optim"]["decay"]
        dropped = self.resolved().optim.decay == "none" != decay  # its fall goes with the limit that it has
        if seconds == self.max_seconds or ("max_seconds" in self.free() and not dropped):
            return ""
        if decay == "none":
            return "\n  to stop this run by the clock, with its learning rate as it is, add --fit.optim.decay none"
        over = "iterations" if seconds is None else f"{seconds:g} s of training (--fit.max-seconds {seconds:g})"
        return (
            f"\n  the learning rate of this run falls over its {over}, and would not with another limit, "
            "or none: interrupt it to stop earlier; for a longer one take a new run"
        )


def lr_at(fit: FitConfig, iteration: int, seconds: float) -> float:
    """The learning rate of iteration `iteration` (from 0), after so many seconds of training."""
    config = fit.resolved().optim
    warm = min((iteration + 1) / config.warmup, 1.0) if config.warmup else 1.0
    if config.decay == "none":
        return config.lr * warm
    if fit.falling is not None:  # in which the warm-up is
        progress = seconds / fit.falling
        warm = max(warm, min(20 * progress, 1.0))
    else:
        assert fit.iterations is not None
        progress = max(iteration - config.warmup, 0) / max(fit.iterations - config.warmup, 1)
    progress = min(progress, 1.0)
    if config.decay == "linear":
        return config.lr * warm * (1 - progress)
    return config.lr * warm * 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class FitResult:
    """The end of a training.

    iteration: iterations done in all; seconds: of training, summed over resumes; begun: iterations done before
    stopped: "done" if the training is over, "seconds" if its time is and more may be given, "signal" if interrupted
    path: the run's directory
    """

    iteration: int
    stopped: Literal["done", "signal", "seconds"]
    seconds: float
    begun: int = 0
    path: Path | None = field(default=None, compare=False)

    def __repr__(self) -> str:
        place = "" if self.path is None else f", in {self.path}"
        began = f" (from {self.begun:,})" * bool(self.begun)
        return (
            f"FitResult({self.stopped} at iteration {self.iteration:,}{began}, {self.seconds:.3g} s of training{place})"
        )
