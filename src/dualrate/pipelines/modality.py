"""Models of diffusers, and images of prompts, as the engine asks for them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch

from dualrate.data.condition_rows import Given
from dualrate.experiment.modality import ForeignModel, Modality
from dualrate.metrics.evaluate import Evaluator
from dualrate.system.progress import Reporter


class OfPipelines(Modality):
    """A sample is an image, of a prompt or a class. The model may be a folder of diffusers."""

    def model_of(self, path: Path) -> ForeignModel | None:
        from dualrate.pipelines.folder import is_diffusers, read_folder
        from dualrate.pipelines.retrofitted import experiment_of, weights_of

        if not is_diffusers(path):
            return None
        return ForeignModel(experiment_of(path), partial(weights_of, path), read_folder(path).class_names)

    def conditions_named(self, experiment: Any, text: str, device: torch.device | str) -> Given | None:
        from dualrate.pipelines.condition import Prompts
        from dualrate.pipelines.retrofitted import prompts_of

        return prompts_of(experiment, text, device) if isinstance(experiment.condition, Prompts) else None

    def service(self, model: Any) -> Any:
        from dualrate.pipelines.condition import Prompts
        from dualrate.pipelines.service import PromptService

        return PromptService(model) if isinstance(model.experiment.condition, Prompts) else None

    def evaluator_by(self, folder: Path, data: Any, device: Any, progress: Reporter) -> Evaluator[Any] | None:
        from dualrate.pipelines.clip import evaluator_of, is_clip

        return evaluator_of(folder, data, device, progress) if is_clip(folder) else None


MODALITY = OfPipelines()
