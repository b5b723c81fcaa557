"""The command line: dualrate train | sample | evaluate | compare | ..., thin calls into the library.

A mistake by the user is one clear line and exit code 2. Reports go to standard output, progress to standard error.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import torch
from tyro.conf import Positional, arg

import dualrate
from dualrate.cli_bound import LikelihoodBound
from dualrate.cli_calibrate import Calibrate
from dualrate.cli_compare import Compare
from dualrate.cli_distill import Distill, parse_distill
from dualrate.cli_options import parse
from dualrate.cli_plan import PlanSearch
from dualrate.cli_recipe import override, recipe_name, with_own_options
from dualrate.cli_sample import Sample
from dualrate.cli_sampler import Plan, sampler_of
from dualrate.console import decoding, reporter, tell, tell_end
from dualrate.covariance import ProbedCovariance
from dualrate.experiment import Experiment
from dualrate.files import naming
from dualrate.malloc import keep_freed_memory
from dualrate.ranges import BatchSize, Images, Minutes, Ranged, Seed
from dualrate.recipes import auto, cifar10, fashion_mnist, imagenet
from dualrate.training.device import memory_shortage, pick_device

RECIPES: dict[str, Callable[[], Experiment]] = {
    "auto": auto.Auto(),
    "fashion-mnist-heavy": fashion_mnist.heavy,
    "fashion-mnist-dual": fashion_mnist.dual,
    "fashion-mnist-light": fashion_mnist.light,
    "fashion-mnist-medium": fashion_mnist.medium,
    "fashion-mnist-small": fashion_mnist.small,
    "cifar10-heavy": cifar10.heavy,
    "cifar10-light": cifar10.light,
    "cifar10-dual": cifar10.dual,
    "cifar10-reduced-heavy": partial(cifar10.heavy, "reduced"),
    "cifar10-reduced-light": partial(cifar10.light, "reduced"),
    "cifar10-reduced-dual": partial(cifar10.dual, "reduced"),
    "imagenet64-heavy": imagenet.heavy,
    "imagenet64-dual": imagenet.dual,
    "imagenet128-heavy": partial(imagenet.heavy, 128),
    "imagenet128-dual": partial(imagenet.dual, 128),
}


@dataclass(frozen=True)
class Train:
    """Train a recipe, or continue it: the same command resumes."""

    experiment: Annotated[Experiment, arg(name="")]
    out: Path | None = None
    """Run directory; runs/<name> if not given."""
    device: str | None = None
    """cpu, cuda, ...; cuda if there is one."""

    def run(self) -> None:
        from dualrate.runs.threads import resume_threads
        from dualrate.runs.train import train

        out = self.out or Path("runs") / self.experiment.name
        resume_threads(out)
        progress = reporter()
        result = train(
            self.experiment,
            out,
            progress=progress,
            decoding=decoding(progress),
            device=pick_device(self.device),
            command=shlex.join(["dualrate", *sys.argv[1:]]),
        )
        tell_end(result, out, progress)


@dataclass(frozen=True)
class Evaluate(Ranged):
    """Score a run: Frechet distance in the features of a net trained on the data set (FD-<net>), FID, FD-DINOv2."""

    run_dir: Annotated[Positional[Path], arg(metavar="RUN")]
    """Directory of a run, or of released weights."""
    plan: Annotated[Plan, arg(name="")] = Plan()
    num: Images = 5000
    """Number of images."""
    seed: Seed = 0
    """Of the first image; image i has seed + i."""
    features: Literal["inception", "dinov2"] | Path | None = None
    """Directory of the feature net; the shipped one, or one trained on first use, if not given. inception: FID;
    dinov2: FD-DINOv2."""
    reference: Path | None = None
    """A .npz of statistics (mu, sigma) or images (arr_0) to score against, instead of the training images."""
    keep: Path | None = None
    """Directory that keeps the features as images are drawn: the same command goes on where it was."""
    details: bool = False
    """Also kernel distance, precision and recall, against the training images."""
    batch_size: BatchSize = 125
    """Images at a time; fewer need less memory."""
    device: str | None = None
    """cpu, cuda, ...; cuda if there is one."""
    json: bool = False
    """Print the report as JSON."""

    def run(self) -> None:
        from dualrate.report.table import text_table
        from dualrate.runs.evaluator import dinov2_evaluator, evaluator, inception_evaluator, require_count
        from dualrate.runs.measure import Guidance, measure
        from dualrate.runs.store import load
        from dualrate.runs.stream import measure_in_blocks

        require_count(self.num, self.features)
        device, progress = pick_device(self.device), reporter()
        model = load(self.run_dir, device=device, note=progress.note)
        step, plan = sampler_of(model, self.plan)
        data = model.experiment.data
        if self.features == "inception":
            judge = inception_evaluator(data, reference=self.reference, device=device, progress=progress)
        elif self.features == "dinov2":
            judge = dinov2_evaluator(data, reference=self.reference, device=device, progress=progress)
        else:
            judge = evaluator(data, features=self.features, reference=self.reference, progress=progress)
        of = (model.name, model, step, plan, judge, range(self.seed, self.seed + self.num))
        guidance = Guidance(self.plan.guidance, self.plan.interval)

        def show(done: int, total: int) -> None:
            progress.update(done, total, {"images": done})

        how = {
            "guidance": guidance,
            "batch_size": self.batch_size,
            "device": device,
            "details": self.details,
            "progress": show,
        }
        row = measure(*of, **how)[0] if self.keep is None else measure_in_blocks(*of, self.keep, **how)
        progress.close()
        clamped = {"covariance_clamped": str(step.clamps)} if isinstance(step, ProbedCovariance) else {}
        if self.json:
            print(json.dumps(asdict(row) | {"flops": row.flops} | clamped))
            return
        print(text_table([row]))
        if row.score.details is not None:
            print(f"\n{row.score.details.text()}")
        if clamped:
            print(f"\ncovariance clamped, of the images drawn now: {clamped['covariance_clamped']}")


@dataclass(frozen=True)
class Cost(Ranged):
    """Parameters, MACs and FLOPs of a heavy call, a light call and an image, with measured latency."""

    run_dir: Annotated[Positional[Path], arg(metavar="RUN")]
    """Directory of a run, or of released weights."""
    plan: Annotated[Plan, arg(name="")] = Plan()
    batch_size: BatchSize = 1
    """Rows per call when latency is measured."""
    device: str | None = None
    """cpu, cuda, ...; cuda if there is one."""
    json: bool = False
    """Print the report as JSON."""

    def run(self) -> None:
        from dualrate.runs.measure import Guidance, cost_report
        from dualrate.runs.store import load

        device, progress = pick_device(self.device), reporter()
        model = load(self.run_dir, device=device, note=progress.note)
        step, plan = sampler_of(model, self.plan)
        guidance = Guidance(self.plan.guidance, self.plan.interval)
        tell(self.json, cost_report(model, step, plan, guidance, batch_size=self.batch_size, device=device))


@dataclass(frozen=True)
class Export:
    """Write a run's averaged weights for release: bfloat16 safetensors, its experiment and a model card."""

    run_dir: Annotated[Positional[Path], arg(metavar="RUN")]
    """Directory of a run."""
    out: Path
    """Directory for the weights."""

    def run(self) -> None:
        from dualrate.runs.calibration import FILE
        from dualrate.runs.release import export

        progress, tables = reporter(), [place for place in (self.run_dir, self.out) if (place / FILE).exists()]
        export(self.run_dir, self.out, progress.note)
        print(self.out)
        if tables:
            progress.note(
                f"{tables[0] / FILE} was of other weights: measure that of these by dualrate calibrate {self.out}"
            )


@dataclass(frozen=True)
class Demo(Ranged):
    """Dual-rate diffusion at work: train a small model for two minutes, then measure the released ones in four."""

    out: Path = Path("demo")
    """Directory for the page, and the small model's run."""
    weights: Path = Path("weights")
    """Directory of the released weights; those that are missing are left out."""
    minutes: Minutes = 2
    """Of training."""
    measuring: Minutes = 4
    """Minutes at most; a slow or busy machine then has fewer plans, of fewer images. Run again, it goes on."""
    count: Images = 1000
    """Images per plan."""

    def run(self) -> None:
        from dualrate.runs.demo import demo

        progress = reporter()
        page = demo(
            self.out,
            self.weights,
            minutes=self.minutes,
            measuring=self.measuring,
            count=self.count,
            progress=progress,
        )
        print(page)


Command = Sample | Evaluate | Compare | LikelihoodBound | PlanSearch | Calibrate | Cost | Export | Demo
COMMANDS: dict[str, type[Command]] = {
    "sample": Sample,
    "evaluate": Evaluate,
    "compare": Compare,
    "bound": LikelihoodBound,
    "plan": PlanSearch,
    "calibrate": Calibrate,
    "cost": Cost,
    "export": Export,
    "demo": Demo,
}
LESS_MEMORY = {  # where it is short
    **dict.fromkeys(("train", "distill"), "lower --fit.micro-batch or --fit.batch-size, or the networks' channels"),
    **dict.fromkeys(("sample", "evaluate", "cost", "bound"), "lower --batch-size"),
    "plan": "lower --grid or --batch-size",
}
THREADS = "\nOn a CPU: one thread for every idle processor; DUALRATE_THREADS=4 before the command for four."


def _parse(arguments: list[str]) -> Train | Distill | Command:
    """The command's options. `train` and `distill` take a recipe's name first, whose fields options then override."""
    command, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if command == "--version":
        python, device = ".".join(map(str, sys.version_info[:3])), pick_device(None)
        print(f"dualrate {dualrate.__version__}, torch {torch.__version__}, Python {python}, {device}")
        raise SystemExit(0)
    if command == "train":
        return _parse_train(rest)
    if command == "distill":
        return parse_distill(rest)
    if command in COMMANDS:
        return parse(COMMANDS[command], rest, f"dualrate {command}")
    asked = command in ("-h", "--help")
    kinds = {"train": Train, "distill": Distill, **COMMANDS}
    lines = [f"{name:9} {(kind.__doc__ or '').splitlines()[0]}" for name, kind in kinds.items()]
    usage = "\n  ".join(
        ["usage: dualrate COMMAND ... (--help after a command for its options), dualrate --version\n", *lines, THREADS]
    )
    print(
        usage if asked else f"dualrate: there is no command {command!r}\n\n{usage}", file=None if asked else sys.stderr
    )
    raise SystemExit(0 if asked else 2)


def _parse_train(arguments: list[str]) -> Train:
    name = recipe_name(arguments, RECIPES, "train RECIPE [options]")
    recipe, rest = with_own_options(RECIPES[name], arguments, "train")
    return override(Train(recipe()), rest, "train")


def main() -> None:
    """What the `dualrate` command runs once its threads are settled (dualrate_command.py)."""
    keep_freed_memory()
    try:
        _parse(sys.argv[1:]).run()
        _flush()  # a reader that has left, or a full disk, is noticed here, not at exit
    except KeyboardInterrupt as stop:
        print(str(stop) or "interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:
        _discard_output()
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"dualrate: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except (RuntimeError, MemoryError) as error:
        shortage = memory_shortage(error)
        if shortage is None:  # a fault of the program
            raise
        way_out = LESS_MEMORY.get(sys.argv[1], "use a device, or a machine, with more")
        print(f"dualrate: not enough memory ({shortage}): {way_out}", file=sys.stderr)
        raise SystemExit(2) from None


def _flush() -> None:
    try:
        with naming("standard output"):
            sys.stdout.flush()
    except OSError:
        _discard_output()
        raise


def _discard_output() -> None:
    """What could not be written would be tried again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":  # torch is here already, so its threads are settled in a process that begins anew
    os.execv(sys.executable, [sys.executable, "-m", "dualrate_command", *sys.argv[1:]])
