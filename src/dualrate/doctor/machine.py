"""The device and its precision, threads and load, the compiler.

Where runs, decoded images and temporary files go: room, and whether what is written there is whole or absent.

Python, the packages that this one needs, and whether torch was built for the GPU that is here.

Whether two processes of a training find each other here.

Three steps of training a tiny dual-rate model with save and resume, in a temporary folder.
"""

from __future__ import annotations

import operator
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dualrate.data.images import ImageSet
from dualrate.data.loader import Augment, Batches
from dualrate.doctor.finding import Finding, ok, problem, warning
from dualrate.experiment.experiment import Experiment, Model, Start
from dualrate.experiment.network_configs import TwoNetworks
from dualrate.methods.denoising import DenoisingConfig
from dualrate.methods.times import TimeSampler
from dualrate.networks.uvit import Level, UViTConfig
from dualrate.system.device import compiles, pays
from dualrate.system.environment import environment
from dualrate.system.files import write_whole
from dualrate.system.folders import new_folder
from dualrate.system.progress import Silent, run_lock
from dualrate.training import checkpoint
from dualrate.training.config import FitConfig
from dualrate.training.loop import fit
from dualrate.training.optim import OptimConfig

BUSY = 0.5  # share of the processors that other programs use, above which times say little
BFLOAT16 = 80  # compute capability, times 10, from which there are units for it


def check_device(device: torch.device) -> Iterator[Finding]:
    """Whether the device computes, and in which precision."""
    if device.type != "cuda":
        yield ok(f"{device}: {environment()['processor']}")
    else:
        yield from _gpu(device)
    wrong = _wrong_product(device)
    if wrong:
        yield problem(f"{device}: a product of matrices is off by {wrong:.3g}", "use another device; test this one")
    better = "bfloat16" if pays(device) else "float32"
    why = {"bfloat16": "it is clearly faster here", "float32": "bfloat16 would be no faster here"}[better]
    yield ok(f"{device}: --fit.precision auto is {better}, {why}")


def _gpu(device: torch.device) -> Iterator[Finding]:
    major, minor = torch.cuda.get_device_capability(device)
    name, (free, total) = torch.cuda.get_device_name(device), torch.cuda.mem_get_info(device)
    about = f"{device}: {name}, compute capability {major}.{minor}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free"
    built = torch.cuda.get_arch_list()
    if built and not _runs(10 * major + minor, built):
        yield problem(f"{about}; this torch is built for {', '.join(built)} alone", "install a torch built for it")
    elif 10 * major + minor < BFLOAT16:
        yield warning(f"{about}: no units for bfloat16", "expect float32's speed; --fit.precision float32 says so")
    elif free < total / 2:
        yield warning(f"{about}: others use it", "see nvidia-smi; lower --fit.micro-batch if memory runs short")
    else:
        yield ok(about)


def _runs(capability: int, built: list[str]) -> bool:
    """Whether code for one of these architectures, such as sm_90 or compute_90, runs on this capability.

    Machine code is of its major version, from its minor version on; the code of compute_* is translated for any later.
    """
    for name in built:
        kind, _, digits = name.partition("_")
        number = int("".join(filter(str.isdigit, digits)) or 0)
        if number <= capability and (kind == "compute" or number // 10 == capability // 10):
            return True
    return False


def _wrong_product(device: torch.device) -> float:
    """How far a small product of integers is off: all are exact in every precision, so 0."""
    left = torch.arange(64.0, device=device).reshape(8, 8) % 7
    exact = [
        [sum(a * b for a, b in zip(row, column, strict=True)) for column in left.tolist()] for row in left.tolist()
    ]
    return float((left @ left.T - torch.tensor(exact, device=device)).abs().max())


def check_threads() -> Iterator[Finding]:
    """Threads, the processors for them, and who else uses these."""
    threads, processors = torch.get_num_threads(), _processors()
    load = os.getloadavg()[0]
    about = f"{threads} thread(s), {processors} processor(s), load {load:.1f}"
    if threads > processors:
        yield warning(f"{about}: more threads than processors", f"DUALRATE_THREADS={processors} before the command")
    elif threads > 1 and os.environ.get("OMP_WAIT_POLICY", "").upper() != "PASSIVE":
        yield warning(f"{about}; threads wait awake, in the way of other programs", "export OMP_WAIT_POLICY=PASSIVE")
    elif load > BUSY * (os.cpu_count() or 1) + threads:
        yield warning(f"{about}: other programs are at work", "expect longer times; results do not depend on it")
    else:
        yield ok(about)


def _processors() -> int:
    """Those that this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def check_compiler(device: torch.device) -> Iterator[Finding]:
    """Whether networks can be compiled, which they are only if asked to be."""
    if failed := compiles(device):
        yield warning(
            f"torch.compile does not work on {device} ({failed})",
            "install a C++ compiler (g++); without one, leave out --fit.compile: it changes the speed alone",
        )
    else:
        yield ok(f"torch.compile works on {device}")


GIB = 2**30
LEAST, LITTLE = GIB // 4, 5 * GIB  # a checkpoint of a small model; a few of a large one
SHARED, SHARED_LEAST = Path("/dev/shm"), GIB // 4


def check_disk(places: Sequence[tuple[str, Path]]) -> Iterator[Finding]:
    """places: what for, and the folder, which need not exist: then it is the nearest that does. Leaves no trace."""
    for purpose, wanted in places:
        folder = next(path for path in (wanted, *wanted.absolute().parents) if path.is_dir())
        free = shutil.disk_usage(folder).free
        about = f"{purpose}: {folder}, {free / GIB:.1f} GiB free"
        elsewhere = "choose another place (--out, DUALRATE_CACHE, TMPDIR)"
        if free < LEAST:
            yield problem(f"{about}, too little for a checkpoint", f"make room, or {elsewhere}")
        elif failed := _refuses(folder):
            yield problem(f"{about}: {failed}", elsewhere)
        elif free < LITTLE:
            yield warning(f"{about}, little", f"make room, or {elsewhere}; --fit.keep says how many checkpoints stay")
        else:
            yield ok(f"{about}; writing, syncing, renaming and locking work")


def _refuses(folder: Path) -> str | None:
    """What a training does to its folder and this one does not take; None if it takes all."""
    content = b"whole"
    try:
        with tempfile.TemporaryDirectory(prefix=".dualrate-doctor-", dir=folder) as name:
            place = Path(name)
            write_whole(place / "file", content)
            with new_folder(place / "checkpoint") as aside:
                (aside / "file").write_bytes(content)
            with run_lock(place):
                read = [(place / file).read_bytes() for file in ("file", "checkpoint/file")]
    except OSError as error:
        return f"it cannot be written to as checkpoints are ({error})"
    return None if read == [content, content] else "what was written there is not what is read"


def check_shared_memory() -> Iterator[Finding]:
    """What processes on GPUs of one machine exchange through memory, where there is such a place."""
    if not SHARED.is_dir():
        return
    total = shutil.disk_usage(SHARED).total
    about = f"{SHARED} has {total / GIB:.2f} GiB"
    if total < SHARED_LEAST:
        yield warning(f"{about}: little for several GPUs (NCCL)", "docker run --shm-size=8g, or --ipc=host")
    else:
        yield ok(about)


PACKAGE = "dualrate"
REQUIREMENT = re.compile(r"([\w.-]+)(?:\[[^\]]*\])?\s*([^;]*?)\s*")  # without conditions, such as that of an extra
CLAUSE = re.compile(r"(>=|<=|==|!=|>|<)\s*(\d+(?:\.\d+)*)")
COMPARE: dict[str, Callable[[tuple[int, ...], tuple[int, ...]], bool]] = {
    ">=": operator.ge, "<=": operator.le, "==": operator.eq, "!=": operator.ne, ">": operator.gt, "<": operator.lt,
}  # fmt: skip


def check_installation() -> Iterator[Finding]:
    """Python and packages."""
    yield ok(f"Python {platform.python_version()}, {sys.executable}")
    try:
        failed = unmet(PACKAGE)
    except PackageNotFoundError:
        yield warning(f"{PACKAGE} runs from its source, not installed: what it needs is unknown", "pip install -e .")
        return
    if failed:
        yield problem(f"packages that are missing or of another version: {', '.join(failed)}", "pip install -e .")
    else:
        yield ok(f"{PACKAGE} {version(PACKAGE)} and the packages that it needs")
    yield from _torchvision()


def _torchvision() -> Iterator[Finding]:
    """Only extras need it; where it is of another torch, importing it fails."""
    try:
        failed = unmet("torchvision")
    except PackageNotFoundError:
        return
    if failed:
        yield warning(f"torchvision was built for another torch: {', '.join(failed)}", "pip uninstall torchvision")


def unmet(package: str) -> list[str]:
    """What an installed package says it always needs that is not here, and what is here instead.

    Raises PackageNotFoundError if that package is not installed.
    """
    failed = []
    for text in requires(package) or ():
        match = REQUIREMENT.fullmatch(text)
        if match is None:  # under a condition
            continue
        name, wanted = match.groups()
        try:
            found = version(name)
        except PackageNotFoundError:
            failed.append(f"{text} (none)")
            continue
        if not satisfies(found, wanted):
            failed.append(f"{text} (found {found})")
    return failed


def satisfies(found: str, wanted: str) -> bool:
    """Whether a version meets clauses such as `>=2.10,<3`. By its release alone: 2.13.0+cpu is 2.13."""
    clauses = CLAUSE.findall(wanted)
    return all(COMPARE[sign](_release(found), _release(bound)) for sign, bound in clauses)


def _release(text: str) -> tuple[int, ...]:
    match = re.match(r"\d+(?:\.\d+)*", text)
    numbers = [int(part) for part in match[0].split(".")] if match else []
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)


def check_torch() -> Iterator[Finding]:
    """The build of torch, and whether it sees the GPU that is here."""
    built = torch.version.cuda or getattr(torch.version, "hip", None)
    build = f"torch {torch.__version__}, " + (f"built for GPUs ({built})" if built else "built for CPUs")
    if torch.cuda.is_available():
        yield ok(f"{build}; it sees {torch.cuda.device_count()} GPU(s)")
    elif not gpu_driver():
        yield ok(f"{build}; there is no NVIDIA driver here, so the CPU works")
    elif not built:
        yield problem(
            f"{build}, but there is an NVIDIA driver: the GPU stays unused",
            "pip install a torch that is built for GPUs (pytorch.org/get-started); constraints/cpu.txt is not for here",
        )
    elif os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        yield warning(f"{build}; CUDA_VISIBLE_DEVICES hides the GPUs from it", "unset CUDA_VISIBLE_DEVICES")
    else:
        yield problem(
            f"{build}, but it sees no GPU although there is an NVIDIA driver",
            "look at nvidia-smi: a driver older than this CUDA must be newer, a container needs --gpus all",
        )


def gpu_driver() -> bool:
    """Whether this machine seems to have an NVIDIA GPU."""
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None


STEPS, BATCH, SIDE = 3, 4, 8
NETWORK = UViTConfig(SIDE, 1, (Level("conv", 8, 1), Level("transformer", 16, 1)), patch=2, embedding=16, head_dim=16)


def check_trial(device: torch.device) -> Iterator[Finding]:
    """Three steps at once, and two with one more after a resume: the weights must be the same."""
    with tempfile.TemporaryDirectory(prefix="dualrate-doctor-") as name:
        straight = trained(Path(name, "straight"), STEPS, device)
        trained(Path(name, "resumed"), STEPS - 1, device)
        resumed = trained(Path(name, "resumed"), STEPS, device)
    gap = max(float((straight[key] - resumed[key]).abs().max()) for key in straight)
    about = f"{STEPS} steps of training on {device}, saved and resumed"
    if gap == 0:
        yield ok(f"{about}: the same bits as without a break")
    elif device.type != "cpu" and gap < OptimConfig().lr:  # less than one update moves a weight
        yield ok(f"{about}: the same weights within {gap:.1g}")
    else:
        yield problem(
            f"{about}: weights differ by {gap:.3g}", "run it again; if it stays, this machine computes wrongly"
        )


def trained(folder: Path, iterations: int, device: torch.device) -> dict[str, Tensor]:
    """The weights of the run in `folder`, trained up to so many iterations, as they are read from its checkpoint."""
    config = FitConfig(iterations, BATCH, optim=OptimConfig(warmup=0), checkpoint_every=1)
    experiment = Experiment("doctor", TwoNetworks(NETWORK, NETWORK), DenoisingConfig(TimeSampler()), config)
    pixels = np.random.default_rng(0).integers(0, 256, (2 * BATCH, 1, SIDE, SIDE), dtype=np.uint8)
    batches = Batches(ImageSet(pixels, None, (), "noise"), BATCH, config.seed, Augment())
    start = Start(
        fresh=not checkpoint.saved_paths(folder / "checkpoints"),
        device=device,
        bfloat16=pays(device),
        load=_none,
        batch=lambda iteration: batches.batch(iteration).to(device),
        note=lambda text: None,
    )
    method = experiment.method.prepare(experiment, start).method
    how = {"identity": {"trial": 1}, "progress": Silent(), "device": device}
    if fit(method, batches, config, folder, **how).stopped == "signal":
        raise KeyboardInterrupt
    saved = checkpoint.latest(folder / "checkpoints")
    if saved is None or saved.state["iteration"] != iterations:
        raise OSError(f"the checkpoint of iteration {iterations} is not in {folder}")
    return saved.weights(average=False)


def _none(run: str) -> Model:
    raise ValueError(f"the trial starts from no run, and {run} was asked for")
