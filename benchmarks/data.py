"""How fast batches come from packed shards, and how soon training starts from 1.28 million images.

    python -m benchmarks.data batches [--images 100000] [--side 64]
    python -m benchmarks.data start [--images 1281167] [--side 64]

`batches`: random pixels in shards as `data prepare` writes them, read once before, so they come from the page cache;
with mirroring. "bytes" is what travels to a GPU, "floats" what a CPU trains on, "ahead" the floats made by the thread
of data/loader.py for a trainer that only takes them. `start`: shards of as many images as ImageNet has, of which no
pixel is on the disk (sparse files: they are all zero); the time of `dualrate train` on a tiny network from the command
to the end of its first iteration, and the CPU time of what that consists of. Medians and quartiles of rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # `parts` times the import of torch
    import dualrate as dr

ROOT = Path(__file__).resolve().parent.parent

CLASSES = 1000
SHARD_BYTES = 2**28
BATCH = 256


def packed(folder: Path, count: int, side: int, *, filled: bool) -> Path:
    """A prepared folder of `count` training images, random or (not `filled`) sparse, and ten test images."""
    from dualrate.data.shards import DATASET, FORMAT, PLAN
    from dualrate.system.folders import Manifest

    rng, size, splits = np.random.default_rng(0), 3 * side * side, {}
    for split, images in (("train", count), ("test", 10)):
        shards = []
        for i, start in enumerate(range(0, images, SHARD_BYTES // size)):
            shard = {"file": f"{split}-{i:05}.bin", "images": min(SHARD_BYTES // size, images - start)}
            with (folder / shard["file"]).open("wb") as file:
                if filled:
                    file.write(rng.bytes(shard["images"] * size))
                else:
                    file.truncate(shard["images"] * size)
            shards.append({**shard, "sha256": "", "rejects": []})
        np.save(folder / f"{split}-labels.npy", np.arange(images) % CLASSES)
        part = {"name": f"random/{split}", "images": images, "rejected": 0, "labelled": True}
        names = [str(i) for i in range(CLASSES)]
        splits[split] = {**part, "class_names": names, "fingerprint": "0" * 64, "shards": shards}
    dataset = {"format": FORMAT, "size": side, "channels": 3, "splits": splits}
    (folder / DATASET).write_text(json.dumps(dataset))
    (folder / PLAN).write_text("{}")
    Manifest.write(folder, [DATASET, "train-labels.npy", "test-labels.npy"])
    return folder


def spread(values: Sequence[float], form: str) -> str:
    """Median and quartiles."""
    low, median, high = np.quantile(values, (0.25, 0.5, 0.75))
    return f"{median:{form}} [{low:{form}}, {high:{form}}]"


def rate(make: Callable[[int], object], batch: int, rounds: int, per_round: int) -> list[tuple[float, float]]:
    """Images per second, of wall and of CPU time, of making batches one after the other, in each of some rounds."""
    make(0)
    found, number = [], 1
    for _ in range(rounds):
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(per_round):
            make(number)
            number += 1
        images = batch * per_round
        found.append((images / (time.perf_counter() - wall), images / (time.process_time() - cpu)))
    return found


def batches(folder: Path, batch: int, rounds: int, per_round: int) -> Iterator[tuple[str, list[tuple[float, float]]]]:
    """Images per second by what is made of them."""
    from dualrate.data.images import load_images
    from dualrate.data.loader import AHEAD, Augment, Batches, Prefetched
    from dualrate.system.device import keep_freed_memory

    keep_freed_memory()  # as the command line does
    made = Batches(load_images(folder, split="train"), batch, 0, Augment(flip=True))
    for file in folder.glob("*.bin"):
        file.read_bytes()
    yield "bytes", rate(made.bytes, batch, rounds, per_round)
    yield "floats", rate(made.batch, batch, rounds, per_round)
    with Prefetched(made, "cpu", AHEAD) as ahead:
        yield "ahead", rate(ahead.batch, batch, rounds, per_round)


def tiny(side: int = 64) -> dr.Experiment:
    """A recipe whose networks cost nothing, so that what is timed is everything else."""
    import dualrate as dr
    from dualrate.training.config import FitConfig

    levels = (dr.Level("conv", 8, 1), dr.Level("transformer", 16, 1))
    network = dr.UViTConfig(side, 3, levels, num_classes=CLASSES, patch=8, embedding=16, head_dim=16)
    fit = FitConfig(iterations=1, batch_size=BATCH, log_every=1)
    return dr.Experiment("tiny", dr.OneNetwork(network), dr.DenoisingConfig(), fit)


def to_first_iteration(source: Path, out: Path) -> tuple[float, float]:
    """Seconds from the command to the line of the first iteration in the log of the run: of wall and of CPU time."""
    command = [sys.executable, "-m", "dualrate_command", "train", "benchmarks.data:tiny", "--data.source", str(source)]
    start = time.perf_counter()
    process = subprocess.Popen([*command, "--out", str(out)], cwd=ROOT, stderr=subprocess.DEVNULL)
    log = out / "metrics.jsonl"
    while not (log.is_file() and log.stat().st_size):
        if process.poll() is not None:
            raise RuntimeError(f"training ended with {process.returncode} before its first iteration")
        time.sleep(0.005)
    took = time.perf_counter() - start
    process.kill()
    usage = os.wait4(process.pid, 0)[2]
    process.returncode = -signal.SIGKILL
    return took, usage.ru_utime + usage.ru_stime


def parts(source: Path) -> dict[str, float]:
    """CPU seconds of what a start from this folder consists of, in this process, which has none of it yet."""
    times: dict[str, float] = {}

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        start = time.process_time()
        yield
        times[name] = time.process_time() - start

    with timed("import torch"):
        import torch
    with timed("import dualrate and its command line"):
        import dualrate.cli.main  # noqa: F401
        from dualrate.data.images import ImageSet
        from dualrate.data.loader import Batches
        from dualrate.data.shards import read_prepared
        from dualrate.runs.train import data_notes
        from dualrate.system.device import pays
    with timed("import torch._dynamo, which torch.optim does"):
        import torch._dynamo
    with timed("does bfloat16 pay"):
        pays(torch.device("cpu"))
    with timed("manifest, list of shards, labels"):
        found = read_prepared(source, "train")
    with timed("checks of labels"):
        images = ImageSet(found.images, found.labels, found.class_names, found.name, found.fingerprint)
        data_notes(images, CLASSES, BATCH)
    made = Batches(images, BATCH, 0)
    with timed("first batch, with the order of its epoch"):
        made.batch(0)
    with timed("second batch"):
        made.batch(1)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("batches", "start", "parts"))
    parser.add_argument("--images", type=int)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--folder", type=Path, help="of `parts`, which `start` calls")
    options = parser.parse_args()
    if options.what == "parts":
        print(json.dumps(parts(options.folder)))
        return
    with tempfile.TemporaryDirectory(prefix="dualrate-data-") as name:
        folder = Path(name, "packed")
        folder.mkdir()
        if options.what == "batches":
            packed(folder, options.images or 100_000, options.side, filled=True)
            for batch in options.batches:
                for made, found in batches(folder, batch, options.rounds, max(1, 4096 // batch)):
                    wall, cpu = (spread(rates, ",.0f") for rates in zip(*found, strict=True))
                    print(f"batch {batch:5}, {made:6} {wall} images/s, {cpu} images a second of CPU", flush=True)
            return
        packed(folder, options.images or 1_281_167, options.side, filled=False)
        totals, split = [], []
        for i in range(options.rounds):
            totals.append(to_first_iteration(folder, Path(name, f"run-{i}")))
            command = [sys.executable, "-m", "benchmarks.data", "parts", "--folder", str(folder)]
            split.append(json.loads(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout))
        for clock, seconds in zip(("wall", "CPU"), zip(*totals, strict=True), strict=True):
            print(f"  {clock}: {'command to the end of the first iteration':42} {spread(seconds, '.2f')} s")
        for part in split[0]:
            print(f"  CPU: {part:42} {spread([found[part] for found in split], '.2f')} s")


if __name__ == "__main__":
    main()
