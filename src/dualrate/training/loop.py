"""The trainer: `fit` runs the phases of a method, and knows nothing else about it. It resumes exactly (resume.py).

An iteration is one batch; each of its phases is one optimiser update:

    freeze all but the phase's parameters -> loss of each micro-batch, backward -> clip -> AdamW -> EMA

Losses and norms stay on the device, where an update that is not finite is skipped; they are read where a line of the
log is written, so that in between nothing waits for a GPU. On the CPU, which has no queue, every iteration.

Several processes each compute their rows (distributed.py) and add up gradients and logs before anything is decided by
them, so they make the same updates, skip the same, and stop at the same iteration. The leader alone writes. A process
that hangs for longer than the others wait prints where its threads stand, and ends.
"""

from __future__ import annotations

import faulthandler
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed

from dualrate.diffusion.context import Batch
from dualrate.networks.blocks import Block, blocks_of, frozen
from dualrate.system.device import compile_calls, compiles, default_generator, pays, settle_products
from dualrate.system.launch import is_launched, timeout
from dualrate.system.progress import Interrupts, PlainReporter, Reporter, Silent, run_lock
from dualrate.training.checkpoint import Saver
from dualrate.training.config import FitConfig, FitResult, lr_at
from dualrate.training.distributed import Share, World, sum_gradients
from dualrate.training.log import MetricsFile
from dualrate.training.method import Method, Phase
from dualrate.training.resume import resume
from dualrate.training.state import PhaseState, RunState, finite

PATIENCE = 10  # updates of a phase skipped in a row before giving up


class BatchSource(Protocol):
    def batch(self, iteration: int) -> Batch:
        """Batch number `iteration` (from 0) of the run, the rows of it that `Share.rows` names: a pure function."""
        ...


class NonFiniteError(FloatingPointError):
    """Losses or gradients stayed NaN or infinite."""


@dataclass(frozen=True)
class _Update:
    """The numbers of an update, on the device until they are read.

    values: (len(names),), the loss first, the gradient's norm last; lr: of the method's main phase
    largest: (R,) of the data in each row here, in magnitude: not finite where one of them is not
    """

    iteration: int
    phase: str
    state: PhaseState
    lr: float
    names: tuple[str, ...]
    values: Tensor
    largest: Tensor


def fit(
    method: Method,
    batches: BatchSource,
    config: FitConfig,
    run_dir: Path,
    *,
    identity: Mapping[str, Any],
    places: Mapping[str, str] = MappingProxyType({}),
    upgrade: Callable[[dict[str, Any]], dict[str, Any]] = lambda written: written,
    progress: Reporter | None = None,
    on_start: Callable[[int], None] | None = None,
    on_sample: Callable[[int], None] | None = None,
    device: torch.device | str | None = None,
    world: World = World(),
) -> FitResult:
    """Train `method` on `batches`, or continue the run that `run_dir` holds.

    identity:  JSON-able resolved configuration; resuming with another one is refused
    places:    of keys of it ("data.source") that say where something is, the key of what it is ("images"): the first
               may differ where the second does not
    upgrade:   of an identity as earlier versions wrote it
    on_start:  called once with the number of iterations done, when the run is locked and its configuration accepted
    on_sample: called with the number of iterations done, averaged weights in place: every `sample_every`, at the end,
               and once more at a start from such an iteration, whose samples a kill may have prevented
    device:    of the batches; None: where the networks are
    world:     the processes that train together, each in this call; the callbacks are the leader's
    Raises ValueError (another configuration), OSError (run in use, no intact checkpoint, nothing could be saved at
    the end, another process lost), NonFiniteError.
    """
    device = next(method.networks.parameters()).device if device is None else torch.device(device)
    progress = progress or (PlainReporter() if world.leads else Silent())
    run_dir.mkdir(parents=True, exist_ok=True)
    cuda = [device] if device.type == "cuda" else []
    with ExitStack() as stack:
        stack.callback(progress.close)
        if world.leads:
            stack.enter_context(run_lock(run_dir))
        interrupts = stack.enter_context(Interrupts(echoes=is_launched()))
        stack.enter_context(torch.random.fork_rng(cuda))
        stack.enter_context(world.in_reach())
        trainer = _Trainer(method, config.resolved(), device, progress, run_dir, world)
        begun = trainer.resume(identity, places, upgrade)
        if on_start and world.leads:
            on_start(begun)
        with trainer.saver:
            stopped = trainer.run(batches, on_sample, interrupts)
        return FitResult(trainer.state.iteration, stopped, trainer.state.seconds, begun, run_dir)


class _Trainer:
    def __init__(
        self, method: Method, config: FitConfig, device: torch.device, progress: Reporter, run_dir: Path, world: World
    ) -> None:
        self.method, self.config, self.device, self.progress, self.world = method, config, device, progress, world
        self.run_dir, self.share = run_dir, Share(config.batch_size, config.micro_batch, world)
        self.generator = default_generator(device)
        self.compiles, self.compiling = False, False  # networks at all; in the iteration that runs
        self.compiled: set[str] = set()  # phases that ran since this start
        from torch import _dynamo  # noqa: F401  # else the first step of torch.optim takes its seconds as training

        self.lr: dict[str, float] = {}  # of the latest update that was read; a method without phases has none
        self.unread: list[_Update] = []
        self.unreported: list[dict[str, float]] = []  # logs that were read, an iteration each
        networks, auxiliaries = method.networks.to(device), method.auxiliaries.to(device)
        world.copy_leader((*networks.state_dict().values(), *auxiliaries.state_dict().values()))
        trained = (*networks.values(), *auxiliaries.values())
        if config.compile and (problem := compiles(device)):
            progress.note(f"not compiling the networks, which changes only the speed: {problem}")
        elif config.compile:
            compile_blocks(trained)
            self.compiles = True
        if config.recompute_from is not None and not recompute(trained, config.recompute_from):
            progress.note("not computing activations again: the networks have no blocks, on which recompute_from acts")
        self.state = RunState(networks, auxiliaries, config)

    def resume(
        self,
        identity: Mapping[str, Any],
        places: Mapping[str, str],
        upgrade: Callable[[dict[str, Any]], dict[str, Any]],
    ) -> int:
        """Continue from the newest intact checkpoint, if any; returns the number of iterations done."""
        self.identity = json.loads(json.dumps({**identity, "fit": asdict(self.config)}))
        directory, note, world = self.run_dir / "checkpoints", self.progress.note, self.world
        surroundings = self.surroundings()
        fixed = getattr(self.method, "fixed_settings", ())
        iteration = resume(self.state, directory, self.identity, surroundings, places, upgrade, world, note, fixed)
        self.saver = Saver(directory, self.config.keep, note, iteration)
        if self.state.precision == "auto":
            self.state.precision = "bfloat16" if world.of_leader(pays(self.device)) else "float32"
        self.settle()
        if world.leads:
            self.metrics = MetricsFile(self.run_dir / "metrics.jsonl", self.state.iteration, note)
        return self.state.iteration

    def surroundings(self) -> dict[str, Any]:
        """The versions and devices that bit-for-bit resuming depends on."""
        here = {"torch": str(torch.__version__), "threads": torch.get_num_threads(), "device": self.device.type}
        return here | {"processes": self.world.size}

    def settle(self) -> None:
        """Choose how matrices are multiplied in training: anew after scores and samples, which choose otherwise."""
        settle_products(self.device, bfloat16=self.state.precision == "bfloat16", trains=True)

    def run(
        self, batches: BatchSource, on_sample: Callable[[int], None] | None, interrupts: Interrupts
    ) -> Literal["done", "signal", "seconds"]:
        """Train until finished, interrupted or out of time, then save a checkpoint."""
        config, state = self.config, self.state
        sampled_at, began = state.iteration, state.iteration
        limit = math.inf if config.limit is None else config.limit
        most = math.inf if config.iterations is None else config.iterations
        if began and (began % config.sample_every == 0 or began >= most or state.seconds >= limit):
            self.sample(on_sample)  # a kill may have come before it was done
        late = False
        while state.iteration < most:
            interrupted, late = self.world.any(interrupts.received is not None, state.seconds >= limit)
            if interrupted or late:
                break
            start = time.perf_counter()
            with ended_if_it_hangs(self.world):
                batch = batches.batch(state.iteration)
                if len(batch) != len(self.share.rows):
                    raise ValueError(f"got a batch of {len(batch)} rows, the configuration says {len(self.share.rows)}")
                self.iterate(batch.to(self.device))
                if self.is_logged() or not _queues(self.device):
                    self.read()
            self.report(time.perf_counter() - start)
            self.saver.look()
            if state.iteration % config.checkpoint_every == 0:
                self.save(last=False)
            if state.iteration % config.sample_every == 0:
                self.sample(on_sample)
                sampled_at = state.iteration
        if late and state.iteration > began:
            self.read()
            self.write_line()
        self.saver.finish()
        if self.world.of_leader(self.saver.saved_at) != state.iteration:
            self.save(last=True)
        if state.iteration < most and any(self.world.any(interrupts.received is not None)):
            return "signal"
        if sampled_at != state.iteration:
            self.sample(on_sample)
        return "done" if state.iteration >= most or config.ends_by_clock else "seconds"

    def sample(self, on_sample: Callable[[int], None] | None) -> None:
        """Call `on_sample` with averaged weights in place. Pictures without disk or memory do not stop training."""
        if on_sample is None or not self.world.leads:
            return
        try:
            with self.state.averaged():
                on_sample(self.state.iteration)
        except (OSError, torch.OutOfMemoryError) as error:
            self.progress.note(f"could not write samples, training goes on: {error}")
        finally:
            self.settle()

    def iterate(self, batch: Batch) -> None:
        """Train on one batch: an update of every phase."""
        state, lr = self.state, self.rate()
        largest = torch.linalg.vector_norm(batch.x.flatten(1), math.inf, 1)
        for index, phase in enumerate(self.method.phases(state.iteration)):
            self.compiling |= self.compiles and phase.name not in self.compiled
            self.compiled.add(phase.name)
            updated = state.enter(phase)
            with frozen(state.networks, state.auxiliaries, but=phase.parameters):
                names, values = self.accumulate(phase, index, batch, updated.parameters.values())
            norm = nn.utils.clip_grad_norm_(updated.parameters.values(), self.config.optim.clip).to(values)
            broken = ~(torch.isfinite(values[0]) & torch.isfinite(norm))
            updated.update(lr * phase.rate, self.config.batch_size, unless=broken)
            named, values = (*names, "grad_norm"), torch.cat([values, norm[None]])
            self.unread.append(_Update(state.iteration, phase.name, updated, lr, named, values, largest))
        state.iteration += 1

    def rate(self) -> float:
        """The learning rate of the next iteration: by the leader's clock, where it falls with time."""
        falls = self.config.falling is not None
        milliseconds = self.world.of_leader(round(1000 * self.state.seconds)) if falls else 0
        return lr_at(self.config, self.state.iteration, milliseconds / 1000)

    def accumulate(
        self, phase: Phase, index: int, batch: Batch, parameters: Iterable[nn.Parameter]
    ) -> tuple[tuple[str, ...], Tensor]:
        """Gradients of the batch's mean loss, a micro-batch at a time; the loss and logs. All of the whole batch."""
        names: dict[str, Tensor] = {}
        totals: list[Tensor] = []
        for micro, start in self.share.micro_batches(batch):
            weight = len(micro) / self.config.batch_size
            self.generator.manual_seed(_mixed(self.config.seed, self.state.iteration, index, start))
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.state.precision == "bfloat16"):
                loss = phase.loss(micro, self.state.iteration, micro.draws(self.config.seed))
            (loss.total * weight).backward()
            torch.clear_autocast_cache()  # within another autocast its exit keeps 16-bit copies of weights of before
            names = {"loss": loss.total, **loss.logs}
            wide = [value.detach().to(torch.promote_types(value.dtype, torch.float32)) for value in names.values()]
            totals.append(torch.stack(wide) * weight)
        sum_gradients(parameters, self.world)
        values = sum(totals[1:], totals[0])
        self.world.add_up([values])
        return tuple(names), values

    def read(self) -> None:
        """Wait for the device, and take note of the updates since it was last read."""
        if not self.unread:
            return
        unread, self.unread = self.unread, []
        numbers = iter(torch.cat([update.values for update in unread]).tolist())
        for _, updates in groupby(unread, key=attrgetter("iteration")):
            logs: dict[str, float] = {}
            for update in updates:
                values = dict(zip(update.names, numbers, strict=False))  # the next ones
                if math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"]):
                    update.state.skipped_in_a_row = 0
                else:
                    self.skip(update, values)
                self.lr = {"lr": update.lr}
                logs |= self.lr | {f"{update.phase}/{name}": value for name, value in values.items()}
            self.state.running_means.add(finite(logs))
            self.unreported.append(logs)

    def skip(self, update: _Update, values: Mapping[str, float]) -> None:
        """Count and note an update that is not made; give up after PATIENCE of the phase in a row."""
        self.state.skipped += 1
        update.state.skipped_in_a_row += 1
        size, not_finite = self.config.batch_size, self.share.gathered((~torch.isfinite(update.largest)).long())
        first = update.iteration * size
        text = (
            f'iteration {update.iteration}, phase "{update.phase}", samples {first} to {first + size - 1}: '
            f"loss {values['loss']}, gradient norm {values['grad_norm']}"
        )
        if bad := (first + not_finite.nonzero().flatten()).tolist():
            text += f"; the data itself is not finite in samples {bad}"
        if update.state.skipped_in_a_row >= PATIENCE:
            raise NonFiniteError(f"{text}; so were {PATIENCE} updates in a row: look at them, or lower optim.lr")
        self.progress.note(f"{text}: update skipped")

    def is_logged(self) -> bool:
        """Whether a line of the log ends with this iteration."""
        return self.state.iteration % self.config.log_every == 0 or self.state.iteration == self.config.iterations

    def report(self, elapsed: float) -> None:
        """Report an iteration, and those before it whose losses were read only now: an update for each."""
        state, config = self.state, self.config
        state.seconds += 0 if self.compiling else elapsed  # which is no training: schedules by seconds would end sooner
        self.compiling = False
        unreported, self.unreported = self.unreported, []
        if not self.world.leads:
            return
        counts = self.counts()
        state.running_means.add({"elapsed": elapsed})
        if self.is_logged():
            self.write_line()
        ends = [] if config.iterations is None else [config.iterations]
        if config.limit is not None and (state.seconds or not ends):  # an estimate: how many seconds allow
            share = config.limit / state.seconds if state.seconds else 1.0
            ends.append(max(state.iteration, math.ceil(state.iteration * share)))
        total = min(ends)
        for logs in unreported[:-1]:
            self.progress.update(state.iteration - 1, total, counts | finite(logs))
        self.progress.update(state.iteration, total, counts | finite(unreported[-1] if unreported else {}))

    def counts(self) -> dict[str, float]:
        """The numbers beside losses in lines of the log and of progress."""
        state = self.state
        return {"images": state.iteration * self.config.batch_size, "seconds": state.seconds, "skipped": state.skipped}

    def write_line(self) -> None:
        """The leader writes a line of the log: means since the line before, and the latest learning rate."""
        means = self.state.running_means.means()
        if not self.world.leads or "elapsed" not in means:
            return
        rate = {"images_per_second": self.config.batch_size / means.pop("elapsed")}
        self.metrics.write({"iteration": self.state.iteration, **self.counts(), **rate, **means, **self.lr})
        self.state.running_means.sums.clear()

    def save(self, *, last: bool) -> None:
        """The leader begins to save a checkpoint; if it is the last one, to the end."""
        self.read()
        if self.world.leads:
            record = self.state.record() | {"surroundings": self.surroundings(), "config": self.identity}
            self.saver.save(self.state.iteration, self.state.tensors(), record, last=last)


def _queues(device: torch.device) -> bool:
    """Whether work on the device goes on while the program asks for more."""
    return device.type != "cpu"


@contextmanager
def ended_if_it_hangs(world: World) -> Iterator[None]:
    """One of several processes whose block takes longer than the others wait for it prints its stacks and ends."""
    if world.size == 1:
        yield
        return
    patience = timeout() + min(timeout(), 5)  # the others may be first to report that they wait
    faulthandler.dump_traceback_later(patience, exit=True, file=2)  # standard error, whatever sys.stderr is
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def recompute(networks: Iterable[nn.Module], side: int) -> bool:
    """Activation checkpointing (Chen et al. 2016, arXiv 1604.06174) of blocks on maps of this side or a larger one.

    Such a block does not keep what the backward pass needs, and computes it again then with the same dropout masks: the
    same numbers for less memory and one more forward pass. Says whether the networks have blocks.
    """
    blocks = [block for network in networks for block in blocks_of(network)]
    for block in blocks:
        block.forward = partial(_recomputed, block, block.forward, side)
    return bool(blocks)


def _recomputed(block: Block, forward: Callable[..., Tensor], side: int, h: Tensor, emb: Tensor) -> Tensor:
    wide = max(h.shape[2:]) if h.ndim == 4 else math.isqrt(h.shape[1])  # (B, C, H, W), or tokens of a square (B, n, C)
    # in evaluation mode a method keeps dropout off for this call only: the backward pass would turn it on
    if wide < side or not block.training or not torch.is_grad_enabled():
        return forward(h, emb)
    again = recomputed(forward, h, emb, use_reentrant=False)
    assert isinstance(again, Tensor)
    return again


def compile_blocks(networks: Iterable[nn.Module]) -> None:
    """Have the blocks of networks compiled, of which equal ones share the result; a network without blocks as a whole.

    Each process compiles for itself at the first calls, or takes the result from the cache (system/device.py).
    """
    for network in networks:
        for part in blocks_of(network) or [network]:
            compile_calls(part)


def _mixed(*numbers: int) -> int:
    """64 well-mixed bits of some integers."""
    return int.from_bytes(hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest(), "little")
