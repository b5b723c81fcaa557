"""The processes of one training: which rows of a batch are whose, and how all of them come to the same numbers.

    torchrun and `training/launch.py` set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT; `joined` reads them

Every process computes the gradient of its own rows; gradients.py adds these up, so all make the same update. Each
holds all of the networks; or `shard` processes hold every weight together, a part each, as `mesh` says:

    mesh   size / shard rows of `shard` processes each: a row holds everything once (training/distributed.py)

A `World` of one process returns what it is given and knows no group.

Two groups: one for tensors on the device, whose operations fail after DUALRATE_TIMEOUT seconds; and one on the CPU for
agreements, in which the others may wait a day for what the leader does alone, such as decoding, saving and sampling. A
process that dies is noticed in both at once.

Gradients summed over the processes of a training, while the backward pass still makes others.

    with summed_gradients(parameters, world):
        loss.backward()

A gradient that is made goes into a bucket, and a full bucket is added up in the background. Buckets begin in the same
order in every process, the last parameters' first, as a backward pass mostly makes them. One that some process never
fills, since none of its rows reaches a parameter, begins there at the end of the pass, and those after it too.

Not by DistributedDataParallel: phases that alternate, frozen parameters and several networks in a loss need no wrapper
here, and a parameter that has a gradient in no process still has none.

Which rows of a batch a process computes, and in how many passes.

A batch is cut into micro-batches of the configuration's size, and each of these into a share per process. So a
micro-batch has the same rows whatever the number of processes, also where a loss is no mean over rows.

Weights that several processes hold together: torch's FSDP2 (`fully_shard`), a part of every weight in each.

    shard      replaces the parameters of networks by parts of them; so come gradients, states of Adam and averages
    gathered   within the block networks hold whole weights, for what a single process does with them
    whole      tensors as a checkpoint holds them; in_parts: the way back

A unit is a `Block`, or what is left of a network. `forward` gathers the weights of a unit from the other processes and
drops them behind it, the backward pass gathers them again, and adds up the gradients: each process is left with the sum
of its part. So a method may do with its networks what it likes, as long as it calls them through `forward`, as often
on every process (training/method.py), and its phases name the parameters that the networks have then.

Where `World.mesh` is None all of this does nothing.
"""

from __future__ import annotations

import ctypes
import math
import os
import re
import signal
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from itertools import compress
from typing import TYPE_CHECKING, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from dualrate.diffusion.values import Batch, Elsewhere
from dualrate.networks.blocks import blocks_of
from dualrate.system.device import memory_shortage

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


GRADIENT_BUCKET = (
    2**22
)  # elements that are added up at once: many for a network card's sake, few so that the first begin early


class _Bucket:
    """Parameters whose gradients are added up at once, with a number for each: how many processes made it.

    missing: gradients that the backward pass has not made yet
    """

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.parameters, self.missing = parameters, len(parameters)

    @torch.no_grad()
    def begin(self) -> None:
        """From here on the gradients are parts of one tensor, in the background."""
        have = [parameter.grad is not None for parameter in self.parameters]
        own = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        sizes = [parameter.numel() for parameter in self.parameters]
        total = self.parameters[0].new_zeros(sum(sizes) + len(sizes))
        *parts, self.made = total.split([*sizes, len(sizes)])
        laid_out = [  # as optimizers want it
            part.as_strided(parameter.shape, parameter.stride())
            for parameter, part in zip(self.parameters, parts, strict=True)
        ]
        for parameter, part in zip(self.parameters, laid_out, strict=True):
            parameter.grad = part
        if own:
            torch._foreach_copy_(list(compress(laid_out, have)), own)  # pyright: ignore[reportPrivateImportUsage]
        self.complete = all(have)
        if self.complete:  # a copy of numbers to the device would wait for it
            self.made.fill_(1)
        else:
            self.made.copy_(torch.tensor(have))
        self.work = dist.all_reduce(total, async_op=True)

    @torch.no_grad()
    def finish(self) -> None:
        assert self.work is not None
        self.work.wait()
        if not self.complete:  # else there is nothing to learn from it, and reading it would wait for the device
            for parameter, processes in zip(self.parameters, self.made.tolist(), strict=True):
                parameter.grad = parameter.grad if processes else None


@contextmanager
def summed_gradients(parameters: Iterable[nn.Parameter], world: World) -> Iterator[None]:
    """Around a backward pass, the last of those whose gradients are added up here: then they are sums over all.

    Of weights that are held together the backward pass itself adds them up. Raises RuntimeError where the others
    cannot be reached, as torch does.
    """
    if world.size == 1 or world.mesh is not None:
        yield
        return
    waiting = [_Bucket(own) for own in buckets(reversed(list(parameters)), GRADIENT_BUCKET)]
    begun: list[_Bucket] = []

    def begin(*, full: bool) -> None:
        while waiting and (not full or waiting[0].missing == 0):
            waiting[0].begin()
            begun.append(waiting.pop(0))

    def hook(bucket: _Bucket, parameter: nn.Parameter) -> None:
        bucket.missing -= 1
        begin(full=True)

    hooks = [
        parameter.register_post_accumulate_grad_hook(partial(hook, bucket))
        for bucket in waiting
        for parameter in bucket.parameters
    ]
    try:
        yield
    finally:
        for one in hooks:
            one.remove()
    begin(full=False)
    for bucket in begun:
        bucket.finish()


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


if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule


def shard(networks: Iterable[nn.Module], world: World) -> None:
    """Have the processes of a row of `world.mesh` hold the weights of networks together. They must be the same in all.

    The weights are put in the contiguous memory format, in which alone they can be cut.
    """
    if world.mesh is None:
        return
    from torch.distributed.fsdp import fully_shard  # a slow import, of use here only

    # of outputs that are views, which must not be changed in place: nothing here changes what a network returned
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module", category=UserWarning)
    for network in networks:
        network.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
        for unit in (*blocks_of(network), network):
            sharded = fully_shard(unit, mesh=world.mesh, reshard_after_forward=True)
            sharded.set_gradient_divide_factor(1.0)  # losses are weighted by rows: gradients are added up
            sharded.set_force_sum_reduction_for_comms(True)  # gloo knows no other


def shard_frozen(network: nn.Module, world: World) -> None:
    """As `shard`, of a network that is called and never trained."""
    shard([network.requires_grad_(False)], world)
    if forget := getattr(network, "reset_iter_state", None):  # its calls are noted for a backward pass: none comes
        network.register_forward_hook(lambda module, inputs, output: forget())


@contextmanager
def gathered(network: nn.Module, world: World) -> Iterator[None]:
    """Within the block every process has the whole weights, to be read by `forward` alone; all leave it together.

    All processes must enter. Within it nobody waits for another one, so any of them may call the network.
    """
    if world.mesh is None:
        yield
        return
    world.any(False)  # the leader may still be writing, for longer than the device's operations wait
    units = _units(network)
    for unit in units:
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()
    try:
        yield
    finally:
        world.any(False)
        for unit in units:
            unit.reshard()
            unit.set_reshard_after_forward(True, recurse=False)


def _units(network: nn.Module) -> list[FSDPModule]:
    from torch.distributed.fsdp import FSDPModule

    return [part for part in network.modules() if isinstance(part, FSDPModule)]


def whole(tensor: Tensor) -> Tensor:
    """A tensor that is held in parts, as one; any other as it is. All processes must call it."""
    gather = getattr(tensor, "full_tensor", None)  # of a DTensor alone, whose import is slow
    return tensor if gather is None else cast("Tensor", gather())


def collected(tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """As `whole`, one tensor after another, those that were in parts on the CPU; none where they are not kept."""
    found = {}
    for name in sorted(tensors):  # an optimiser's state that was loaded has another order in every process
        one = whole(tensors[name])
        if keep:
            found[name] = one if one is tensors[name] else one.cpu()
    return found


def in_parts(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, the same in all processes, held as `like` is."""
    mesh = getattr(like, "device_mesh", None)
    if mesh is None or tensor.shape != like.shape:
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    placements = cast("DTensor", like).placements
    parts = distribute_tensor(tensor.to(like.device), mesh, placements, src_data_rank=None)
    return parts.clone()  # else it is a view that keeps all of the tensor


def all_in_parts(tensors: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As `in_parts`, by name; a name that `like` has not is left as it is."""
    return {name: in_parts(tensor, like[name]) if name in like else tensor for name, tensor in tensors.items()}
