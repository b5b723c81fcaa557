"""The trainer: `fit` runs the phases of a method, and knows nothing else about it.

An iteration is one batch; each of its phases is one optimiser update:

    freeze all but the phase's parameters -> loss of each micro-batch, backward -> clip -> AdamW -> EMA

Exact resume: batch i and every draw are functions of (seed, sample number), torch's generator (dropout layers read
it) is seeded from (seed, iteration, phase, micro-batch), and everything else is in the checkpoint. So N iterations
straight equal k iterations, a crash, and the rest: bit for bit on the same device with the same number of threads.
Micro-batches are weighted by their rows, so accumulation changes a result only by rounding (and dropout masks).
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from dualrate.diffusion.draws import Draws
from dualrate.diffusion.values import Batch
from dualrate.machine.device import compiles, default_generator, pays
from dualrate.machine.guards import Interrupts, run_lock
from dualrate.machine.progress import PlainReporter, Reporter
from dualrate.methods.method import Method, Phase
from dualrate.networks.freeze import frozen
from dualrate.training import checkpoint
from dualrate.training.config import FitConfig, FitResult
from dualrate.training.log import MetricsFile
from dualrate.training.optim import lr_at
from dualrate.training.state import RunState, differences, finite, note_changes, surroundings

PATIENCE = 10  # updates of a phase skipped in a row before giving up


class Batches(Protocol):
    def batch(self, iteration: int) -> Batch:
        """Batch number `iteration` (from 0) of the run: a pure function of it."""
        ...


class NonFiniteError(FloatingPointError):
    """Losses or gradients stayed NaN or infinite."""


def fit(
    method: Method,
    batches: Batches,
    config: FitConfig,
    run_dir: Path,
    *,
    identity: Mapping[str, Any],
    upgrade: Callable[[dict[str, Any]], dict[str, Any]] = lambda written: written,
    progress: Reporter | None = None,
    on_start: Callable[[], None] | None = None,
    on_sample: Callable[[int], None] | None = None,
    device: torch.device | str = "cpu",
) -> FitResult:
    """Train `method` on `batches`, or continue the run that `run_dir` holds.

    identity:  JSON-able resolved configuration; resuming with another one is refused
    upgrade:   of an identity as earlier versions wrote it
    on_start:  called once, when the run is locked and its configuration accepted, before the first iteration
    on_sample: called with the number of iterations done, every `sample_every` and at the end, averaged weights in place
    Raises ValueError (another configuration), OSError (run in use, no intact checkpoint, nothing could be saved at
    the end), NonFiniteError.
    """
    device, progress = torch.device(device), progress or PlainReporter()
    run_dir.mkdir(parents=True, exist_ok=True)
    cuda = [device] if device.type == "cuda" else []
    with ExitStack() as stack:
        stack.callback(progress.close)
        stack.enter_context(run_lock(run_dir))
        interrupts = stack.enter_context(Interrupts())
        stack.enter_context(torch.random.fork_rng(cuda))
        trainer = _Trainer(method, config, device, progress, run_dir, json.loads(json.dumps(dict(identity))), upgrade)
        if on_start:
            on_start()
        stopped = trainer.run(batches, on_sample, interrupts)
        return FitResult(trainer.state.iteration, stopped, trainer.state.seconds)


class _Trainer:
    def __init__(
        self,
        method: Method,
        config: FitConfig,
        device: torch.device,
        progress: Reporter,
        run_dir: Path,
        identity: dict[str, Any],
        upgrade: Callable[[dict[str, Any]], dict[str, Any]],
    ) -> None:
        self.method, self.config, self.device, self.progress, self.upgrade = method, config, device, progress, upgrade
        self.checkpoints = run_dir / "checkpoints"
        self.identity = identity | {"fit": json.loads(json.dumps(asdict(config)))}
        self.save_failed = False
        self.generator = default_generator(device)
        networks, auxiliaries = method.networks.to(device), method.auxiliaries.to(device)
        self.state = RunState(networks, auxiliaries, config.optim, config.ema_halflife, config.precision)
        self.saved_at = self.resume()
        if self.state.precision == "auto":
            self.state.precision = "bfloat16" if pays(device) else "float32"
        self.metrics = MetricsFile(run_dir / "metrics.jsonl", self.state.iteration, progress.note)
        if config.compile and (problem := compiles(device)):
            progress.note(f"not compiling the networks, which changes only the speed: {problem}")
        elif config.compile:
            for network in (*networks.values(), *auxiliaries.values()):
                network.compile()

    def resume(self) -> int:
        """Continue from the newest intact checkpoint, if any; returns its iteration, or -1."""
        saved = checkpoint.recover(self.checkpoints, self.progress.note)
        if saved is None:
            return -1
        if changes := differences(self.upgrade(saved.state["config"]), self.identity, self.config.free()):
            lines = "\n  ".join(changes)
            raise ValueError(f"{saved.path} was trained with another configuration; use a new run, or undo:\n  {lines}")
        rows = {"micro_batch": saved.state["config"]["fit"]["micro_batch"]}
        now = surroundings(self.device) | {"micro_batch": self.config.micro_batch}
        note_changes(saved.state["surroundings"] | rows, now, self.progress.note)
        self.state.restore(saved)
        self.progress.note(f"resuming at iteration {self.state.iteration}")
        return self.state.iteration

    def run(
        self, batches: Batches, on_sample: Callable[[int], None] | None, interrupts: Interrupts
    ) -> Literal["done", "signal", "seconds"]:
        """Iterations until done, interrupted, or out of time; a checkpoint at the end of it, whichever it is."""
        config, state = self.config, self.state
        sampled_at = state.iteration
        while state.iteration < config.iterations and not interrupts.received and not self.out_of_time():
            start = time.perf_counter()
            batch = batches.batch(state.iteration)
            if len(batch) != config.batch_size:
                raise ValueError(f"got a batch of {len(batch)} rows, the configuration says {config.batch_size}")
            logs = self.iterate(batch.to(self.device))
            elapsed = time.perf_counter() - start
            state.seconds += elapsed
            self.report(logs, elapsed)
            if state.iteration % config.checkpoint_every == 0:
                self.save(last=False)
            if state.iteration % config.sample_every == 0:
                self.sample(on_sample)
                sampled_at = state.iteration
        if self.saved_at != state.iteration:
            self.save(last=True)
        if interrupts.received and state.iteration < config.iterations:
            return "signal"
        if sampled_at != state.iteration:
            self.sample(on_sample)
        return "done" if state.iteration >= config.iterations else "seconds"

    def sample(self, on_sample: Callable[[int], None] | None) -> None:
        """Averaged weights in place. Pictures that cannot be written do not stop training."""
        if on_sample is None:
            return
        with self.state.averaged():
            try:
                on_sample(self.state.iteration)
            except OSError as error:
                self.progress.note(f"could not write samples, training goes on: {error}")

    def out_of_time(self) -> bool:
        return self.config.max_seconds is not None and self.state.seconds >= self.config.max_seconds

    def iterate(self, batch: Batch) -> dict[str, float]:
        """One batch: an update of every phase. Returns the logs."""
        state = self.state
        logs = {"lr": lr_at(self.config.optim, state.iteration, self.config.iterations)}
        for index, phase in enumerate(self.method.phases(state.iteration)):
            updated = state.enter(phase)
            with frozen(state.networks, state.auxiliaries, but=phase.parameters):
                values = self.accumulate(phase, index, batch)
            values["grad_norm"] = updated.clip_gradients()
            if math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"]):
                updated.update(logs["lr"] * phase.rate, phase.rates, len(batch))
            else:
                updated.skipped_in_a_row += 1
                self.skip(phase, batch, values, updated.skipped_in_a_row)
            updated.optimizer.zero_grad()
            logs |= {f"{phase.name}/{name}": value for name, value in values.items()}
        state.iteration += 1
        return logs

    def accumulate(self, phase: Phase, index: int, batch: Batch) -> dict[str, float]:
        """Gradients of the batch's mean loss, a micro-batch at a time; returns the batch's loss and logs."""
        rows = self.config.micro_batch or len(batch)
        totals: dict[str, Tensor] = {}
        for start in range(0, len(batch), rows):
            micro = batch[slice(start, start + rows)]
            weight = len(micro) / len(batch)
            self.generator.manual_seed(_mixed(self.config.seed, self.state.iteration, index, start))
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.state.precision == "bfloat16"):
                loss = phase.loss(micro, self.state.iteration, Draws(self.config.seed, micro.sample))
            (loss.total * weight).backward()
            for name, value in {"loss": loss.total, **loss.logs}.items():
                totals[name] = totals.get(name, 0) + value.detach().float() * weight
        return dict(zip(totals, torch.stack(list(totals.values())).tolist(), strict=True))

    def skip(self, phase: Phase, batch: Batch, values: Mapping[str, float], in_a_row: int) -> None:
        """Count and tell an update that is not made; give up after PATIENCE of the phase in a row."""
        self.state.skipped += 1
        text = (
            f'iteration {self.state.iteration}, phase "{phase.name}", samples {int(batch.sample.min())} to '
            f"{int(batch.sample.max())}: loss {values['loss']}, gradient norm {values['grad_norm']}"
        )
        if bad := batch.sample[~torch.isfinite(batch.x).flatten(1).all(1)].tolist():
            text += f"; the data itself is not finite in samples {bad}"
        if in_a_row >= PATIENCE:
            raise NonFiniteError(
                f"{text}; {PATIENCE} updates in a row were not finite. What was saved before is intact. Look at those "
                "samples, or start a new run directory with a lower optim.lr"
            )
        self.progress.note(f"{text}: update skipped")

    def report(self, logs: Mapping[str, float], elapsed: float) -> None:
        state, config = self.state, self.config
        counts = {"images": state.iteration * config.batch_size, "seconds": state.seconds, "skipped": state.skipped}
        state.running_means.add(finite(logs) | {"elapsed": elapsed})
        if state.iteration % config.log_every == 0 or state.iteration == config.iterations:
            means = state.running_means.means()
            rate = {"images_per_second": config.batch_size / means.pop("elapsed")}
            self.metrics.write({"iteration": state.iteration} | counts | rate | means | {"lr": logs["lr"]})
            state.running_means.sums.clear()
        self.progress.update(state.iteration, config.iterations, counts | finite(logs))

    def save(self, *, last: bool) -> None:
        """Write a checkpoint. If that fails training goes on, with one notice; the last one may not fail."""
        record = self.state.record() | {"surroundings": surroundings(self.device), "config": self.identity}
        try:
            checkpoint.save(self.checkpoints, self.state.iteration, self.state.tensors(), record)
            self.saved_at = self.state.iteration
            checkpoint.prune(self.checkpoints, self.config.keep)
        except OSError as error:
            if last and self.saved_at != self.state.iteration:
                raise
            if not self.save_failed:
                self.progress.note(f"could not save a checkpoint, training goes on: {error}")
            self.save_failed = True


def _mixed(*numbers: int) -> int:
    """64 well-mixed bits of some integers."""
    return int.from_bytes(hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest(), "little")
