"""For `DiffusionPipeline.from_pretrained(FOLDER, trust_remote_code=True)`."""

from dualrate.integrations.diffusers import DualRatePipeline  # noqa: F401
