"""The configuration of Moment Matching Distillation: a student of few steps from a teacher of many.

Three roles: the teacher is frozen and in no checkpoint; the student is the model that comes out; the auxiliary, of the
teacher's shape, is trained along. All networks know noise levels and no times, so a student may have a schedule of its
own: the teacher is called at the noise levels of the student's steps.

The instant version has no auxiliary, and needs its teacher in float32 where training runs in bfloat16.

Where auxiliary and teacher have dropout, they share its masks, so that their difference is not noise. A guided teacher,
and one beside compiled networks, run without. Sampling has no dropout.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from torch import nn

from dualrate.config.ranges import BelowOne, Factor, FirstIterations, Pairs, Ranged, Share, TeacherGuidance
from dualrate.denoisers.denoiser import Denoiser, Plain
from dualrate.denoisers.guidance import Guided, Sharpened
from dualrate.diffusion.categorical import CategoricalProcess
from dualrate.diffusion.plan import StepPlan
from dualrate.diffusion.prediction import Sigmoid, Weighting
from dualrate.diffusion.process import require_gaussian
from dualrate.experiment.experiment import Experiment, MethodConfig, Model, Prepared, Start
from dualrate.experiment.plan_support import AtLeast, OnePlan
from dualrate.experiment.teaching import built, check_teacher, fill, frozen_teacher, require_no_decoder, start_from
from dualrate.methods.moment_matching.states import ForwardPairs, FromData, FullRollout, SegmentRollout, StateSource
from dualrate.methods.moment_matching.versions import InstantMomentMatching, MomentMatching
from dualrate.methods.watch import Found, LogWatch, Windows, collapse, growth

Rollout = Literal["data", "segment", "full"]
PRECONDITIONING, ROWS = 64, 64  # batches of the instant version's preconditioner, their rows at most
LAG = (0.0, 3.0)  # `gap_ahead` in moment gaps: 1 where the auxiliary keeps up, below 0 where the student has passed it


def wrong_with_the_student(windows: Windows) -> Found:
    """In the first window there is no gap yet: the student is near what it started from."""
    yield from collapse(windows, "spread_t3", "spread of its samples")
    yield from growth(windows[1:], "moment_gap", "the moment gap grows", "lower --student-rate")


def wrong_with_the_auxiliary(windows: Windows) -> Found:
    """From the second window on, as above."""
    gap, ahead = windows[-1]["moment_gap"], windows[-1]["gap_ahead"]
    if len(windows) > 1 and not LAG[0] * gap <= ahead <= LAG[1] * gap:
        why = (
            f"from it to the student's moments is {ahead / gap:.1f} of the way from the teacher's to it, not about 1: "
            "lower --student-rate, or raise --fit.batch-size"
        )
        yield "the auxiliary lags behind the student", why


WATCH = partial(
    LogWatch,
    checks={
        "student": (("moment_gap", "spread_t3"), wrong_with_the_student),
        "auxiliary": (("moment_gap", "gap_ahead"), wrong_with_the_auxiliary),
    },
    hidden="student/loss",  # its gradient says something, its value nothing
)


@dataclass(frozen=True)
class MomentMatchingConfig(MethodConfig, Ranged):
    """Moment matching. A dual-rate student serves one plan, a plain one all steps that are short enough."""

    teacher: str
    """A single-rate run, released weights, or a folder of diffusers."""
    plans: AtLeast | OnePlan
    """Those that the student is made for."""
    version: Literal["alternating", "instant"] = "alternating"
    """With an auxiliary network, or in the teacher's parameter space."""
    rollout: Rollout = "data"
    """The student's states in training: noised data (data, of a plain student); its own steps since the last heavy
    call (segment); its own steps from noise (full)."""
    guidance: TeacherGuidance = 1.0
    """Classifier-free guidance weight of the teacher; 1 is none."""
    temperature: Factor = 1.0
    """Of a teacher's probabilities of tokens; below 1 it is surer of what is likely."""
    top_p: Share = 1.0
    """Share of a teacher's probabilities that its likeliest tokens keep; others become far less likely."""
    dropout: BelowOne | None = None
    """Of student and auxiliary in training, not in sampling; as their networks say if not given."""
    pretraining: FirstIterations = 0
    """Iterations at first in which the light network learns to denoise beside the frozen encoder."""
    pairs: Pairs = 1
    """Times (t, s) trained on from one rollout."""
    student_rate: Factor = 1.0
    """The student's learning rate over the auxiliary's, which is fit.optim.lr."""
    student_from: str | None = None
    """A dual-rate run that the whole student starts from; from the teacher if not given."""
    encoder_from: str | None = None
    """A single-rate run that the encoder starts from, whose network it has; the teacher if not given."""
    light_from: str | None = None
    """A single-rate run that the light network starts from."""
    weighting: Weighting = Sigmoid()

    @property
    def drops_labels(self) -> bool:
        """A student has its labels always: it is guided by its teacher, which it learns."""
        return False

    @property
    def serves(self) -> AtLeast | OnePlan:
        return self.plans

    @property
    def plan(self) -> StepPlan:
        """What the student is sampled under, while it trains."""
        return self.plans.default_plan()

    @property
    def _sharpened(self) -> bool:
        return (self.temperature, self.top_p) != (1, 1)

    def check(self, experiment: Experiment) -> None:
        require_no_decoder(experiment, "moment matching")
        fit, dual = experiment.fit, not experiment.networks.single_rate
        starts = self.student_from or self.encoder_from or self.light_from
        if dual and (self.rollout == "data" or not isinstance(self.plans, OnePlan)):
            raise ValueError(
                "a dual-rate student serves one plan and learns from its own steps (rollout segment or full), got "
                f"{self.plans} and rollout {self.rollout!r}"
            )
        if not dual and (
            self.rollout != "data" or self.pairs > 1 or self.pretraining or starts or isinstance(self.plans, OnePlan)
        ):
            raise ValueError(
                "a plain student serves all steps that are short enough, starts from its teacher and learns from "
                f"noised data: drop rollout, pairs, pretraining, student_from, encoder_from and light_from, got {self}"
            )
        if self.pretraining >= fit.iterations:
            raise ValueError(
                f"{self.pretraining} of {fit.iterations} iterations are pre-training: make it fewer "
                "(--pretraining), or the iterations more (--fit.iterations)"
            )
        if self.student_from is not None and (self.encoder_from or self.light_from):
            raise ValueError("student_from brings both networks: drop encoder_from and light_from, or student_from")
        if self._sharpened and not isinstance(experiment.process, CategoricalProcess):
            raise ValueError(f"temperature and top-p are of tokens, and {experiment.name} has none: drop them")
        if self.version == "instant":
            require_gaussian(experiment.process, experiment.name)
        rows = fit.batch_size if fit.micro_batch is None else min(fit.micro_batch, fit.batch_size)
        if self.version == "instant" and 1 in (rows, fit.batch_size % rows):
            raise ValueError(
                f"the instant version halves every micro-batch, so none may have one row: got batches of "
                f"{fit.batch_size} in micro-batches of {rows}"
            )

    def prepare(self, experiment: Experiment, start: Start) -> Prepared:
        teacher = start.load(self.teacher)
        method = self.build(experiment, teacher, bfloat16=start.bfloat16)
        if isinstance(method, InstantMomentMatching):
            start.note(f"preconditioner: the teacher's gradients on {PRECONDITIONING} batches")
            method = method.preconditioned(start.batch(i)[:ROWS] for i in range(PRECONDITIONING))
        weights = {"teacher": str(teacher)}
        if start.fresh:
            weights |= self.fill(experiment, method.networks, teacher, start)
        return Prepared(method, weights, {"teacher": f"weights {teacher.weights_hash[:12]}"}, WATCH)

    def build(
        self,
        experiment: Experiment,
        teacher: Model,
        *,
        bfloat16: bool,
    ) -> MomentMatching | InstantMomentMatching:
        """Student and auxiliary as new, before `fill`. Raises ValueError if the teacher cannot teach this student."""
        single = check_teacher(experiment, teacher, self.teacher, self.guidance).with_dropout(self.dropout)
        process = experiment.process
        networks, student = replace(experiment, networks=experiment.networks.with_dropout(self.dropout)).build()
        weights = teacher.networks["model"].state_dict()
        shares_masks = self.version == "alternating" and self.guidance == 1 and not experiment.fit.compile
        network = frozen_teacher(single, process, weights, bfloat16=bfloat16 and self.version == "alternating")
        network.to(next(teacher.networks.parameters()).device).train(shares_masks)
        taught: Denoiser = Plain(network, process)
        if self.guidance != 1:
            taught = Guided(taught, process, self.guidance, teacher.num_classes)
        if self._sharpened:
            taught = Sharpened(taught, process, self.temperature, self.top_p)
        roles = {
            "networks": networks,
            "student": student,
            "teacher": taught,
            "process": process,
            "weighting": self.weighting,
            "states": self._states(experiment),
            "pretraining": self.pretraining,
            "student_rate": self.student_rate,
            "pretraining_states": ForwardPairs(self.plan, process) if self.pretraining else None,
            "backbone": experiment.networks.backbone(networks, "encoder") if self.pretraining else None,
        }
        if self.version == "instant":
            if any(isinstance(part, nn.GroupNorm) for part in network.modules()):
                raise ValueError(
                    f"the instant version wants forward derivatives, which torch has not for the group norms of "
                    f"{self.teacher}: pass --version alternating"
                )
            return InstantMomentMatching(teacher_network=network, **roles)
        auxiliary = built(single, process, weights)
        auxiliaries = nn.ModuleDict({"auxiliary": auxiliary})
        return MomentMatching(auxiliaries=auxiliaries, auxiliary=Plain(auxiliary, process), **roles)

    def fill(self, experiment: Experiment, networks: nn.ModuleDict, teacher: Model, start: Start) -> dict[str, str]:
        """Put the weights in that training begins with; says which those were.

        Raises ValueError for weights of other networks.
        """
        if self.student_from is not None:
            source = start.load(self.student_from)
            fill(networks, source.networks.state_dict(), f"{self.student_from}: its networks are not the student's")
            return {"student": str(source)}
        if experiment.networks.single_rate:
            weights = experiment.networks.starting("model", teacher.networks["model"].state_dict())
            fill(networks["model"], weights, f"{self.teacher}: its networks are not the student's")
            return {}
        sources = {"encoder": teacher if self.encoder_from is None else start.load(self.encoder_from)}
        if self.light_from is not None:
            sources["light"] = start.load(self.light_from)
        return start_from(experiment.networks, networks, sources)

    def _states(self, experiment: Experiment) -> StateSource:
        process, plan = experiment.process, self.plan
        if self.rollout == "data":
            return FromData(plan.num_steps, process)
        return (SegmentRollout if self.rollout == "segment" else FullRollout)(plan, process, self.pairs)
