"""The data of a run: where they are, and how they become what networks see."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from dualrate.config.ranges import Range, Ranged, Side
from dualrate.data.images import ImageSet, load_images
from dualrate.data.latent_set import encoded_images, is_encoded, read_latents
from dualrate.data.loader import Augment, TrainingSet
from dualrate.data.source import DataProgress, Split, silent
from dualrate.experiment.modality import reader_of


@dataclass(frozen=True)
class DataConfig(Ranged):
    """Images, a text, or fields over time."""

    source: str = "fashion-mnist"
    """Images: fashion-mnist, a folder (of images, of archives, or written by dualrate data prepare), a .tar, .parquet
    or .npz file. Text: a .txt file, or python-docs, the language reference that comes with Python. Fields over time: a
    .npz, .npy, .h5, .nc, .zarr or .grib file, a folder or pattern ('*.nc') of such files, kuramoto-sivashinsky,
    kolmogorov, moving-sprites, barotropic-t21 or barotropic-t42. Clips: clips:PLACE, of a file or folder. Empty:
    unknown."""
    size: Side | None = None
    """Side that images are resized to. Default: their own. For text: characters per piece. Default: 64."""
    channels: Literal[1, 3] | None = None
    """1 for grey, 3 for colour. Default: as the images are."""
    on_bad: Literal["fail", "skip"] = "fail"
    """An image that cannot be read ends the program (fail) or is left out (skip)."""
    label: str | None = None
    """Column of the labels in Parquet files, by default label, labels, fine_label, class or target; or array of the
    labels in .npz, by default labels or arr_1."""
    augment: Augment = Augment()
    variables: tuple[str, ...] = ()
    """Variables of fields that are read, by names or those of their levels (t_850), in this order. Default: all."""
    levels: tuple[Annotated[float, Range(-1e12, 1e12)], ...] = ()
    """Levels of fields that are read, of variables that have some. Each is a channel. Default: all."""
    fps: Annotated[float, Range(0, 1000, above=True)] | None = None
    """Frames a second that are read of clips: those that are shown then. Pictures in a folder are taken to be as far
    apart. Default: each frame."""

    def at(self, source: str) -> DataConfig:
        """Copies this with another source; for latents, with their own size and labels, `augment` alone is kept."""
        return replace(DataConfig(augment=self.augment) if is_encoded(source) else self, source=source)

    def load(self, split: Split, progress: DataProgress | None = None) -> TrainingSet:
        """The items that networks are trained on: one split of the images, or of their cached latents.

        Raises ValueError for latents with a size of their own, what `read_latents` and `load_images` raise.
        """
        if not is_encoded(self.source):
            return self.items(split, progress)
        self.refuse(
            "holds latents, which have their size and labels", "size", "channels", "label", "variables", "levels", "fps"
        )
        return read_latents(self.source, split)

    def items(self, split: Split, progress: DataProgress | None = None) -> TrainingSet:
        """One split of the images, or of what else the source holds. Raises as `images` and `Modality.read`."""
        modality = reader_of(self.source)
        return self.images(split, progress) if modality is None else modality.read(self, split, progress or silent)

    def images(self, split: Split, progress: DataProgress | None = None) -> ImageSet:
        """One split of the images: of latents those that they were made of. Raises as `load` and `load_images`."""
        if not self.source:
            raise ValueError(
                "this model does not say which images it was trained on: score it beside a run of theirs (dualrate "
                "compare RUN MODEL --mixed), against statistics (evaluate --features inception --reference FILE), or "
                "images of texts by the texts (evaluate --prompt FILE --features CLIP)"
            )
        if is_encoded(self.source):
            return encoded_images(self.source, split, progress)
        if (modality := reader_of(self.source)) is not None:
            return modality.images(self, split, progress or silent)
        self.refuse("holds images, which have no variables, levels and times", "variables", "levels", "fps")
        return load_images(self.source, split=split, progress=progress, **self.preparation)

    def refuse(self, what: str, *names: str) -> None:
        """Raises ValueError where one of these settings is given. what: the source holds, which takes none of them"""
        if options := [f"--data.{name}" for name in names if getattr(self, name) != getattr(DataConfig(), name)]:
            raise ValueError(f"{self.source} {what}: drop {' and '.join(options).replace('augment', 'augment.*')}")

    @property
    def preparation(self) -> dict[str, Any]:
        """How images become what networks see, as `load_images` and `encode` take it."""
        return {"size": self.size, "channels": self.channels, "on_bad": self.on_bad, "label": self.label}
