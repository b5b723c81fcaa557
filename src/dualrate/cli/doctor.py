"""`dualrate doctor`: faults of the machine, a run or a data set, and what to do about them.

A check yields findings. A check that raises is a finding too, and the other checks go on.
"""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from torch import Tensor
from tyro.conf import Positional, arg

import dualrate
from dualrate.cli.recipe import AsJson, Device
from dualrate.codecs.codec import Codec, decoded, with_noise
from dualrate.config.ranges import as_path
from dualrate.data import fashion_mnist
from dualrate.data.cache import cache_dir
from dualrate.data.decode import Options, image_of
from dualrate.data.images import ImageSet, find_source, to_float, to_uint8
from dualrate.data.latent_set import is_encoded, read_latents
from dualrate.data.source import Raw, one_line
from dualrate.data.text_pieces import is_text, read_text
from dualrate.diffusion.random import Draws
from dualrate.runs.store import EXPERIMENT, WEIGHTS, load, read_experiment
from dualrate.system.device import compiles, pays, pick_device
from dualrate.system.files import holders, write_whole
from dualrate.system.folders import Damaged, new_folder, some_of
from dualrate.system.progress import run_lock
from dualrate.training import checkpoint


@dataclass(frozen=True)
class Finding:
    """level: "problem" is what ends or spoils work; remedy: what to do about it."""

    level: Literal["ok", "warning", "problem"]
    what: str
    remedy: str = ""


ok, warning, problem = partial(Finding, "ok"), partial(Finding, "warning"), partial(Finding, "problem")
Check = Callable[[], Iterator[Finding]]


@dataclass(frozen=True)
class Doctor:
    """Check the installation, device and disk, and a run or a data set. Exit code 1 if there is a problem."""

    target: Annotated[
        Positional[str | None], arg(metavar="[RUN|DATA]", help="A run, released weights, or images as --data.source.")
    ] = None
    device: Device = None
    json: AsJson = False

    def run(self) -> None:
        print_findings(self.json, examine(checks(self.target, self.device)))


def checks(target: str | None, device: str | None) -> dict[str, Check]:
    """The checks, by name. target: a run, released weights, or images; None: the machine alone."""
    found: dict[str, Check] = {"installation": check_installation}
    try:
        where = pick_device(device)
    except ValueError as error:
        if device is not None:
            raise
        unusable, where = problem(str(error), "run nvidia-smi"), torch.device("cpu")
        found["GPU"] = lambda: iter((unusable,))
    runs = Path("runs")
    found["device"] = lambda: check_device(where)
    found["disk"] = lambda: check_disk({"runs": runs, "decoded images": cache_dir()})
    if target is not None and is_stored(place := as_path(target)):
        runs = place
        found["run"] = lambda: check_run(place)
    elif target is not None:
        found["images"] = lambda: check_images(target)
    return found


def examine(checks: dict[str, Check]) -> Iterator[Finding]:
    """The findings of these checks, as they are made."""
    for name, check in checks.items():
        try:
            yield from check()
        except Exception as error:  # a broken machine may raise anything
            what = (str(error).strip() or type(error).__name__).splitlines()[0]
            yield problem(f"{name}: {type(error).__name__}: {what}", "fix that first, then run this again")


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


# The machine


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
                with new_folder(Path(name, "checkpoint")) as aside:
                    (aside / "file").write_bytes(b"whole")
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


# Runs


def is_stored(path: Path) -> bool:
    """Whether this is meant to be a run, or released weights, rather than images."""
    return any((path / name).exists() for name in (EXPERIMENT, WEIGHTS, "checkpoints")) or bool(
        holders(path, EXPERIMENT)
    )


def check_run(path: Path) -> Iterator[Finding]:
    """A run, runs in stages, or released weights: every file against its manifest. Changes nothing."""
    if not (path / EXPERIMENT).exists() and (within := holders(path, EXPERIMENT)):
        for run in within:
            yield from check_run(run)
        return
    try:
        experiment = read_experiment(path)
    except (ValueError, OSError) as error:
        yield problem(f"{path}: its experiment cannot be read ({error})", "restore it from a copy")
        return
    yield ok(f"{path}: {experiment.name}, images of {'x'.join(map(str, experiment.shape))}")
    for saved in reversed(checkpoint.saved_paths(path / "checkpoints")):
        try:
            checkpoint.load(saved)
            yield ok(f"{saved.name}: every file matches its manifest")
        except Damaged as error:
            yield warning(f"{saved.name} is damaged: {error}", "training uses an intact one; test the disk")
        except (ValueError, OSError) as error:
            yield problem(f"{saved.name} cannot be read: {error}", "test the disk, and see its permissions")
    for aside in sorted((path / "checkpoints").glob("*.corrupt")):
        yield warning(f"{aside.name} was damaged and set aside earlier", "remove it")
    notes: list[str] = []
    try:
        model = load(path, note=notes.append)
        codec = f", codec {model.codec.fingerprint[:12]}" if model.codec.fingerprint else ""
        for note in notes if (path / WEIGHTS).exists() else ():  # a run's checkpoints were checked above
            if note.startswith("warning: "):
                yield warning(note.removeprefix("warning: "), "dualrate export RUN --out WEIGHTS")
        yield ok(f"load reads iteration {model.iteration}, {sum(model.parameters.values()):,} parameters{codec}")
    except (ValueError, OSError) as error:
        yield problem(f"{path} cannot be loaded: {error}", "restore its files and those of its codec")
    try:
        yield ok(f"its images are here: {_name(experiment.data.source)}")
    except (ValueError, OSError) as error:
        yield warning(f"its images are not here ({error})", "sampling needs none; to train on, pass --data.source")


def _name(source: str) -> str:
    """The name of a data set on this machine, of which nothing is fetched or decoded.

    Raises ValueError or OSError where there is none.
    """
    if source == fashion_mnist.NAME and fashion_mnist.found_at(cache_dir() / source) is None:
        raise OSError(f"{source} is not on this machine; training fetches its 30 MB")
    if is_encoded(source):
        return read_latents(source, "train").name
    if is_text(source):
        return read_text(source, "train", 1).name
    return find_source(source, "train", cache_dir(), lambda *_: None).name


# Data


MOST = 5000  # images of a split that are decoded


def check_images(source: str) -> Iterator[Finding]:
    """source: as --data.source. Decodes up to MOST images of each split, spread evenly; writes nothing."""
    try:
        name = _name(source)
        if is_text(source) or is_encoded(source):
            yield ok(f"{name} can be read")
            return
        for split in ("train", "test"):
            found = find_source(source, split, cache_dir(), lambda *_: None)
            yield from _split(f"{found.name}, {split}", found.read())
    except (ValueError, OSError) as error:
        yield problem(f"{source}: {error}", "docs/own-images.md lists what can be read")


def _split(name: str, raw: Raw) -> Iterator[Finding]:
    classes = f"{len(raw.class_names) or 'no'} class(es)"
    if raw.labels is not None:
        counts = np.bincount(raw.labels, minlength=len(raw.class_names))
        classes += f" of {counts.min()} to {counts.max()} images"
    yield ok(f"{name}: {raw.count} images, {classes}")
    every = max(1, math.ceil(raw.count / MOST))
    shapes: Counter[str] = Counter()
    bad: list[str] = []
    for file, item in islice(raw.items, 0, None, every):
        try:
            shapes["x".join(map(str, image_of(file, item, Options(None, None, "fail")).shape))] += 1
        except (ValueError, OSError) as error:
            bad.append(one_line(error))
    if bad:
        tried = shapes.total() + len(bad)
        yield problem(f"{name}: {len(bad)} of {tried} files are rejected: {some_of(bad)}", "pass --data.on-bad skip")
    sizes = some_of([f"{count} of {shape}" for shape, count in shapes.most_common()])
    if len(shapes) > 1:
        yield warning(f"{name}: images differ in shape: {sizes}", "pass --data.size, and --data.channels 1 or 3")
    elif shapes:
        yield ok(f"{name}: decoded{f' one in {every}' if every > 1 else ''}: {sizes}")


# Codecs


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
