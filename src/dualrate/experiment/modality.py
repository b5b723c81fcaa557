"""Questions of the engine to an application, where it does not know itself: whose a source is, how it is read, scored.

An application is a folder of its own with a module `modality`, or several, whose MODALITY is one of these; its line in
WINGS is all that the rest of the package knows of it. A modality says only what differs from images; its methods import
what they need when they are called. Whoever asks takes the first that knows: fields before texts, since an .npz may be
both fields and images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from dualrate.config.imports import import_module
from dualrate.data.condition_rows import Given
from dualrate.data.images import ImageSet, to_uint8
from dualrate.data.loader import TrainingSet
from dualrate.data.source import DataProgress, Split
from dualrate.metrics.evaluate import Evaluator
from dualrate.report.evaluation import Evaluation
from dualrate.report.image_grid import Pictures, save_grid
from dualrate.system.progress import Reporter

WINGS = (
    "dualrate.forecasts.modality",
    "dualrate.forecasts.clip_modality",
    "dualrate.texts.modality",
    "dualrate.pipelines.modality",
)


@dataclass(frozen=True)
class ForeignModel:
    """A model that another library saved. experiment: that stands for it; weights: reads them, in float32"""

    experiment: Any
    weights: Callable[[], dict[str, Tensor]]
    class_names: tuple[str, ...] = ()


class Modality:
    """Images, as far as nothing is overridden. data: a `DataConfig`; experiment: an `Experiment`

    noun:         what one sample is called
    served:       whether a server can show samples
    other_scores: why features of images do not score its samples, in words; empty: they do
    """

    noun, served = "image", True
    other_scores = ""

    def reads(self, source: str) -> bool:
        """Whether a source is of this modality, by its name or what it holds."""
        return False

    def makes(self, experiment: Any) -> bool:
        """Whether samples of a model are of this modality."""
        return False

    def read(self, data: Any, split: Split, progress: DataProgress) -> TrainingSet:
        """One split of a source that it reads. Raises what reading raises."""
        raise NotImplementedError

    def images(self, data: Any, split: Split, progress: DataProgress) -> ImageSet:
        """The same as images. Raises ValueError for what is none."""
        raise ValueError(f"{data.source} holds {self.noun}s, which are no images: name images as --data.source")

    def evaluator(self, data: Any, progress: Reporter, *, alone: bool) -> Evaluator[Any] | None:
        """The scorer of samples of a source that it reads; None: features of images do.

        alone: whether neither features nor a reference are named
        """
        return None

    def evaluator_by(self, folder: Path, data: Any, device: Any, progress: Reporter) -> Evaluator[Any] | None:
        """The scorer of images by the net in a folder; None: the folder holds none that is known here."""
        return None

    def score(self, drawer: Any, count: int | None, seed: int, progress: Reporter) -> Evaluation:
        """Scores of `count` samples that a `Drawer` draws, or of as many as is usual; asked where `other_scores` is."""
        raise NotImplementedError

    def coding(self, drawer: Any) -> int:
        """Multiply-adds of a codec for a sample of a `Drawer`, beside those that it counts."""
        return 0

    def yardstick(self) -> Any:
        """The class, of `compare.yardstick.Yardstick`, that measures its models in a comparison; None: that itself."""
        return None

    def passage(self, experiment: Any, samples: NDArray[Any]) -> str:
        """Samples (N, C, H, W) uint8 as text; empty: they are pictures."""
        return ""

    def files(self, model: Any) -> Pictures:
        """Files that samples of a `Model` are written to. Raises ValueError, with the way, for others than images."""
        return Pictures(model.image_shape)

    def save(self, experiment: Any, samples: Callable[[], Tensor], file: Path) -> None:
        """Show samples (N, C, H, W) of training, in [-1, 1], in a file, whose ending it may change.

        samples: draws them, where they are shown
        """
        save_grid(to_uint8(samples()), file, columns=10, scale=2)

    def model_of(self, path: Path) -> ForeignModel | None:
        """The model in a folder of another library; None: it is none that is known here."""
        return None

    def conditions_named(self, experiment: Any, text: str, device: torch.device | str) -> Given | None:
        """Conditions that a user names for a model to draw of, such as a prompt; None: the model takes none such."""
        return None

    def service(self, model: Any) -> Any:
        """How a server draws and shows samples of a `Model`, a `serving.work.Service`; None: as images of seeds.

        Raises ValueError, with the way, for a model that is not served.
        """
        if not self.served and self.makes(model.experiment):
            raise ValueError(f"{model.name} is a {self.noun} model, the page shows images: use dualrate sample")
        return None


IMAGES = Modality()


def modalities() -> Iterator[Modality]:
    """Modalities of the wings, each imported when it is come to."""
    return (import_module(name).MODALITY for name in WINGS)


def reader_of(source: str) -> Modality | None:
    """Whose source this is; None: it holds images, or latents."""
    return next((each for each in modalities() if each.reads(source)), None)


def maker_of(experiment: Any) -> Modality:
    """The modality of an experiment's samples."""
    return next((each for each in modalities() if each.makes(experiment)), IMAGES)


def model_of(path: Path) -> ForeignModel | None:
    """The model of another library in a folder; None where there is none."""
    return next((model for each in modalities() if (model := each.model_of(path)) is not None), None)


def conditions_named(experiment: Any, text: str, device: torch.device | str) -> Given:
    """Conditions that a user names for a model to draw of. Raises ValueError for a model that takes no such thing."""
    for each in modalities():
        if (conditions := each.conditions_named(experiment, text, device)) is not None:
            return conditions
    raise ValueError(f"{experiment.name} takes no prompts: drop the prompt")


def service_of(model: Any) -> Any:
    """The `Service` of a model's wing; None: it makes images of seeds. Raises ValueError for one that is not served."""
    return next((service for each in modalities() if (service := each.service(model)) is not None), None)
