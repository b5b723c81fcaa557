"""`dualrate evaluate`: the score of a run."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from dualrate.cli.console import command_line, loaded
from dualrate.cli.options import AsJson, AtATime, Compile, Device, Graphs, RunDir, Workers
from dualrate.cli.sampling_options import SamplingOptions
from dualrate.config.ranges import Images, Ranged, Seed
from dualrate.machine.environment import environment
from dualrate.machine.progress import Reporter, image_progress
from dualrate.measuring.drawer import Drawer


@dataclass(frozen=True)
class Evaluate(Ranged):
    """Score a run: Frechet distance in the features of the data set's net (FD-<net>), FID, FD-DINOv2, FD-EfficientNet.

    Of a model of texts: the bound of held-out text in bits a character; the entropy of what it draws; and its bits a
    character and gradient moment under a language model of the text, trained on first use.
    """

    run_dir: RunDir
    sampling: Annotated[SamplingOptions, arg(name="")] = SamplingOptions()
    num: Images = 5000
    """Number of images."""
    seed: Seed = 0
    """Of the first image; image i has seed + i."""
    features: str | None = None
    """Judges, with commas between: inception (FID), dinov2 (FD-DINOv2), efficientnet (FD-EfficientNet, for a CPU),
    directories of feature nets, names of shipped ones. Not given: the data set's, or one trained on first use."""
    reference: Path | None = None
    """A .npz of statistics (mu, sigma) or images (arr_0) to score against, instead of the training images."""
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
        from dualrate.machine.workers import mapper
        from dualrate.measuring.evaluator import evaluators, features_named, require_count
        from dualrate.measuring.latent_scores import latent_scores
        from dualrate.measuring.measure import measure
        from dualrate.report.table import as_text, table

        model, progress = loaded(self.run_dir, self.device, compiled=self.compile, graphs=self.graphs)
        drawer = self.sampling.drawer(model, progress.note, batch_size=self.batch_size)
        if model.experiment.codec.alphabet:
            self._texts(drawer, progress)
            return
        require_count(self.num, features_named(self.features))
        how = {"reference": self.reference, "device": model.device, "progress": progress}
        judges = evaluators(model.experiment.data, self.features, **how)
        seeds, show = range(self.seed, self.seed + self.num), image_progress(progress)
        with mapper(self.workers, model.device, progress.note) as over:
            how = {"keep": self.keep, "details": self.details, "progress": show, "mapper": over}
            measured = measure(drawer, seeds, *judges, **how)
        row, kept = measured.row, latent_scores(drawer, seeds, measured, judges)
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

    def _texts(self, drawer: Drawer, progress: Reporter) -> None:
        """The bound, entropy, and what a language model says."""
        from dualrate.machine.workers import mapper
        from dualrate.measuring.evaluator import evaluator
        from dualrate.measuring.texts import score_texts

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
