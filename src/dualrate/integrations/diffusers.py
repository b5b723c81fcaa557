"""The module that pipelines saved by versions before 0.2 name; it is `dualrate.pipelines.export` now."""

from dualrate.pipelines.export import *  # noqa: F403
from dualrate.pipelines.export import DualRateNetwork, DualRatePipeline, DualRateScheduler  # noqa: F401
