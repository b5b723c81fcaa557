"""Texts, as the engine asks for them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from dualrate.data.images import ImageSet, to_uint8
from dualrate.data.source import DataProgress, Split
from dualrate.experiment.modality import Modality
from dualrate.metrics.evaluate import Evaluator
from dualrate.report.evaluation import Evaluation
from dualrate.report.image_grid import Pictures
from dualrate.report.table import aligned
from dualrate.system.progress import Reporter, image_progress

USUAL = 5000  # pieces that are scored


class OfTexts(Modality):
    """A sample is a piece of text, as an image of one row of characters."""

    noun, served = "text", False
    other_scores = "a text model has other metrics"

    def reads(self, source: str) -> bool:
        from dualrate.texts.pieces import is_text

        return is_text(source)

    def makes(self, experiment: Any) -> bool:
        return bool(experiment.codec.alphabet)

    def images(self, data: Any, split: Split, progress: DataProgress) -> ImageSet:
        from dualrate.texts.pieces import PIECE, read_text

        names = "label", "channels", "augment", "variables", "levels", "fps"
        data.refuse("is a text, which has neither labels nor channels", *names)
        return read_text(data.source, split, data.size or PIECE)

    read = images

    def evaluator(self, data: Any, progress: Reporter, *, alone: bool) -> Evaluator[Any]:
        from dualrate.texts.scores import text_evaluator

        if not alone:
            raise ValueError(f"{data.source} is a text, scored by a language model of it: drop features and reference")
        return text_evaluator(data, progress)

    def score(self, drawer: Any, count: int | None, seed: int, progress: Reporter) -> Evaluation:
        from dualrate.system.workers import mapper
        from dualrate.texts.scores import score_texts, text_evaluator

        seeds, metric = range(seed, seed + (count or USUAL)), text_evaluator(drawer.model.experiment.data, progress)
        how = {"progress": image_progress(progress), "mapper": mapper(drawer.model.device)}
        scores = score_texts(drawer, seeds, metric, **how)
        rows = {"samples": f"{len(seeds)} of {drawer.network} in {drawer.plan.num_steps} steps", **scores.rows()}
        note = f"in bits a character, ± standard error; gradients of {scores.language_model}"
        return Evaluation(scores, asdict(scores), text=f"{aligned(rows)}\n\n{note}")

    def passage(self, experiment: Any, samples: NDArray[Any]) -> str:
        from dualrate.texts.codec import BETWEEN, texts

        return BETWEEN.join(texts(experiment.codec.alphabet, samples))

    def files(self, model: Any) -> Pictures:
        from dualrate.texts.pieces import TextFiles

        return TextFiles(model.image_shape, model.experiment.codec.alphabet)

    def save(self, experiment: Any, samples: Any, file: Path) -> None:
        from dualrate.system.files import write_whole

        write_whole(file.with_suffix(".txt"), self.passage(experiment, to_uint8(samples()).cpu().numpy()) + "\n")


MODALITY = OfTexts()
