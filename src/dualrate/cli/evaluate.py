"""`dualrate evaluate`: the score of a run, or a bound on the likelihood of held-out images (--bound)."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from dualrate.cli.console import command_line, loaded, print_json, print_report, reporter
from dualrate.cli.recipe import AsJson, AtATime, Compile, Device, Graphs, Prompt, Workers
from dualrate.cli.sampling_options import SamplingOptions
from dualrate.config.ranges import Images, Ranged, Seed
from dualrate.drawing.drawer import Drawer
from dualrate.drawing.likelihood import FITTED_ON
from dualrate.experiment.modality import Modality, maker_of
from dualrate.sampling.catalogue import ANCESTRAL
from dualrate.system.device import environment, pick_device
from dualrate.system.progress import Reporter, image_progress

SCORED, BOUNDED = 5000, 500  # images
FEATURES = ("features", "reference", "keep", "details", "equal_classes")  # options of what compares features


@dataclass(frozen=True)
class Evaluate(Ranged):
    """Score a run: Frechet distance in the features of the data set's network (FD-<net>), FID, FD-DINOv2.

    With --members samples of a condition are scored too: fair CRPS, energy score, PSNR, spread over skill.

    A forecast of fields is scored over one window from held-out starts, by lead time and by variable.

    A text model is scored by its bound in bits per character, the entropy of its samples, and a language model that is
    trained on first use. --bound gives a bound on the likelihood of test images. --images scores existing images.
    """

    run_dir: Annotated[
        Positional[Path | None], arg(metavar="[RUN]", help="Directory of a run, or of released weights.")
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
    """Feature networks, separated by commas: inception (FID), dinov2, efficientnet, the name of a shipped one, its
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
    """Bound the negative log-likelihood of test images instead, in bits per dimension or per token."""
    variance: Literal["measured", "own"] = "measured"
    """With --bound: the variance of the steps. measured: as measured on training images. own: the sampler's
    (--gamma)."""
    batch_size: AtATime = 125
    workers: Workers = 1
    compile: Compile = False
    graphs: Graphs = False
    device: Device = None
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
        from dualrate.drawing.evaluators import evaluators, features_named
        from dualrate.drawing.latents import latent_scores
        from dualrate.drawing.measure import check, measure, scored_together
        from dualrate.report.table import as_text, table
        from dualrate.system.workers import mapper

        features_named(self.features)  # refused before the model is loaded
        model, progress = loaded(run, self.device, prompt=self.prompt, compiled=self.compile, graphs=self.graphs)
        how = {"batch_size": self.batch_size, "equal_classes": self.equal_classes}
        drawer = self.sampling.drawer(model, progress.note, **how)
        seeds, show = range(self.seed, self.seed + (self.num or SCORED)), image_progress(progress)
        if (modality := maker_of(model.experiment)).other_scores:
            self._score_otherwise(drawer, modality, progress)
            return
        try:
            metrics = evaluators(
                model.experiment.data, self.features, reference=self.reference, device=model.device, progress=progress
            )
            check(metrics, len(seeds), details=self.details)
        except ValueError as error:
            if not scored_together(drawer, seeds):
                raise
            self._score_members(drawer, seeds, progress, str(error))
            return
        with mapper(self.workers, model.device) as over:
            measured = measure(
                drawer,
                seeds,
                *metrics,
                keep=self.keep,
                details=self.details,
                ensemble=True,
                progress=show,
                mapper=over,
            )
        row, latents = measured.row, latent_scores(drawer, seeds, measured, metrics)
        progress.close()
        if self.json:
            about = {"latents": latents and asdict(latents), "weights": model.identity, "command": command_line()}
            about |= {"flops": row.flops, "environment": environment(model.device)}
            print_json(asdict(row) | about)
            return
        print(as_text(table([row])))
        for scores in (latents, row.ensemble):
            if scores is not None:
                print(f"\n{scores}")
        if row.score.details is not None:
            print(f"\n{row.score.details}")

    def _score_members(self, drawer: Drawer, seeds: range, progress: Reporter, lacking: str) -> None:
        """Scores that need no features. lacking: why there are none"""
        from dualrate.drawing.measure import ensemble_scores

        self._refuse(FEATURES, lacking)
        progress.note(f"no Frechet distance: {lacking}")
        with closing(progress):
            scores = ensemble_scores(drawer, seeds, progress=image_progress(progress))
        assert scores is not None
        if self.json:
            about = {"weights": drawer.model.identity, "command": command_line(), "macs": drawer.cost.macs}
            print_json({"ensemble": asdict(scores)} | about | {"environment": environment(drawer.model.device)})
            return
        print(scores)

    def _score_images(self, source: str) -> None:
        drawing = ("prompt", "num", "seed", "keep", "bound", "equal_classes", *vars(self.sampling))
        self._refuse(drawing, "--images scores images that exist, and draws and bounds none")
        from dualrate.drawing.measure import score_source
        from dualrate.runs.store import read_experiment

        progress, data = reporter(), None if self.run_dir is None else read_experiment(self.run_dir).data
        with closing(progress):
            scores = score_source(
                source,
                data,
                reference=self.reference,
                features=self.features,
                details=self.details,
                device=pick_device(self.device),
                progress=progress,
            )
        if self.json:
            print_json({"images": source, "scores": [asdict(score) for score in scores]})
            return
        for score in scores:
            print(
                f"{score.metric} {score.value:.4g} [{score.low:.4g}, {score.high:.4g}] of {score.fingerprint.count:,} "
                f"images, floor {score.floor:.4g}; {score.note}"
            )
            if score.details is not None:
                print(score.details)

    def _score_otherwise(self, drawer: Drawer, modality: Modality, progress: Reporter) -> None:
        """Scores of what is no image."""
        self._refuse(FEATURES, modality.other_scores)
        with closing(progress):
            report = modality.score(drawer, self.num, self.seed, self.workers, progress)
        if self.json:
            about = {"weights": drawer.model.identity, "steps": drawer.plan.num_steps, "members": drawer.members}
            about |= {"macs": drawer.cost.macs, "environment": environment(drawer.model.device)}
            print_json(report.plain | about)
            return
        if report.rows:
            print_report(False, report.rows)
            print()
        print(report.text)

    def _refuse(self, options: Iterable[str], why: str) -> None:
        mine, defaults = vars(self) | vars(self.sampling), vars(Evaluate()) | vars(SamplingOptions())
        if refused := [f"--{name.replace('_', '-')}" for name in options if mine[name] != defaults[name]]:
            raise ValueError(f"{why}: drop {', '.join(refused)}")

    def _bound(self, run: Path) -> None:
        from dualrate.drawing.evaluators import messages
        from dualrate.drawing.likelihood import bits_per_dimension, bits_per_token, check_bounded, fit_variance

        if self.variance == "measured" and self.sampling.gamma is not None:
            raise ValueError("--gamma sets the variance that the measured one replaces: add --variance own")
        self._refuse(FEATURES, "--bound compares no features")
        model, progress = loaded(run, self.device, compiled=self.compile, graphs=self.graphs)
        check_bounded(model)
        sampling = replace(self.sampling, sampler=self.sampling.sampler or ANCESTRAL)
        drawer = sampling.drawer(model, progress.note, batch_size=self.batch_size)
        count, note = self.num or BOUNDED, messages(progress.note)
        how: dict[str, Any] = {"seed": self.seed, "progress": image_progress(progress)}
        test, of_tokens = model.experiment.data.images("test", note), model.experiment.codec.instant
        if not 2 <= count <= len(test):
            raise ValueError(f"{test.name} has {len(test)} for testing: --num is 2 to {len(test)}, got {count}")
        with closing(progress):
            if of_tokens:
                bits = bits_per_token(drawer, test, count=count, **how)
            else:
                if self.variance == "measured":
                    train = model.experiment.data.images("train", note)
                    fitted = min(FITTED_ON, len(train))
                    progress.note(f"measuring the variance of the steps on {fitted} training images")
                    drawer = replace(drawer, step=fit_variance(drawer, train, count=fitted, **how))
                    progress.close()
                bits = bits_per_dimension(drawer, test, count=count, **how)
        report = {"run": str(run), "num_steps": drawer.plan.num_steps, "num_heavy": drawer.plan.num_heavy}
        report |= {"sampler": drawer.sampler}
        if self.json:
            print_json(report | asdict(bits))
            return
        terms = {"last step": bits.each_step[-1], "bound": bits.total}
        if not of_tokens:
            terms = {"prior": bits.prior, "steps": bits.steps, "reconstruction": bits.reconstruction} | terms
        print_report(False, report | {"images": f"{count} of the test data of {test.name}"} | terms)
        print(f"\nbound: on the mean of -log2 p from above, in bits a {'token' if of_tokens else 'dimension'}")
