"""Prompts on a server: a request's text, and no file or folder of the server; without one, held-out prompts by seed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, cast

from numpy.typing import NDArray
from torch import Tensor

from dualrate.data.condition_rows import Given
from dualrate.denoisers.denoiser import Denoiser
from dualrate.drawing.drawer import Drawer
from dualrate.experiment.model import Model
from dualrate.pipelines.retrofitted import encoder_of
from dualrate.sampling.trajectory import State
from dualrate.serving.work import Service, Work

LATEST = 64  # prompts that are held, in float32
Encode = Callable[[str], Tensor]  # text -> (1, 1, 1, D)


def encoder(model: Model) -> Encode:
    """The text encoders of a model. Raises as `encoder_of`."""
    folder, device = encoder_of(model.experiment), model.device
    return lru_cache(LATEST)(lambda text: folder.read(device)([text]).float())


@dataclass(frozen=True, eq=False)
class OfPrompts(Work):
    """Images of prompts. prompts: these, for the model that draws"""

    prompts: Callable[[Model], Given]

    def draw(self, drawer: Drawer, denoiser: Denoiser, watch: Callable[[State], None]) -> NDArray[Any]:
        drawer = replace(drawer, model=drawer.model.with_given(self.prompts(drawer.model)))
        return super().draw(drawer, denoiser, watch)


class PromptService(Service):
    """Takes `prompt`, a text, which is encoded for one request at a time: a model and its baseline may share encoders.

    Raises ValueError where the text encoders are gone.
    """

    takes = "prompt"

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self.encoders: dict[str, Encode] = {model.weights_hash: encoder(model)}  # and of a baseline
        self.encoding = threading.Lock()

    def encode(self, model: Model, text: str) -> Tensor:
        with self.encoding:
            if model.weights_hash not in self.encoders:
                self.encoders[model.weights_hash] = encoder(model)
            return self.encoders[model.weights_hash](text)

    def work(self, wish: Any, seed: int, count: int | None, members: int, most: int) -> Work:
        seeds = super().work(wish, seed, count, members, most).seeds
        if wish is not None and wish.strip():
            return OfPrompts(seeds, lambda model: Given(self.encode(model, wish), (wish,)))
        try:
            _ = self.model.given
        except (ValueError, OSError) as error:
            raise ValueError(f"prompt is a text: {self.model.name} has no held-out prompts of its own here") from error
        return OfPrompts(seeds, self.held_out)

    def held_out(self, model: Model) -> Given:
        """The held-out prompts of the service's model, for all models of its text encoders; of others their own."""
        alike = model.experiment.condition.identity == self.model.experiment.condition.identity
        return cast(Given, (self.model if alike else model).given)
