"""What an experiment is trained on: images, a text, or cached latents of images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dualrate.config.ranges import Ranged, Side
from dualrate.data.images import ImageSet, load_images
from dualrate.data.latents import encoded_images, is_encoded, read_latents
from dualrate.data.loader import Augment, TrainingSet
from dualrate.data.source import DataProgress, Split
from dualrate.data.text import PIECE, is_text, read_text


@dataclass(frozen=True)
class DataConfig(Ranged):
    """Images, or a text."""

    source: str = "fashion-mnist"
    """fashion-mnist, a folder (of images or archives, or dualrate data prepare's), a .tar, .parquet or .npz file;
    a text: a .txt file, or python-docs, the language reference that comes with Python. Empty: nobody knows."""
    size: Side | None = None
    """Side that images are brought to, their own if not given; of a text, characters of a piece, 64 if not given."""
    channels: Literal[1, 3] | None = None
    """1 grey, 3 colours; the images' own if not given."""
    on_bad: Literal["fail", "skip"] = "fail"
    """What an image that cannot be read does: end the program, or be left out."""
    label: str | None = None
    """Column of the labels, of Parquet files; label, labels, fine_label, class or target if not given."""
    augment: Augment = Augment()

    def load(self, split: Split, progress: DataProgress | None = None) -> TrainingSet:
        """What networks are trained on: one split of the images, or of their cached latents.

        Raises ValueError for latents with a size of their own, what `read_latents` and `load_images` raise.
        """
        if not is_encoded(self.source):
            return self.images(split, progress)
        if (self.size, self.channels, self.label) != (None, None, None):
            raise ValueError(
                f"{self.source} holds latents, which have their size and labels: drop --data.size, --data.channels "
                "and --data.label"
            )
        return read_latents(self.source, split)

    def images(self, split: Split, progress: DataProgress | None = None) -> ImageSet:
        """One split of the images: of latents those that they were made of. Raises as `load` and `load_images`."""
        if not self.source:
            raise ValueError(
                "this model does not say which images it was trained on: score it beside a run of theirs (dualrate "
                "compare RUN MODEL --mixed), or against statistics (evaluate --features inception --reference FILE)"
            )
        if is_encoded(self.source):
            return encoded_images(self.source, split, progress)
        if is_text(self.source) and self.label is not None:
            raise ValueError(f"{self.source} is a text, which has no labels: drop --data.label {self.label}")
        if is_text(self.source):
            return read_text(self.source, split, self.size or PIECE)
        how = {"size": self.size, "channels": self.channels, "on_bad": self.on_bad, "label": self.label}
        return load_images(self.source, split=split, progress=progress, **how)
