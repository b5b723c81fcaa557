"""The machine: its devices, bfloat16 where it pays, compilation, CUDA graphs, memory, and what a measurement ran on.

Whether bfloat16 is faster, and whether a compiler works, is measured and not guessed.

CUDA graphs: a network's call is recorded once for inputs of a kind, and later launched as a whole. A light network
launches some hundred kernels a call; a recording is one launch. It reads its inputs from its own buffers. Its outputs
are copied, because the next launch overwrites them. One call is recorded, not the steps between two heavy calls: a call
is the same under every plan, sampler and guidance. `torch.compile(mode="reduce-overhead")` would not do: its next call
overwrites its outputs, and a context lives through many calls.
"""

from __future__ import annotations

import ctypes
import math
import os
import platform
import re
import subprocess
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only, tree_unflatten

try:
    import resource
except ModuleNotFoundError:  # on Windows
    resource = None

STATUS = Path("/proc/self/status")
# Torch's words for a CPU, a GPU, its libraries, and sizes beyond all addresses; it has a class for the second alone
SHORTAGE = re.compile(r"CPUAllocator: |(CUDA|HIP)\b.* out of memory|_ALLOC_FAILED|Storage size calculation overflowed")


@torch.enable_grad()
def _seconds(device: torch.device, dtype: torch.dtype, most: float = math.inf) -> float:
    """The best of a few times for a linear layer and its backward pass, also where the caller has gradients off.

    Of processor time: on a busy machine a clock on the wall may give one type its quiet moments, and not the other.

    most: seconds of all of them, after which no other is begun
    """
    weight = torch.full((256, 256), 0.1, device=device, requires_grad=True)
    rows = torch.full((1024, 256), 0.1, device=device, requires_grad=True)
    times: list[float] = []
    while not times or (len(times) < 8 and sum(times) < most):
        start = time.process_time()
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            functional.linear(rows, weight).sum().backward()
        times.append(time.process_time() - start)
    return min(times)


@cache
def pays(device: torch.device) -> bool:
    """Whether bfloat16 autocast makes training clearly faster: known on CUDA, measured in milliseconds on CPU.

    Decided once per process, so that all it measures runs alike.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        float32 = _seconds(device, torch.float32)
        return float32 > 1.5 * _seconds(device, torch.bfloat16, 20 * float32)  # without units for it: 40 times as long
    return False


def compiles(device: torch.device) -> str | None:
    """None if `torch.compile` works here, else why not."""
    try:
        torch.compile(lambda x: (x * x).sin().sum())(torch.ones(4, device=device, requires_grad=True)).backward()
    except Exception as error:  # whatever the toolchain raises
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
    return None


def compile_calls(network: nn.Module, cache: Path | None = None) -> None:
    """Compiles what a network's call does, when it is first called; one more time where a batch has one row.

    Once for all numbers of rows, and of everything else for each shape that comes.
    cache: as of `keep_compiled`, unless a place was chosen before
    Calls along which a derivative is carried forward stay as they are: what is compiled cannot carry one. So do those
    within another network that is compiled. A copy of the network would call what is compiled of this one: copy before.
    """
    if cache is not None:
        keep_compiled(cache)
    torch._dynamo.config.recompile_limit = 128  # of a class of networks, of which a comparison has many; by default 8
    network.forward = partial(_call, network.forward, torch.compile(network.forward, dynamic=False))


def _call(eager: Callable[..., Any], compiled: Callable[..., Any], *inputs: Any, **named: Any) -> Any:
    if torch.compiler.is_compiling():
        return eager(*inputs, **named)
    tensors = [part for part in tree_leaves((inputs, named)) if isinstance(part, Tensor)]
    if carries_derivative(tensors):
        return eager(*inputs, **named)
    for tensor in tensors:
        torch._dynamo.maybe_mark_dynamic(tensor, 0)
    return compiled(*inputs, **named)


def carries_derivative(tensors: Iterable[Tensor]) -> bool:
    """Whether a derivative is carried forward along one of them."""
    return any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors)


def keep_compiled(cache: Path) -> Path:
    """Have this process keep what it compiles in `cache`, unless TORCHINDUCTOR_CACHE_DIR names another directory."""
    return Path(os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache.absolute())))


def peak_memory(device: torch.device) -> int | None:
    """Bytes that this process has held at most: of the GPU, or all of them on a CPU; None where it is not known."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if STATUS.exists():  # not `ru_maxrss`, which in a child begins at its parent's size
        return 1024 * next(int(line.split()[1]) for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss if resource else None  # in bytes on macOS


def free_descriptors() -> int:
    """The number of further files and connections that this process may open; very many where it is not known."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0] if resource else -1
    return sys.maxsize if limit < 0 else max(0, limit - len(os.listdir("/dev/fd")))


def settle_products(device: torch.device, *, bfloat16: bool, trains: bool = False) -> None:
    """Choose how this process's GPU multiplies float32 matrices from here on; on a CPU this does nothing.

    bfloat16: whether networks run in that. What remains in float32, such as a network's head, is then in TF32, of which
              10 bits of fraction enter a product. Where float32 is asked for it is whole, also in convolutions, for
              which torch alone would take TF32
    trains:   cuDNN times its ways to compute a convolution at the first call of a shape, and takes the fastest. Not
              where models are measured: two processes may find different ones, and their bits differ
    """
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = bfloat16
        torch.backends.cudnn.benchmark = trains


@contextmanager
def whole_products() -> Iterator[None]:
    """Within the block float32 matrices are multiplied as such, also in convolutions, whatever was settled before."""
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32
    matmul.allow_tf32 = False
    try:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            yield
    finally:
        matmul.allow_tf32 = before


@contextmanager
def own_defaults() -> Iterator[None]:
    """Within the block tensors and modules are float32 on the CPU where nothing else is said, whatever the caller set.

    The caller sets them by `torch.set_default_dtype`, `torch.set_default_device` or `with torch.device(...)`. Device
    `meta` stays: it is asked for where networks are wanted without their content. Torch has one default dtype for all
    threads of a process.
    """
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    on_cpu = nullcontext() if device.type in ("cpu", "meta") else torch.device("cpu")
    if dtype != torch.float32:
        torch.set_default_dtype(torch.float32)
    try:
        with on_cpu:
            yield
    finally:
        if dtype != torch.float32:
            torch.set_default_dtype(dtype)


def default_generator(device: torch.device) -> torch.Generator:
    """The generator that dropout layers on `device` draw from. (`torch.manual_seed` seeds all devices, slowly.)"""
    if device.type == "cuda":
        torch.cuda.init()
        return torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index]
    return torch.default_generator


def pick_device(device: torch.device | str | None) -> torch.device:
    """The device of this name; None, of a command or a call: the first GPU, or the CPU where there is none.

    Raises ValueError for one that is not here or cannot be used.
    """
    name = ("cuda" if torch.cuda.is_available() else "cpu") if device is None else str(device)
    names = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if name.startswith("mps"):
        raise ValueError("times and random numbers need float64, which mps lacks: use --device cpu")
    if not {name, f"{name}:0", name.removesuffix(":0")} & set(names):
        raise ValueError(f"there is no device {name!r} here, only {', '.join(names)}")
    try:
        return torch.zeros(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        what = str(error).splitlines()[0]
        raise ValueError(f"the device {name!r} cannot be used ({what}); --device cpu always works") from None


def memory_shortage(error: Exception) -> str | None:
    """The message of torch or numpy, in one line, if the error is an allocation that failed; None of any other error.

    Of a network's numbers torch says it by a RuntimeError; a MemoryError is of those that are read or collected.
    """
    lines = str(error).splitlines() or ["an allocation failed"]
    shortage = next((line for line in lines if SHORTAGE.search(line)), None)
    if shortage is None and isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        shortage = lines[0]
    return None if shortage is None else shortage.split("DefaultCPUAllocator: ")[-1]


KEPT = 8  # recordings of a network, the latest used: of its batch sizes, with and without a context
WARM_UPS = 3  # libraries choose kernels and workspaces in the first calls, which cannot be recorded

# (call, device) -> what launches the call again, and what it returned: each launch writes it anew
Record = Callable[[Callable[[], Any], torch.device], tuple[Callable[[], Any], Any]]


def record_graph(call: Callable[[], Any], device: torch.device) -> tuple[Callable[[], Any], Any]:
    """The kernels of a call on a GPU. Raises ValueError for another device, and as `refusing`."""
    if device.type != "cuda":
        raise ValueError(f"CUDA graphs need a GPU, and this is the {device}: draw without graphs")
    with torch.cuda.device(device):
        here, aside = torch.cuda.current_stream(), torch.cuda.Stream()
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            for _ in range(WARM_UPS):
                call()
        here.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        # a recording that fails does not make `here` the current stream again
        with refusing(), torch.cuda.stream(here), torch.cuda.graph(graph, stream=aside):
            output = call()
    return graph.replay, output


@contextmanager
def refusing() -> Iterator[None]:
    """Raises ValueError for what a call does in it that a recording does not allow, such as wait for a value.

    Raises torch.OutOfMemoryError for a shortage of memory.
    """
    try:
        yield
    except RuntimeError as error:
        first = error
        while isinstance(first.__context__, RuntimeError):  # the recording's own end fails then, too
            first = first.__context__
        if shortage := memory_shortage(first):
            raise torch.OutOfMemoryError(shortage) from error
        what = (str(first).strip().splitlines() or [type(first).__name__])[0]
        raise ValueError(f"these calls cannot be recorded as CUDA graphs ({what}): draw without graphs") from error


def graph_calls(network: nn.Module, record: Record = record_graph) -> None:
    """Has a network's calls recorded, as `prepare_calls`: on a GPU, with inputs that are there.

    Raises ValueError from a call that cannot be recorded, as `record_graph` says.
    """

    def prepare(call: Callable[..., Any], tensors: Sequence[Tensor]) -> Launch:
        buffers = [tensor.clone() for tensor in tensors]
        launch, output = record(lambda: call(*buffers), tensors[0].device)

        def launched(tensors: Sequence[Tensor]) -> Any:
            for buffer, tensor in zip(buffers, tensors, strict=True):
                buffer.copy_(tensor)
            launch()
            return tree_map_only(Tensor, torch.clone, output)

        return launched

    prepare_calls(network, prepare, lambda tensors: tuple((x.shape, x.stride(), x.dtype, x.device) for x in tensors))


Launch = Callable[[Sequence[Tensor]], Any]  # tensors of a call's inputs -> what the call returns


def prepare_calls(
    network: nn.Module,
    prepare: Callable[[Callable[..., Any], Sequence[Tensor]], Launch],
    kinds: Callable[[Sequence[Tensor]], Hashable],
) -> None:
    """Has a network's calls prepared, but for those of training and those that ask for a derivative.

    prepare: a call, of the tensors of its inputs, and those of the first -> what makes it from then on
    kinds: of tensors, all that the call's course depends on; inputs of other kinds are prepared anew
    The weights stay where they are.
    """
    eager = network.forward
    prepared: OrderedDict[Hashable, Launch] = OrderedDict()

    def forward(*inputs: Any) -> Any:
        leaves, structure = tree_flatten(inputs)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if network.training or torch.is_grad_enabled() or carries_derivative(tensors):
            return eager(*inputs)
        device = tensors[0].device.type
        precision = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        rest = tuple(Tensor if isinstance(leaf, Tensor) else leaf for leaf in leaves)
        kind = (torch.is_inference_mode_enabled(), precision, structure, rest, kinds(tensors))
        if kind not in prepared:

            def call(*tensors: Tensor) -> Any:
                in_turn = iter(tensors)
                filled = [next(in_turn) if leaf is Tensor else leaf for leaf in rest]
                with torch.autocast(device, precision, enabled=precision is not None, cache_enabled=False):
                    return eager(*tree_unflatten(filled, structure))  # casts that were kept would be gone at a launch

            prepared[kind] = prepare(call, tensors)
        prepared.move_to_end(kind)
        while len(prepared) > KEPT:
            prepared.popitem(last=False)
        return prepared[kind](tensors)

    network.forward = forward


M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # of <malloc.h>


def keep_freed_memory() -> bool:
    """Have glibc serve large blocks from its heap and never shrink it. False where the C library has no such settings.

    By default a large tensor is mapped from the kernel anew and given back when freed, so that each training iteration
    pays for its pages being cleared again. The command line calls this at its start; a program decides for itself.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 64 * 2**20))
    return all(mallopt(name, value) == 1 for name, value in settings)


def environment(device: torch.device | str | None = None) -> dict[str, str]:
    """Processor, GPU if that is the device, threads, versions, date (UTC) and, in a checkout, the commit; what is
    unknown is left out. device: as of `pick_device`
    """
    device = pick_device(device)
    try:
        release = version("dualrate")
    except PackageNotFoundError:
        release = ""
    facts = {
        "processor": processor(),
        "GPU": torch.cuda.get_device_name(device) if device.type == "cuda" else "",
        "threads": str(torch.get_num_threads()),
        "dualrate": release,
        "torch": str(torch.__version__),
        "Python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _commit(),
    }
    return {name: value for name, value in facts.items() if value}


def processor() -> str:
    file = Path("/proc/cpuinfo")
    model_name = re.search(r"^model name\s*: (.+)$", file.read_text(), re.MULTILINE) if file.exists() else None
    return model_name[1] if model_name else platform.processor() or platform.machine()


@cache
def _commit() -> str:
    """Short hash of the code that runs, "-dirty" with uncommitted changes; empty outside a checkout of this package."""
    git = partial(subprocess.run, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=True)
    try:
        git(["git", "ls-files", "--error-unmatch", Path(__file__).name])
        return git(["git", "describe", "--always", "--dirty", "--exclude=*"]).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
