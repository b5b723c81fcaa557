"""A distillation: every choice of it, as frozen dataclasses, and the method that they mean.

Three roles: the teacher is frozen and in no checkpoint; the student is the model that comes out; the auxiliary, of the
teacher's shape, is trained along. All networks know noise levels and no times, so a student may have a schedule of its
own: the teacher is called at the noise levels of the student's steps.

Where training runs in bfloat16, the teacher is held in it: its matrix products are in bfloat16 in any case, so this
halves its memory and changes no number. The instant version has no auxiliary, and needs its teacher in float32.

Where auxiliary and teacher have dropout, they share its masks, so that their difference is not noise. A guided teacher,
which has twice the rows, and one beside compiled networks, which draw other masks, run without. Sampling has no
dropout: a student trained with it is matched as a sampler that it then is not, quite.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from dualrate.config.ranges import BelowOne, Factor, FirstIterations, Pairs, Ranged, TeacherGuidance
from dualrate.denoisers.denoiser import Denoiser, Plain
from dualrate.denoisers.guidance import Guided
from dualrate.diffusion.plan import StepPlan
from dualrate.experiments.experiment import Experiment, OneNetwork, TwoNetworks
from dualrate.experiments.serves import Continuous, Grid
from dualrate.methods.method import Method
from dualrate.methods.moment_matching.alternating import MomentMatching
from dualrate.methods.moment_matching.instant import InstantMomentMatching
from dualrate.methods.moment_matching.states import ForwardPairs, FromData, FullRollout, SegmentRollout, StateSource
from dualrate.networks.uvit import UViT, UViTConfig
from dualrate.runs.store import Model, Note, load, start_from

Rollout = Literal["data", "segment", "full"]


@dataclass(frozen=True)
class Distillation(Ranged):
    """teacher:     a single-rate run, or released weights
    student:     its networks, its schedule, its training; its times are the plans that it will serve
    version:     of moment matching: alternating with an auxiliary, or instant without one
    rollout:     where a student's states come from: noised data (single-rate); data, and the student's own steps since
                 the latest heavy call (segment); noise, and all of the student's own steps (full)
    guidance:    weight of classifier-free guidance of the teacher; 1 is none
    dropout:     of all blocks of student and auxiliary in training; None: what their configurations say
    pretraining: iterations at first in which the light network learns to denoise beside the frozen encoder
    pairs:       times (t, s) trained on from one trajectory
    student_rate: the student's learning rate over the auxiliary's, which is `student.fit.optim.lr`
    student_from: a dual-rate run that the student starts from; None: from the teacher
    """

    teacher: str
    student: Experiment
    version: Literal["alternating", "instant"] = "alternating"
    rollout: Rollout = "data"
    guidance: TeacherGuidance = 1.0
    dropout: BelowOne | None = None
    pretraining: FirstIterations = 0
    pairs: Pairs = 1
    student_rate: Factor = 1.0
    student_from: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        dual = isinstance(self.student.networks, TwoNetworks)
        if not isinstance(self.student.times, Grid if dual else Continuous):
            raise ValueError(
                "a dual-rate student serves one grid and a single-rate one all steps that are short enough, "
                f"got {self.student.times}"
            )
        if (self.rollout == "data") == dual:
            raise ValueError(
                f"got rollout {self.rollout!r}: a dual-rate student learns from its own steps (segment or full), "
                "a plain one from noised data (data)"
            )
        if (self.pretraining or self.student_from) and not dual:
            raise ValueError("a plain student starts from its teacher: drop pretraining and student_from")
        if self.pairs > 1 and not dual:
            raise ValueError(f"a rollout serves one pair (t, s) or more, noised data one; got pairs {self.pairs}")
        if self.pretraining >= self.student.fit.iterations:
            raise ValueError(
                f"{self.pretraining} of {self.student.fit.iterations} iterations are pre-training: make it fewer "
                "(--pretraining), or the iterations more (--fit.iterations)"
            )
        if self.student_from is not None and self.student.light_from is not None:
            raise ValueError("student_from brings the light network's weights too: drop light_from, or student_from")
        fit = self.student.fit
        rows = fit.batch_size if fit.micro_batch is None else min(fit.micro_batch, fit.batch_size)
        if self.version == "instant" and 1 in (rows, fit.batch_size % rows):
            raise ValueError(
                f"the instant version halves every micro-batch, so none may have one row: got batches of "
                f"{fit.batch_size} in micro-batches of {rows}"
            )

    @property
    def plan(self) -> StepPlan:
        """What the student is sampled under, while it trains."""
        times = self.student.times
        assert isinstance(times, (Continuous, Grid))
        return StepPlan.uniform(times.steps, times.default_heavy(times.steps))

    def check(self, teacher: Model) -> UViTConfig:
        """The teacher's network, for student and auxiliary. Raises ValueError if it cannot teach the student."""
        student, network = self.student, teachers_network(teacher.experiment, self.teacher)
        if (teacher.shape, teacher.num_classes) != (student.shape, student.num_classes):
            raise ValueError(
                f"{self.teacher} makes images of {teacher.shape} (C, H, W) in {teacher.num_classes} classes, "
                f"{student.name} of {student.shape} in {student.num_classes}: they must be the same"
            )
        if student.networks != OneNetwork(network) and isinstance(student.networks, OneNetwork):
            raise ValueError(
                f"a plain student starts from its teacher, so {student.name} must have the network of {self.teacher}"
            )
        if self.guidance != 1 and not teacher.num_classes:
            raise ValueError(f"{self.teacher} has no classes, so there is nothing to guide: drop the guidance weight")
        return network

    def method(self, teacher: Model, *, bfloat16: bool) -> Method:
        """Student and auxiliary as new, before `start`. Raises ValueError if the teacher cannot teach this."""
        config = with_dropout(self.check(teacher), self.dropout)
        process = self.student.process
        networks, student = self._student().build()
        weights = teacher.networks["model"].state_dict()
        shares_masks = self.version == "alternating" and self.guidance == 1 and not self.student.fit.compile
        network = frozen_teacher(config, weights, bfloat16=bfloat16 and self.version == "alternating")
        network.to(next(teacher.networks.parameters()).device).train(shares_masks)
        taught: Denoiser = Plain(network, process)
        if self.guidance != 1:
            taught = Guided(taught, process, self.guidance, teacher.num_classes)
        roles = {
            "networks": networks,
            "student": student,
            "teacher": taught,
            "process": process,
            "weighting": self.student.weighting,
            "states": self._states(),
            "pretraining": self.pretraining,
            "student_rate": self.student_rate,
            "pretraining_states": ForwardPairs(self.plan, process) if self.pretraining else None,
        }
        if self.version == "instant":
            return InstantMomentMatching(teacher_network=network, **roles)
        auxiliary = UViT(config).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        auxiliary.load_state_dict(weights)
        auxiliaries = nn.ModuleDict({"auxiliary": auxiliary})
        return MomentMatching(auxiliaries=auxiliaries, auxiliary=Plain(auxiliary, process), **roles)

    def _student(self) -> Experiment:
        """With the dropout of training."""
        networks = self.student.networks
        if isinstance(networks, OneNetwork):
            networks = replace(networks, model=with_dropout(networks.model, self.dropout))
        else:
            encoder, light = (with_dropout(part, self.dropout) for part in (networks.encoder, networks.light))
            networks = replace(networks, encoder=encoder, light=light)
        return replace(self.student, networks=networks)

    def _states(self) -> StateSource:
        process, plan = self.student.process, self.plan
        if self.rollout == "data":
            return FromData(plan.num_steps, process)
        return (SegmentRollout if self.rollout == "segment" else FullRollout)(plan, process, self.pairs)

    def start(self, networks: nn.ModuleDict, teacher: Model, note: Note | None = None) -> dict[str, str]:
        """Put the weights in that training begins with; says which those were. note: as of `load`.

        Raises ValueError for weights of other networks.
        """
        if self.student_from is not None:
            source = load(self.student_from, note=note)
            fill(networks, source, self.student_from)
            return {"student": f"{self.student_from} at iteration {source.iteration}, {short(source)}"}
        if isinstance(self.student.networks, OneNetwork):
            fill(networks, teacher, self.teacher)
            return {}
        return start_from(networks, self.teacher, self.student.light_from, note)


def teachers_network(experiment: Experiment, name: str) -> UViTConfig:
    """The network of a run that can teach. Raises ValueError for a dual-rate run and for a student."""
    if not isinstance(experiment.networks, OneNetwork):
        raise ValueError(f"{name} is a dual-rate model; a teacher is a single-rate one, called at any noise level")
    if isinstance(experiment.times, Continuous):
        raise ValueError(f"{name} is a student itself, which knows its own few steps: name what taught it")
    return experiment.networks.model


def fill(networks: nn.ModuleDict, source: Model, name: str) -> None:
    """Give networks another model's weights. Raises ValueError if they are of other networks."""
    try:
        networks.load_state_dict(source.networks.state_dict())
    except RuntimeError as error:
        what = " ".join(str(error).split())[:200]
        raise ValueError(f"{name}: its networks are not the student's: {what} ...") from error


def short(model: Model) -> str:
    """Which weights a model has, for people."""
    return f"weights {model.weights_hash[:12]}"


def with_dropout(config: UViTConfig, dropout: float | None) -> UViTConfig:
    """The network with one rate of dropout at all levels; None: as it is."""
    if dropout is None:
        return config
    return replace(config, levels=tuple(replace(level, dropout=dropout) for level in config.levels))


def frozen_teacher(config: UViTConfig, weights: Mapping[str, Tensor], *, bfloat16: bool) -> nn.Module:
    """A U-ViT without gradients; bfloat16: with the weights of its matrix products, the head's excepted, in that."""
    network = UViT(config)
    network.load_state_dict(weights)
    network.to(memory_format=torch.channels_last).requires_grad_(False)  # pyright: ignore[reportCallIssue]
    if not bfloat16:
        return network
    for name, module in network.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)) and not name.startswith("head."):
            module.to(torch.bfloat16)
    return InBfloat16(network)


class InBfloat16(nn.Module):
    """Runs a network under autocast, whatever the caller does."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, z: Tensor, log_snr: Tensor, label: Tensor | None) -> Tensor:
        with torch.autocast(z.device.type, torch.bfloat16):
            return self.network(z, log_snr, label)
