"""For `DiffusionPipeline.from_pretrained(FOLDER, custom_pipeline="pipeline", trust_remote_code=True)`."""

from dualrate.integrations.diffusers import DualRatePipeline  # noqa: F401
