"""`dualrate evaluate`: the score of a run, or a bound on the likelihood of held-out images (--bound)."""

from __future__ import annotations

import json
import math
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import torch
from tyro.conf import Positional, arg

from dualrate.cli.console import command_line, loaded, reporter
from dualrate.cli.recipe import AsJson, AtATime, Compile, Device, Graphs, Workers
from dualrate.cli.sampling_options import SamplingOptions
from dualrate.config.ranges import Images, LogSNR, Ranged, Seed
from dualrate.drawing.drawer import Drawer
from dualrate.drawing.likelihood import FITTED_ON, GREY_LEVEL
from dualrate.sampling.catalogue import ANCESTRAL
from dualrate.system.device import environment, pick_device
from dualrate.system.progress import Reporter, image_progress

SCORED, BOUNDED = 5000, 500  # images


@dataclass(frozen=True)
class Evaluate(Ranged):
    """Score a run: Frechet distance in the features of the data set's network (FD-<net>), FID, FD-DINOv2.

    A model of texts is scored by its bound in bits a character, the entropy of its samples, and a language model that
    is trained on first use. --bound gives a bound on the likelihood of test images. --images scores existing images.
    """

    run_dir: Annotated[
        Positional[Path | None], arg(metavar="[RUN]", help="Directory of a run, or of released weights.")
    ] = None
    images: str | None = None
    """A folder, archive or .npz file of images to score, instead of drawing any."""
    sampling: Annotated[SamplingOptions, arg(name="")] = SamplingOptions()
    num: Images | None = None
    """Number of images; if not given 5000, with --bound 500 test images."""
    seed: Seed = 0
    """Seed of the first image; image i has seed + i."""
    features: str | None = None
    """Feature networks, separated by commas: inception (FID), dinov2, efficientnet, directories, shipped names; the
    data set's own if not given, which is trained on first use."""
    reference: Path | None = None
    """A .npz of statistics (mu, sigma) to score against, instead of the training images. With --images and no RUN
    also a folder, archive or .npz of real images."""
    keep: Path | None = None
    """Directory for the features of the images as they are drawn: the same command continues there."""
    details: bool = False
    """Also report kernel distance, precision and recall against the training images."""
    bound: bool = False
    """Instead bound the negative log-likelihood of test images, in bits per dimension or per token."""
    variance: Literal["measured", "own"] = "measured"
    """With --bound: the variance of the steps, as measured on training images or as the sampler has it (--gamma)."""
    end: LogSNR = GREY_LEVEL
    """With --bound: log-SNR at which the plan ends and rounding begins; by default noise is one grey level wide."""
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
        from dualrate.drawing.latents import latent_scores
        from dualrate.drawing.measure import evaluators, features_named, measure
        from dualrate.report.table import as_text, table
        from dualrate.system.workers import mapper

        features_named(self.features)  # refused before the model is loaded
        model, progress = loaded(run, self.device, compiled=self.compile, graphs=self.graphs)
        drawer = self.sampling.drawer(model, progress.note, batch_size=self.batch_size)
        seeds, show = range(self.seed, self.seed + (self.num or SCORED)), image_progress(progress)
        if model.experiment.codec.alphabet:
            self._score_texts(drawer, seeds, progress)
            return
        metrics = evaluators(
            model.experiment.data, self.features, reference=self.reference, device=model.device, progress=progress
        )
        with mapper(self.workers, model.device, progress.note) as over:
            measured = measure(
                drawer, seeds, *metrics, keep=self.keep, details=self.details, progress=show, mapper=over
            )
        row, kept = measured.row, latent_scores(drawer, seeds, measured, metrics)
        progress.close()
        if self.json:
            about = {"latents": kept and asdict(kept), "weights": model.weights_hash, "command": command_line()}
            about |= {"flops": row.flops, "environment": environment(model.device)}
            print(json.dumps(asdict(row) | about))
            return
        print(as_text(table([row])))
        if kept is not None:
            print(f"\n{kept}")
        if row.score.details is not None:
            print(f"\n{row.score.details.text()}")

    def _score_images(self, source: str) -> None:
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
            print(json.dumps({"images": source, "scores": [asdict(score) for score in scores]}))
            return
        for score in scores:
            print(
                f"{score.metric} {score.value:.4g} [{score.low:.4g}, {score.high:.4g}] of {score.fingerprint.count:,} "
                f"images, floor {score.floor:.4g}; {score.note}"
            )
            if score.details is not None:
                print(score.details.text())

    def _score_texts(self, drawer: Drawer, seeds: range, progress: Reporter) -> None:
        from dualrate.drawing.likelihood import score_texts
        from dualrate.drawing.measure import evaluator
        from dualrate.system.workers import mapper

        self._refuse_features("a model of texts has other metrics")
        metric = evaluator(drawer.model.experiment.data, progress=progress)
        with closing(progress), mapper(self.workers, drawer.model.device, progress.note) as over:
            found = score_texts(drawer, seeds, metric, progress=image_progress(progress), mapper=over)
        if self.json:
            about = {"weights": drawer.model.weights_hash, "steps": drawer.plan.num_steps, "macs": drawer.cost.macs}
            print(json.dumps(asdict(found) | about | {"environment": environment(drawer.model.device)}))
            return
        print(
            f"{drawer.network}, {drawer.plan.num_steps} steps; {len(seeds)} samples, {len(found.bound.images)} "
            f"held-out pieces; bits a character, ± standard error\n\n"
            f"bound            {found.bound.total} of held-out pieces\n"
            f"language model   {found.drawn.bits} of samples, {found.held_out.bits} of held-out pieces\n"
            f"entropy          {found.drawn.entropy} of samples, {found.held_out.entropy} of held-out pieces\n"
            f"gradient moment  {found.gradient_moment} of samples, {found.floor} of training pieces "
            f"({found.language_model})"
        )
        if (far := found.distance) is not None:
            print(f"{far.metric:17}{far.value:.4g} [{far.low:.4g}, {far.high:.4g}], floor {far.floor:.4g}; {far.note}")

    def _refuse_features(self, why: str) -> None:
        if given := [name for name in ("features", "reference", "keep", "details") if getattr(self, name)]:
            raise ValueError(f"{why}: drop {', '.join(f'--{name}' for name in given)}")

    def _bound(self, run: Path) -> None:
        from dualrate.drawing.likelihood import bits_per_dimension, bits_per_token, check_bounded, ending, fit_variance
        from dualrate.drawing.measure import messages

        if self.variance == "measured" and self.sampling.gamma is not None:
            raise ValueError("--gamma sets the variance that the measured one replaces: add --variance own")
        self._refuse_features("--bound compares no features")
        model, progress = loaded(run, self.device, compiled=self.compile, graphs=self.graphs)
        check_bounded(model)
        sampling = replace(self.sampling, sampler=self.sampling.sampler or ANCESTRAL)
        drawer = sampling.drawer(model, progress.note, batch_size=self.batch_size)
        count, show, note = self.num or BOUNDED, image_progress(progress), messages(progress.note)
        test = model.experiment.data.images("test", note)
        if not 2 <= count <= len(test):
            raise ValueError(f"{test.name} has {len(test)} for testing: --num is 2 to {len(test)}, got {count}")
        plan, of_tokens = drawer.plan, model.experiment.codec.instant
        report = {"run": str(run), "num_steps": plan.num_steps, "num_heavy": plan.num_heavy, "sampler": drawer.sampler}
        noise = 0.0  # in grey levels, of the state that the last step starts from
        with closing(progress):
            if of_tokens:
                found = bits_per_token(drawer, test, count=count, seed=self.seed, progress=show)
            else:
                plan = ending(plan, model.process.schedule, self.end)
                if self.variance == "measured":
                    train = model.experiment.data.images("train", note)
                    fitted = min(FITTED_ON, len(train))
                    progress.note(f"measuring the variance of {plan.num_steps} steps on {fitted} training images")
                    step = fit_variance(drawer, train, count=fitted, end=self.end, seed=self.seed, progress=show)
                    drawer = replace(drawer, step=step)
                    progress.close()
                found = bits_per_dimension(drawer, test, count=count, end=self.end, seed=self.seed, progress=show)
                ends = model.process.schedule.log_snr(torch.tensor(plan.t[-2:], dtype=torch.float64)).tolist()
                noise = math.exp((GREY_LEVEL - ends[0]) / 2)
                report |= {"sampler": drawer.sampler, "end_log_snr": ends[1]}
        if self.json:
            print(json.dumps(report | asdict(found)))
            return
        calls = f"{plan.num_steps} steps, {plan.num_heavy} heavy"
        print(f"{count} of the test data of {test.name}; {drawer.sampler}; {calls}\n")
        last, whole = found.each_step[-1], found.total.value
        if of_tokens:
            print(f"bits a token, at most: {found.total} (standard error); the last step {last:.3f} of it")
            return
        print(f"{'term':16}{'bits/dim':>10}{'+- SE':>10}{'share':>8}")
        for name, term in (("prior", found.prior), ("steps", found.steps), ("reconstruction", found.reconstruction)):
            print(f"{name:16}{term.value:10.4f}{term.error:10.4f}{term.value / whole:8.1%}")
            if name == "steps":
                print(f"{'  the last one':16}{last:10.4f}{'':10}{last / whole:8.1%}")
        print(f"{'bound':16}{whole:10.4f}{found.total.error:10.4f}\n")
        print("An upper bound on the mean of -log2 p(image) per value: lower is better.")
        fine = (last + found.reconstruction.value) / whole
        print(f"{fine:.0%} of it is the last step and the rounding: detail below noise of {noise:.2g} grey levels.")
