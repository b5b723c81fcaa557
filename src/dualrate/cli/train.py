"""`dualrate train`: a recipe, trained."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, get_args

from tyro.conf import arg

from dualrate.cli.console import command_line, decoding, report_end, reporter
from dualrate.cli.data import telling
from dualrate.cli.recipe import (
    HELP,
    Device,
    ProcessCount,
    RetryCount,
    ShardCount,
    checked,
    override,
    parse_known,
    recipe_named,
    with_own_options,
)
from dualrate.config.ranges import Iterations, Ranged
from dualrate.data.images import check_outside
from dualrate.data.prepare import ENCODING
from dualrate.experiment.experiment import Experiment
from dualrate.experiment.stages import Stages, on_codec_of_data
from dualrate.recipes import auto, cifar10, fashion_mnist, fashion_mnist_tokens, imagenet, text_tokens
from dualrate.recipes import imagenet as imagenet_latents
from dualrate.recipes import latents as fashion_mnist_decoders
from dualrate.recipes import latents as fashion_mnist_latents
from dualrate.recipes.students import by_consistency
from dualrate.runs.train import in_turn
from dualrate.system.device import pick_device
from dualrate.system.progress import PlainReporter, Silent
from dualrate.training.config import FitResult
from dualrate.training.distributed import check_shard, is_launched, joined, own_device
from dualrate.training.launch import Supervisor

OF_IMAGENET: dict[str, Callable[[], Experiment]] = {
    f"{imagenet.name_of(size, patch)}-{kind}": partial(recipe, size, patch=patch)
    for size, patch in imagenet.LAYOUTS
    for kind, recipe in {"heavy": imagenet.heavy, "light": imagenet.light, "dual": imagenet.dual}.items()
}
RECIPES: dict[str, Callable[[], Experiment]] = {
    "auto": auto.Auto(),
    **{f"fashion-mnist-{name}": partial(fashion_mnist.single, name) for name in fashion_mnist.NETWORKS},
    **{f"fashion-mnist-{name}": partial(fashion_mnist.dual, name) for name in fashion_mnist.PAIRS},
    "fashion-mnist-early-exit": fashion_mnist.early_exit,
    "fashion-mnist-small": fashion_mnist.small,
    "fashion-mnist-latents-first": fashion_mnist_latents.first,
    "fashion-mnist-latents-base": fashion_mnist_latents.base,
    "fashion-mnist-latents-base-dual": fashion_mnist_latents.base_dual,
    "fashion-mnist-decoder": fashion_mnist_decoders.DecoderRecipe(),
    "fashion-mnist-tokens": fashion_mnist_tokens.single,
    "fashion-mnist-tokens-dual": fashion_mnist_tokens.dual,
    "fashion-mnist-tokens-uniform": fashion_mnist_tokens.uniform,
    "fashion-mnist-tokens-28": fashion_mnist_tokens.full_size,
    "text-tokens": text_tokens.Text(),
    "cifar10-heavy": cifar10.heavy,
    "cifar10-light": cifar10.light,
    "cifar10-dual": cifar10.dual,
    "cifar10-compact-heavy": partial(cifar10.heavy, "compact"),
    "cifar10-compact-medium": cifar10.medium,
    "cifar10-compact-light": partial(cifar10.light, "compact"),
    "cifar10-compact-dual": partial(cifar10.dual, "compact"),
    "cifar10-compact-dual-45": cifar10.dual_45,
    **OF_IMAGENET,
    "imagenet256-latents-first": partial(imagenet_latents.first, 256),
    "imagenet256-latents-base": partial(imagenet_latents.base, 256),
    "imagenet512-latents-first": imagenet_latents.first,
    "imagenet512-latents-base": imagenet_latents.base,
    "imagenet-decoder": imagenet_latents.DecoderRecipe(),
}

STAGES: dict[str, Callable[[], Stages]] = {
    "fashion-mnist-latents": fashion_mnist_latents.both,
    "imagenet256-latents": partial(imagenet_latents.both, 256),
    "imagenet512-latents": imagenet_latents.both,
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
    shard: ShardCount = 1
    retries: RetryCount = 3
    codec: Path | None = None
    """Folder of the codec of latents, where that is not where they say."""

    def train(self, experiment: Experiment) -> None:
        """Raises what `launch` and `run_training` raise."""
        launch(self.nproc, self.retries, self.shard)
        run_training(experiment, self.out, self.device, self.fd_every, self.shard, self.codec)


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
            if run_training(experiment, folder, self.device, None, 1).stopped != "done":
                return


def launch(processes: int, retries: int, shard: int) -> None:
    """Where several processes are asked for, run this command in each of them and exit as they did.

    Does nothing in such a process. Raises ValueError where torchrun started another number of them, and where `shard`,
    those that hold the weights together, does not divide it.
    """
    if is_launched():
        if processes not in (1, int(os.environ["WORLD_SIZE"])):
            raise ValueError(f"--nproc {processes}, but {os.environ['WORLD_SIZE']} processes are started: drop --nproc")
        return
    check_shard(shard, processes)
    if processes > 1:
        command = [sys.executable, "-m", "dualrate_command", *sys.argv[1:]]
        progress = PlainReporter()
        raise SystemExit(Supervisor(command, processes, lambda text: progress.note(f"dualrate: {text}")).run(retries))


def run_training(
    experiment: Experiment,
    out: Path | None,
    device: str | None,
    fd_every: int | None,
    shard: int,
    codec: Path | None = None,
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
    with joined(where, shard) as world:
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
    learned = imagenet.by_consistency if by == "consistency" and rest[0] in OF_IMAGENET else LEARNED[by]
    return override(Train(learned(checked(recipe(), Experiment, rest[0])), by), rest, "train")
