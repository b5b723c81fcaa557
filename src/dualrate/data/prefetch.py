"""Batches made ahead by a thread, while the device works on the one before.

A batch is a function of its number, so nothing has to be kept in order, saved or skipped on a resume: whoever asks for
batch k has k + 1, ..., k + AHEAD begun. What takes time in the thread (copies from memory maps, mirroring, waiting for a
disk) holds no lock that the trainer needs. On CUDA 8-bit pixels travel from pinned memory and become floats there.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

import torch

from dualrate.data.loader import Batches, ByteBatch
from dualrate.diffusion.values import Batch

AHEAD = 2  # batches: one is ready when it is wanted, also when the one after it takes twice as long as usual


class Prefetched:
    """`batches` on a device, with the next ones made ahead; for a `with`, at whose end the thread is gone.

    An error in making a batch is raised by `batch` of that number, and by no other.
    """

    def __init__(self, batches: Batches, device: torch.device | str) -> None:
        self.batches, self.device = batches, torch.device(device)
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
        wanted = range(iteration, iteration + 1 + AHEAD)
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
