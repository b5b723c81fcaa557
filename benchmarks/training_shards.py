"""Training from packed shards, as `benchmarks.preparing` leaves them: images a second, memory, and a kill half-way.

    python -m benchmarks.training_shards FOLDER/packed OUT [--counts 1 2] [--iterations 400]

The tiny networks of `train auto`, in float32. Memory is that of all processes together without the page cache, at each
quarter of the iterations. Last, a training is killed with SIGKILL half-way and run again; it must end with the bits of
the one before it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path

import numpy as np

from benchmarks.preparing import QUARTERS, Command
from dualrate.training import checkpoint

LOGGED = 10  # iterations


class Train(Command):
    """`dualrate train auto` on packed shards."""

    def __init__(self, packed: Path, out: Path, processes: int, iterations: int) -> None:
        self.out, self.iterations = out, iterations
        fit = {
            "iterations": iterations,
            "log-every": LOGGED,
            "checkpoint-every": iterations // 8,
            "sample-every": 10 * iterations,
            "precision": "float32",
        }
        options = [part for name, value in fit.items() for part in (f"--fit.{name}", str(value))]
        how = ("--size", "tiny", "--out", str(out), "--nproc", str(processes), "--retries", "0")
        super().__init__("train", "auto", "--data.source", str(packed), *how, *options)

    def lines(self) -> list[dict[str, float]]:
        """Of the log, whole ones."""
        file = self.out / "metrics.jsonl"
        text = file.read_text() if file.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def done(self) -> float:
        """Iterations that the log tells of."""
        return max((line["iteration"] for line in self.lines()), default=0)

    def watch(self) -> list[float]:
        """MiB at each quarter of the iterations. Raises RuntimeError where it fails."""
        memory: list[float] = []
        while (code := self.process.poll()) is None:
            if len(memory) < 3 and self.done() >= QUARTERS[len(memory)] * self.iterations:
                memory.append(self.memory())
            time.sleep(0.2)
        if code:
            raise RuntimeError(f"training ended with {code}")
        return memory

    def bits(self) -> list[bytes]:
        """Of the last checkpoint."""
        newest = checkpoint.saved_paths(self.out / "checkpoints")[-1]
        return [file.read_bytes() for file in sorted(newest.glob("*.safetensors"))]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("packed", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--iterations", type=int, default=400)
    options = parser.parse_args()
    run = options.out / "run"

    def begun(count: int) -> Train:
        return Train(options.packed, run, count, options.iterations)

    expected: list[bytes] = []
    for count in options.counts:
        shutil.rmtree(run, ignore_errors=True)
        straight = begun(count)
        shown = ", ".join(f"{mib:.0f}" for mib in straight.watch())
        low, median, high = np.quantile([line["images_per_second"] for line in straight.lines()[1:]], (0.25, 0.5, 0.75))
        print(f"{count} processes: {median:.0f} [{low:.0f}, {high:.0f}] images/s, memory {shown} MiB", flush=True)
        expected = straight.bits()
    shutil.rmtree(run)
    killed = begun(options.counts[-1])
    killed.kill_after(options.iterations / 2)
    at, again = killed.done(), begun(options.counts[-1])
    again.watch()
    same = again.bits() == expected
    print(f"killed after {at:.0f} iterations and run again: {'the same' if same else 'OTHER'} bits")
    raise SystemExit(not same)


if __name__ == "__main__":
    main()
