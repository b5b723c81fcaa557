"""Services: what a server draws of a model for a request, and how it shows that; images of seeds, unless a wing says
otherwise (`Modality.service`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dualrate.denoisers.denoiser import Denoiser
from dualrate.drawing.drawer import Drawer
from dualrate.experiment.model import Model
from dualrate.sampling.trajectory import State

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Answer:
    """Samples as a client gets them.

    pictures: (N, C, H, W), as many as `Work.titles`; arrays: the numbers themselves, where pictures do not hold them
    facts:    more about them, ready for JSON
    """

    pictures: Pixels
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Work:
    """Samples that a request asks for. seeds: of them, each of which has its members"""

    seeds: range

    def titles(self, drawer: Drawer) -> list[str]:
        """A title for each picture."""
        seeds, names = [seed for seed in self.seeds for _ in range(drawer.members)], drawer.model.class_names
        if drawer.model.num_classes < 2:
            return [f"seed {seed}" for seed in seeds]
        labels = [names[label] if label < len(names) else f"class {label}" for label in drawer.labels(seeds) or ()]
        return [f"seed {seed}, {label}" for seed, label in zip(seeds, labels, strict=True)]

    def draw(self, drawer: Drawer, denoiser: Denoiser, watch: Callable[[State], None]) -> NDArray[Any]:
        """The samples, by this denoiser of the drawer. Raises as `Drawer.batches`."""
        return np.concatenate(list(drawer.batches(self.seeds, watch=watch, denoiser=denoiser)))

    def preview(self, drawer: Drawer, x_hat: Tensor) -> Tensor | None:
        """Pictures (N, C, H, W) in [-1, 1] of what the model expects to see in the end; None: there are none."""
        return x_hat if x_hat.ndim == 4 and x_hat.shape[1] in (1, 3) else None

    def answer(self, drawer: Drawer, samples: NDArray[Any]) -> Answer:
        """The samples for a client."""
        return Answer(samples)


class Service:
    """Makes the work of requests.

    takes: the field of a request that says what samples are made of, "prompt" or "start"; empty: their seeds do
    usual: samples, and members of each, where a request does not say; bytes: that the field may take
    """

    takes = ""
    usual = 8, 1
    bytes = 0

    def __init__(self, model: Model) -> None:
        self.model = model

    @property
    def picture(self) -> tuple[int, int]:
        """(H, W) of a picture."""
        return self.model.image_shape[1:]

    def work(self, wish: Any, seed: int, count: int | None, members: int, most: int) -> Work:
        """Work of a request.

        wish: the value of its field, None where it has none; seed: the first; count: of seeds; most: samples at all
        Raises ValueError, which begins with the name of the field, for another wish than it takes.
        """
        return Work(range(seed, seed + (count or max(1, min(self.usual[0], most) // members))))
