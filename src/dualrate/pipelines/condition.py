"""Prompts as a condition: what a sample of a text-to-image model is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch

from dualrate.config.ranges import Range, Ranged
from dualrate.data.condition_rows import Given, Make
from dualrate.data.conditions import Condition, Conditioned
from dualrate.data.loader import TrainingSet
from dualrate.data.source import Split
from dualrate.diffusion.context import Shape
from dualrate.pipelines.prompt_set import PromptSet, read_prompts


@dataclass(frozen=True)
class Prompts(Condition, Ranged):
    """A text as the encoders of a text-to-image model made it, in a row of numbers (`pipelines.classes.kind`).

    In training they lie beside the latents (prompt_set.py).
    """

    size: Annotated[int, Range(1, 2**31)] = 1
    folder: str = ""
    """Where the pipeline with these encoders is."""
    encoder: str = ""
    """sha256 of the encoders."""
    labelled = True
    no_pictures = "makes images from texts, not from pictures: pass --prompt TEXT"

    @property
    def identity(self) -> dict[str, Any]:
        return {"condition": {"type": "Prompts", "size": self.size, "encoder": self.encoder}}

    def shape(self, image: Shape) -> Shape:
        return 1, 1, self.size

    def build(self, device: torch.device | str) -> Make:
        return lambda prompts, draws: prompts.float()

    def partners(self, targets: str, split: Split, *, label: str | None, on_bad: str) -> PromptSet:
        """Raises ValueError for latents without prompts, and with those of other encoders."""
        prompts = read_prompts(targets, split)
        if (prompts.encoder, prompts.size) != (self.encoder, self.size):
            raise ValueError(
                f"the prompts in {targets} are by other text encoders (sha256 {prompts.encoder[:12]}, {prompts.size} "
                f"numbers each) than the model's ({self.encoder[:12]}, {self.size}): encode the captions by "
                f"{self.folder or 'its pipeline'}, into another folder"
            )
        return prompts

    def held_out(self, source: str) -> Given:
        if not source:
            raise ValueError(
                "this model has no prompts of its own: pass --prompt TEXT to dualrate sample, or name a run that was "
                "trained with prompts"
            )
        prompts = self.partners(source, "test", label=None, on_bad="fail")
        return Given(prompts.packed.rows, prompts.texts)

    def conditioned(self, targets: TrainingSet, partners: TrainingSet | None = None) -> Conditioned:
        """Each of class 0: its prompt counts."""
        conditioned = super().conditioned(targets, partners)
        conditioned.labels, conditioned.class_names = np.zeros(len(conditioned), np.int64), ("prompt",)
        return conditioned
