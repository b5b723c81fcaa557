"""Options of every command that trains: where it runs, and how; what is said of its end, and how to go on."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from tyro.conf import arg

from dualrate.config.ranges import Iterations, Processes, Ranged, Retries
from dualrate.data.source import printable
from dualrate.experiment.experiment import Experiment, on_codec_of_data
from dualrate.launchers.start import launch
from dualrate.options.console import command_line, data_progress, reporter
from dualrate.options.going_on import options_of, with_way_on
from dualrate.options.parsing import HELP, Device, override, with_own_options
from dualrate.system.device import pick_device
from dualrate.system.launch import device_of_process
from dualrate.system.progress import Reporter, Silent
from dualrate.training.config import FitConfig, FitResult, lr_at
from dualrate.training.distributed import launched_world
from dualrate.training.resume import OtherRun

Trained = TypeVar("Trained", bound="OfExperiment")
ENOUGH = 100_000  # samples of a training, below which its pictures say little


@dataclass(frozen=True, kw_only=True)
class Run(Ranged):
    """Choices of where a training runs, and how."""

    enough = ENOUGH  # samples, of fewer it is too early to judge. No annotation: no option

    out: Path | None = None
    """Run directory; runs/<name> if not given."""
    eval_every: Iterations | None = None
    """Iterations between scores of 1,000 images; a multiple of --fit.sample-every."""
    device: Device = None
    nproc: Processes = 1
    """Processes that train together on this machine, each on a GPU of its own if there are GPUs."""
    retries: Retries = 0
    """How often all processes restart from the checkpoint after one of them failed."""
    codec: Path | None = None
    """Folder of the codec of latents, if it has moved since they were encoded."""
    log: Literal["tensorboard", "wandb"] | None = None
    """Also log losses to tensorboard or wandb: pip install 'dualrate[tensorboard]' or 'dualrate[wandb]'."""

    def train(self, experiment: Experiment, *, whole: bool = True) -> FitResult:
        """Train the experiment in `out`, or in runs/ under its name, in `nproc` processes, and say how it ended.

        whole: whether that is all that the command does
        """
        from dualrate.drawing.measure import scorer
        from dualrate.runs.train import check_start, resume_threads, train

        launch(self.nproc, self.retries, ["-m", "dualrate_command", *sys.argv[1:]])
        experiment = on_codec_of_data(experiment)
        experiment = experiment if self.codec is None else experiment.with_codec(self.codec)
        out, where = self.out or Path("runs") / experiment.name, device_of_process(pick_device(self.device))
        resume_threads(out)
        with launched_world(where) as world:
            progress, scores = reporter() if world.leads else Silent(), self.eval_every is not None and world.leads
            try:
                check_start(experiment, out, self.eval_every)  # before a feature network is trained
                result = train(
                    experiment,
                    out,
                    score=scorer(experiment.data, progress) if scores else None,
                    score_every=self.eval_every,
                    progress=progress,
                    decoding=data_progress(progress),
                    device=where,
                    command=command_line(),
                    log=self.log,
                    world=world,
                )
            except OtherRun as refused:
                raise with_way_on(refused, out, experiment) from None
        report_end(result, experiment.fit, out, progress, whole=whole, enough=self.enough)
        return result


@dataclass(frozen=True)
class OfExperiment(Run):
    """The experiment of a recipe, with the options that follow its name."""

    experiment: Annotated[Experiment, arg(name="")]

    def run(self) -> None:
        self.train(self.experiment)


def of_model(
    name: str, recipe: Any, kind: Callable[[Experiment], Trained], arguments: list[str], required: str, like: str
) -> Trained:
    """The command of a recipe that begins with a model; without one it prints its usage.

    required: what the command takes at least; like: an example of it
    """
    if not arguments or arguments[0].startswith("-"):
        print(
            f"usage: dualrate {name} {required} [options]    "
            f"(dualrate {name} {required.split()[0]} --help for its options)\n\n{kind.__doc__}\n\n"
            f"Example: dualrate {name} {like}"
        )
        raise SystemExit(0 if arguments[:1] and arguments[0] in HELP else 2)
    recipe, rest = with_own_options(recipe, arguments, name, {})
    return override(kind(recipe(rest[0])), rest, name, recipe)


def report_end(result: FitResult, fit: FitConfig, out: Path, progress: Reporter, *, whole: bool, enough: int) -> None:
    """Note how a training ended; exits with 75 if a signal ended it, so that a script knows to run it again.

    whole: whether it was all that the command does, so that the same one with more iterations goes on
    enough: as of `Run`
    """
    why = {"done": "finished", "signal": "interrupted, saved", "seconds": "out of time, saved"}[result.stopped]
    idle, more = result.iteration == result.begun and result.stopped != "signal", ""
    over = lr_at(fit, result.iteration, result.seconds) == 0 or "iterations" not in fit.free()
    if idle or result.stopped == "seconds":
        option = "max-seconds" if result.stopped == "seconds" else "iterations"
        more = "; its learning rate is spent: name another --out" if over else f"; to go on, raise --fit.{option}"
    spent = f"at iteration {result.iteration} after {result.seconds:.0f} s of training"
    if not idle and (samples := result.iteration * fit.batch_size) < enough:
        further = whole and result.stopped != "signal" and fit.optim.decay_seconds is None
        anew = "max_seconds" not in fit.free()  # a rate that falls does so over this very training
        way = f"; to train {'anew' if anew else 'on'}: {_longer(fit, out, anew=anew)}" if further else ""
        progress.note(f"too early to judge: the networks saw {samples:,} samples, and {enough:,} are few{way}")
    progress.note(f"{'nothing is left to do: ' * idle}{why} {spent}: {out}{more}")
    if result.stopped == "signal":
        raise SystemExit(75)


def _longer(fit: FitConfig, out: Path, *, anew: bool) -> str:
    """The command line by which the networks see ENOUGH samples. anew: in another directory"""
    iterations, elsewhere = str(math.ceil(ENOUGH / fit.batch_size)), {"--out": [f"{out}-longer"]} if anew else {}
    options = options_of(sys.argv[1:]) | {"--fit.iterations": [iterations]} | elsewhere
    longer = ([name] * bool(name) + values for name, values in options.items() if name != "--fit.max-seconds")
    return printable(shlex.join(["dualrate", *chain.from_iterable(longer)]))
