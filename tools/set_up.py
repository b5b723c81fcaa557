#!/usr/bin/env python3
"""Make the environment in .venv: `python3 tools/set_up.py [--dev] [--docs]`. Standard library only.

Where torch comes from, the first that holds:
    kept   .venv has one already
    own    the running Python or the activated environment has one: .venv sees it, and pip may not touch it
    cuda   an NVIDIA driver answers: the default wheel
    cpu    otherwise: the versions of constraints/cpu.txt, if pip's plan for them lists no CUDA package
DUALRATE_TORCH=cpu or DUALRATE_TORCH=cuda chooses for a new .venv instead.

A stamp in .venv makes the next call instant. Old Pythons must be able to read this file, to be told what is missing.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "dualrate.json"
CONSTRAINTS = ROOT / "constraints" / "cpu.txt"
OLDEST_PYTHON = (3, 11)
TORCH_RANGE = ((2, 10), (3, 0))
CUDA_PACKAGE = re.compile(r"(nvidia|cuda)[-_.]|(pytorch[-_.])?triton$", re.IGNORECASE)


class Torch(NamedTuple):
    """An installed torch."""

    version: str  # "2.13.0+cpu"
    cuda: str | None  # "13.0"; None for a build without
    python: str  # the interpreter that has it
    inherit: list[str]  # folders that a venv made by that interpreter would not see


PROBE = """
import importlib.util, json, sys, sysconfig
answer = {"version": None, "cuda": None, "inherit": []}
if sys.version_info >= (3, 11) and importlib.util.find_spec("torch"):
    try:
        import torch
        answer.update(version=torch.__version__, cuda=torch.version.cuda)
    except Exception:
        pass
if sys.prefix != sys.base_prefix:
    answer["inherit"] = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
print(json.dumps(answer))
"""


class Problem(Exception):
    """A fault that the user has to mend, in words for the user."""


# Decisions: no side effects


def usable(version: str) -> bool:
    """Whether a torch of this version serves. A pre-release of the oldest release does not, to pip either."""
    match = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?(a|b|rc|\.dev)?", version)
    if not match:
        return False
    major, minor, patch, early = match.groups()
    release = (int(major), int(minor))
    if early and release == TORCH_RANGE[0] and not int(patch or 0):
        return False
    return TORCH_RANGE[0] <= release < TORCH_RANGE[1]


def torch_source(choice: str, venv_torch: Torch | None, host_torch: Torch | None, driver: bool) -> str:
    """One of "kept", "own", "cuda", "cpu".

    choice: DUALRATE_TORCH or ""; venv_torch: of .venv; host_torch: of the running Python or the activated environment;
    driver: whether an NVIDIA driver answers.
    """
    if choice not in ("", "cpu", "cuda"):
        raise Problem(f"DUALRATE_TORCH is {choice!r}; expected cpu or cuda, or leave it unset")
    if venv_torch and choice and (venv_torch.cuda is not None) != (choice == "cuda"):
        raise Problem(
            f"DUALRATE_TORCH={choice} but .venv holds torch {venv_torch.version}; to replace it, `rm -rf .venv` first"
        )
    if venv_torch:
        return "kept"
    if choice:
        return choice
    if host_torch:
        return "own"
    return "cuda" if driver else "cpu"


def tested_torch(constraints: str) -> str:
    """The torch version that the text of constraints/cpu.txt pins."""
    return re.findall(r"^torch==(\S+)", constraints, re.MULTILINE)[0]


def planned(report: dict) -> list[str]:
    """Names of the distributions that a pip report (`--dry-run --report`) would install."""
    return [item["metadata"]["name"] for item in report["install"]]


def refuse_cuda(names: list[str]) -> None:
    """Raise a Problem if a CPU environment would get CUDA packages."""
    cuda = sorted(name for name in names if CUDA_PACKAGE.match(name))
    if cuda:
        raise Problem(
            "pip would fetch torch with {} CUDA packages ({}, ...): gigabytes of no use without a GPU. Nothing was "
            "installed. Your package index has no CPU build of the tested torch. Any one of these helps:\n"
            "  PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make demo    PyTorch's own CPU builds\n"
            "  install torch>=2.10 your own way, activate that environment, and run this again: it will be used\n"
            "  DUALRATE_TORCH=cuda make demo                                         take the CUDA packages".format(
                len(cuda), ", ".join(cuda[:3])
            )
        )


def refuse_torch(names: list[str], torch: Torch) -> None:
    """Raise a Problem if an installed torch would be replaced, or CUDA packages be added to it."""
    unwanted = [name for name in names if name.lower() == "torch" or CUDA_PACKAGE.match(name)]
    if unwanted:
        raise Problem(
            "pip would change your torch {} (it wants to install {}); nothing was installed. Repair that torch "
            "(`pip check` tells), or `rm -rf .venv` and set DUALRATE_TORCH=cpu or cuda for one in .venv alone".format(
                torch.version, ", ".join(unwanted)
            )
        )


def done(stamp: dict, key: str, extras: set[str], choice: str) -> bool:
    """Whether a stamp says that there is nothing to do."""
    return (
        stamp.get("key") == key
        and extras <= set(stamp["extras"])
        and (not choice or (choice == "cuda") == (stamp["cuda"] is not None))
    )


# The machine


def driver_answers() -> bool:
    """Whether an NVIDIA driver with at least one GPU answers."""
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=30)
        if listed.returncode == 0 and b"GPU" in listed.stdout:
            return True
    except (OSError, subprocess.TimeoutExpired):
        pass
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    return library.cuInit(0) == 0 and library.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


def find_torch(python: str | Path) -> Torch | None:
    """The usable Torch that this interpreter imports, or None."""
    try:
        probe = subprocess.run([str(python), "-c", PROBE], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        answer = json.loads(probe.stdout.decode().splitlines()[-1])
    except (OSError, ValueError, IndexError):
        return None
    if not answer["version"] or not usable(answer["version"]):
        return None
    return Torch(answer["version"], answer["cuda"], str(python), answer["inherit"])


def find_own_torch() -> Torch | None:
    """The usable Torch of the running Python, or of the activated virtual or conda environment, or None."""
    roots = [os.environ.get(name) for name in ("VIRTUAL_ENV", "CONDA_PREFIX")]
    pythons = [Path(sys.executable)] + [Path(root) / "bin" / "python" for root in roots if root]
    torches = (find_torch(python) for python in dict.fromkeys(pythons) if VENV not in python.parents)
    return next((torch for torch in torches if torch), None)


def read_stamp() -> dict:
    try:
        return json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return {}


def stamp_key() -> str:
    """A hash of what the environment is made from: dependencies, constraints, Python, place."""
    parts = [ROOT / "pyproject.toml", CONSTRAINTS, VENV / "pyvenv.cfg"]
    return hashlib.sha256(b"\0".join([str(ROOT).encode(), *(part.read_bytes() for part in parts)])).hexdigest()


# Stages


def say(stage: str, text: str) -> None:
    print(f"{stage:<12} {text}", flush=True)


def run(command: list, advice: str) -> None:
    """Run a command with its output shown; a failure becomes a Problem that ends in `advice`."""
    code = subprocess.run([str(part) for part in command]).returncode
    if code:
        raise Problem(f"`python {command[1]} {command[2]}` failed (exit code {code}). {advice}")


PIP_ADVICE = (
    "pip's message is above. Without a network, connect and run this again: what was fetched is kept. "
    "Behind a mirror, set PIP_INDEX_URL; behind a proxy, HTTPS_PROXY"
)
VENV_ADVICE = "On Debian: `apt-get install python3-venv`; then run this again"


def make_venv(host_torch: Torch | None, need: int) -> None:
    """Make .venv without pip; host_torch: one that it shall see, or None; need: GB of free disk."""
    free = shutil.disk_usage(str(ROOT)).free / 1e9
    if free < need:
        raise Problem(f"{free:.1f} GB free in {ROOT}, but .venv needs {need}; make room and run this again")
    python = host_torch.python if host_torch else sys.executable
    seen = ["--system-site-packages"] if host_torch else []
    # Without pip, because Debian's Python may lack ensurepip while it has pip: add_pip finds either.
    run([python, "-m", "venv", "--without-pip", *seen, VENV], VENV_ADVICE)
    if host_torch and host_torch.inherit:
        packages = next((VENV / "lib").glob("python*/site-packages"))
        (packages / "inherited.pth").write_text("\n".join(host_torch.inherit) + "\n")


def add_pip() -> None:
    """Put pip into .venv: it is there, or ensurepip brings it, or the running Python's pip installs it."""
    for command in (
        [PYTHON, "-m", "pip", "--version"],
        [PYTHON, "-m", "ensurepip", "--default-pip"],
        [sys.executable, "-m", "pip", "--python", PYTHON, "install", "--quiet", "pip"],
    ):
        quiet = subprocess.run([str(part) for part in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if quiet.returncode == 0:
            return
    raise Problem("this Python can make no environment with pip. " + VENV_ADVICE)


def pip(*arguments: str | Path) -> list:
    return [PYTHON, "-m", "pip", "--disable-pip-version-check", *arguments]


def plan(constraints: Path, extras: set[str]) -> list[str]:
    """Names of what pip would install for pyproject's dependencies under these constraints."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(text for name in extras for text in project["optional-dependencies"][name])]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        run(pip("install", "--quiet", "--dry-run", "--report", report, "-c", constraints, *wanted), PIP_ADVICE)
        return planned(json.loads(report.read_text()))


def install(source: str, torch: Torch | None, extras: set[str]) -> None:
    """Install the package, editable, and what it needs; torch: the one to leave alone, or None."""
    package = str(ROOT) + (f"[{','.join(sorted(extras))}]" if extras else "")
    if source == "cuda":  # not quiet: pip's bars are the only sign of life in gigabytes
        say("installing", "dualrate with torch's CUDA packages")
        run(pip("install", "--no-compile", "-e", package), PIP_ADVICE)
        compile_packages()
        return
    with tempfile.TemporaryDirectory() as folder:
        constraints = CONSTRAINTS
        if torch:
            constraints = Path(folder) / "installed.txt"
            constraints.write_text(f"torch=={torch.version}\n")
        say("checking", "what pip would install")
        names = plan(constraints, extras)
        if torch:
            refuse_torch(names, torch)
        else:
            refuse_cuda(names)
        say("installing", f"dualrate and {len(names)} packages")
        run(pip("install", "--quiet", "--no-compile", "-c", constraints, "-e", package), PIP_ADVICE)
    compile_packages()


def compile_packages() -> None:
    """Write the bytecode of what is new in .venv, on all cores: pip takes one, for minutes. It skips bad files."""
    command = [str(PYTHON), "-m", "compileall", "-q", "-j", "0", str(VENV / "lib")]
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def explain(source: str, torch: Torch | None) -> str:
    tested = tested_torch(CONSTRAINTS.read_text())
    if torch:
        where = "of .venv" if source == "kept" else f"of {torch.python}"
        return f"{torch.version} {where}, left as it is"
    if source == "cuda":
        return "default wheel with CUDA, about 3 GB to fetch; for the small one: DUALRATE_TORCH=cpu make demo"
    return f"{tested} for the CPU; with CUDA instead: DUALRATE_TORCH=cuda make demo"


def set_up(extras: set[str]) -> None:
    if sys.version_info < OLDEST_PYTHON:
        raise Problem(
            "this is Python {}.{}; dualrate needs {}.{} or newer. Name one: `make PYTHON=python3.12 demo`".format(
                *sys.version_info[:2], *OLDEST_PYTHON
            )
        )
    choice, stamp = os.environ.get("DUALRATE_TORCH", ""), read_stamp()
    if VENV.exists() and not PYTHON.exists():
        raise Problem(f"{VENV} has no working Python any more; `rm -rf .venv` and run this again")
    if PYTHON.exists() and done(stamp, stamp_key(), extras, choice):
        return
    start, extras = time.monotonic(), extras | set(stamp.get("extras", []))
    venv_torch = find_torch(PYTHON) if PYTHON.exists() else None
    host_torch = None if choice or PYTHON.exists() else find_own_torch()
    source = torch_source(
        choice, venv_torch, host_torch, driver=not (venv_torch or host_torch or choice) and driver_answers()
    )
    if (
        venv_torch
        and venv_torch.cuda is None
        and venv_torch.version.split("+")[0] == tested_torch(CONSTRAINTS.read_text())
    ):
        source, venv_torch = "cpu", None  # an environment of ours: the tested versions hold for the rest too
    torch = venv_torch or host_torch
    say("torch", explain(source, torch))
    if not PYTHON.exists():
        say("environment", "making .venv with Python {}.{}.{}".format(*sys.version_info[:3]))
        make_venv(host_torch, need=10 if source == "cuda" else 3)
    add_pip()
    install(source, torch, extras)
    torch = find_torch(PYTHON)
    if not torch:
        raise Problem("torch in .venv cannot be imported; `.venv/bin/python -c 'import torch'` says why")
    STAMP.write_text(json.dumps({"key": stamp_key(), "extras": sorted(extras), "cuda": torch.cuda}))
    say("ready", f"torch {torch.version} in .venv, {time.monotonic() - start:.0f} s")


def main() -> int:
    parser = argparse.ArgumentParser(description="Make dualrate's environment in .venv.")
    for extra, what in {"dev": "tests, lint and type checks need", "docs": "the documentation's site needs"}.items():
        parser.add_argument(f"--{extra}", action="append_const", dest="extras", const=extra, help=f"with what {what}")
    try:
        set_up(set(parser.parse_args().extras or ()))
    except Problem as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; run the same command to go on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
