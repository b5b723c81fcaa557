"""`dualrate evaluate`: the score of a run."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from dualrate.cli.console import reporter
from dualrate.cli.sampling_options import SamplingOptions
from dualrate.config.ranges import BatchSize, Images, Ranged, Seed
from dualrate.machine.device import pick_device
from dualrate.machine.progress import image_progress


@dataclass(frozen=True)
class Evaluate(Ranged):
    """Score a run: Frechet distance in the features of a net trained on the data set (FD-<net>), FID, FD-DINOv2."""

    run_dir: Annotated[Positional[Path], arg(metavar="RUN")]
    """Directory of a run, or of released weights."""
    sampling: Annotated[SamplingOptions, arg(name="")] = SamplingOptions()
    num: Images = 5000
    """Number of images."""
    seed: Seed = 0
    """Of the first image; image i has seed + i."""
    features: Literal["inception", "dinov2"] | Path | None = None
    """Directory of the feature net; the shipped one, or one trained on first use, if not given. inception: FID;
    dinov2: FD-DINOv2."""
    reference: Path | None = None
    """A .npz of statistics (mu, sigma) or images (arr_0) to score against, instead of the training images."""
    keep: Path | None = None
    """Directory that keeps the features as images are drawn: the same command goes on where it was."""
    details: bool = False
    """Also kernel distance, precision and recall, against the training images."""
    batch_size: BatchSize = 125
    """Images at a time; fewer need less memory."""
    device: str | None = None
    """cpu, cuda, ...; cuda if there is one."""
    json: bool = False
    """Print the report as JSON."""

    def run(self) -> None:
        from dualrate.measuring.evaluator import dinov2_evaluator, evaluator, inception_evaluator, require_count
        from dualrate.measuring.measure import measure
        from dualrate.report.table import text_table
        from dualrate.runs.store import load

        require_count(self.num, self.features)
        device, progress = pick_device(self.device), reporter()
        model = load(self.run_dir, device=device, note=progress.note)
        drawer = self.sampling.drawer(model, batch_size=self.batch_size)
        data = model.experiment.data
        if self.features == "inception":
            judge = inception_evaluator(data, reference=self.reference, device=device, progress=progress)
        elif self.features == "dinov2":
            judge = dinov2_evaluator(data, reference=self.reference, device=device, progress=progress)
        else:
            judge = evaluator(data, features=self.features, reference=self.reference, progress=progress)
        seeds, show = range(self.seed, self.seed + self.num), image_progress(progress)
        row = measure(drawer, seeds, judge, keep=self.keep, details=self.details, progress=show).row
        progress.close()
        if self.json:
            print(json.dumps(asdict(row) | {"flops": row.flops}))
            return
        print(text_table([row]))
        if row.score.details is not None:
            print(f"\n{row.score.details.text()}")
