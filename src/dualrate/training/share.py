"""Which rows of a batch a process computes, and in how many passes.

A batch is cut into micro-batches of the configuration's size, and each of these into a share per process. So a
micro-batch has the same rows whatever the number of processes, also where a loss is no mean over rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from dualrate.diffusion.values import Batch, Elsewhere
from dualrate.machine.world import World


class Share:
    """What this process computes of every batch. Raises ValueError if a process would have no row of a micro-batch.

    rows: (R,) int64, ascending: numbers of its rows in the whole batch
    """

    def __init__(self, batch_size: int, micro_batch: int | None, world: World) -> None:
        self.batch_size, self.world = batch_size, world
        size = micro_batch or batch_size
        self._edges = [(start, min(start + size, batch_size)) for start in range(0, batch_size, size)]
        if (least := min(stop - start for start, stop in self._edges)) < world.size:
            raise ValueError(
                f"{world.size} processes need a row each of every micro-batch, but batches of {batch_size} in "
                f"micro-batches of {size} have one of {least}: raise --fit.micro-batch or --fit.batch-size, or start "
                "fewer processes"
            )
        self._own = [world.share(start, stop) for start, stop in self._edges]
        self.rows = torch.cat([torch.tensor(own) for own in self._own])

    def micro_batches(self, batch: Batch) -> Iterator[tuple[Batch, int]]:
        """The rows of each micro-batch that are here, and the first one's number in the whole batch."""
        done = 0
        for (start, stop), own in zip(self._edges, self._own, strict=True):
            elsewhere = Elsewhere(own.start - start, stop - own.stop, self.world.add_up)
            yield replace(batch[done : done + len(own)], elsewhere=elsewhere), own.start
            done += len(own)

    def gathered(self, values: Tensor) -> Tensor:
        """(batch_size,): the values of all processes' rows. values: (R,), of this one's."""
        whole = values.new_zeros(self.batch_size)
        whole[self.rows.to(values.device)] = values
        self.world.add_up([whole])
        return whole
