"""The processes of one training: which rows of a batch each computes, and how all make the same update.

Every process holds all of the networks and computes the gradient of its own
rows; `sum_gradients` adds these up. A `World` of one process returns what it is given and needs no group.

There are two groups. Operations on the device's group fail after DUALRATE_TIMEOUT seconds. The group on the CPU is for
agreements: there the others may wait for a day while the leader decodes, saves or samples. Both notice a process that
dies at once.

A batch is cut into micro-batches, and each of these into a share per process. So a micro-batch has the same rows
whatever the number of processes, also where a loss is not a mean over rows.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dualrate.diffusion.context import Batch, Elsewhere
from dualrate.system.launch import Lost, is_alone, timeout

TOGETHER = 2**26  # numbers that travel as one buffer, about, beside which there is room for larger networks
GLOO = re.compile(r"\[\S*gloo\S*\] ")  # begins gloo's messages: torch has no class for its errors


@dataclass(frozen=True)
class World:
    """This process among those of a training.

    rank:   0 to size - 1; process 0 leads: it alone reads what may be damaged, writes, and reports
    agrees: the group on the CPU; None where there is one process
    """

    rank: int = 0
    size: int = 1
    agrees: dist.ProcessGroup | None = None

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def share(self, start: int, stop: int) -> range:
        """This process's rows of start..stop: contiguous, one more or less than any other's."""
        rows = stop - start
        return range(start + rows * self.rank // self.size, start + rows * (self.rank + 1) // self.size)

    @torch.no_grad()
    def add_up(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors on the device by their sums over all processes, which must all pass the same ones.

        Tensors of one type travel as flat buffers of about TOGETHER numbers.
        """
        if self.size == 1:
            return
        groups, numbers = dict[tuple[torch.dtype, int], list[Tensor]](), 0
        for tensor in tensors:
            groups.setdefault((tensor.dtype, numbers // TOGETHER), []).append(tensor)
            numbers += tensor.numel()
        for group in groups.values():
            flat = torch.cat([tensor.flatten() for tensor in group])
            with self.in_reach():
                dist.all_reduce(flat)
            for tensor, total in zip(group, flat.split([tensor.numel() for tensor in group]), strict=True):
                tensor.copy_(total.view_as(tensor))

    def copy_leader(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors on the device by the leader's."""
        if self.size == 1:
            return
        for tensor in tensors:
            whole = tensor.detach().contiguous()
            with self.in_reach():
                dist.broadcast(whole, 0)
            tensor.detach().copy_(whole)

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Whether a process has set each flag. Waits for all processes, however long."""
        if self.size == 1:
            return flags
        maxima = torch.tensor(flags, dtype=torch.int32)
        with self.in_reach():
            dist.all_reduce(maxima, dist.ReduceOp.MAX, group=self.agrees)
        return tuple(bool(flag) for flag in maxima.tolist())

    def of_leader(self, number: int) -> int:
        """The leader's number, below 2^63. Waits for all processes, however long."""
        if self.size == 1:
            return number
        leaders_number = torch.tensor(number, dtype=torch.int64)
        with self.in_reach():
            dist.broadcast(leaders_number, 0, group=self.agrees)
        return int(leaders_number)

    @contextmanager
    def leader_first(self) -> Iterator[None]:
        """The leader runs the block, then the others do: they find what it made."""
        if not self.leads:
            self.any(False)
        yield
        if self.leads:
            self.any(False)

    @contextmanager
    def in_reach(self) -> Iterator[None]:
        """Raises Lost where torch reports that the others cannot be reached."""
        try:
            yield
        except RuntimeError as error:
            if not isinstance(error, dist.DistError) and not GLOO.match(str(error)):
                raise
            what = re.sub(r"^\[\S+\] ", "", str(error).strip().splitlines()[0]).partition(". ")[0]
            raise Lost(
                f"process {self.rank} of {self.size} lost another one, which ended or did not answer in time ({what}). "
                "What was saved is intact: the same command goes on from there"
            ) from error


@contextmanager
def launched_world(device: torch.device) -> Iterator[World]:
    """Join the processes that were launched together, and leave with them; a world of one where none was launched.

    device: of this process, as `device_of_process` returns it
    Raises Lost if the others do not come; ValueError for a DUALRATE_TIMEOUT that is not a number of seconds.
    """
    if is_alone():
        yield World()
        return
    rank, size, wait = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), timedelta(seconds=timeout())
    if device.type == "cuda":
        torch.cuda.set_device(device)
    with World(rank, size).in_reach():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=wait, rank=rank, world_size=size)
        agrees = dist.new_group(backend="gloo", timeout=timedelta(days=1))
    assert isinstance(agrees, dist.ProcessGroup)
    world = World(rank, size, agrees)
    yield world
    world.any(False)  # nobody leaves while another one still works: that would look like a loss
    dist.destroy_process_group()


def sum_gradients(parameters: Iterable[nn.Parameter], world: World) -> None:
    """Replace gradients by their sums over all processes, after the last backward pass of an update.

    A process whose rows did not reach a parameter counts as 0; a parameter that no process reached has no gradient
    then either. This is not DistributedDataParallel, which wraps one network: phases alternate here, parameters freeze,
    and one loss calls several networks.
    """
    if world.size == 1:
        return
    parameters = list(parameters)
    has_gradient = [parameter.grad is not None for parameter in parameters]
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    reached = torch.ones(len(has_gradient), device=parameters[0].device)
    if not all(has_gradient):
        reached.copy_(torch.tensor(has_gradient))
    world.add_up([*gradients, reached])
    if not all(has_gradient):  # otherwise all were reached, and reading that would wait for the device
        for parameter, gradient, processes in zip(parameters, gradients, reached.tolist(), strict=True):
            parameter.grad = gradient if processes else None


class Share:
    """The rows that this process computes of every batch.

    Raises ValueError if a process would have no row of a micro-batch.
    rows: (R,) int64, ascending: numbers of its rows in the whole batch
    """

    def __init__(self, batch_size: int, micro_batch: int | None, world: World) -> None:
        self.batch_size, self.world = batch_size, world
        size = micro_batch or batch_size
        self._edges = [(start, min(start + size, batch_size)) for start in range(0, batch_size, size)]
        if (least := min(stop - start for start, stop in self._edges)) < world.size:
            raise ValueError(
                f"{world.size} processes need a row each of every micro-batch, batches of {batch_size} have one of "
                f"{least}: raise --fit.micro-batch or --fit.batch-size, or start fewer"
            )
        self._rows: Sequence[range] = [world.share(start, stop) for start, stop in self._edges]
        self.rows = torch.cat([torch.tensor(rows) for rows in self._rows])

    def micro_batches(self, batch: Batch) -> Iterator[tuple[Batch, int]]:
        """The rows of each micro-batch that are here, and the first one's number in the whole batch."""
        done = 0
        for (start, stop), rows in zip(self._edges, self._rows, strict=True):
            elsewhere = Elsewhere(rows.start - start, stop - rows.stop, self.world.add_up)
            yield replace(batch[done : done + len(rows)], elsewhere=elsewhere), rows.start
            done += len(rows)

    def gathered(self, values: Tensor) -> Tensor:
        """(batch_size,): the values of all processes' rows. values: (R,), of this one's."""
        whole = values.new_zeros(self.batch_size)
        whole[self.rows.to(values.device)] = values
        self.world.add_up([whole])
        return whole
