"""The processes of one training: which rows of a batch are whose, and how all of them come to the same numbers.

    torchrun and `machine/supervisor.py` set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT; `joined` reads them

Every process computes the gradient of its own rows; gradients.py adds these up, so all make the same update. Each
holds all of the networks; or `shard` processes hold every weight together, a part each, as `mesh` says:

    mesh   size / shard rows of `shard` processes each: a row holds everything once (training/sharding.py)

A `World` of one process returns what it is given and knows no group.

Two groups: one for tensors on the device, whose operations fail after DUALRATE_TIMEOUT seconds; and one on the CPU for
agreements, in which the others may wait a day for what the leader does alone, such as decoding, saving and sampling. A
process that dies is noticed in both at once.
"""

from __future__ import annotations

import ctypes
import math
import os
import re
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from dualrate.machine.device import memory_shortage

SUPERVISOR = "DUALRATE_SUPERVISOR"  # its process number, in the environment of those that it started
LOST = 76  # exit code of a process that lost the others
GLOO = re.compile(r"\[\S*gloo\S*\] ")  # how what gloo says begins: torch has no class of its own for it
HARDWARE = re.compile(  # what CUDA and cuDNN say of a GPU that has failed; other errors are the program's
    "ECC|unspecified launch failure|hardware|unknown error|EXECUTION_FAILED|busy or unavailable|fallen off|NVLink"
)
BUCKET = 2**24  # elements that are added up at once: they are copied

TensorT = TypeVar("TensorT", bound=Tensor)


class Lost(OSError):
    """Other processes of this training ended, or did not answer in time."""


@dataclass(frozen=True)
class World:
    """This process among those of a training.

    rank:   0 to size - 1; process 0 leads: it alone reads what may be damaged, writes, and reports
    agrees: the group on the CPU; None where there is one process
    mesh:   whose rows are the processes that hold every weight together; None where each holds all
    """

    rank: int = 0
    size: int = 1
    agrees: dist.ProcessGroup | None = None
    mesh: DeviceMesh | None = None

    @property
    def leads(self) -> bool:
        return self.rank == 0

    @property
    def name(self) -> str:
        """Of this process, in messages."""
        return f"process {self.rank} of {self.size}"

    @property
    def shard(self) -> int:
        """How many processes hold every weight together."""
        return 1 if self.mesh is None else self.mesh.shape[-1]

    def share(self, start: int, stop: int) -> range:
        """This process's rows of start..stop: contiguous, one more or less than any other's."""
        rows = stop - start
        return range(start + rows * self.rank // self.size, start + rows * (self.rank + 1) // self.size)

    @torch.no_grad()
    def add_up(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors on the device by their sums over all processes, which must all ask for the same ones."""
        if self.size == 1:
            return
        for bucket in buckets(tensors, BUCKET):
            flat = torch.cat([tensor.flatten() for tensor in bucket])
            with self._together():
                dist.all_reduce(flat)
            for tensor, total in zip(bucket, flat.split([tensor.numel() for tensor in bucket]), strict=True):
                tensor.copy_(total.view_as(tensor))

    def copy_leader(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors on the device by the leader's."""
        if self.size == 1:
            return
        for tensor in tensors:
            whole = tensor.detach().contiguous()
            with self._together():
                dist.broadcast(whole, 0)
            tensor.detach().copy_(whole)

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag whether a process has it set. Waits for all processes, however long."""
        if self.size == 1:
            return flags
        found = torch.tensor(flags, dtype=torch.int32)
        with self._together():
            dist.all_reduce(found, dist.ReduceOp.MAX, group=self.agrees)
        return tuple(bool(flag) for flag in found.tolist())

    def of_leader(self, number: int) -> int:
        """The leader's number, below 2^63. Waits for all processes, however long."""
        if self.size == 1:
            return number
        found = torch.tensor(number, dtype=torch.int64)
        with self._together():
            dist.broadcast(found, 0, group=self.agrees)
        return int(found)

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
        """Raises Lost where the block fails because the others cannot be reached, also in torch's own operations, or
        because the GPU of this process has failed.
        """
        try:
            yield
        except RuntimeError as error:
            if lost_device(error):
                said = str(error).splitlines()[0]
                raise Lost(f"{self.name} lost its GPU ({said}). What was saved is intact") from error
            if not isinstance(error, dist.DistError) and not GLOO.match(str(error)):
                raise
            with self._together():
                raise

    @contextmanager
    def _together(self) -> Iterator[None]:
        """Raises Lost where the others cannot be reached."""
        try:
            yield
        except RuntimeError as error:  # torch has no class of its own for all of them
            what = re.sub(r"^\[\S+\] ", "", str(error).strip().splitlines()[0]).partition(". ")[0]
            raise Lost(
                f"{self.name} lost another one, which ended or did not answer in time ({what}). "
                "What was saved is intact: the same command goes on from there"
            ) from error


def lost_device(error: RuntimeError) -> bool:
    """Whether a GPU has failed, rather than the program on it, or for lack of memory."""
    said = str(error)
    of_gpu = isinstance(error, torch.cuda.AcceleratorError) or said.startswith(("CUDA error", "cuDNN error"))
    return of_gpu and HARDWARE.search(said) is not None and memory_shortage(error) is None


def buckets(tensors: Iterable[TensorT], most: int) -> Iterator[list[TensorT]]:
    """The tensors in groups of one type, and of `most` elements at most unless a single one has more."""
    by_type: dict[torch.dtype, list[TensorT]] = {}
    sizes: dict[torch.dtype, int] = {}
    for tensor in tensors:
        bucket = by_type.setdefault(tensor.dtype, [])
        size = sizes.get(tensor.dtype, 0) + tensor.numel()
        if bucket and size > most:
            yield bucket
            bucket = by_type[tensor.dtype] = []
            size = tensor.numel()
        bucket.append(tensor)
        sizes[tensor.dtype] = size
    yield from by_type.values()


def is_launched(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether torchrun, or the supervisor, started this process."""
    return "RANK" in environment and "WORLD_SIZE" in environment


def is_supervised(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the supervisor started this process, and passes signals on to it."""
    return SUPERVISOR in environment


def check_alone(command: str) -> None:
    """Raises ValueError where torchrun, or the supervisor, started several processes of a command that is one."""
    if is_launched() and os.environ["WORLD_SIZE"] != "1":
        raise ValueError(
            f"{command} is one process, here are {os.environ['WORLD_SIZE']} that would each do all of it: start it "
            "without torchrun or srun; sample, evaluate and compare share their work with --workers"
        )


def own_device(device: torch.device) -> torch.device:
    """The device of this process: of GPUs, the one of its number on this machine.

    Raises ValueError for one GPU that all processes should share, and for more processes here than GPUs.
    """
    if not is_launched() or os.environ["WORLD_SIZE"] == "1" or device.type == "cpu":
        return device
    if device.index:  # 0 is what is picked where nothing is said
        raise ValueError(
            f"every process has a GPU of its own, got {device} for all of them: choose them by CUDA_VISIBLE_DEVICES"
        )
    local, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if local >= gpus:
        raise ValueError(f"every process needs a GPU of its own, here are {gpus} for process {local}: start fewer")
    return torch.device(device.type, local)


@contextmanager
def joined(device: torch.device, shard: int = 1) -> Iterator[World]:
    """Join the processes that were launched together, and leave with them; a world of one where none was launched.

    device: of this process, as `own_device` says
    shard:  how many processes hold every weight together
    Raises Lost if the others do not come; ValueError for settings that are none.
    """
    check_shard(shard, int(os.environ["WORLD_SIZE"]) if is_launched() else 1)
    if not is_launched() or os.environ["WORLD_SIZE"] == "1":
        yield World()
        return
    follow_supervisor()
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    world, wait = World(rank, size), timedelta(seconds=timeout())
    if device.type == "cuda":
        torch.cuda.set_device(device)
    with world._together():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=wait, rank=rank, world_size=size)
        agrees = dist.new_group(backend="gloo", timeout=timedelta(days=1))
    assert isinstance(agrees, dist.ProcessGroup)
    world = World(rank, size, agrees, _mesh(device, size, shard, wait) if shard > 1 else None)
    yield world
    world.any(False)  # nobody leaves while another one still works: that would look like a loss
    dist.destroy_process_group()


def check_shard(shard: int, processes: int) -> None:
    """Raises ValueError unless groups of `shard` processes make up all of them."""
    if processes % shard:
        raise ValueError(
            f"--shard {shard} of {processes} process{'es' * (processes > 1)}: the number of processes (--nproc, "
            "torchrun) is a multiple of those that hold the weights together"
        )


def _mesh(device: torch.device, size: int, shard: int, wait: timedelta) -> DeviceMesh:
    """Neighbours hold the weights together: on machines of `shard` GPUs these are the GPUs of one."""
    if shard == size:
        whole = cast("dist.ProcessGroup", dist.group.WORLD)
        return DeviceMesh.from_group(whole, device.type, mesh_dim_names=("shard",))
    ranks, names = torch.arange(size).view(-1, shard), ("replicate", "shard")
    groups = [dist.new_subgroups_by_enumeration(rows.tolist(), timeout=wait)[0] for rows in (ranks.T, ranks)]
    return DeviceMesh.from_group(cast("list[dist.ProcessGroup]", groups), device.type, ranks, mesh_dim_names=names)


def timeout() -> float:
    """Seconds that an operation on the device waits for the other processes."""
    text = os.environ.get("DUALRATE_TIMEOUT", "600")
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < 1e7:
        raise ValueError(f"DUALRATE_TIMEOUT is a number of seconds above 0, got {text!r}")
    return seconds


def follow_supervisor() -> None:
    """Have the kernel end this process, as SIGTERM does, when the supervisor that started it dies. Linux only."""
    supervisor = os.environ.get(SUPERVISOR)
    if supervisor is None or not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    if os.getppid() != int(supervisor):
        raise Lost("the supervisor of this process is gone")
