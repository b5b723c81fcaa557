"""The module that pipelines saved before 0.2 name, as diffusers looks it up; it is `dualrate.pipelines.export` now."""

from diffusers.models.modeling_utils import ModelMixin  # noqa: F401
from diffusers.schedulers.scheduling_utils import SchedulerMixin  # noqa: F401

from dualrate.pipelines.export import DualRatePipeline  # noqa: F401
from dualrate.pipelines.parts import DualRateNetwork, DualRateScheduler  # noqa: F401
