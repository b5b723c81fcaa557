"""Whole clips, as the engine asks for them: images of T C channels, shown as rows of frames and in motion."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dualrate.diffusion.context import Shape
from dualrate.experiment.modality import Modality
from dualrate.report.image_grid import Pictures, save_grid


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

    def laid_out(self, clips: Any) -> Any:
        """(N, T C, H, W) -> (N, C, H, T W), arrays or tensors."""
        count, height, width = len(clips), *self.shape[1:]
        apart = clips.reshape(count, self.frames, -1, height, width)
        return apart.swapaxes(1, 2).swapaxes(2, 3).reshape(count, *self.sheet)

    def content(self, sample: NDArray[np.uint8]) -> bytes:
        return super().content(self.laid_out(sample[None])[0])

    def is_whole(self, file: Path) -> bool:
        return Pictures(self.sheet).is_whole(file)

    def read(self, file: Path) -> NDArray[np.uint8]:
        channels, height, _ = self.sheet
        return super().read(file).reshape(channels, height, self.frames, -1).transpose(2, 0, 1, 3).reshape(self.shape)

    def show(self, samples: NDArray[np.uint8], directory: Path, columns: int | None) -> None:
        """Writes grid.png, a row a clip, and grid.webp, in motion, of the first of them."""
        from dualrate.forecasts.film import Film
        from dualrate.system.files import write_whole

        Pictures(self.sheet).show(self.laid_out(samples), directory, columns or 1)
        some = samples[:MOVING].reshape(-1, self.frames, self.sheet[0], *self.shape[1:])
        write_whole(directory / GRID_WEBP, Film({str(i): clip for i, clip in enumerate(some)}, 0).animation())


MOVING, GRID_WEBP = 8, "grid.webp"


class OfClips(Modality):
    """A sample is a whole clip."""

    noun = "clip"

    def makes(self, experiment: Any) -> bool:
        from dualrate.forecasts.clip_networks import OfClip

        return isinstance(experiment.networks, OfClip)

    def files(self, model: Any) -> Pictures:
        return ClipFiles(model.image_shape, model.experiment.networks.frames)

    def save(self, experiment: Any, samples: Tensor, file: Path) -> None:
        channels, height, width = samples.shape[1:]
        clips = ClipFiles((channels, height, width), experiment.networks.frames)
        save_grid(clips.laid_out(samples), file, columns=1, scale=2)


MODALITY = OfClips()
