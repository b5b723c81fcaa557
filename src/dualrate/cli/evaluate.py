"""`dualrate evaluate`: the score of a run.

`dualrate bound`: the likelihood of held-out images, as a bound in bits per dimension.
"""

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
from dualrate.cli.recipe import AsJson, AtATime, Compile, Device, Graphs, RunDir, Workers
from dualrate.cli.sampling_options import SamplingOptions
from dualrate.config.ranges import Images, LogSNR, Range, Ranged, Seed
from dualrate.data.images import ImageSet
from dualrate.drawing.drawer import Drawer
from dualrate.drawing.likelihood import FITTED_ON, GREY_LEVEL, Likelihood
from dualrate.experiment.experiment import Model
from dualrate.sampling.catalogue import ANCESTRAL
from dualrate.system.device import pick_device
from dualrate.system.environment import environment
from dualrate.system.progress import Reporter, image_progress


@dataclass(frozen=True)
class Evaluate(Ranged):
    """Score a run: Frechet distance in the features of the data set's net (FD-<net>), FID, FD-DINOv2, FD-EfficientNet.

    Of a model of texts: the bound of held-out text in bits a character; the entropy of what it draws; and its bits a
    character and gradient moment under a language model of the text, trained on first use.

    With --images FOLDER: score images that are there already, against the data of RUN or against --reference.
    """

    run_dir: Annotated[
        Positional[Path | None], arg(metavar="[RUN]", help="Directory of a run, or of released weights.")
    ] = None
    images: str | None = None
    """A folder, archive or .npz file of images to score, whoever made them, in place of drawing any."""
    sampling: Annotated[SamplingOptions, arg(name="")] = SamplingOptions()
    num: Images = 5000
    """Number of images."""
    seed: Seed = 0
    """Of the first image; image i has seed + i."""
    features: str | None = None
    """Judges, with commas between: inception (FID), dinov2 (FD-DINOv2), efficientnet (FD-EfficientNet, for a CPU),
    directories of feature nets, names of shipped ones. Not given: the data set's, or one trained on first use."""
    reference: Path | None = None
    """A .npz of statistics (mu, sigma) or images (arr_0) to score against, instead of the training images. Of --images
    without RUN also a folder or archive of real images."""
    keep: Path | None = None
    """Directory that keeps the features as images are drawn: the same command goes on where it was."""
    details: bool = False
    """Also kernel distance, precision and recall, against the training images, by the first judge."""
    batch_size: AtATime = 125
    workers: Workers = 1
    compile: Compile = False
    graphs: Graphs = False
    device: Device = None
    json: AsJson = False

    def run(self) -> None:
        from dualrate.drawing.evaluator import evaluators, features_named
        from dualrate.drawing.latents import latent_scores
        from dualrate.drawing.measure import measure
        from dualrate.report.table import as_text, table
        from dualrate.system.workers import mapper

        if self.images is not None:
            self._images(self.images)
            return
        if self.run_dir is None:
            raise ValueError("name the RUN whose images are scored, or images by --images FOLDER")
        features_named(self.features)  # refused before the model is loaded
        model, progress = loaded(self.run_dir, self.device, compiled=self.compile, graphs=self.graphs)
        drawer = self.sampling.drawer(model, progress.note, batch_size=self.batch_size)
        if model.experiment.codec.alphabet:
            self._texts(drawer, progress)
            return
        found = evaluators(
            model.experiment.data, self.features, reference=self.reference, device=model.device, progress=progress
        )
        seeds, show = range(self.seed, self.seed + self.num), image_progress(progress)
        with mapper(self.workers, model.device, progress.note) as over:
            measured = measure(drawer, seeds, *found, keep=self.keep, details=self.details, progress=show, mapper=over)
        row, kept = measured.row, latent_scores(drawer, seeds, measured, found)
        progress.close()
        if self.json:
            of = {
                "latents": kept and asdict(kept),
                "weights": model.weights_hash,
                "command": command_line(),
            }
            print(json.dumps(asdict(row) | {"flops": row.flops, **of, "environment": environment(model.device)}))
            return
        print(as_text(table([row])))
        if kept is not None:
            print(f"\n{kept}")
        if row.score.details is not None:
            print(f"\n{row.score.details.text()}")

    def _images(self, source: str) -> None:
        """Of images that are there already."""
        from dualrate.drawing.evaluator import score_source
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

    def _texts(self, drawer: Drawer, progress: Reporter) -> None:
        """The bound, entropy, and what a language model says."""
        from dualrate.drawing.evaluator import evaluator
        from dualrate.drawing.likelihood import score_texts
        from dualrate.system.workers import mapper

        if given := [name for name in ("features", "reference", "keep", "details") if getattr(self, name)]:
            raise ValueError(
                "a model of texts is scored by its bound, and by a language model trained on its text: drop "
                f"{' and '.join(f'--{name}' for name in given)}"
            )
        data, seeds = drawer.model.experiment.data, range(self.seed, self.seed + self.num)
        judge = evaluator(data, progress=progress)
        with closing(progress), mapper(self.workers, drawer.model.device, progress.note) as over:
            found = score_texts(drawer, seeds, judge, progress=image_progress(progress), mapper=over)
        if self.json:
            of = {"weights": drawer.model.weights_hash, "steps": drawer.plan.num_steps, "macs": drawer.cost.macs}
            print(json.dumps(asdict(found) | of | {"environment": environment(drawer.model.device)}))
            return
        print(
            f"{drawer.network}, {drawer.plan.num_steps} steps; {self.num} pieces drawn, {len(found.bound.images)} held "
            f"out; bits a character, ± standard error\n\n"
            f"bound            {found.bound.total} of held-out pieces\n"
            f"language model   {found.drawn.bits} of what was drawn, {found.held_out.bits} of held-out pieces; "
            f"low also where a text repeats itself\n"
            f"entropy          {found.drawn.entropy} within a piece, {found.held_out.entropy} in held-out ones\n"
            f"gradient moment  {found.gradient_moment} from held-out pieces, {found.floor} of pieces of the training "
            f"split; compares under {found.language_model} alone"
        )
        if (far := found.distance) is not None:
            print(f"{far.metric:17}{far.value:.4g} [{far.low:.4g}, {far.high:.4g}], floor {far.floor:.4g}; {far.note}")


@dataclass(frozen=True)
class LikelihoodBound(Ranged):
    """Bound the negative log-likelihood of held-out images, in bits per dimension, term by term.

    Of a model of tokens: in bits a token, under the whole plan; then --variance, --gamma and --end mean nothing.
    """

    run_dir: RunDir
    sampling: Annotated[SamplingOptions, arg(name="")] = SamplingOptions(sampler=ANCESTRAL)
    variance: Literal["measured", "own"] = "measured"
    """Of the steps: what suits training images best, measured first; or the sampler's own (--gamma)."""
    end: LogSNR = GREY_LEVEL
    """Log-SNR at which the plan is cut and the rest is rounding; by default where noise is one grey level wide."""
    num: Annotated[int, Range(2, 10_000_000)] = 500
    """Test images."""
    seed: Seed = 0
    """Of the noise."""
    batch_size: AtATime = 125
    compile: Compile = False
    graphs: Graphs = False
    device: Device = None
    json: AsJson = False

    def run(self) -> None:
        from dualrate.drawing.evaluator import messages
        from dualrate.drawing.likelihood import bits_per_dimension, check_bounded, ending, fit_variance

        if self.variance == "measured" and self.sampling.gamma is not None:
            raise ValueError("--gamma sets the variance that the measured one replaces: add --variance own")
        model, progress = loaded(self.run_dir, self.device, compiled=self.compile, graphs=self.graphs)
        check_bounded(model)
        drawer = self.sampling.drawer(model, progress.note, batch_size=self.batch_size)
        if model.experiment.codec.instant:
            self._of_tokens(drawer, progress)
            return
        plan = ending(drawer.plan, model.process.schedule, self.end)
        data, test = model.experiment.data, self._test_data(model, progress)
        how = {"end": self.end, "seed": self.seed, "progress": image_progress(progress)}
        if self.variance == "measured":
            train = data.images("train", messages(progress.note))
            count = min(FITTED_ON, len(train))
            progress.note(f"measuring the variance of {plan.num_steps} steps on {count} training images")
            drawer = replace(drawer, step=fit_variance(drawer, train, count=count, **how))
            progress.close()
        found = bits_per_dimension(drawer, test, count=self.num, **how)
        progress.close()
        before, end = model.process.schedule.log_snr(torch.tensor(plan.t[-2:], dtype=torch.float64)).tolist()
        if self.json:
            about = {"run": str(self.run_dir), "num_steps": plan.num_steps, "num_heavy": plan.num_heavy}
            print(json.dumps({**about, "sampler": drawer.sampler, "end_log_snr": end, **asdict(found)}))
            return
        print(
            f"{self.num} test images of {test.name}; {drawer.sampler}; {plan.num_steps} steps, {plan.num_heavy} heavy\n"
        )
        print(table(found))
        print(f"\n{verdict(found, _grey_levels(before))}")

    def _of_tokens(self, drawer: Drawer, progress: Reporter) -> None:
        """Which have no variance, and no rounding at the end."""
        from dualrate.drawing.likelihood import bits_per_token

        test = self._test_data(drawer.model, progress)
        how = {"count": self.num, "seed": self.seed, "progress": image_progress(progress)}
        found = bits_per_token(drawer, test, **how)
        progress.close()
        plan = drawer.plan
        if self.json:
            about = {"run": str(self.run_dir), "num_steps": plan.num_steps, "num_heavy": plan.num_heavy}
            print(json.dumps({**about, "sampler": drawer.sampler, **asdict(found)}))
            return
        print(f"{self.num} of the test data of {test.name}; {plan.num_steps} steps, {plan.num_heavy} heavy\n")
        print(f"bits a token, at most: {found.total} (standard error); the last step {found.each_step[-1]:.3f} of it")

    def _test_data(self, model: Model, progress: Reporter) -> ImageSet:
        """Raises ValueError if there are fewer than --num."""
        from dualrate.drawing.evaluator import messages

        test = model.experiment.data.images("test", messages(progress.note))
        if self.num > len(test):
            raise ValueError(f"{test.name} has {len(test)} to be tested on: --num is 2 to {len(test)}, got {self.num}")
        return test


def _grey_levels(log_snr: float) -> float:
    """The noise of a state z / alpha, in distances of two 8-bit values."""
    return math.exp((GREY_LEVEL - log_snr) / 2)


def table(found: Likelihood) -> str:
    """The terms and their sum."""
    whole = found.total.value
    lines = [f"{'term':16}{'bits/dim':>10}{'+- SE':>10}{'share':>8}"]
    for name, term in (("prior", found.prior), ("steps", found.steps), ("reconstruction", found.reconstruction)):
        lines.append(f"{name:16}{term.value:10.4f}{term.error:10.4f}{term.value / whole:8.1%}")
        if name == "steps":
            last = found.each_step[-1]
            lines.append(f"{'  the last one':16}{last:10.4f}{'':10}{last / whole:8.1%}")
    lines.append(f"{'bound':16}{whole:10.4f}{found.total.error:10.4f}")
    return "\n".join(lines)


def verdict(found: Likelihood, noise: float) -> str:
    """What the bound is mostly about. noise: in grey levels, of the state that the last step starts from."""
    fine = (found.each_step[-1] + found.reconstruction.value) / found.total.value
    return (
        "An upper bound on the mean of -log2 p(image) per value: lower is better.\n"
        f"{fine:.0%} of it is the last step and the rounding: detail below noise of {noise:.2g} grey levels."
    )
