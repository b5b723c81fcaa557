"""`dualrate sample`: images of a run in a folder. `dualrate cost`: what a call and an image of a run cost."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from dualrate.config.ranges import BatchSize, Images, Precision, Ranged, Seed
from dualrate.drawing.cost import cost_report
from dualrate.drawing.samples import write_samples
from dualrate.options.console import Machine, command_line, print_report
from dualrate.options.parsing import AsJson, AtATime, Nproc, Prompt, RunDir, SharedWork
from dualrate.options.sampling import SamplingOptions
from dualrate.system.progress import image_progress
from dualrate.system.workers import mapper
from dualrate.texts.codec import BETWEEN


@dataclass(frozen=True)
class Sample(Ranged, SharedWork):
    """Draw images from a run: PNG files, a grid, and a report of their cost. The same command continues after a kill.

    A text model writes pieces of text to the terminal, each piece to a file of its own, and all to OUT/samples.txt.
    """

    run_dir: RunDir
    out: Path
    """Directory for the images: new, empty, or with samples of the same model and plan, to which it adds."""
    sampling: Annotated[SamplingOptions, arg(name="")] = SamplingOptions()
    num: Images | None = None
    """Number of images in OUT, including those already there. Default: 64, or one for each picture of --given or prompt
    of --prompt. With --members M it counts conditions, and each condition gets M images."""
    given: Path | None = None
    """A picture, or a folder of pictures in the order of their paths, to use as conditions: small, grey, with
    transparent holes, or the other one of a pair, as in training. Default: conditions from held-out images."""
    prompt: Prompt = None
    label: str | None = None
    """One class for all images, by name, or by number where no name is one; every class in turn if not given."""
    seed: Seed = 0
    """Seed of the first image; image i has seed + i, whatever the batch size."""
    batch_size: AtATime = 125
    precision: Precision = "auto"
    """auto: bfloat16 where it is faster. In float32 an image does not depend on the batch size."""
    npz: bool = False
    """Also write images.npz: arr_0 (N, H, W, C) uint8, arr_1 labels."""
    nproc: Nproc = 1
    machine: Annotated[Machine, arg(name="")] = Machine()
    json: AsJson = False

    def run(self) -> None:
        model, progress = self.machine.loaded(self.run_dir, self.prompt)
        if self.given is not None:
            model = model.with_given(model.experiment.read_given(self.given))
        num = self.num or (64 if model.conditions is None else len(model.conditions.y))
        drawer = self.sampling.drawer(
            model, progress.note, label=self.label, batch_size=self.batch_size, precision=self.precision
        )
        with closing(progress):
            written = write_samples(
                drawer,
                range(self.seed, self.seed + num),
                self.out,
                npz=self.npz,
                progress=image_progress(progress),
                mapper=mapper(model.device),
                command=command_line(),
            )
        noun, cost = model.experiment.noun, written.cost
        report: dict[str, object] = {
            "run": str(self.run_dir),
            f"{noun}s": num * drawer.members,
            "drawn": written.drawn,
            "out": str(self.out),
            "steps": drawer.plan.num_steps,
            f"heavy_calls_per_{noun}": cost.heavy_calls,
            f"light_calls_per_{noun}": cost.light_calls,
            f"macs_per_{noun}": cost.macs,
            f"flops_per_{noun}": cost.flops,
            f"seconds_per_{noun}": written.seconds / written.drawn if written.drawn else None,
            "batch_size": min(drawer.batch_size, num * drawer.members),
            "precision": written.precision,
        }
        if drawer.guidance.weight != 1:
            report["guidance"] = f"{drawer.guidance.weight:g}, calls with and without the label counted"
        if written.texts is not None and self.json:
            report["pieces"] = written.texts
        elif written.texts is not None:
            print(BETWEEN.join(written.texts) + "\n")
        print_report(self.json, report)


@dataclass(frozen=True)
class Cost(Ranged):
    """Count parameters, MACs and FLOPs of a heavy call, a light call and an image of a run, and measure latency."""

    run_dir: RunDir
    sampling: Annotated[SamplingOptions, arg(name="")] = SamplingOptions()
    prompt: Prompt = None
    batch_size: BatchSize = 1
    """Images per call when latency is measured."""
    machine: Annotated[Machine, arg(name="")] = Machine()
    json: AsJson = False

    def run(self) -> None:
        model, progress = self.machine.loaded(self.run_dir, self.prompt)
        report = cost_report(self.sampling.drawer(model, progress.note, batch_size=self.batch_size))
        if not self.json and not report["macs_heavy_call"]:  # one kind of call: no lines of zeros and repetitions
            report = {k: v for k, v in report.items() if not ("_heavy_call" in k or "_alone" in k)}
        print_report(self.json, report)
