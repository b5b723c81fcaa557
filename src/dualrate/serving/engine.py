"""Many requests drawn at once: heavy calls in one batch, light calls in another, each request at its own step.

A request may come at any time, with its own plan, sampler, guidance, seeds and members. It runs the one sampling loop
in a thread of its caller, and the calls of its denoiser wait for the engine's next turn:

    turn:   heavy calls that wait (`encode`, `read`, `renew`)   one batch of those that are alike, in turn
            light calls that wait then (`denoise`)              likewise

So a turn is a step of every request. Alike are calls of the same network on rows of the same shapes; their times
differ, by row. Requests of one condition share its heavy call, as long as one of them is at work. A batch has a limited
number of rows, and takes about a limited time. Where not all have room, the client goes first that had the fewest rows,
and of its requests the one that had the fewest; and while several clients are at work a batch has a
short time of each. So no client keeps another from its next step, however much it asks for in however many requests.

Results are those that a request has alone, up to the rounding of a batch: of a call that was alone, the same bits.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dualrate.denoisers.denoiser import Wrapper
from dualrate.diffusion.context import Cond, Context
from dualrate.drawing.drawer import Drawer
from dualrate.sampling.trajectory import State
from dualrate.serving.calls import Call, Joined
from dualrate.serving.work import Work
from dualrate.system.device import carries_derivative

KINDS = {"heavy": ("read", "encode", "renew"), "light": ("denoise",)}
PAUSE = 0.05  # seconds that a turn waits for a request which is between two calls
Watch = Callable[[int, Tensor | None], None]  # (steps done, the latest x_hat)


class Full(Exception):
    """No more requests have room."""


@dataclass(frozen=True)
class Capacity:
    """The most that an engine takes: images at work (twice as many where guided), rows and seconds of a batch.

    share: seconds of a batch that are one client's, where several are at work; one call at least
    """

    images: int = 512
    rows: int = 128
    seconds: float = 0.25
    share: float = 0.05


@dataclass(frozen=True)
class Batched(Wrapper):
    """A denoiser whose calls are made by an engine, in batches with those of other requests."""

    drawing: Drawing
    bfloat16: bool

    def read(self, cond: Cond) -> Cond:
        return cond if cond.given is None else self._call("read", None, None, Context(), cond)

    def encode(self, z: Tensor, t: Tensor, cond: Cond) -> Context:
        return self._call("encode", z, t, Context(), cond)

    def renew(self, z: Tensor, t: Tensor, context: Context, cond: Cond) -> Context:
        return self._call("renew", z, t, context, cond)

    def denoise(self, z: Tensor, t: Tensor, context: Context, cond: Cond) -> Tensor:
        return self._call("denoise", z, t, context, cond)

    def _call(self, method: str, z: Tensor | None, t: Tensor | None, context: Context, cond: Cond) -> Any:
        call = Call(self.drawing, self.inner, method, self.bfloat16, z, t, context, cond)
        runs = context.x_hat is None and not (method == "encode" and self.drawing.engine.is_empty(self.inner))
        if not runs or (z is not None and carries_derivative([z])):  # which belongs to the thread that takes it
            return call.run()
        return self.drawing.answer(call)


@dataclass(frozen=True)
class Seen(Wrapper):
    """A denoiser that shows what it returns."""

    see: Callable[[Tensor], None]

    def denoise(self, z: Tensor, t: Tensor, context: Context, cond: Cond) -> Tensor:
        x_hat = self.inner.denoise(z, t, context, cond)
        self.see(x_hat)
        return x_hat


@dataclass(eq=False)
class Drawing:
    """A request at work: `images` draws, in the thread that calls it; `cancel`, from any thread, ends that at once."""

    engine: Engine
    rows: int
    client: str = ""
    used: int = 0  # rows of calls
    shared: list[Any] = field(default_factory=list)  # what it was answered of its condition, for others of the same
    cancelled: bool = False

    def __enter__(self) -> Drawing:
        return self

    def __exit__(self, *_: object) -> None:
        self.engine.leave(self)

    def cancel(self) -> None:
        """Have its calls raise CancelledError, one that waits now at once. Its place is free once it was left."""
        self.engine.cancel(self)

    def answer(self, call: Call) -> Any:
        """The result of a call, after some turn. Raises CancelledError."""
        self.engine.submit(call)
        while not call.answer.done() and self.engine.alive:
            with suppress(TimeoutError, CancelledError):
                call.answer.exception(1)
        if self.cancelled or not call.answer.done():
            raise CancelledError
        return call.answer.result()

    def images(self, drawer: Drawer, seeds: range, watch: Watch | None = None) -> NDArray[np.uint8]:
        """The images of these seeds, as of `samples`."""
        return self.samples(drawer, Work(seeds), watch)

    def samples(self, drawer: Drawer, work: Work, watch: Watch | None = None) -> NDArray[Any]:
        """The samples of some work, which raises the rest.

        watch: called before the first step and after each; what it raises ends the drawing
        Raises CancelledError.
        """
        seen: list[Tensor] = []
        engine, bfloat16 = self.engine, drawer.bfloat16
        with engine.changed:  # two threads would make two copies
            inner = drawer.model.ready(bfloat16=bfloat16).denoiser
        batched = drawer.guided(Batched(inner, self, bfloat16))

        def follow(state: State) -> None:
            if watch is not None:
                watch(state.i, seen[0] if seen else None)
            if state.i == drawer.plan.num_steps:
                engine.rest(self)

        denoiser = Seen(batched, lambda x_hat: seen.__setitem__(slice(None), [x_hat]))
        try:
            return work.draw(drawer, denoiser, follow)
        finally:
            engine.rest(self)


class Engine:
    """Draws until it is left. One thread makes all calls; its other methods are called from any thread."""

    def __init__(self, capacity: Capacity = Capacity()) -> None:
        self.capacity = capacity
        self.changed = threading.Condition()
        self.batches, self.rows = Counter[str](), Counter[str]()  # by kind of call
        self.seconds = dict.fromkeys(KINDS, 0.0)
        self._calls: list[Call] = []  # that wait
        self._between: set[Drawing] = set()  # whose last call was answered, and whose next has not come
        self._drawings: set[Drawing] = set()
        self._used: dict[str, int] = {}  # rows of calls, by client at work
        self._shared: WeakValueDictionary[object, Any] = WeakValueDictionary()
        self._empty: dict[int, Any] = {}  # denoisers whose heavy call is none
        self._a_row: dict[tuple[object, ...], float] = {}  # seconds, of calls that are alike
        self._alone: set[tuple[object, ...]] = set()  # calls that fail as a batch, and not by themselves
        self._open = True
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        with self.changed:
            self._open = False
            drawings = list(self._drawings)
        for drawing in drawings:
            self.cancel(drawing)
        with self.changed:
            self.changed.notify_all()
        self._thread.join()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def waiting(self) -> int:
        """Calls that wait for a turn."""
        return len(self._calls)

    @property
    def images_at_work(self) -> int:
        with self.changed:
            return sum(drawing.rows for drawing in self._drawings)

    def enter(self, images: int, client: str = "") -> Drawing:
        """A place for a request of so many images, until it is left (`with engine.enter(...) as drawing`).

        images: with all members, and twice as many where guided; client: whose it is, who has one share with all
        Raises Full where they would be more than there is room for.
        """
        with self.changed:
            at_work, most = self.images_at_work, self.capacity.images
            if not self._open or at_work + images > most:
                raise Full(
                    f"{at_work} images are at work, and of {images} more there would be over {most}: try again in a "
                    "few seconds, or ask for fewer"
                )
            self._used.setdefault(client, min(self._used.values(), default=0))  # who comes has no more of a claim
            used = min((each.used for each in self._drawings if each.client == client), default=0)
            drawing = Drawing(self, images, client, used)
            self._drawings.add(drawing)
            return drawing

    def leave(self, drawing: Drawing) -> None:
        with self.changed:
            self._drawings.discard(drawing)
            drawing.shared.clear()
            if all(other.client != drawing.client for other in self._drawings):
                self._used.pop(drawing.client, None)
        self.rest(drawing)

    def rest(self, drawing: Drawing) -> None:
        """Do not wait for its next call."""
        with self.changed:
            self._between.discard(drawing)
            self.changed.notify_all()

    def cancel(self, drawing: Drawing) -> None:
        with self.changed:
            drawing.cancelled = True
            for call in [call for call in self._calls if call.drawing is drawing]:
                self._calls.remove(call)
                call.answer.cancel()
                call.answer.set_running_or_notify_cancel()  # else nobody who waits hears of it
        self.rest(drawing)

    def submit(self, call: Call) -> None:
        """Have a call wait for its turn. Raises CancelledError for one of a drawing that was cancelled."""
        hash(call.alike)  # its error belongs to this thread: the engine's has none
        with self.changed:
            if call.drawing.cancelled or not self._open:
                raise CancelledError
            self._calls.append(call)
            self._between.discard(call.drawing)
            if not self._between or len(self._calls) == 1:  # else its thread has nothing to do yet
                self.changed.notify_all()

    def is_empty(self, denoiser: Any) -> bool:
        """Whether its heavy call makes nothing, as that of a single network."""
        return id(denoiser) in self._empty

    def _work(self) -> None:
        while self._open:
            with self.changed:
                self.changed.wait_for(lambda: self._calls or not self._open)
            for kind in KINDS:
                for calls in self._take(kind):
                    self._answer(kind, calls)

    def _take(self, kind: str) -> list[list[Call]]:
        """Batches of the calls of a kind that wait, after those that are on their way have come."""
        with self.changed:
            if not self.changed.wait_for(lambda: not self._between, PAUSE):
                self._between.clear()
            groups: defaultdict[tuple[object, ...], list[Call]] = defaultdict(list)
            for call in self._calls:
                if call.method in KINDS[kind]:
                    groups[(id(call),) if call.alike in self._alone else call.alike].append(call)
            batches = [self._batch_of(calls, self._a_row.get(key, 0.0)) for key, calls in groups.items()]
            for call in itertools.chain(*batches):
                self._calls.remove(call)
                call.answer.set_running_or_notify_cancel()
            return batches

    def _batch_of(self, calls: list[Call], seconds: float) -> list[Call]:
        """The calls that have room in a batch. seconds: that a row takes, 0 where nothing is known"""
        most, share, capacity = float(self.capacity.rows), math.inf, self.capacity
        if seconds:
            most = min(most, capacity.seconds / seconds)
            share = capacity.share / seconds if len(self._used) > 1 else math.inf
        waiting: dict[str, deque[Call]] = {}
        for call in sorted(calls, key=lambda call: call.drawing.used):
            waiting.setdefault(call.drawing.client, deque()).append(call)
        batch, rows, taken = list[Call](), 0, Counter[str]()
        while waiting:
            client = min(waiting, key=lambda name: self._used.get(name, 0) + taken[name])
            call = waiting[client].popleft()
            if not batch or (rows + call.rows <= most and (not taken[client] or taken[client] + call.rows <= share)):
                batch.append(call)
                rows += call.rows
                taken[client] += call.rows
            if not waiting[client]:
                del waiting[client]
        return batch

    def _answer(self, kind: str, calls: Sequence[Call]) -> None:
        """Make these calls, those of one condition once. Where a batch fails each is made alone, to fail alone."""
        try:
            keys = [call.condition or call for call in calls]
            results: dict[Any, Any] = {key: result for key in keys if (result := self._shared.get(key)) is not None}
            fresh = {key: call for key, call in zip(keys, calls, strict=True) if key not in results}
            if fresh:
                results.update(zip(fresh, self._batch(kind, list(fresh.values())), strict=True))
        except Exception as error:
            if len(calls) == 1:
                calls[0].answer.set_exception(error)
                return
            for call in calls:
                self._answer(kind, [call])
            if all(call.answer.exception() is None for call in calls):
                self._alone.add(calls[0].alike)
            return
        with self.changed:
            self._between.update(call.drawing for call in calls if not call.drawing.cancelled)
            for key, call in zip(keys, calls, strict=True):
                if key is not call:
                    call.drawing.shared.append(self._shared.setdefault(key, results[key]))
        for key, call in zip(keys, calls, strict=True):
            call.answer.set_result(results[key])

    def _batch(self, kind: str, calls: Sequence[Call]) -> list[Any]:
        """The results of calls that are alike."""
        start, rows = time.perf_counter(), sum(call.rows for call in calls)
        joined = None if len(calls) == 1 else Joined(calls)
        call = calls[0] if joined is None else joined.call
        cast = torch.autocast(call.device.type, torch.bfloat16) if call.bfloat16 else nullcontext()
        with torch.no_grad(), cast:
            result = call.run()
        results = [result] if joined is None else list(joined.parts(result))
        if call.device.type == "cuda":
            torch.cuda.synchronize(call.device)
        seconds = time.perf_counter() - start
        if isinstance(result, Context) and not result.features and result.x_hat is None:
            self._empty[id(call.inner)] = call.inner
            return results
        with self.changed:
            for call in calls:
                call.drawing.used += call.rows
                if call.drawing.client in self._used:
                    self._used[call.drawing.client] += call.rows
        self.batches[kind] += 1
        self.rows[kind] += rows
        self.seconds[kind] += seconds
        key = calls[0].alike
        self._a_row[key] = (self._a_row.get(key, seconds / rows) + seconds / rows) / 2
        return results
