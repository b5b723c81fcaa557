"""The configuration of Multistep Consistency Models: a model of few steps of DDIM, from a teacher of many or from data.

One network is trained, which is the teacher's where there is one. A teacher is frozen; a run has it in no checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from dualrate.config.ranges import BelowOne, Ranged, Share, Steps, TeacherGuidance
from dualrate.denoisers.denoiser import Denoiser, Plain
from dualrate.diffusion.process import require_gaussian
from dualrate.experiments.denoising import fill
from dualrate.experiments.experiment import Experiment, MethodConfig, Model, Prepared, Start
from dualrate.experiments.serves import Segments
from dualrate.experiments.teaching import check_teacher, frozen_teacher
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
    student_from: str | None = None
    """A run of the same network that it starts from; the teacher, or random weights, if not given."""

    @property
    def serves(self) -> Segments:
        return Segments(self.steps)

    def check(self, experiment: Experiment) -> None:
        require_gaussian(experiment.process, experiment.name)
        first, last = self.teacher_steps
        if not self.steps <= first <= last:
            raise ValueError(
                f"a teacher makes as many steps as the student or more, and no fewer in the end than at first; got "
                f"{first} and {last} for a student of {self.steps}"
            )
        if not experiment.networks.single_rate:
            raise ValueError(
                f"{experiment.name} is dual-rate: consistency samples by DDIM, whose z_t and z_tau are no pair of one "
                "forward path, so a context would be reused where no training has seen it. Take a single network, or "
                "moment matching, which samples ancestrally"
            )
        if experiment.networks.latent is not None:
            raise ValueError(f"{experiment.name} is a decoder, which consistency does not train: take denoising")
        if self.teacher is None and self.guidance != 1:
            raise ValueError(f"guidance is a teacher's, and the data have none; got a weight of {self.guidance:g}")

    def prepare(self, experiment: Experiment, start: Start) -> Prepared:
        networks, student = replace(experiment, networks=experiment.networks.with_dropout(self.dropout)).build()
        teacher = None if self.teacher is None else start.load(self.teacher)
        taught, weights, identity = None, {}, {}
        if teacher is not None:
            taught = self._taught(experiment, teacher, start)
            weights["teacher"], identity["teacher"] = str(teacher), f"weights {teacher.weights_hash[:12]}"
        if start.fresh:
            source = teacher if self.student_from is None else start.load(self.student_from)
            if source is not None:
                problem = f"{self.student_from or self.teacher}: its network is not that of {experiment.name}"
                fill(networks, source.networks.state_dict(), problem)
                weights["student"] = str(source)
        first, last = self.teacher_steps
        method = Consistency(
            networks,
            student,
            experiment.gaussian,
            self.steps,
            taught,
            TeacherSteps(first, last, round(self.annealing * experiment.fit.iterations)),
            guidance=self.guidance,
            null=experiment.num_classes,
            eta=self.eta,
            huber=self.huber,
        )
        return Prepared(method, weights, identity, ConsistencyWatch)

    def _taught(self, experiment: Experiment, teacher: Model, start: Start) -> Denoiser:
        """The teacher under the student's process. Raises ValueError if it cannot teach this student."""
        assert self.teacher is not None
        single, process = check_teacher(experiment, teacher, self.teacher, self.guidance), experiment.process
        weights = teacher.networks["model"].state_dict()
        network = frozen_teacher(single, process, weights, bfloat16=start.bfloat16).to(start.device).eval()
        start.shard(network)
        return Plain(network, process)
