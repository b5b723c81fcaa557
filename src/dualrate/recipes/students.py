"""Students of a teacher: their networks, their method and their training. And models of few steps from data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch

from dualrate.config.ranges import Range, Ranged
from dualrate.diffusion.schedule import Cosine, Interpolated, Truncated
from dualrate.experiment.experiment import Experiment, MethodConfig
from dualrate.experiment.network_configs import NetworksConfig
from dualrate.experiment.plan_support import AtLeast, OnePlan
from dualrate.experiment.teaching import check_same_images, teachers_network
from dualrate.methods.consistency import ConsistencyConfig
from dualrate.methods.em_distillation import EMDistillationConfig
from dualrate.methods.glance import FAST, SLOW, AdaptedNetwork, GlanceConfig
from dualrate.methods.moment_matching import MomentMatchingConfig
from dualrate.networks.uvit import UViTConfig
from dualrate.recipes.shared import training
from dualrate.runs.store import read_experiment
from dualrate.training.config import FitConfig

PRETRAINING = 1000  # iterations of a light network that has never seen a context
NOISE_LEVEL = -6.0  # log-SNR at which a student of one step calls its teacher's network, EM distillation's
STUDENT_RATE = 0.2  # of the student's learning rate over that of the auxiliary, which has to follow it
EM_RATE = 1.0  # the same of EM distillation's, which has far to go

# half of the iterations are the auxiliary's; at a constant rate the score wavers (dev/LOG.md)
DISTILLING = training(2000, 64, 1e-4, 100, beta=0.0, decay="cosine", ema_halflife=20_000, sample_every=500)


@dataclass(frozen=True)
class StudentRecipe(Ranged):
    """How students are made of a teacher.

    name:  of the runs, before the plan; None: the teacher's
    light: the light network of a dual-rate student; None: in proportion to its encoder
    """

    name: str | None
    """Beginning of the student's name. Default: the teacher's."""
    light: UViTConfig | None
    fit: FitConfig
    noise: Annotated[int, Range(0, 1024)] = 0
    """By moments: planes of noise that a student of tokens reads. With masked tokens nothing else is random."""

    def defaults(self, by: str) -> dict[str, Any]:
        """Options of `dualrate distill --method BY` as its students have them where the command does not say."""
        return {}


def plain_student(recipe: StudentRecipe, teacher: str, steps: int, *, shift: float = 0.0, **options: Any) -> Experiment:
    """A student of the teacher's networks for `steps` steps and more.

    shift:   of its log-SNR against the teacher's
    options: fields of `MomentMatchingConfig`
    """
    source = read_experiment(teacher)
    networks = teachers_network(source, teacher).with_noise(recipe.noise)
    plans = AtLeast(steps, networks.calls)
    method = MomentMatchingConfig(teacher, plans, weighting=source.method.weighting, **options)
    return _student(recipe, source, f"plain-{steps}", networks, method, shift)


def dual_student(
    recipe: StudentRecipe, teacher: str, steps: int, heavy: int, *, shift: float = 0.0, **options: Any
) -> Experiment:
    """A dual-rate student: an encoder, of the teacher's network if not of another, and the recipe's light network.

    shift:   of its log-SNR against the teacher's
    options: fields of `MomentMatchingConfig`. student_from: a dual-rate run whose networks and images it has;
             encoder_from: a single-rate run, maybe smaller than the teacher, whose network the encoder has
    Raises ValueError for a teacher that cannot teach, an `encoder_from` that is no such run, and an encoder without a
    rule for its light network, without `student_from`.
    """
    source, begun = read_experiment(teacher), options.get("encoder_from")
    encoder = teachers_network(source, teacher)
    _refuse_two(source, teacher)
    if begun is not None:
        begun_from = read_experiment(begun)
        encoder = begun_from.networks
        if encoder.given is not None or not encoder.single_rate:
            raise ValueError(f"{begun} is {encoder.kind}; encoder_from takes a single-rate one that is no decoder")
        check_same_images(begun_from, source, f"encoder_from {begun} and the teacher {teacher}")
    networks, source = _dual(recipe, source, encoder, begun or teacher, options.get("student_from"))
    options = {"rollout": "full", **options}
    method = MomentMatchingConfig(teacher, OnePlan(steps, heavy), weighting=source.method.weighting, **options)
    return _student(recipe, source, f"dual-{steps}-{heavy}", networks, method, shift)


def is_conditional(experiment: Experiment) -> bool:
    """Whether an experiment makes samples of a condition, prompts apart: then a student has its networks."""
    return experiment.networks.given is not None and not experiment.condition.labelled


def _refuse_two(source: Experiment, teacher: str) -> None:
    """Raises ValueError for a dual-rate student of a conditional model."""
    if is_conditional(source):
        raise ValueError(
            f"{teacher} is a conditional model, whose student has its networks, called as they are: drop --student "
            "dual and --heavy"
        )


def _dual(
    recipe: StudentRecipe, source: Experiment, encoder: NetworksConfig, name: str, student_from: str | None
) -> tuple[NetworksConfig, Experiment]:
    """A dual-rate student's networks, and its teacher's experiment on the images that it is trained on.

    name: the user's, of the model with the encoder's network
    """
    if student_from is None:
        return encoder.beside(recipe.light, name).with_noise(recipe.noise), source
    started = read_experiment(student_from)
    if started.networks.single_rate:
        raise ValueError(f"{student_from} is a single-rate model; student_from takes a dual-rate one")
    check_same_images(started, source, f"student_from {student_from} and the teacher {name}")
    return started.networks.with_noise(recipe.noise or started.networks.noise), replace(source, data=started.data)


def consistency_student(
    recipe: StudentRecipe, teacher: str, steps: int, heavy: int | None = None, *, shift: float = 0.0, **options: Any
) -> Experiment:
    """A student for `steps` steps of DDIM: of the teacher's shape, or, with `heavy` calls, a dual-rate one.

    shift:   of its log-SNR against the teacher's
    options: fields of `ConsistencyConfig`
    Raises ValueError as `dual_student`.
    """
    source, ending = read_experiment(teacher), f"consistency-{steps}"
    networks = teachers_network(source, teacher).with_noise(recipe.noise)
    options["heavy"] = networks.calls if heavy is None else heavy
    if heavy is not None:
        _refuse_two(source, teacher)
        networks, source = _dual(recipe, source, networks, teacher, options.get("student_from"))
        ending = f"{ending}-{heavy}"
    return _student(recipe, source, ending, networks, ConsistencyConfig(steps, teacher, **options), shift)


def em_student(
    recipe: StudentRecipe, teacher: str, *, log_snr: float | None = None, shift: float = 0.0, **options: Any
) -> Experiment:
    """A student of the teacher's shape for one step.

    log_snr: at which its network is called; None: NOISE_LEVEL, or the teacher's end where that is above
    shift:   of its log-SNR against the teacher's
    options: fields of `EMDistillationConfig`
    Raises ValueError for a noise level that the teacher does not know.
    """
    source = read_experiment(teacher)
    networks = teachers_network(source, teacher).with_noise(recipe.noise)
    method = EMDistillationConfig(teacher, weighting=source.method.weighting, **options)
    student = _student(recipe, source, "em", networks, method, shift)
    process = student.gaussian
    if log_snr is None:
        log_snr = max(NOISE_LEVEL, process.log_snr(torch.ones((), dtype=torch.float64)).item())
    return replace(student, process=replace(process, schedule=Truncated(process.schedule, log_snr)))


def by_consistency(experiment: Experiment) -> Experiment:
    """An experiment as one of consistency training, from data, for 4 steps of DDIM, 2 heavy calls if dual-rate.

    Its rate is a student's, annealed: at a constant 7e-4 a model of one step came to nothing (dev/LOG.md).
    """
    method = ConsistencyConfig(heavy=2 if experiment.networks.ages else experiment.networks.calls)
    fit = replace(experiment.fit, optim=DISTILLING.optim)
    return replace(experiment, name=f"{experiment.name}-consistency", method=method, fit=fit)


def _student(
    recipe: StudentRecipe, source: Experiment, ending: str, networks: NetworksConfig, method: MethodConfig, shift: float
) -> Experiment:
    process = source.process
    if shift:
        schedule = process.schedule
        if not isinstance(schedule, (Cosine, Interpolated)):
            raise ValueError(
                f"cosine and interpolated schedules can be shifted further, this teacher's is {schedule}: drop shift"
            )
        process = replace(source.gaussian, schedule=schedule.shifted_by(shift))
    name = f"{recipe.name or source.name}-{ending}"
    process = networks.process_for(process)
    return Experiment(name, networks, method, recipe.fit, source.data, process, source.codec, source.condition)


# Glance's: one image at a time
ADAPTING = training(60, 1, 5e-4, 10, ema_halflife=1, log_every=10, checkpoint_every=60, sample_every=60)
CALLS = ((), (len(SLOW) + len(FAST),), (len(SLOW), len(FAST)))  # of each phase, by the number of phases


@dataclass(frozen=True)
class AdaptRecipe(Ranged):
    """A model of few steps: its grid of times, and adapters by phase. Give one of these options with --help to see
    the others."""

    images: str | None = None
    """Training images. Default: where the model's training read them."""
    phases: Literal[0, 1, 2] = 2
    """Number of adapters. 2: one for the first, short steps and one for the later, long ones. 1: one for all steps. 0:
    none, only the grid of times."""
    rank: Annotated[int, Range(1, 4096)] = 16
    """Rank of the adapters. Their alpha is 4 times the rank."""

    def __call__(self, base: str | Path) -> Experiment:
        """The experiment. Raises ValueError for a model that cannot be adapted, and one of unknown images."""
        source = read_experiment(base)
        if not source.serves.any_plan:
            raise ValueError(f"{base} is a student, which works only in its own steps: name its teacher")
        data = source.data if self.images is None else source.data.at(self.images)
        if not data.source:
            raise ValueError(f"{base} does not say which images it was trained on: name some, --images FOLDER")
        method = GlanceConfig(
            str(base), calls=CALLS[self.phases], label_dropout=0.1 if source.method.drops_labels else 0.0
        )
        networks = AdaptedNetwork(source.networks, self.phases, self.rank)
        fit = ADAPTING if self.phases else replace(ADAPTING, iterations=1)
        name = f"{source.name}-phases-{self.phases}"
        return Experiment(name, networks, method, fit, data, source.process, source.codec, source.condition)
