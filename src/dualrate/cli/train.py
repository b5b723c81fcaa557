"""`dualrate train`: a recipe, trained."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

from tyro.conf import arg

from dualrate.cli.console import command_line, decoding, report_end, reporter
from dualrate.cli.data import telling
from dualrate.cli.recipe import (
    HELP,
    Device,
    Log,
    ProcessCount,
    RetryCount,
    checked,
    override,
    parse_known,
    recipe_named,
    with_own_options,
)
from dualrate.config.ranges import Iterations, Ranged
from dualrate.data.images import check_outside
from dualrate.data.prepare import ENCODING
from dualrate.experiment.experiment import Experiment, Stages, on_codec_of_data
from dualrate.recipes import (
    auto,
    cifar10,
    fashion_mnist,
    fashion_mnist_latents,
    imagenet,
    token_models,
)
from dualrate.recipes.students import by_consistency
from dualrate.runs.train import in_turn
from dualrate.system.device import pick_device
from dualrate.system.progress import Silent, stops
from dualrate.training.config import FitResult
from dualrate.training.distributed import is_launched, joined, own_device
from dualrate.training.log import Logger

FILES = (auto, fashion_mnist, fashion_mnist_latents, token_models, cifar10, imagenet)
RECIPES: dict[str, Callable[[], Experiment]] = {
    name: recipe for file in FILES for name, (_, recipe) in file.RECIPES.items()
}
STAGES: dict[str, Callable[[], Stages]] = {
    name: recipe for file in (fashion_mnist_latents, imagenet) for name, (_, recipe) in file.STAGES.items()
}


By = Literal["denoising", "consistency"]
LEARNED: dict[By, Callable[[Experiment], Experiment]] = {
    "denoising": lambda experiment: experiment,
    "consistency": by_consistency,
}


@dataclass(frozen=True)
class Method:
    """What `--by` says, which is read first: the options of a method are those of its configuration."""

    by: By = "denoising"


@dataclass(frozen=True, kw_only=True)
class Run(Ranged):
    """Where a training runs, and how."""

    out: Path | None = None
    """Run directory; runs/<name> if not given."""
    fd_every: Iterations | None = None
    """Iterations between scores of 1,000 images; a multiple of --fit.sample-every."""
    device: Device = None
    nproc: ProcessCount = 1
    retries: RetryCount = 0
    codec: Path | None = None
    """Folder of the codec of latents, where that is not where they say."""
    log: Log = None

    def train(self, experiment: Experiment) -> None:
        """Raises what `launch` and `run_training` raise."""
        launch(self.nproc, self.retries)
        run_training(experiment, self.out, self.device, self.fd_every, self.codec, self.log)


@dataclass(frozen=True)
class Train(Run):
    """Train a recipe, or continue it: the same command resumes."""

    experiment: Annotated[Experiment, arg(name="")]
    by: By = "denoising"
    """The recipe's own loss; or consistency, training from data for few steps of DDIM (--method.steps)."""

    def run(self) -> None:
        self.train(self.experiment)


@dataclass(frozen=True)
class TrainStages:
    """Train a recipe of two stages, or continue it: the same command resumes, wherever it was.

    In one process; for several, train the stages one by one (dualrate data encode in between).
    """

    stages: Annotated[Stages, arg(name="")]
    out: Path | None = None
    """Directory: first (a run, the codec), latents, base (a run, what is sampled from); runs/<recipe> if not given."""
    device: Device = None

    def run(self) -> None:
        if is_launched():
            raise ValueError("two stages are trained in one process: train them one by one, or drop torchrun")
        out, where, progress = self.out or Path("runs") / self.stages.name, pick_device(self.device), reporter()
        for experiment, folder in in_turn(self.stages, out, device=where, progress=telling(progress, ENCODING)):
            progress.close()
            if run_training(experiment, folder, self.device, None).stopped != "done":
                return


def launch(processes: int, retries: int) -> None:
    """Where several processes are asked for, run this command in each of them by torch's elastic launcher, and exit.

    The exit code is 75 after a signal, which all get and save for; else that of the first process that failed.
    Does nothing in a process that was launched. Raises ValueError where torchrun started another number of them.
    """
    if is_launched():
        if processes not in (1, int(os.environ["WORLD_SIZE"])):
            raise ValueError(f"--nproc {processes}, but {os.environ['WORLD_SIZE']} processes are started: drop --nproc")
        return
    if processes == 1:
        return
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    if os.environ.get("DUALRATE_THREADS", "auto") == "auto":  # processes scale better than threads
        os.environ["DUALRATE_THREADS"] = "1"
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # a restart would read the addresses of processes that ended
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=f"dualrate-{os.getpid()}",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=retries,
        signals_to_handle=",".join(number.name for number in stops()),
        shutdown_timeout=600,  # seconds to save in, once a signal came
    )
    try:
        elastic_launch(config, sys.executable)("-m", "dualrate_command", *sys.argv[1:])
    except SignalException:
        raise SystemExit(75) from None  # as of a single process
    except ChildFailedError as failed:
        _, first = failed.get_first_failure()
        raise SystemExit(first.exitcode if first.exitcode > 0 else 128 - first.exitcode) from None
    raise SystemExit(0)


def run_training(
    experiment: Experiment,
    out: Path | None,
    device: str | None,
    fd_every: int | None,
    codec: Path | None = None,
    log: Logger | None = None,
) -> FitResult:
    """Train the experiment in `out`, or in runs/ under its name, and say how it ended. codec: where its folder is."""
    from dualrate.drawing.evaluator import scorer
    from dualrate.runs.train import check_out, resume_threads, train

    experiment = on_codec_of_data(experiment)
    experiment = experiment if codec is None else experiment.with_codec(codec)
    out, where = out or Path("runs") / experiment.name, own_device(pick_device(device))
    check_out(experiment.name, out)  # before a judge is trained
    check_outside(out, experiment.data.source)
    if fd_every is not None and fd_every % experiment.fit.sample_every:
        raise ValueError(
            f"--fd-every is a multiple of --fit.sample-every ({experiment.fit.sample_every}), got {fd_every}"
        )
    resume_threads(out)
    with joined(where) as world:
        progress = reporter() if world.leads else Silent()
        result = train(
            experiment,
            out,
            score=scorer(experiment.data, progress) if fd_every is not None and world.leads else None,
            score_every=fd_every,
            progress=progress,
            decoding=decoding(progress),
            device=where,
            command=command_line(),
            log=log,
            world=world,
        )
    report_end(result, experiment.fit, out, progress)
    return result


def parse_train(arguments: list[str]) -> Train | TrainStages:
    if arguments[:1] and arguments[0] in STAGES:
        return override(TrainStages(STAGES[arguments[0]]()), arguments, "train")
    usage = f"train RECIPE [--by {'|'.join(get_args(By))}] [options]"
    recipe = recipe_named(arguments, {**RECIPES, **STAGES}, Experiment, usage)
    recipe, rest = with_own_options(recipe, arguments, "train")
    by = parse_known(Method, [option for option in rest[1:] if option not in HELP], "dualrate train", Method())[0].by
    learned = imagenet.by_consistency if by == "consistency" and rest[0] in imagenet.ON_PIXELS else LEARNED[by]
    return override(Train(learned(checked(recipe(), Experiment, rest[0])), by), rest, "train")
