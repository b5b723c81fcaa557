"""`dualrate export`: a run's averaged weights for release, for diffusers, or for torch alone."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from dualrate.cli.console import reporter
from dualrate.cli.sampling_options import SamplingOptions
from dualrate.config.ranges import Ranged
from dualrate.system.progress import Reporter

Form = Literal["diffusers", "torch-export"]
NO_DIFFUSERS = "a pipeline of diffusers needs diffusers, which is not installed: pip install 'dualrate[diffusers]'"


@dataclass(frozen=True)
class Export(Ranged):
    """Write a run's averaged weights for release, with a card; or as a pipeline of diffusers, or for torch alone."""

    run_dir: Annotated[Positional[Path], arg(metavar="RUN")]
    """Directory of a run; with --to also of released weights."""
    out: Path | None = None
    """Directory for released weights: bfloat16 safetensors, the run's experiment and a card."""
    to: Annotated[tuple[Form, Path] | None, arg(metavar="{diffusers,torch-export} DIR")] = None
    """In place of --out. diffusers: a pipeline, for DualRatePipeline.from_pretrained(DIR). torch-export: a program of
    each network, for any number of images, which torch runs without dualrate."""
    sampling: Annotated[SamplingOptions, arg(name="")] = SamplingOptions()
    license: str = "unknown"
    """Of the weights, for the pipeline's card, as the Hub names it: apache-2.0, ..."""
    score: Path | None = None
    """A file with what dualrate evaluate RUN --json printed, for the pipeline's card."""
    push_to_hub: Annotated[str | None, arg(metavar="OWNER/NAME")] = None
    """Send the pipeline to this repository of the Hub, made private if there is none; nothing is sent otherwise."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.out is None) == (self.to is None):
            raise ValueError("say where to: --out DIR (released weights), --to diffusers DIR or --to torch-export DIR")
        form = None if self.to is None else self.to[0]
        own, usual = self.sampling, SamplingOptions()
        plan = ("steps", "heavy", "places", "switch_at", "plan", "grid", "times")
        taken = {
            None: (),
            "torch-export": plan,
            "diffusers": (*plan, "sampler", "gamma", "eta", "guidance", "interval"),
        }
        wrong = [
            f"--{field.name.replace('_', '-')}"
            for field in fields(own)
            if field.name not in taken[form] and getattr(own, field.name) != getattr(usual, field.name)
        ]
        if form != "diffusers":
            card = {"--license": self.license != "unknown", "--score": self.score, "--push-to-hub": self.push_to_hub}
            wrong += [option for option, given in card.items() if given]
        if wrong:
            what = {None: "released weights do", "torch-export": "a program does", "diffusers": "a pipeline does"}[form]
            raise ValueError(f"{what} not hold {' and '.join(wrong)}: drop them")
        if self.push_to_hub is not None and self.license == "unknown":
            raise ValueError("what others shall use has a licence: say which, such as --license apache-2.0")

    def run(self) -> None:
        progress = reporter()
        if self.to is None:
            self._release(progress)
            return
        form, folder = self.to
        {"diffusers": self._pipeline, "torch-export": self._programs}[form](folder, progress)
        print(folder)

    def _release(self, progress: Reporter) -> None:
        from dualrate.runs.release import export
        from dualrate.runs.store import COVARIANCE

        assert self.out is not None
        tables = [place for place in (self.run_dir, self.out) if (place / COVARIANCE).exists()]
        export(self.run_dir, self.out, progress.note)
        print(self.out)
        if tables:
            progress.note(
                f"{tables[0] / COVARIANCE} was of other weights: measure it anew by dualrate plan calibrate {self.out}"
            )

    def _pipeline(self, folder: Path, progress: Reporter) -> None:
        try:
            from dualrate.integrations.hub import export_pipeline, push
        except ModuleNotFoundError as error:
            if str(error.name).split(".")[0] not in ("diffusers", "huggingface_hub"):
                raise
            raise ValueError(NO_DIFFUSERS) from error

        export_pipeline(
            self.run_dir,
            folder,
            self.sampling.choice(),
            self.sampling.guided,
            license=self.license,
            score=self.score,
            name=self.push_to_hub,
            note=progress.note,
        )
        if self.push_to_hub is not None:
            progress.note(f"pushed: {push(folder, self.push_to_hub, license=self.license)}")

    def _programs(self, folder: Path, progress: Reporter) -> None:
        from dualrate.integrations.programs import export_programs

        export_programs(self.run_dir, folder, self.sampling.choice(), progress.note)
