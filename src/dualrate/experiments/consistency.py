"""The configuration of Multistep Consistency Models: a model of few steps of DDIM, from a teacher of many or from data.

A single network that is trained is the teacher's, where there is one; of two the encoder starts from it. A teacher is
frozen; a run has it in no checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from dualrate.config.ranges import BelowOne, Ranged, Share, Steps, TeacherGuidance
from dualrate.denoisers.denoiser import Denoiser
from dualrate.diffusion.process import require_gaussian
from dualrate.diffusion.values import Reuse
from dualrate.experiments.experiment import Experiment, MethodConfig, Model, Prepared, Start
from dualrate.experiments.networks import NetworksConfig
from dualrate.experiments.serves import Segments
from dualrate.experiments.teaching import at_rest, check_teacher, fill, require_no_decoder, start_from
from dualrate.methods.consistency import Consistency, ConsistencyWatch, Eta, Huber, TeacherSteps


@dataclass(frozen=True)
class ConsistencyConfig(MethodConfig, Ranged):
    """Multistep consistency. The model serves its own number of steps, under DDIM."""

    steps: Steps = 4
    """Of the student, each over its own part of the noise levels; few: 1 to 16."""
    teacher: str | None = None
    """A single-rate run, released weights, or a folder of diffusers; the data if not given."""
    teacher_steps: tuple[Steps, Steps] = (64, 1280)
    """How many steps the teacher, or the data, would take over all noise levels: at first, and in the end."""
    annealing: Share = 0.5
    """Share of the iterations in which their number grows, by equal factors."""
    eta: Eta = 0.75
    """Share of the teacher's error that its steps put back as variance (aDDIM); 0: its steps are DDIM's."""
    huber: Huber | None = None
    """c of the pseudo-Huber loss, in the root mean square of the error of v; squares if not given."""
    guidance: TeacherGuidance = 1.0
    """Classifier-free guidance weight of the teacher; 1 is none."""
    dropout: BelowOne | None = None
    """Of the student in training, not in sampling; as its network says if not given."""
    heavy: Steps | None = None
    """Heavy calls of a dual-rate student, fewer than its steps."""
    student_from: str | None = None
    """A run of the same networks that it starts from. If not given: one network from the teacher, if there is one; of
    two the encoder from the teacher, and the light one, if given, from `light_from`. Random weights otherwise."""
    light_from: str | None = None
    """A single-rate run that the light network of a dual-rate student starts from."""

    @staticmethod
    def of(networks: NetworksConfig) -> ConsistencyConfig:
        """From data for 4 steps, 2 heavy calls of two networks."""
        return ConsistencyConfig(heavy=None if networks.single_rate else 2)

    @property
    def serves(self) -> Segments:
        return Segments(self.steps, self.heavy)

    def called(self, denoiser: Any) -> Denoiser:
        """A dual-rate student reuses contexts along its own path of DDIM."""
        return denoiser if self.heavy is None else replace(denoiser, reuse=Reuse.OWN)

    @property
    def drops_labels(self) -> bool:
        return False

    def check(self, experiment: Experiment) -> None:
        require_gaussian(experiment.process, experiment.name)
        first, last = self.teacher_steps
        if not self.steps <= first <= last:
            raise ValueError(
                f"a teacher makes as many steps as the student or more, and no fewer in the end than at first; got "
                f"{first} and {last} for a student of {self.steps}"
            )
        require_no_decoder(experiment, "consistency")
        if experiment.networks.single_rate and (self.heavy is not None or self.light_from is not None):
            raise ValueError(f"{experiment.name} has one network, which runs at every step: drop heavy and light_from")
        roles = experiment.networks.roles
        if not experiment.networks.single_rate and roles != ("encoder", "light"):
            raise ValueError(
                f"consistency trains one network, or an encoder with a light network; {experiment.name} has "
                f"{', '.join(roles)}"
            )
        if not experiment.networks.single_rate and not 0 < (self.heavy or 0) < self.steps:
            raise ValueError(
                f"{experiment.name} is dual-rate: its heavy calls are at least one and fewer than its {self.steps} "
                f"steps, got {self.heavy}; name them (heavy), or take one network, which is called at every step"
            )
        if self.student_from is not None and self.light_from is not None:
            raise ValueError("student_from brings the light network's weights too: drop light_from, or student_from")
        if self.teacher is None and self.guidance != 1:
            raise ValueError(f"guidance is a teacher's, and the data have none; got a weight of {self.guidance:g}")

    def prepare(self, experiment: Experiment, start: Start) -> Prepared:
        networks, student = replace(experiment, networks=experiment.networks.with_dropout(self.dropout)).build()
        teacher = None if self.teacher is None else start.load(self.teacher)
        taught, weights, identity = None, {}, {}
        if teacher is not None:
            assert self.teacher is not None
            single = check_teacher(experiment, teacher, self.teacher, self.guidance)
            taught = at_rest(single, experiment.process, teacher, start)
            weights["teacher"], identity["teacher"] = str(teacher), f"weights {teacher.weights_hash[:12]}"
        if start.fresh:
            weights |= self._fill(experiment, networks, teacher, start)
        first, last = self.teacher_steps
        annealed = round(self.annealing * experiment.fit.iterations)
        if "iterations" in experiment.fit.free():  # other ones would be annealed in another way
            identity["annealing"] = f"{annealed} iterations"
        method = Consistency(
            networks,
            student,
            experiment.gaussian,
            self.steps,
            taught,
            TeacherSteps(first, last, annealed),
            guidance=self.guidance,
            null=experiment.num_classes,
            eta=self.eta,
            huber=self.huber,
            heavy=self.heavy,
            backbone=None if self.heavy is None else experiment.networks.backbone(networks, "encoder"),
        )
        return Prepared(method, weights, identity, ConsistencyWatch)

    def _fill(
        self, experiment: Experiment, networks: nn.ModuleDict, teacher: Model | None, start: Start
    ) -> dict[str, str]:
        """Put the weights in that training begins with; says which. Raises ValueError for those of other networks."""
        whole = teacher if experiment.networks.single_rate else None
        if (source := whole if self.student_from is None else start.load(self.student_from)) is not None:
            problem = f"{self.student_from or self.teacher}: its network is not that of {experiment.name}"
            fill(networks, source.networks.state_dict(), problem)
            return {"student": str(source)}
        light = None if self.light_from is None else start.load(self.light_from)
        parts = {} if experiment.networks.single_rate else {"encoder": teacher, "light": light}
        given = {role: model for role, model in parts.items() if model is not None}
        return start_from(experiment.networks, networks, given)
