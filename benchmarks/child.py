"""Peak memory and CPU time of one kind of work, in a process of its own.

    python -m benchmarks.child weights/fashion-mnist-heavy-annealed train [--return-freed] [--batch 64] [--device cuda]

Peak memory is the process's resident set on a CPU, and what torch's allocator held on a GPU. On a CPU it begins with
the libraries' own hundreds of MB, so `start` (before the networks are built) is printed beside it. Freed memory is
kept, as the command line does, unless --return-freed. user, system: seconds of CPU time per call after the first.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path

import torch

import dualrate as dr
from benchmarks import workloads
from dualrate.cli.train import RECIPES
from dualrate.runs.store import read_experiment
from dualrate.system.device import keep_freed_memory, pays, peak_memory

ROOT = Path(__file__).resolve().parent.parent


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", help="a run or released weights; to train, or a recipe")
    parser.add_argument("work", choices=("sample", "train"))
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--heavy", type=int, help="heavy calls; default: one per step")
    parser.add_argument("--batch", type=int, default=64, help="images sampled; a training batch is the model's own")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--return-freed", action="store_true", help="leave the allocator as it is")
    parser.add_argument("--freeze-encoder", action="store_true", help="train the light network alone")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    return parser


def measure(options: argparse.Namespace) -> dict[str, float | None]:
    """The figures of this process; what ran in it before counts too."""
    torch.set_num_threads(options.threads)
    if not options.return_freed:
        keep_freed_memory()
    device = torch.device(options.device)
    bfloat16 = pays(device)
    start = peak_memory(device)
    if options.work == "train":
        recipe = RECIPES.get(options.model)
        experiment = recipe() if recipe else read_experiment(Path(options.model))
        if options.freeze_encoder:
            experiment = workloads.beside_frozen_encoder(experiment)
        work = workloads.training(experiment, device, bfloat16)
    else:
        model, plan = dr.load(options.model, device=device), dr.StepPlan.uniform(options.steps, options.heavy)
        work = workloads.sampling(model, plan, options.batch, bfloat16)
    work()
    before = resource.getrusage(resource.RUSAGE_SELF)  # os.times counts hundredths of a second
    for _ in range(options.repeats):
        work()
    after = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "start": start,
        "peak": start and max(start, peak_memory(device) or 0),  # a kernel counts pages late
        "user": (after.ru_utime - before.ru_utime) / options.repeats,
        "system": (after.ru_stime - before.ru_stime) / options.repeats,
    }


def run(*arguments: str) -> dict[str, float]:
    """`measure` in a fresh process. Raises RuntimeError with what it printed if it fails."""
    command = [sys.executable, "-m", "benchmarks.child", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} exited with {done.returncode}:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    print(json.dumps(measure(parser().parse_args())))
