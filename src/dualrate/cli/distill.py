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
from dualrate.experiment.experiment import Experiment
from dualrate.methods.consistency import Eta, Huber
from dualrate.methods.em_distillation import Langevin, LatentStep, NoiseStep
from dualrate.options.parsing import HELP, override, recipe_named, recipe_result
from dualrate.options.training import Run
from dualrate.pipelines.folder import is_diffusers
from dualrate.recipes import auto, cifar10, fashion_mnist, imagenet, students
from dualrate.recipes.students import StudentRecipe
from dualrate.runs.store import read_experiment
from dualrate.texts import recipe as texts

RECIPES: dict[str, Callable[[], StudentRecipe]] = {
    "auto": auto.distilled,
    "fashion-mnist": fashion_mnist.distilled,
    "fashion-mnist-tokens": texts.distilled_images,
    "text-tokens": texts.distilled_texts,
    "cifar10": cifar10.distilled,
    **{f"imagenet{size}": partial(imagenet.distilled, size) for size in imagenet.SIZES},
}


@dataclass(frozen=True)
class Student(Ranged):
    """The student of a recipe, whatever the teacher."""

    recipe: Annotated[StudentRecipe, arg(name="")]
    by: Annotated[Literal["moments", "consistency", "em"], arg(name="method")] = "moments"
    """moments: moment matching, sampled ancestrally. consistency: multistep consistency, sampled by DDIM. em: EM
    distillation, one step."""
    steps: Steps | None = None
    """N, steps of the student. Default: 8, with em 1. A plain student by moments also works in more steps."""
    guidance: TeacherGuidance = 1.0
    """Classifier-free guidance weight of the teacher; 1 is none."""
    dropout: BelowOne | None = None
    """Dropout of student and auxiliary in training. Default: the teacher's."""
    shift: LogSNR = 0.0
    """Shift of the student's log-SNR against the teacher's. Below 0: more of its steps are at high noise."""
    student: Literal["dual", "plain"] | None = None
    """dual: two networks at two rates. plain: networks like the teacher's. Default: dual by moments; plain by other
    methods, and for a conditional teacher."""
    heavy: Steps | None = None
    """H, heavy calls of a dual-rate student. Default: half of the steps, rounded up."""
    rollout: Literal["full", "segment", "data"] | None = None
    """By moments: where training states come from. full: the student draws them from noise. segment: it draws them from
    the last heavy call on. data: noised data. Default: full for a dual-rate student, data for a plain one."""
    version: Literal["alternating", "instant"] | None = None
    """By moments. alternating: with an auxiliary network. instant: in the teacher's parameter space. Default:
    alternating."""
    pretraining: FirstIterations | None = None
    """By moments: number of first iterations that train only the light network. Default: 1000 if it is new, else 0."""
    pairs: Pairs | None = None
    """By moments: number of times t that one rollout trains on. Default: 1."""
    student_rate: Factor | None = None
    """By moments and em: the student's learning rate, divided by the auxiliary's. Default: the recipe's."""
    temperature: Factor | None = None
    """By moments: temperature of a teacher of tokens. Default: 1."""
    top_p: Share | None = None
    """By moments: top-p of a teacher of tokens. Default: 1."""
    encoder_from: str | None = None
    """By moments: a single-rate run that the encoder of a dual-rate student starts from. Default: the teacher."""
    light_from: str | None = None
    """A single-rate run that the light network of a dual-rate student starts from."""
    student_from: str | None = None
    """A run from which the whole student starts: a dual-rate run, such as a retrofit; for a plain consistency student,
    a run with the teacher's network."""
    teacher_steps: tuple[Steps, Steps] | None = None
    """By consistency: steps of the teacher at the beginning and at the end. Default: 64 and 1280."""
    annealing: Probability | None = None
    """By consistency: share of the iterations in which the number of teacher steps grows. Default: 0.5."""
    eta: Eta | None = None
    """By consistency: share of the teacher's error that its steps add as variance. Default: 0.75."""
    huber: Huber | None = None
    """By consistency: c of the pseudo-Huber loss. Default: the recipe's, else the squared error."""
    log_snr: LogSNR | None = None
    """By em: log-SNR at which the student's network is called. Default: -6."""
    langevin_steps: Steps | None = None
    """By em: L, Langevin steps that correct a sample. Default: 4, in the ImageNet recipes 16."""
    noise_step: NoiseStep | None = None
    """By em: size of the Langevin steps in the noise. Default: 0.16."""
    latent_step: LatentStep | None = None
    """By em: size of the Langevin steps in the latent. Default: 0.01. With 0, and one step, it is variational score
    distillation."""
    source: str | None = None
    """Images, or their latents. Default: where the teacher's training read them."""

    def of(self, teacher: Path) -> Experiment:
        """The student's experiment. Raises ValueError for options of another student, and for options that conflict.

        teacher: only its experiment is read
        """
        if is_diffusers(teacher) and self.source is None and self.student_from is None:
            raise ValueError(f"{teacher} does not say which images it was trained on: name them, --source IMAGES")
        student = self._student(str(teacher))
        return student if self.source is None else replace(student, data=student.data.at(self.source))

    def _student(self, teacher: str) -> Experiment:
        kind, steps = self.student or self._usual(teacher), self.steps or (1 if self.by == "em" else 8)
        options = self.recipe.defaults(self.by) | self._chosen(kind)
        options |= {"guidance": self.guidance, "dropout": self.dropout, "shift": self.shift}
        calls = options.pop("heavy", (steps + 1) // 2)
        if self.by == "em":
            if steps != 1:
                raise ValueError(
                    f"EM distillation makes students of one step, got {steps}: drop --steps, or --method em"
                )
            langevin = Langevin(**{field: options.pop(name) for name, field in LANGEVIN.items() if name in options})
            return students.em_student(
                self.recipe, teacher, langevin=langevin, **{"student_rate": students.EM_RATE, **options}
            )
        if self.by == "consistency":
            return students.consistency_student(
                self.recipe, teacher, steps, None if kind == "plain" else calls, **options
            )
        instant, taught = options.get("version") == "instant", "student_from" in options or calls == steps
        options = {"student_rate": 1.0 if instant else students.STUDENT_RATE, "pretraining": 0, **options}
        if kind == "plain":
            return students.plain_student(self.recipe, teacher, steps, **options)
        if self.pretraining is None and not taught:
            options["pretraining"] = students.PRETRAINING
        return students.dual_student(self.recipe, teacher, steps, calls, **options)

    def _usual(self, teacher: str) -> str:
        if self.by == "moments":
            return "plain" if students.is_conditional(read_experiment(teacher)) else "dual"
        return "dual" if self.by == "consistency" and self.heavy is not None else "plain"

    def _chosen(self, kind: str) -> dict[str, Any]:
        """Options that not all students have. Raises ValueError for those that this kind by this method has not."""
        if (self.by, kind) not in OPTIONS:
            raise ValueError("a student of one step has one network: drop --student dual, or pass --method moments")
        allowed, of_two_rates = OPTIONS[self.by, kind], OPTIONS.get((self.by, "dual"), ())
        names = {name for some in OPTIONS.values() for name in some}
        options = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if wrong := sorted(options.keys() - set(allowed)):
            listed = ", ".join(f"--{name.replace('_', '-')}" for name in wrong)
            hint = ", or pass --student dual" if set(wrong) <= set(of_two_rates) else ""
            raise ValueError(f"a {kind} student by --method {self.by} does not take {listed}: drop {listed}{hint}")
        return options


@dataclass(frozen=True, kw_only=True)
class Distill(Student, Run):
    """Distil a teacher into a student of few steps. The same command resumes."""

    teacher: Path
    """A single-rate run, a conditional run, released weights, or a diffusers folder."""

    def run(self) -> None:
        self.train(self.of(self.teacher))


LANGEVIN = {"langevin_steps": "steps", "noise_step": "noise_step", "latent_step": "latent_step"}  # its fields
MOMENTS = ("rollout", "version", "pretraining", "pairs", "student_rate", "temperature", "top_p")
CONSISTENCY = ("student_from", "teacher_steps", "annealing", "eta", "huber")
OPTIONS: dict[tuple[str, str], tuple[str, ...]] = {  # that not all students have, by their method and kind
    ("moments", "dual"): (*MOMENTS, "heavy", "encoder_from", "light_from", "student_from"),
    ("moments", "plain"): MOMENTS,
    ("consistency", "dual"): (*CONSISTENCY, "heavy", "light_from"),
    ("consistency", "plain"): CONSISTENCY,
    ("em", "plain"): (*LANGEVIN, "log_snr", "student_rate"),
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
    recipe = recipe_result(recipe_named(name, RECIPES, "distill")(), StudentRecipe, name)
    return override(Distill(recipe, teacher=tyro.MISSING), arguments, "distill")
