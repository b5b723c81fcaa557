"""Batches made ahead by a thread, while the device works on the one before.

A batch is a function of its number, so nothing has to be kept in order, saved or skipped on a resume: whoever asks for
batch k has k + 1, ..., k + AHEAD begun. What takes time in the thread (copies from memory maps, mirroring, waiting for
a disk) holds no lock that the trainer needs. On CUDA 8-bit pixels travel from pinned memory and become floats there.
Pixels are mirrored and shifted in the thread, not on the device: what is drawn for that would be a hundred launches.

Where the device is the CPU there is no thread: its work would take from the trainer what it saves, and its coming and
going cost something besides (docs/results/data.md).
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

import torch

from dualrate.data.loader import Batches, ByteBatch
from dualrate.diffusion.values import Batch

AHEAD = 2  # batches: one is ready when it is wanted, though the one after it should take twice as long as usual


class Prefetched:
    """`batches` on a device, with the next ones made ahead; for a `with`, at whose end the thread is gone.

    ahead: how many, AHEAD if not given, none on a CPU
    An error in making a batch is raised by `batch` of that number, and by no other.
    """

    def __init__(self, batches: Batches, device: torch.device | str, ahead: int | None = None) -> None:
        self.batches, self.device = batches, torch.device(device)
        self.ahead = (0 if self.device.type == "cpu" else AHEAD) if ahead is None else ahead
        if self.device.type == "cuda" and self.device.index is None:
            self.device = torch.device("cuda", torch.cuda.current_device())  # a thread's own is the first
        self._executor = ThreadPoolExecutor(1, "batches", self._begin)
        self._begun: dict[int, Future[ByteBatch]] = {}

    def __enter__(self) -> Prefetched:
        return self

    def __exit__(self, *_: object) -> None:
        self._executor.shutdown(cancel_futures=True)

    def batch(self, iteration: int) -> Batch:
        """Batch number `iteration`, on the device. Raises what making it raises."""
        if not self.ahead:
            return self.batches.batch(iteration).to(self.device)
        wanted = range(iteration, iteration + 1 + self.ahead)
        for number in self._begun.keys() - set(wanted):
            self._begun.pop(number).cancel()
        for number in wanted:
            if number not in self._begun:
                self._begun[number] = self._executor.submit(self._make, number)
        return self._begun.pop(iteration).result().to(self.device)

    def _begin(self) -> None:
        torch.set_num_threads(1)  # of this thread: more would be in the way of the trainer's
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)

    def _make(self, iteration: int) -> ByteBatch:
        made = self.batches.bytes(iteration)
        return made.pinned() if self.device.type == "cuda" else made
