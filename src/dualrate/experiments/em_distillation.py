"""The configuration of EM Distillation: a student of one step from a teacher of many.

The student is the teacher's network at the noise level in which its own schedule ends, where it is called with pure
noise; so its schedule is the teacher's up to there (`Truncated`). Teacher, student and auxiliary are as in moment
matching: the teacher frozen and in no checkpoint, the auxiliary of its shape and trained along.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import nn

from dualrate.config.ranges import BelowOne, Factor, Ranged, TeacherGuidance
from dualrate.denoisers.denoiser import Plain
from dualrate.denoisers.guidance import Guided
from dualrate.diffusion.process import require_gaussian
from dualrate.diffusion.weighting import Sigmoid, Weighting
from dualrate.experiments.experiment import Experiment, MethodConfig, Model, Prepared, Start
from dualrate.experiments.serves import OneStep
from dualrate.experiments.teaching import at_rest, built, check_teacher, fill, require_no_decoder
from dualrate.methods.em_distillation import TIMES, EMDistillation, EMWatch, Langevin, Times, check_times


@dataclass(frozen=True)
class EMDistillationConfig(MethodConfig, Ranged):
    """EM distillation. The model serves one step, from noise to its x_hat."""

    teacher: str
    """A single-rate run, released weights, or a folder of diffusers."""
    langevin: Langevin = Langevin()
    times: Times = TIMES
    """Least and largest time whose noise levels are matched; t is uniform between them."""
    guidance: TeacherGuidance = 1.0
    """Classifier-free guidance weight of the teacher; 1 is none."""
    dropout: BelowOne | None = None
    """Of student and auxiliary in training, not in sampling; as their networks say if not given."""
    student_rate: Factor = 1.0
    """The student's learning rate over the auxiliary's, which is fit.optim.lr."""
    weighting: Weighting = Sigmoid()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_times(self.times)

    @property
    def drops_labels(self) -> bool:
        """A student has its labels always: it is guided by its teacher, which it learns."""
        return False

    @property
    def serves(self) -> OneStep:
        return OneStep()

    def check(self, experiment: Experiment) -> None:
        require_gaussian(experiment.process, experiment.name)
        if not experiment.networks.single_rate:
            raise ValueError(
                f"{experiment.name} is dual-rate: one step is one heavy call, so a light network would never run. Take "
                "a single network, or moment matching for more steps"
            )
        require_no_decoder(experiment, "EM distillation")

    def prepare(self, experiment: Experiment, start: Start) -> Prepared:
        teacher = start.load(self.teacher)
        method = self._method(experiment, teacher, start)
        if start.fresh:
            problem = f"{self.teacher}: its network is not that of {experiment.name}"
            fill(method.networks, teacher.networks.state_dict(), problem)
        identity = {"teacher": f"weights {teacher.weights_hash[:12]}"}
        return Prepared(method, {"teacher": str(teacher)}, identity, EMWatch)

    def _method(self, experiment: Experiment, teacher: Model, start: Start) -> EMDistillation:
        """Student and auxiliary as new. Raises ValueError if the teacher cannot teach this student."""
        single = check_teacher(experiment, teacher, self.teacher, self.guidance)
        dropping, process = single.with_dropout(self.dropout), experiment.gaussian
        networks, student = replace(experiment, networks=dropping).build()
        taught = at_rest(single, process, teacher, start)
        if self.guidance != 1:
            taught = Guided(taught, process, self.guidance, teacher.num_classes)
        auxiliary = built(dropping, process, teacher.networks["model"].state_dict())
        return EMDistillation(
            networks=networks,
            student=student,
            auxiliaries=nn.ModuleDict({"auxiliary": auxiliary}),
            auxiliary=Plain(auxiliary, process),
            teacher=taught,
            process=process,
            weighting=self.weighting,
            langevin=self.langevin,
            times=self.times,
            student_rate=self.student_rate,
        )
