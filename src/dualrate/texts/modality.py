"""Texts, as the engine asks for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from dualrate.data.images import ImageSet
from dualrate.data.source import DataProgress, Split
from dualrate.experiment.modality import Modality
from dualrate.metrics.evaluate import Evaluator
from dualrate.system.progress import Reporter


class OfTexts(Modality):
    """A sample is a piece of text, as an image of one row of characters."""

    noun = "text"

    def reads(self, source: str) -> bool:
        from dualrate.texts.pieces import is_text

        return is_text(source)

    def makes(self, experiment: Any) -> bool:
        return bool(experiment.codec.alphabet)

    def images(self, data: Any, split: Split, progress: DataProgress) -> ImageSet:
        from dualrate.texts.pieces import PIECE, read_text

        data.refuse("is a text, which has neither labels nor channels", "label", "channels", "augment")
        return read_text(data.source, split, data.size or PIECE)

    read = images

    def evaluator(self, data: Any, progress: Reporter, *, alone: bool) -> Evaluator[Any]:
        from dualrate.texts.scores import evaluator_of

        if not alone:
            raise ValueError(f"{data.source} is a text, scored by a language model of it: drop features and reference")
        return evaluator_of(data, progress)

    def save(self, experiment: Any, samples: NDArray[Any], file: Path) -> None:
        from dualrate.codecs.token_codec import BETWEEN, texts
        from dualrate.system.files import write_whole

        pieces = texts(experiment.codec.alphabet, samples)
        write_whole(file.with_suffix(".txt"), BETWEEN.join(pieces) + "\n")


MODALITY = OfTexts()
