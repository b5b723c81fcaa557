"""`dualrate export`: a run's averaged weights for release, for diffusers, or for torch alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from dualrate.cli.console import reporter
from dualrate.cli.sampling_options import SamplingOptions
from dualrate.config.ranges import Ranged

Form = Literal["diffusers", "torch-export"]
PLAN = ("steps", "heavy", "places", "switch_at", "plan", "grid", "times")  # options of sampling that a form keeps
DRAWING = ("sampler", "gamma", "eta", "guidance", "interval")
NO_DIFFUSERS = "a pipeline of diffusers needs diffusers, which is not installed: pip install 'dualrate[diffusers]'"


@dataclass(frozen=True)
class Export(Ranged):
    """Write a run's averaged weights for release, with a card; or as a pipeline of diffusers, or for torch alone."""

    run_dir: Annotated[Positional[Path], arg(metavar="RUN")]
    """Directory of a run; with --to also of released weights."""
    out: Path | None = None
    """Directory for released weights: bfloat16 safetensors, the run's experiment and a card."""
    to: Annotated[tuple[Form, Path] | None, arg(metavar="{diffusers,torch-export} DIR")] = None
    """Instead of --out. diffusers: a pipeline, for DualRatePipeline.from_pretrained(DIR). torch-export: a program of
    each network, for any number of images, which torch runs without dualrate."""
    sampling: Annotated[SamplingOptions, arg(name="")] = SamplingOptions()
    license: str = "unknown"
    """Licence of the weights, for the pipeline's card, as the Hub names it: apache-2.0, ..."""
    score: Path | None = None
    """A file with the output of dualrate evaluate RUN --json, for the pipeline's card."""
    push_to_hub: Annotated[str | None, arg(metavar="OWNER/NAME")] = None
    """Send the pipeline to this repository of the Hub, which is made private if it is new."""

    def __post_init__(self) -> None:
        super().__post_init__()
        form, _ = self._target()
        taken = {"weights": (), "torch-export": PLAN, "diffusers": (*PLAN, *DRAWING)}[form]
        usual = SamplingOptions()
        wrong = [
            name for name in vars(usual) if name not in taken and getattr(self.sampling, name) != getattr(usual, name)
        ]
        if form != "diffusers":
            card = {"license": self.license != "unknown", "score": self.score, "push_to_hub": self.push_to_hub}
            wrong += [name for name, given in card.items() if given]
        if wrong:
            what = {"weights": "released weights do", "torch-export": "a program does", "diffusers": "a pipeline does"}
            options = " and ".join(f"--{name.replace('_', '-')}" for name in wrong)
            raise ValueError(f"{what[form]} not hold {options}: drop them")
        if self.push_to_hub is not None and self.license == "unknown":
            raise ValueError("weights for others need a licence: name one, such as --license apache-2.0")

    def _target(self) -> tuple[str, Path]:
        """What to write, and where. Raises ValueError unless one place is named."""
        if self.to is not None and self.out is None:
            return self.to
        if self.out is not None and self.to is None:
            return "weights", self.out
        raise ValueError("name one place: --out DIR (released weights), --to diffusers DIR or --to torch-export DIR")

    def run(self) -> None:
        from dualrate.integrations.programs import export_programs

        (form, place), note = self._target(), reporter().note
        if form == "weights":
            self._release(place, note)
        elif form == "diffusers":
            self._pipeline(place, note)
        else:
            export_programs(self.run_dir, place, self.sampling.choice(), note)
        print(place)

    def _release(self, out: Path, note: Callable[[str], None]) -> None:
        from dualrate.runs.release import export
        from dualrate.runs.store import COVARIANCE

        tables = [place for place in (self.run_dir, out) if (place / COVARIANCE).exists()]
        export(self.run_dir, out, note)
        if tables:
            note(f"{tables[0] / COVARIANCE} was of other weights: measure it anew by dualrate plan calibrate {out}")

    def _pipeline(self, folder: Path, note: Callable[[str], None]) -> None:
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
            note=note,
        )
        if self.push_to_hub is not None:
            note(f"pushed: {push(folder, self.push_to_hub, license=self.license)}")
