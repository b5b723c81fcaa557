"""Texts by their characters: pieces of 64 under masked or uniform diffusion, at one rate or two, for a CPU."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from dualrate.codecs.tokens import Characters
from dualrate.data.text import PIECE, PYTHON_DOCS, is_text, read_text
from dualrate.diffusion.categorical import Masked, Uniform
from dualrate.experiment.experiment import DataConfig, Experiment
from dualrate.experiment.tokens import OneTransformer, TwoTransformers
from dualrate.methods.denoising import DenoisingConfig
from dualrate.methods.times import SingleTime, TimeSampler
from dualrate.networks.tokens import TokensConfig
from dualrate.recipes.latents import FIT
from dualrate.recipes.students import DISTILLING, StudentRecipe

HEAVY, LIGHT = (128, 4), (64, 1)  # channels, blocks
TEXT_FIT = replace(FIT, iterations=4000)
PROCESSES = {"mask": Masked(), "uniform": Uniform()}


@dataclass(frozen=True)
class Text:
    """A model of a text: your own, --data.source FILE.txt, or the reference of the Python that runs it."""

    data: DataConfig = DataConfig(source=PYTHON_DOCS, size=PIECE)
    rate: Literal["single", "dual"] = "single"
    """dual: a heavy network now and then, a light one at every step. single: the heavy one at every step."""
    noise: Literal["mask", "uniform"] = "mask"
    """What replaces a character: a mask, or any other."""

    def __call__(self) -> Experiment:
        """Raises what `read_text` raises, and ValueError for a source that is no text."""
        if not is_text(self.data.source):
            raise ValueError(f"text-tokens is of texts, got {self.data.source}: name a .txt file, or {PYTHON_DOCS}")
        data = replace(self.data, size=self.data.size or PIECE)
        text = read_text(data.source, "train", data.size or PIECE)
        codec = Characters(text.alphabet, mask=self.noise == "mask")
        heavy, light = (
            TokensConfig(codec.categories, text.shape[2], channels=channels, blocks=blocks, embedding=128, head_dim=32)
            for channels, blocks in (HEAVY, LIGHT)
        )
        networks, times = {
            "single": (OneTransformer(heavy), SingleTime()),
            "dual": (TwoTransformers(heavy, light), TimeSampler(heavy=(4, 32))),
        }[self.rate]
        of = f"{'-dual' * (self.rate == 'dual')}{'-uniform' * (self.noise == 'uniform')}"
        method, process = DenoisingConfig(times), PROCESSES[self.noise]
        return Experiment(f"text-tokens{of}", networks, method, TEXT_FIT, data, process, codec)


def distilled() -> StudentRecipe:
    """Students of the single models; a light network in proportion to its teacher's."""
    return StudentRecipe(None, None, DISTILLING, noise=4)


RECIPES = {"text-tokens": ("a text by its characters, at one rate or two", Text())}
