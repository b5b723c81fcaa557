"""`dualrate distill`: a student of few steps from a teacher of many."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import arg

from dualrate.cli.options import Device, ProcessCount, RetryCount, ShardCount
from dualrate.cli.recipe import checked, override, recipe_named
from dualrate.cli.train import launch, run_training
from dualrate.config.ranges import (
    BelowOne,
    Factor,
    FirstIterations,
    Iterations,
    LogSNR,
    Pairs,
    Ranged,
    Steps,
    TeacherGuidance,
)
from dualrate.experiments.experiment import Experiment
from dualrate.foreign.folder import is_diffusers
from dualrate.recipes import auto, cifar10, fashion_mnist, imagenet
from dualrate.recipes.students import PRETRAINING, STUDENT_RATE, StudentRecipe, dual_student, plain_student

RECIPES: dict[str, Callable[[], StudentRecipe]] = {
    "auto": auto.distilled,
    "fashion-mnist": fashion_mnist.distilled,
    "cifar10": cifar10.distilled,
    "cifar10-compact": lambda: cifar10.distilled("compact"),
    "cifar10-reduced": lambda: cifar10.distilled("reduced"),
    **{imagenet.name_of(*of): partial(imagenet.distilled, *of) for of in imagenet.LAYOUTS},
}


@dataclass(frozen=True)
class Distill(Ranged):
    """Distil a teacher into a student of few steps by moment matching, or go on: the same command resumes."""

    recipe: Annotated[StudentRecipe, arg(name="")]
    teacher: Path
    """A single-rate run, released weights, or a folder of diffusers."""
    out: Path | None = None
    """Run directory; runs/<name> if not given."""
    student: Literal["dual", "plain"] = "dual"
    """Two networks at two rates, or one of the teacher's shape."""
    steps: Steps = 8
    """N, the fewest steps of a plain student, and the only ones of a dual-rate one."""
    heavy: Steps | None = None
    """H, heavy calls of a dual-rate student; half of the steps, rounded up, if not given."""
    rollout: Literal["full", "segment", "data"] | None = None
    """The student's states in training: all steps its own, from noise (full); its own since the last heavy call
    (segment); noised data (data, of a plain student). full, or data, if not given."""
    version: Literal["alternating", "instant"] = "alternating"
    """Of moment matching: with an auxiliary network, or in the teacher's parameter space."""
    guidance: TeacherGuidance = 1.0
    """Classifier-free guidance weight of the teacher; 1 is none."""
    dropout: BelowOne | None = None
    """Of student and auxiliary in training, not in sampling; as the teacher's network says if not given."""
    shift: LogSNR = 0.0
    """Of the student's log-SNR against the teacher's; below 0: more of its steps at high noise."""
    pretraining: FirstIterations | None = None
    """The first of --fit.iterations: the light network alone, beside the frozen encoder; 1000 if not given; 0 of a
    plain student, with --student-from, and for a heavy call at every step."""
    pairs: Pairs = 1
    """Times trained on from one rollout."""
    student_rate: Factor | None = None
    """The student's learning rate over the auxiliary's, --fit.optim.lr; 0.2 if not given, 1 for the instant version."""
    light_from: str | None = None
    """A single-rate run that the light network starts from."""
    student_from: str | None = None
    """A dual-rate run that the whole student starts from, such as a retrofit of the teacher; on its images."""
    source: str | None = None
    """Images, where they are not where the teacher's training found them."""
    fd_every: Iterations | None = None
    """Iterations between scores of 1,000 images; a multiple of --fit.sample-every."""
    device: Device = None
    nproc: ProcessCount = 1
    shard: ShardCount = 1
    retries: RetryCount = 3

    def run(self) -> None:
        student = self.experiment()
        launch(self.nproc, self.retries, self.shard)
        run_training(student, self.out, self.device, self.fd_every, self.shard)

    @property
    def _student_rate(self) -> float:
        if self.student_rate is not None:
            return self.student_rate
        return 1.0 if self.version == "instant" else STUDENT_RATE

    @property
    def _heavy(self) -> int:
        return (self.steps + 1) // 2 if self.heavy is None else self.heavy

    def experiment(self) -> Experiment:
        """The student's, with its method."""
        options = {
            "version": self.version,
            "guidance": self.guidance,
            "dropout": self.dropout,
            "pretraining": self._pretraining(),
            "pairs": self.pairs,
            "student_rate": self._student_rate,
            **({} if self.rollout is None else {"rollout": self.rollout}),
        }
        teacher = str(self.teacher)
        if is_diffusers(self.teacher) and self.source is None and self.student_from is None:
            raise ValueError(f"{teacher} does not say which images it was trained on: name them, --source IMAGES")
        if self.student == "plain":
            if self.heavy is not None or self.light_from is not None or self.student_from is not None:
                raise ValueError(
                    "a plain student is one network, started from its teacher: drop --heavy, --light-from and "
                    "--student-from, or pass --student dual"
                )
            student = plain_student(self.recipe, teacher, self.steps, shift=self.shift, **options)
        else:
            options |= {"light_from": self.light_from, "student_from": self.student_from}
            student = dual_student(self.recipe, teacher, self.steps, self._heavy, shift=self.shift, **options)
        return student if self.source is None else replace(student, data=replace(student.data, source=self.source))

    def _pretraining(self) -> int:
        if self.pretraining is not None:
            return self.pretraining
        learned = self.student == "plain" or self.student_from is not None or self._heavy == self.steps
        return 0 if learned else PRETRAINING


def parse_distill(arguments: list[str]) -> Distill:
    """A recipe's name first, whose fields the options then override."""
    usage, of = "distill RECIPE --teacher RUN [options]", " of a distillation"
    recipe = recipe_named(arguments, RECIPES, StudentRecipe, usage, of)
    return override(Distill(checked(recipe(), StudentRecipe, arguments[0]), teacher=tyro.MISSING), arguments, "distill")
