"""`dualrate doctor`: faults of the machine, and what to do about them. And the check of a codec (`data codec`).

A check yields findings. A check that raises is a finding too, and the other checks go on.
"""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

import dualrate
from dualrate.cli.recipe import AsJson, Device
from dualrate.codecs.codec import Codec, decoded, with_noise
from dualrate.data.cache import cache_dir
from dualrate.data.images import ImageSet, to_float, to_uint8
from dualrate.diffusion.random import Draws
from dualrate.system.device import compiles, pays, pick_device
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
        checks = (check_installation, lambda: check_device(pick_device(self.device)), lambda: check_disk(places))
        print_findings(self.json, examine(checks))


def examine(checks: Iterable[Callable[[], Iterator[Finding]]]) -> Iterator[Finding]:
    """The findings of these checks, as they are made."""
    for check in checks:
        try:
            yield from check()
        except Exception as error:  # a broken machine may raise anything
            what = (str(error).strip() or type(error).__name__).splitlines()[0]
            yield problem(f"{type(error).__name__}: {what}", "fix that first, then run this again")


def print_findings(as_json: bool, found: Iterable[Finding]) -> None:
    """Findings as one JSON object, or a line each as they come. Raises SystemExit, code 1, where one is a problem."""
    findings = []
    for finding in found:
        findings.append(finding)
        if not as_json:
            remedy = f" -> {finding.remedy}" if finding.remedy else ""
            print(f"{finding.level:7}  {finding.what}{remedy}", flush=True)
    problems = sum(finding.level == "problem" for finding in findings)
    if as_json:
        print(json.dumps({"problems": problems, "findings": [asdict(finding) for finding in findings]}))
    if problems:
        raise SystemExit(1)


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


def check_device(device: torch.device) -> Iterator[Finding]:
    """Whether the device computes and compiles, its memory or threads, and its precision."""
    if device.type == "cuda":
        free, total = (size / GIB for size in torch.cuda.mem_get_info(device))
        about = f"{device}: {torch.cuda.get_device_name(device)}, {free:.0f} of {total:.0f} GiB free"
        yield ok(about) if free > total / 2 else warning(about, "nvidia-smi lists the processes that use it")
    else:
        threads, processors = torch.get_num_threads(), os.cpu_count() or 1
        about = f"{device}: {threads} thread(s), {processors} processor(s), load {os.getloadavg()[0]:.1f}"
        few = f"DUALRATE_THREADS={processors} before the command"
        yield ok(about) if threads <= processors else warning(about, few)
    whole = torch.arange(64.0, device=device).reshape(8, 8) % 7  # exact in every precision
    exact = torch.einsum("ik,jk->ij", whole.cpu().double(), whole.cpu().double())
    if gap := float(((whole @ whole.T).cpu().double() - exact).abs().max()):
        yield problem(f"{device}: a product of matrices is off by {gap:.3g}", "use another device; test this one")
    yield ok(f"{device}: --fit.precision auto is {'bfloat16' if pays(device) else 'float32'}")
    if failed := compiles(device):
        yield warning(
            f"torch.compile does not work ({failed})", "install g++, or leave out --compile and --fit.compile"
        )
    else:
        yield ok("torch.compile works")


GIB = 2**30
LEAST, LITTLE = GIB // 4, 5 * GIB  # a checkpoint of a small model; a few of a large one


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
        if free < LEAST:
            yield problem(f"{about}, too little for a checkpoint", f"make room, or {elsewhere}")
        elif free < LITTLE:
            yield warning(f"{about}, little", f"make room, lower --fit.keep, or {elsewhere}")
        else:
            yield ok(about)


LOW, HIGH = 0.8, 1.25  # of the size of latents
POOR = 20.0  # dB
FAR = 0.25  # of drift
OUTSIDE = 0.01  # share of decoded values outside [-1.1, 1.1]
AT_A_TIME = 16


def check_codec(codec: Codec, images: ImageSet, count: int = 256) -> Iterator[Finding]:
    """Findings on a codec from `count` images, evenly spread over a set. Raises as `Codec.latent_shape`.

    size    root of the mean square of normalised latents, drawn as in training: about 1, as the noise schedule assumes
    PSNR    of decode(encode(image)) against the image, in dB of 8-bit pixels
    drift   of encode(decode(z)) from z, over the size of z
    range   of decoded pixels, nominally [-1, 1]
    """
    shape, count = codec.latent_shape(images.shape), min(count, len(images))
    rows = torch.linspace(0, len(images) - 1, count).long()
    sides = " -> ".join("x".join(map(str, one)) for one in (images.shape, shape))
    yield ok(f"{count} images of {images.name}, {sides}; codec {codec.fingerprint[:12]} (sha256)")
    trips = [_trip(codec, images, part) for part in rows.split(AT_A_TIME)]
    x, latents, back, again = (torch.cat(parts) for parts in zip(*trips, strict=True))
    if not (latents.isfinite().all() and back.isfinite().all()):
        yield problem("its latents or images are not finite", "use float32 weights, and check its config")
        return
    config = "compare its config (scaling_factor, shift_factor, latents_mean, latents_std) with its author's"
    size = float(latents.square().mean().sqrt())
    about = f"size of latents (root of the mean square): {size:.3f}, expected {LOW} to {HIGH}"
    yield ok(about) if LOW <= size <= HIGH else problem(about, f"its std or mean is wrong: {config}")
    error = float((to_uint8(x).float() - to_uint8(back).float()).square().mean())
    psnr = 10 * math.log10(255**2 / max(error, 1e-9))
    about = f"round trip: PSNR {psnr:.2f} dB"
    yield ok(about) if psnr >= POOR else warning(about, f"the codec loses much of an image: {config}")
    outside = float((back.abs() > 1.1).float().mean())
    about = f"decoded pixels: {float(back.min()):.3f} to {float(back.max()):.3f}, {outside:.2%} outside [-1.1, 1.1]"
    yield ok(about) if outside <= OUTSIDE else warning(about, "they are clamped to [-1, 1], where images are expected")
    drift = float((again - latents).square().mean().sqrt()) / size
    about = f"drift of encode(decode(z)): {drift:.3f} of z"
    yield ok(about) if drift <= FAR else warning(about, "encoder and decoder may not belong together")


def _trip(codec: Codec, images: ImageSet, rows: Tensor) -> tuple[Tensor, ...]:
    """Images, latents drawn as in training, images of these, and the mean latents of those."""
    x = to_float(images.images[rows.numpy()]).to(codec.device)
    draws, moments = Draws(0, rows.to(codec.device)), codec.encode(x)
    latents = moments.sample(draws.normal("latent", *moments.mean.shape[1:]))
    back = decoded(codec, with_noise(codec, latents, draws), draws)
    return x.cpu(), latents.cpu(), back.cpu(), codec.encode(back.clamp(-1, 1)).mean.cpu()
