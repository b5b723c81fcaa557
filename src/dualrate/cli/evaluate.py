"""`dualrate evaluate`: the score of a run, or a bound on the likelihood of held-out images (--bound)."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from dualrate.comparison.evaluate import bounded, evaluate, refuse
from dualrate.config.ranges import Images, Ranged, Seed
from dualrate.drawing.evaluators import features_named
from dualrate.drawing.likelihood import check_bounded
from dualrate.drawing.measure import score_source
from dualrate.options.console import Machine, command_line, print_json, reporter
from dualrate.options.parsing import AsJson, AtATime, Nproc, Prompt, SharedWork
from dualrate.options.sampling import SamplingOptions
from dualrate.report.evaluation import Evaluation
from dualrate.runs.store import read_experiment
from dualrate.sampling.catalogue import ANCESTRAL
from dualrate.system.device import pick_device
from dualrate.system.launch import check_alone

SCORING = ("seed", "features", "reference", "keep", "details")  # options of `evaluate`
FEATURES = ("features", "reference", "keep", "details", "equal_classes")  # options of what compares features


@dataclass(frozen=True)
class Evaluate(Ranged, SharedWork):
    """Score a run: Frechet distance in the features of the data set's network (FD-<net>), FID.

    With --members samples of a condition are scored too: fair CRPS, energy score, PSNR, spread over skill.

    A forecast of fields is scored over one window from held-out starts, by lead time and by variable.

    A text model is scored by its bound in bits per character, the entropy of its samples, and a language model that is
    trained on first use. --bound gives a bound on the likelihood of test images. --images scores existing images.
    """

    run_dir: Annotated[
        Positional[Path | None], arg(metavar="[RUN]", help="A run, released weights, or a diffusers folder.")
    ] = None
    images: str | None = None
    """A folder, .zip, .tar or .npz file of images to score, instead of drawing any."""
    sampling: Annotated[SamplingOptions, arg(name="")] = SamplingOptions()
    prompt: Prompt = None
    num: Images | None = None
    """Number of images. Default: 5000; with --bound 500 test images; for a forecast 50 starts."""
    seed: Seed = 0
    """Seed of the first image; image i has seed + i."""
    features: str | None = None
    """Feature networks, separated by commas: inception (FID), efficientnet, the name of a shipped one, its
    directory, or the directory of a CLIPModel (CLIP score). Default: the data set's own, trained on first use."""
    reference: Path | None = None
    """A .npz of statistics (mu, sigma) to score against, instead of the training images. With --images and no RUN it
    may also be a folder, .tar or .npz of real images."""
    keep: Path | None = None
    """Directory that keeps the features of the images as they are drawn, so that the same command can continue."""
    equal_classes: bool = False
    """Draw every class equally often, not by its share in the training images, which the distance is from."""
    details: bool = False
    """Also report kernel distance, precision and recall against the training images."""
    bound: bool = False
    """Bound the negative log-likelihood of test images instead, in bits per dimension or per token. The variance of the
    steps is measured on training images."""
    batch_size: AtATime = 125
    nproc: Nproc = 1
    machine: Annotated[Machine, arg(name="")] = Machine()
    json: AsJson = False

    def run(self) -> None:
        if self.images is not None:
            self._score_images(self.images)
        elif self.run_dir is None:
            raise ValueError("name the RUN to score, or images by --images FOLDER")
        elif self.bound:
            self._bound(self.run_dir)
        else:
            self._score_run(self.run_dir)

    def _score_run(self, run: Path) -> None:
        features_named(self.features)  # refused before the model is loaded
        model, progress = self.machine.loaded(run, self.prompt)
        how = {"batch_size": self.batch_size, "equal_classes": self.equal_classes}
        options = {name: getattr(self, name) for name in SCORING}
        scores = evaluate(self.sampling.drawer(model, progress.note, **how), self.num, **options, progress=progress)
        self._print(scores)

    def _score_images(self, source: str) -> None:
        check_alone("evaluate --images")
        drawing = ("prompt", "num", "seed", "keep", "bound", "equal_classes", *vars(self.sampling))
        self._refuse("--images scores images that exist, and draws and bounds none", drawing)

        progress, data = reporter(), None if self.run_dir is None else read_experiment(self.run_dir).data
        with closing(progress):
            how = {"reference": self.reference, "features": self.features, "details": self.details}
            scores = score_source(source, data, **how, device=pick_device(self.machine.device), progress=progress)
        plain = {"images": source, "scores": [asdict(score) for score in scores]}
        self._print(Evaluation(scores, plain, text="\n".join(map(str, scores))))

    def _bound(self, run: Path) -> None:
        self._refuse("the variance of the steps is measured on training images", ("gamma",))
        self._refuse("--bound compares no features", FEATURES)
        check_alone("evaluate --bound")
        model, progress = self.machine.loaded(run)
        check_bounded(model)
        sampling = replace(self.sampling, sampler=self.sampling.sampler or ANCESTRAL)
        drawer = sampling.drawer(model, progress.note, batch_size=self.batch_size)
        self._print(bounded(drawer, self.num, seed=self.seed, progress=progress))

    def _refuse(self, why: str, options: Iterable[str]) -> None:
        mine, defaults = vars(self) | vars(self.sampling), vars(Evaluate()) | vars(SamplingOptions())
        refuse(why, {name: mine[name] != defaults[name] for name in options})

    def _print(self, scores: Evaluation) -> None:
        if self.json:
            print_json({**scores.plain, "command": command_line()})
        else:
            print(scores)
