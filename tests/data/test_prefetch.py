"""Prefetching changes when a batch is made and nothing else: not its bits, not what its errors say."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from dualrate.data.images import ImageSet
from dualrate.data.loader import AHEAD, Augment, Batches, ByteBatch, Prefetched

PATIENCE = 10.0  # seconds, of a machine that others use too


@pytest.fixture(autouse=True)
def no_thread_survives() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


def made(labelled: bool = True) -> Batches:
    pixels = np.random.default_rng(0).integers(0, 256, (23, 3, 6, 5)).astype(np.uint8)
    images = ImageSet(pixels, np.arange(23) if labelled else None, tuple("abc") * 8 if labelled else (), "noise")
    return Batches(images, 7, 3, Augment(flip=True, translate=2))


class Watched(Batches):
    """Counts what is made, and where; fails at `bad`; waits at `slow` for `go`."""

    def __init__(self, bad: int = -1, slow: int = -1) -> None:
        super().__init__(made().images, 7, 3)
        self.bad, self.slow, self.go = bad, slow, threading.Event()
        self.made: list[int] = []
        self.threads: set[int] = set()

    def bytes(self, iteration: int) -> ByteBatch:
        self.made.append(iteration)
        self.threads.add(threading.get_ident())
        if iteration == self.slow:
            assert self.go.wait(PATIENCE)
        if iteration == self.bad:
            raise OSError("the disk is gone") from RuntimeError("a cable")
        return super().bytes(iteration)


def until(holds) -> None:
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.001)


def assert_same(one: Tensor | None, other: Tensor | None) -> None:
    if one is None or other is None:
        assert one is other
    else:
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("order", [range(9), range(100, 104), (5, 5, 2, 9, 8, 0), (3, 4, 40, 4, 5)])
def test_batches_have_the_bits_of_those_made_when_asked_for(order: range | tuple[int, ...], labelled: bool) -> None:
    with Prefetched(made(labelled), "cpu", AHEAD) as batches:
        for number in order:
            ours, theirs = batches.batch(number), made(labelled).batch(number)
            assert_same(ours.x, theirs.x)
            assert_same(ours.label, theirs.label)
            assert_same(ours.sample, theirs.sample)


def test_the_next_are_made_while_nobody_asks_and_no_more_than_that() -> None:
    watched = Watched()
    with Prefetched(watched, "cpu", AHEAD) as batches:
        batches.batch(4)
        until(lambda: len(watched.made) == 1 + AHEAD)
        for number in range(5, 9):
            batches.batch(number)
        until(lambda: len(watched.made) == 5 + AHEAD)
        time.sleep(0.02)
    assert watched.made == list(range(4, 9 + AHEAD))
    assert threading.get_ident() not in watched.threads


def test_an_error_is_raised_for_its_own_batch_with_its_cause() -> None:
    with Prefetched(Watched(bad=2), "cpu", AHEAD) as batches:
        batches.batch(0)
        batches.batch(1)
        with pytest.raises(OSError, match="the disk is gone") as caught:
            batches.batch(2)
        assert str(caught.value.__cause__) == "a cable"
        batches.batch(3)


def interrupted(watched: Watched, error: type[BaseException]) -> None:
    with Prefetched(watched, "cpu", AHEAD) as batches:
        batches.batch(0)
        until(lambda: 1 in watched.made)
        threading.Timer(0.05, watched.go.set).start()
        raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interruption_waits_for_one_batch_at_most(error: type[BaseException]) -> None:
    watched = Watched(slow=1)
    with pytest.raises(error):
        interrupted(watched, error)
    assert watched.made == [0, 1]
    until(lambda: not any(isinstance(thread, threading.Timer) for thread in threading.enumerate()))


def test_what_was_begun_and_is_not_wanted_any_more_is_not_made() -> None:
    watched = Watched(slow=1)
    with Prefetched(watched, "cpu", AHEAD) as batches:
        batches.batch(0)
        until(lambda: 1 in watched.made)
        threading.Timer(0.05, watched.go.set).start()
        batches.batch(50)
        until(lambda: len(watched.made) == 3 + AHEAD)
    assert watched.made == [0, 1, 50, *range(51, 51 + AHEAD)]
    until(lambda: not any(isinstance(thread, threading.Timer) for thread in threading.enumerate()))


def test_the_trainer_keeps_its_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    before, seen = torch.get_num_threads(), []

    class Asking(Watched):
        def bytes(self, iteration: int) -> ByteBatch:
            seen.append(torch.get_num_threads())
            return super().bytes(iteration)

    try:
        torch.set_num_threads(3)
        with Prefetched(Asking(), "cpu", AHEAD) as batches:
            batches.batch(0)
        assert torch.get_num_threads() == 3
        assert set(seen) == {1}
    finally:
        torch.set_num_threads(before)


def test_on_cuda_bytes_travel_from_pinned_memory_without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU is needed to see what is asked of it: memory is pinned in the thread, under its own device."""
    said: list[tuple[object, ...]] = []
    main = threading.get_ident()

    def where() -> str:
        return "main" if threading.get_ident() == main else "thread"

    def pinned(tensor: Tensor) -> Tensor:
        said.append(("pinned", tensor.dtype, where()))
        return tensor

    def moved(tensor: Tensor, device: torch.device, non_blocking: bool = False) -> Tensor:
        said.append(("moved", tensor.dtype, non_blocking, str(device), where()))
        return tensor

    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: said.append(("device", str(device), where())))
    monkeypatch.setattr(Tensor, "pin_memory", pinned)
    monkeypatch.setattr(Tensor, "to", moved)
    with Prefetched(made(), "cuda", 1) as batches:
        batches.batch(0)
    kinds = (torch.uint8, torch.int64, torch.int64)
    assert said[0] == ("device", "cuda:3", "thread")
    assert [event for event in said if event[0] == "pinned"][:3] == [("pinned", kind, "thread") for kind in kinds]
    moved_ones = [event for event in said if event[0] == "moved"]
    assert sorted(map(str, moved_ones)) == sorted(str(("moved", kind, True, "cuda:3", "main")) for kind in kinds)


def test_on_a_cpu_there_is_no_thread() -> None:
    watched = Watched()
    with Prefetched(watched, "cpu") as batches:
        batches.batch(3)
    assert watched.made == [3]
    assert watched.threads == {threading.get_ident()}
