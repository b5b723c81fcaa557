"""Weak scaling of training on a CPU: images per second by the number of processes, each with as many images.

    python -m benchmarks.training_processes [--counts 1 2 4] [--rows 64] [--recipe fashion-mnist-heavy]

Every process has one thread and `--rows` images of a batch. What n processes make together is set beside n trainings of
one process each that run at once ("apart"): these share cores, caches and memory too, and exchange nothing. The
efficiency is the ratio of the two. The first third of the iterations is not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.child import ROOT

ITERATIONS, EVERY = 30, 2


def images_per_second(recipe: str, rows: int, processes: int, out: Path) -> float:
    """Of a training of ITERATIONS in a directory, the median of its log."""
    how = {
        "--fit.batch-size": rows * processes,
        "--fit.iterations": ITERATIONS,
        "--fit.log-every": EVERY,
        "--fit.precision": "float32",
        "--nproc": processes,
        "--out": out,
    }
    command = [sys.executable, "-m", "dualrate_command", "train", recipe]
    command += [str(part) for option in how.items() for part in option]
    environment = os.environ | {"DUALRATE_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    subprocess.run(command, check=True, env=environment, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return statistics.median(line["images_per_second"] for line in lines[len(lines) // 3 :])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 2, 4], help="numbers of processes")
    parser.add_argument("--rows", type=int, default=64, help="images of a batch for each")
    parser.add_argument("--recipe", default="fashion-mnist-heavy")
    options = parser.parse_args()
    for processes in options.counts:
        with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(processes) as pool:
            of = (options.recipe, options.rows)
            together = images_per_second(*of, processes, Path(folder) / "together")
            each = pool.map(lambda i: images_per_second(*of, 1, Path(folder) / f"{i}"), range(processes))  # noqa: B023
            apart = sum(each)
        print(
            f"{processes} x {options.rows} images: {together:.1f} images/s together, {apart:.1f} apart, "
            f"efficiency {together / apart:.3f}"
        )


if __name__ == "__main__":
    main()
