"""Weak scaling of training on a CPU: images per second by the number of processes, each with as many images.

    python -m benchmarks.training_processes [--counts 1 2 4] [--rows 64] [--recipe fashion-mnist-heavy]

Every process has one thread and `--rows` images of a batch. The efficiency of n processes is their images per second
over n times those of one process alone; where fewer than n cores are free, it says more of the cores than of them. The
first third of the iterations is not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
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
    alone = 0.0
    for processes in dict.fromkeys((1, *options.counts)):
        with tempfile.TemporaryDirectory() as folder:
            rate = images_per_second(options.recipe, options.rows, processes, Path(folder) / "run")
        alone = alone or rate
        print(f"{processes} x {options.rows} images: {rate:.1f} images/s, efficiency {rate / (processes * alone):.3f}")


if __name__ == "__main__":
    main()
