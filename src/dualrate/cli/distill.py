"""`dualrate distill`: a student of few steps from a teacher of many."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import arg

from dualrate.cli.recipe import checked, override, recipe_named
from dualrate.cli.train import Run
from dualrate.config.ranges import (
    BelowOne,
    Factor,
    FirstIterations,
    LogSNR,
    Pairs,
    Ranged,
    Share,
    Steps,
    TeacherGuidance,
)
from dualrate.experiment.experiment import Experiment
from dualrate.from_diffusers.diffusers_folder import is_diffusers
from dualrate.methods.consistency import Eta, Huber
from dualrate.methods.em_distillation import Langevin, LatentStep, NoiseStep
from dualrate.recipes import auto, cifar10, fashion_mnist, imagenet, token_models
from dualrate.recipes.students import (
    EM_RATE,
    PRETRAINING,
    STUDENT_RATE,
    StudentRecipe,
    consistency_student,
    dual_student,
    em_student,
    plain_student,
)

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
    """A recipe's student, of whatever teacher."""

    recipe: Annotated[StudentRecipe, arg(name="")]
    by: Literal["moments", "consistency", "em"] = "moments"
    """Moment matching, sampled ancestrally; multistep consistency, sampled by DDIM; or EM distillation, one network
    and one step."""
    steps: Steps | None = None
    """N, the fewest steps of a plain student by moments; the only ones of any other; 8 if not given, by em 1."""
    guidance: TeacherGuidance = 1.0
    """Classifier-free guidance weight of the teacher; 1 is none."""
    dropout: BelowOne | None = None
    """Of student and auxiliary in training, not in sampling; as the teacher's network says if not given."""
    shift: LogSNR = 0.0
    """Of the student's log-SNR against the teacher's; below 0: more of its steps at high noise."""
    student: Literal["dual", "plain"] | None = None
    """Two networks at two rates, or one of the teacher's shape; by moments dual, by consistency plain if not given."""
    heavy: Steps | None = None
    """H, heavy calls of a dual-rate student; half of the steps, rounded up, if not given."""
    rollout: Literal["full", "segment", "data"] | None = None
    """By moments: the student's states in training: all steps its own, from noise (full); its own since the last heavy
    call (segment); noised data (data, of a plain student). full, or data, if not given."""
    version: Literal["alternating", "instant"] | None = None
    """By moments: with an auxiliary network, or in the teacher's parameter space; alternating if not given."""
    pretraining: FirstIterations | None = None
    """By moments: the first of --fit.iterations: the light network alone, beside the frozen encoder; 1000 if not given;
    0 of a plain student, with --student-from, and for a heavy call at every step."""
    pairs: Pairs | None = None
    """By moments: times trained on from one rollout; 1 if not given."""
    student_rate: Factor | None = None
    """By moments and em: the student's learning rate over the auxiliary's, --fit.optim.lr; 0.2 if not given, by em,
    for the instant version and of the ImageNet recipes, whose batch is 2048, 1."""
    temperature: Factor | None = None
    """By moments: of a teacher of tokens; 1 if not given."""
    top_p: Share | None = None
    """By moments: share of a teacher's probabilities of tokens that the likeliest keep; 1 if not given."""
    encoder_from: str | None = None
    """By moments: a single-rate run, such as one smaller than the teacher, whose network the encoder of a dual-rate
    student is and starts from; the teacher's if not given. With a heavy call at every step it is the whole student."""
    light_from: str | None = None
    """A single-rate run that the light network of a dual-rate student starts from."""
    student_from: str | None = None
    """Of a dual-rate student a dual-rate run that all of it starts from, such as a retrofit of the teacher; on its
    images. Of a plain one by consistency a run of the teacher's network, such as a student of more steps."""
    teacher_steps: tuple[Steps, Steps] | None = None
    """By consistency: the teacher's steps, at first and in the end; 64 and 1280 if not given."""
    annealing: Share | None = None
    """By consistency: share of the iterations in which they grow; 0.5 if not given."""
    eta: Eta | None = None
    """By consistency: share of the teacher's error that its steps put back as variance; 0.75 if not given."""
    huber: Huber | None = None
    """By consistency: c of the pseudo-Huber loss, in the root mean square of the error of v; squares if not given, of
    the ImageNet recipes 1e-4 over the root of an image's numbers."""
    log_snr: LogSNR | None = None
    """By em: log-SNR at which the student's network is called, high noise but not all; -6 if not given."""
    langevin_steps: Steps | None = None
    """By em: L, steps that correct a sample of the student's; 1 if not given, of the ImageNet recipes 16, which are
    dear."""
    noise_step: NoiseStep | None = None
    """By em: size of these steps in the noise; 0.16 if not given."""
    latent_step: LatentStep | None = None
    """By em: size of these steps in what the student makes its image of; 0 if not given, which leaves it, of the
    ImageNet recipes 0.01."""
    source: str | None = None
    """Images, where they are not where the teacher's training found them."""

    def of(self, teacher: Path) -> Experiment:
        """Its experiment, with its method. Raises ValueError for options of another method, and what go not together.

        teacher: of which the experiment is read, and no weights
        """
        branch = BRANCHES[self.by]
        own = {name: getattr(self, name) for one in BRANCHES.values() for name in one.options}
        given = {name: value for name, value in own.items() if value is not None}
        if wrong := [name for name in given if name not in branch.options]:
            others = [f"--by {by}" for by, other in BRANCHES.items() if set(wrong) <= set(other.options)]
            listed, instead = ", ".join(_option(name) for name in wrong), f", or pass {' or '.join(others)}"
            raise ValueError(f"--by {self.by} does not take {listed}: drop what it does not{instead if others else ''}")
        if is_diffusers(teacher) and self.source is None and self.student_from is None:
            raise ValueError(f"{teacher} does not say which images it was trained on: name them, --source IMAGES")
        given = self.recipe.defaults(self.by) | given
        given |= {"guidance": self.guidance, "dropout": self.dropout, "shift": self.shift}
        student = branch.student(self.recipe, str(teacher), branch.steps if self.steps is None else self.steps, given)
        return student if self.source is None else replace(student, data=replace(student.data, source=self.source))


@dataclass(frozen=True, kw_only=True)
class Distill(Student, Run):
    """Distil a teacher into a student of few steps, or go on: the same command resumes."""

    teacher: Path
    """A single-rate run, released weights, or a folder of diffusers."""

    def run(self) -> None:
        self.train(self.of(self.teacher))


def by_moments(recipe: StudentRecipe, teacher: str, steps: int, given: dict[str, Any]) -> Experiment:
    heavy, student = given.pop("heavy", None), given.pop("student", "dual")
    calls = half(steps) if heavy is None else heavy
    started = given.get("student_from") is not None
    learned = student == "plain" or started or calls == steps
    given = {
        "pretraining": 0 if learned else PRETRAINING,
        "student_rate": 1.0 if given.get("version") == "instant" else STUDENT_RATE,
        **given,
    }
    if student != "plain":
        return dual_student(recipe, teacher, steps, calls, **given)
    if heavy is not None or started or not given.keys().isdisjoint({"encoder_from", "light_from"}):
        raise ValueError(
            "a plain student is one network, started from its teacher: drop --heavy, --encoder-from, --light-from and "
            "--student-from, or pass --student dual"
        )
    return plain_student(recipe, teacher, steps, **given)


def by_consistency(recipe: StudentRecipe, teacher: str, steps: int, given: dict[str, Any]) -> Experiment:
    heavy = given.pop("heavy", None)
    student = given.pop("student", "plain" if heavy is None else "dual")
    if student != "plain":
        return consistency_student(recipe, teacher, steps, half(steps) if heavy is None else heavy, **given)
    if heavy is not None or "light_from" in given:
        raise ValueError("a plain student is one network: drop --heavy and --light-from, or pass --student dual")
    return consistency_student(recipe, teacher, steps, **given)


def by_em(recipe: StudentRecipe, teacher: str, steps: int, given: dict[str, Any]) -> Experiment:
    if steps != 1:
        raise ValueError(f"EM distillation makes students of one step, got {steps}: drop --steps, or pass --by moments")
    if given.pop("student", "plain") != "plain":
        raise ValueError(
            "one step is one heavy call, so a light network would never run: drop --student dual, or pass --by moments"
        )
    own = {field: given.pop(name) for name, field in OF_LANGEVIN.items() if name in given}
    return em_student(recipe, teacher, langevin=Langevin(**own), **{"student_rate": EM_RATE, **given})


def half(steps: int) -> int:
    """Heavy calls of a dual-rate student, where nothing is said."""
    return (steps + 1) // 2


@dataclass(frozen=True)
class Branch(Ranged):
    """A way to distil: makes the student of a recipe, a teacher, steps and options; those that not all ways take.

    steps: where none are given
    """

    student: Callable[[StudentRecipe, str, int, dict[str, Any]], Experiment]
    options: tuple[str, ...]
    steps: Steps = 8


OF_TWO_RATES = ("student", "heavy", "light_from", "student_from")
OF_MOMENTS = ("encoder_from", "rollout", "version", "pretraining", "pairs", "student_rate", "temperature", "top_p")
OF_LANGEVIN = {"langevin_steps": "steps", "noise_step": "noise_step", "latent_step": "latent_step"}  # its fields
BRANCHES: dict[str, Branch] = {
    "moments": Branch(by_moments, (*OF_TWO_RATES, *OF_MOMENTS)),
    "consistency": Branch(by_consistency, (*OF_TWO_RATES, "teacher_steps", "annealing", "eta", "huber")),
    "em": Branch(by_em, (*OF_LANGEVIN, "log_snr", "student_rate", "student"), steps=1),
}


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def parse_distill(arguments: list[str]) -> Distill:
    """A recipe's name first, whose fields the options then override."""
    recipe = student_recipe(arguments, "distill RECIPE --teacher RUN [options]")
    return override(Distill(recipe, teacher=tyro.MISSING), arguments, "distill")


def student_recipe(arguments: list[str], usage: str) -> StudentRecipe:
    """What the recipe that the first argument names makes. Raises as `recipe_named` and `checked`."""
    recipe = recipe_named(arguments, RECIPES, StudentRecipe, usage, " of a distillation")
    return checked(recipe(), StudentRecipe, arguments[0])
