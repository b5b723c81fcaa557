"""How fast `dualrate data prepare` is by its number of processes, in how much memory, and that a kill costs nothing.

    python -m benchmarks.preparing FOLDER [--images 100000] [--counts 1 2 4] [--size 64]

FOLDER/photos gets JPEGs of 160 x 120 (ImageNet's proportions at a third of its size: smooth colours and noise, 8 KB
each at quality 90) in 100 classes, once. Each number of processes prepares them anew; memory is that of all processes
together (proportional set sizes, without the page cache), read at a quarter, a half, three quarters and at the end of
the images. Last, a preparation is killed with SIGKILL half-way and run again; its content must have the fingerprint of
the others.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
CLASSES, SIDES = 100, (160, 120)
QUARTERS = (0.25, 0.5, 0.75, 1.0)


def photo(rng: np.random.Generator) -> bytes:
    """A JPEG that is neither flat nor noise alone."""
    smooth = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).resize(SIDES, Image.Resampling.BICUBIC)
    grain = rng.integers(-12, 13, (SIDES[1], SIDES[0], 1), np.int16)
    pixels = (np.asarray(smooth, np.int16) + grain).clip(0, 255).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def photos(folder: Path, count: int) -> Path:
    """So many JPEGs, in a folder per class; those that are there are kept."""
    for number in range(count):
        file = folder / f"class{number % CLASSES:03}" / f"{number:07}.jpg"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(photo(np.random.default_rng(number)))
    return folder


class Command:
    """`dualrate ...` as a process group of its own."""

    def __init__(self, *arguments: str) -> None:
        command, silent = [sys.executable, "-m", "dualrate_command", *arguments], subprocess.DEVNULL
        self.process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, stdout=silent, stderr=silent)

    def family(self) -> list[int]:
        """The numbers of the process and of all that descend from it: ranks have process groups of their own."""
        parents: dict[int, int] = {}
        for process in Path("/proc").glob("[0-9]*"):
            try:
                parents[int(process.name)] = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:  # it ended meanwhile
                continue
        found = [self.process.pid]
        for one in found:  # grows meanwhile
            found += [number for number, parent in parents.items() if parent == one]
        return found

    def memory(self) -> float:
        """MiB of all its processes; pages that several of them have count once."""
        total = 0.0
        for number in self.family():
            try:
                found = re.search(r"^Pss_Anon: +(\d+)", Path(f"/proc/{number}/smaps_rollup").read_text(), re.M)
            except OSError:  # it ended meanwhile
                continue
            total += int(found[1]) / 1024 if found else 0
        return total

    def done(self) -> float:
        """How much of its work is."""
        raise NotImplementedError

    def kill_after(self, done: float) -> None:
        """Once so much is done, or it has ended by itself."""
        while self.done() < done and self.process.poll() is None:
            time.sleep(0.1)
        for number in self.family():
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        self.process.wait()


class Prepare(Command):
    """`dualrate data prepare`. shard_mib: small, so that progress is seen often."""

    def __init__(self, source: Path, out: Path, size: int, workers: int, shard_mib: int) -> None:
        self.out, self.shard = out, shard_mib * 2**20 // (3 * size * size)
        how = ("--size", str(size), "--workers", str(workers), "--shard-mib", str(shard_mib), "--json")
        super().__init__("data", "prepare", str(source), str(out), *how)

    def done(self) -> int:
        """Images in finished shards, but for the last of each split."""
        return self.shard * len(list(self.out.glob("*-[0-9]*.json")))


@dataclass(frozen=True)
class Measured:
    """seconds: in all. rate: images a second once shards are finished. cpu: seconds an image.

    memory: MiB at each quarter of the images; at the end the workers are gone
    """

    seconds: float
    rate: float
    cpu: float
    memory: list[float]

    def __str__(self) -> str:
        shown = ", ".join(f"{mib:.0f}" for mib in self.memory)
        return (
            f"{self.seconds:.0f} s, {self.rate:.0f} images/s then, {1000 * self.cpu:.2f} ms of CPU an image, "
            f"memory {shown} MiB"
        )


def measured(prepare: Prepare, count: int) -> Measured:
    """What preparing so many images takes."""
    start, first, before, seen = time.perf_counter(), 0.0, 0, 0.0
    memory: list[float] = []
    while not (ended := os.wait4(prepare.process.pid, os.WNOHANG))[0]:
        done = prepare.done()
        if done and not first:
            first, before = time.perf_counter(), done
        seen = prepare.memory() or seen
        while len(memory) < 3 and done >= QUARTERS[len(memory)] * count:
            memory.append(seen)
        time.sleep(0.2)
    _, code, usage = ended
    prepare.process.returncode = code
    if code:
        raise RuntimeError(f"preparing ended with {code}")
    end = time.perf_counter()
    cpu = (usage.ru_utime + usage.ru_stime) / count
    return Measured(end - start, (count - before) / (end - first), cpu, [*memory, seen])


def fingerprints(out: Path) -> list[str]:
    """Of both splits."""
    splits = json.loads((out / "dataset.json").read_text())["splits"]
    return [splits[split]["fingerprint"] for split in ("train", "test")]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--shard-mib", type=int, default=16)
    options = parser.parse_args()
    source = photos(options.folder / "photos", options.images)
    made: list[list[str]] = []

    def begun(name: str, workers: int) -> Prepare:
        return Prepare(source, options.folder / name, options.size, workers, options.shard_mib)

    for count in options.counts:
        shutil.rmtree(options.folder / "packed", ignore_errors=True)
        found = measured(begun("packed", count), options.images)
        made.append(fingerprints(options.folder / "packed"))
        print(f"{count} processes: {found}", flush=True)
    shutil.rmtree(options.folder / "packed", ignore_errors=True)
    killed = begun("packed", options.counts[-1])
    killed.kill_after(options.images / 2)
    done = killed.done()
    seconds = measured(begun("packed", options.counts[-1]), options.images).seconds
    made.append(fingerprints(options.folder / "packed"))
    same = all(each == made[0] for each in made)
    print(f"killed after {done} images, {seconds:.0f} s for the others: {'the same' if same else 'ANOTHER'} content")
    raise SystemExit(not same)


if __name__ == "__main__":
    main()
