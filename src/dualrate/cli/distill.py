"""`dualrate distill`: a student of few steps from a teacher of many."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import arg

from dualrate.cli.recipe import HELP, checked, override, recipe_named
from dualrate.cli.train import Run
from dualrate.config.ranges import (
    BelowOne,
    Factor,
    FirstIterations,
    LogSNR,
    Pairs,
    Probability,
    Ranged,
    Share,
    Steps,
    TeacherGuidance,
)
from dualrate.data.latent_set import is_encoded
from dualrate.experiment.experiment import DataConfig, Experiment
from dualrate.from_diffusers.diffusers_folder import is_diffusers
from dualrate.methods.consistency import Eta, Huber
from dualrate.methods.em_distillation import Langevin, LatentStep, NoiseStep
from dualrate.recipes import auto, cifar10, fashion_mnist, imagenet, students, token_models
from dualrate.recipes.students import StudentRecipe
from dualrate.runs.store import read_experiment

RECIPES: dict[str, Callable[[], StudentRecipe]] = {
    "auto": auto.distilled,
    "fashion-mnist": fashion_mnist.distilled,
    "fashion-mnist-tokens": token_models.distilled_images,
    "text-tokens": token_models.distilled_texts,
    "cifar10": cifar10.distilled,
    **{f"imagenet{size}": partial(imagenet.distilled, size) for size in imagenet.SIZES},
}


@dataclass(frozen=True)
class Student(Ranged):
    """The student of a recipe, whatever the teacher."""

    recipe: Annotated[StudentRecipe, arg(name="")]
    by: Annotated[Literal["moments", "consistency", "em"], arg(name="method")] = "moments"
    """Moment matching, sampled ancestrally; multistep consistency, sampled by DDIM; EM distillation, of one step."""
    steps: Steps | None = None
    """N, steps of the student; 8 if not given, 1 by em. A plain student by moments also serves more."""
    guidance: TeacherGuidance = 1.0
    """Classifier-free guidance weight of the teacher; 1 is none."""
    dropout: BelowOne | None = None
    """Dropout of student and auxiliary in training; the teacher's if not given."""
    shift: LogSNR = 0.0
    """Shift of the student's log-SNR against the teacher's; below 0: more of its steps at high noise."""
    student: Literal["dual", "plain"] | None = None
    """Two networks at two rates (dual), or the teacher's own (plain); if not given dual by moments, plain otherwise or
    of a condition."""
    heavy: Steps | None = None
    """H, heavy calls of a dual-rate student; half of the steps, rounded up, if not given."""
    rollout: Literal["full", "segment", "data"] | None = None
    """By moments: training states are drawn by the student from noise (full) or from the last heavy call (segment), or
    are noised data (data). If not given full for a dual-rate student, data for a plain one."""
    version: Literal["alternating", "instant"] | None = None
    """By moments: with an auxiliary network, or in the teacher's parameter space; alternating if not given."""
    pretraining: FirstIterations | None = None
    """By moments: first iterations, which train the light network alone; 1000 if it is new, else 0."""
    pairs: Pairs | None = None
    """By moments: times trained on from one rollout; 1 if not given."""
    student_rate: Factor | None = None
    """By moments and em: the student's learning rate over the auxiliary's; the recipe's if not given."""
    temperature: Factor | None = None
    """By moments: temperature of a teacher of tokens; 1 if not given."""
    top_p: Share | None = None
    """By moments: top-p of a teacher of tokens; 1 if not given."""
    encoder_from: str | None = None
    """By moments: a single-rate run that the encoder of a dual-rate student starts from; the teacher if not given."""
    light_from: str | None = None
    """A single-rate run that the light network of a dual-rate student starts from."""
    student_from: str | None = None
    """A run that all of the student starts from: a dual-rate run, such as a retrofit; for a plain consistency student,
    a run with the teacher's network."""
    teacher_steps: tuple[Steps, Steps] | None = None
    """By consistency: steps of the teacher at the beginning and at the end; 64 and 1280 if not given."""
    annealing: Probability | None = None
    """By consistency: share of the iterations in which these steps grow; 0.5 if not given."""
    eta: Eta | None = None
    """By consistency: share of the teacher's error that its steps add as variance; 0.75 if not given."""
    huber: Huber | None = None
    """By consistency: c of the pseudo-Huber loss; squares, or the recipe's c, if not given."""
    log_snr: LogSNR | None = None
    """By em: log-SNR at which the student's network is called; -6 if not given."""
    langevin_steps: Steps | None = None
    """By em: L, Langevin steps that correct a sample; 1 if not given, 16 in the ImageNet recipes."""
    noise_step: NoiseStep | None = None
    """By em: size of the Langevin steps in the noise; 0.16 if not given."""
    latent_step: LatentStep | None = None
    """By em: size of the Langevin steps in the latent; 0 if not given, 0.01 in the ImageNet recipes."""
    source: str | None = None
    """Images, or their latents, if they are not where the teacher's training read them."""

    def of(self, teacher: Path) -> Experiment:
        """The student's experiment. Raises ValueError for options of another method, and for options that conflict.

        teacher: only its experiment is read
        """
        make, allowed = METHODS[self.by]
        others = {name for _, names in METHODS.values() for name in names}
        given = {name: getattr(self, name) for name in others if getattr(self, name) is not None}
        if wrong := sorted(given.keys() - set(allowed)):
            listed = ", ".join(f"--{name.replace('_', '-')}" for name in wrong)
            raise ValueError(f"--method {self.by} does not take {listed}")
        if is_diffusers(teacher) and self.source is None and self.student_from is None:
            raise ValueError(f"{teacher} does not say which images it was trained on: name them, --source IMAGES")
        given = self.recipe.defaults(self.by) | given
        given |= {"guidance": self.guidance, "dropout": self.dropout, "shift": self.shift}
        made = make(self.recipe, str(teacher), self.steps, given)
        if self.source is None:
            return made
        alone = DataConfig(augment=made.data.augment)  # latents have a size of their own
        return replace(made, data=replace(alone if is_encoded(self.source) else made.data, source=self.source))


@dataclass(frozen=True, kw_only=True)
class Distill(Student, Run):
    """Distil a teacher into a student of few steps. The same command resumes."""

    teacher: Path
    """A single-rate run, one of a condition, released weights, or a folder of diffusers."""

    def run(self) -> None:
        self.train(self.of(self.teacher))


def by_moments(recipe: StudentRecipe, teacher: str, steps: int | None, given: dict[str, Any]) -> Experiment:
    steps, started = steps or 8, given.get("student_from") is not None
    usual = "plain" if students.is_conditional(read_experiment(teacher)) else "dual"
    heavy, plain = given.pop("heavy", None), given.pop("student", usual) == "plain"
    calls = heavy or (steps + 1) // 2
    given = {
        "pretraining": 0 if plain or started or calls == steps else students.PRETRAINING,
        "student_rate": 1.0 if given.get("version") == "instant" else students.STUDENT_RATE,
        **given,
    }
    if not plain:
        return students.dual_student(recipe, teacher, steps, calls, **given)
    if heavy is not None or started or not given.keys().isdisjoint({"encoder_from", "light_from"}):
        raise ValueError(
            "a plain student is one network, started from its teacher: drop --heavy, --encoder-from, --light-from and "
            "--student-from, or pass --student dual"
        )
    return students.plain_student(recipe, teacher, steps, **given)


def by_consistency(recipe: StudentRecipe, teacher: str, steps: int | None, given: dict[str, Any]) -> Experiment:
    steps, heavy = steps or 8, given.pop("heavy", None)
    student = given.pop("student", "plain" if heavy is None else "dual")
    if student != "plain":
        return students.consistency_student(recipe, teacher, steps, heavy or (steps + 1) // 2, **given)
    if heavy is not None or "light_from" in given:
        raise ValueError("a plain student is one network: drop --heavy and --light-from, or pass --student dual")
    return students.consistency_student(recipe, teacher, steps, **given)


def by_em(recipe: StudentRecipe, teacher: str, steps: int | None, given: dict[str, Any]) -> Experiment:
    if steps not in (None, 1):
        raise ValueError(f"EM distillation makes students of one step, got {steps}: drop --steps, or --method em")
    if given.pop("student", "plain") != "plain":
        raise ValueError("a student of one step has one network: drop --student dual, or pass --method moments")
    corrections = {field: given.pop(name) for name, field in LANGEVIN.items() if name in given}
    return students.em_student(
        recipe, teacher, langevin=Langevin(**corrections), **{"student_rate": students.EM_RATE, **given}
    )


Make = Callable[[StudentRecipe, str, int | None, dict[str, Any]], Experiment]
TWO_RATES = ("student", "heavy", "light_from", "student_from")
MOMENTS = ("encoder_from", "rollout", "version", "pretraining", "pairs", "student_rate", "temperature", "top_p")
LANGEVIN = {"langevin_steps": "steps", "noise_step": "noise_step", "latent_step": "latent_step"}  # its fields
METHODS: dict[str, tuple[Make, tuple[str, ...]]] = {  # with the options that not all of them take
    "moments": (by_moments, (*TWO_RATES, *MOMENTS)),
    "consistency": (by_consistency, (*TWO_RATES, "teacher_steps", "annealing", "eta", "huber")),
    "em": (by_em, (*LANGEVIN, "log_snr", "student_rate", "student")),
}


def parse_distill(arguments: list[str]) -> Distill:
    """A recipe's name first, whose fields the options then override. Raises SystemExit after listing the recipes."""
    name = arguments[0] if arguments else ""
    if name in ("", *HELP):
        names = textwrap.fill(", ".join(RECIPES), 100, initial_indent="  ", subsequent_indent="  ")
        print(
            "usage: dualrate distill RECIPE --teacher RUN [options]    (dualrate distill RECIPE --help for its options)"
            "\n\nDistil a teacher into a student of few steps.\n\n"
            f"Recipes:\n{names}\n  or package.module:function"
        )
        raise SystemExit(0 if name else 2)
    recipe = checked(recipe_named(name, RECIPES, "distill")(), StudentRecipe, name)
    return override(Distill(recipe, teacher=tyro.MISSING), arguments, "distill")
