"""Prompts on a server: a request's text, and no file or folder of the server; without one, held-out prompts by seed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

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
    """The text encoders of a model, called for one request at a time. Raises as `encoder_of`."""
    folder, device, lock = encoder_of(model.experiment), model.device, threading.Lock()
    encoded = lru_cache(LATEST)(lambda text: folder.read(device)([text]).float())

    def encode(text: str) -> Tensor:
        with lock:
            return encoded(text)

    return encode


@dataclass(frozen=True, eq=False)
class OfPrompt(Work):
    """Images of a prompt."""

    text: str
    encode: Callable[[Model, str], Tensor]

    def draw(self, drawer: Drawer, denoiser: Denoiser, watch: Callable[[State], None]) -> NDArray[Any]:
        given = Given(self.encode(drawer.model, self.text), (self.text,))
        return super().draw(replace(drawer, model=drawer.model.with_given(given)), denoiser, watch)


class PromptService(Service):
    """Takes `prompt`, a text. Raises ValueError where the text encoders are gone."""

    takes = "prompt"

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self.encoders: dict[str, Encode] = {model.weights_hash: encoder(model)}  # and of a baseline

    def encode(self, model: Model, text: str) -> Tensor:
        if model.weights_hash not in self.encoders:
            self.encoders[model.weights_hash] = encoder(model)
        return self.encoders[model.weights_hash](text)

    def work(self, wish: Any, seed: int, count: int | None, members: int, most: int) -> Work:
        seeds = super().work(wish, seed, count, members, most).seeds
        if wish is not None and wish.strip():
            return OfPrompt(seeds, wish, self.encode)
        try:
            _ = self.model.given
        except (ValueError, OSError) as error:
            raise ValueError(f"prompt is a text: {self.model.name} has no held-out prompts of its own here") from error
        return Work(seeds)
