"""Whole clips, as the engine asks for them: images of T C channels, shown as rows of frames and in motion."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dualrate.data.images import to_uint8
from dualrate.diffusion.context import Shape
from dualrate.experiment.modality import Modality
from dualrate.metrics.evaluate import Evaluator
from dualrate.report.image_grid import Pictures, save_grid, side_by_side
from dualrate.system.progress import Reporter


@dataclass(frozen=True)
class ClipFiles(Pictures):
    """Files of clips (T C, H, W): a PNG each, whose frames stand from left to right; and some in motion.

    frames: T
    """

    frames: int

    @property
    def sheet(self) -> Shape:
        """(C, H, T W)"""
        channels, height, width = self.shape
        return channels // self.frames, height, self.frames * width

    def content(self, sample: NDArray[np.uint8]) -> bytes:
        return super().content(side_by_side(sample[None], self.frames)[0])

    def is_whole(self, file: Path) -> bool:
        return Pictures(self.sheet).is_whole(file)

    def read(self, file: Path) -> NDArray[np.uint8]:
        channels, height, _ = self.sheet
        return super().read(file).reshape(channels, height, self.frames, -1).transpose(2, 0, 1, 3).reshape(self.shape)

    def show(self, samples: NDArray[np.uint8], directory: Path, columns: int | None) -> None:
        """Writes grid.png, a row a clip, and grid.webp, in motion, of the first of them."""
        from dualrate.forecasts.film import Film
        from dualrate.system.files import write_whole

        Pictures(self.sheet).show(side_by_side(samples, self.frames), directory, columns or 1)
        some = samples[:MOVING].reshape(-1, self.frames, self.sheet[0], *self.shape[1:])
        write_whole(directory / GRID_WEBP, Film({str(i): clip for i, clip in enumerate(some)}, 0).animation())


MOVING, GRID_WEBP = 8, "grid.webp"


class OfClips(Modality):
    """A sample is a whole clip."""

    noun, served = "clip", False

    def makes(self, experiment: Any) -> bool:
        return experiment.networks.frames > 1

    def evaluator_by(self, folder: Path, data: Any, device: Any, progress: Reporter) -> Evaluator[Any] | None:
        from dualrate.forecasts.i3d import FILE, i3d_evaluator

        return i3d_evaluator(folder, data, device, progress) if (folder / FILE).is_file() else None

    def files(self, model: Any) -> Pictures:
        return ClipFiles(model.image_shape, model.experiment.networks.frames)

    def save(self, experiment: Any, samples: Callable[[], Tensor], file: Path) -> None:
        save_grid(side_by_side(to_uint8(samples()), experiment.networks.frames), file, columns=1, scale=2)


MODALITY = OfClips()
