"""`dualrate export`: a run's averaged weights for release, for diffusers, or for torch alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from dualrate.cli.console import reporter
from dualrate.cli.sampling_options import SamplingOptions
from dualrate.config.ranges import Ranged
from dualrate.runs.store import COVARIANCE

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
        what, kept = {
            "weights": ("released weights do", ()),
            "torch-export": ("a program does", PLAN),
            "diffusers": ("a pipeline does", (*PLAN, *DRAWING, "license", "score", "push_to_hub")),
        }[form]
        usual, card = SamplingOptions(), {"license": "unknown", "score": None, "push_to_hub": None}
        given = [name for name, value in vars(self.sampling).items() if value != getattr(usual, name)]
        given += [name for name, value in card.items() if value != getattr(self, name)]
        if wrong := [f"--{name.replace('_', '-')}" for name in given if name not in kept]:
            raise ValueError(f"{what} not hold {' and '.join(wrong)}: drop them")
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
        from dualrate.runs.release import export

        (form, place), note, choice = self._target(), reporter().note, self.sampling.choice()
        if form == "weights":
            tables = [folder / COVARIANCE for folder in (self.run_dir, place) if (folder / COVARIANCE).exists()]
            export(self.run_dir, place, note)
            if tables:
                note(f"{tables[0]} was of other weights: measure it anew by dualrate plan calibrate {place}")
        elif form == "torch-export":
            export_programs(self.run_dir, place, choice, note)
        else:
            try:
                from dualrate.integrations.hub import export_pipeline, push
            except ModuleNotFoundError as error:
                if str(error.name).split(".")[0] not in ("diffusers", "huggingface_hub"):
                    raise
                raise ValueError(NO_DIFFUSERS) from error
            card: dict[str, Any] = {"license": self.license, "score": self.score, "name": self.push_to_hub}
            export_pipeline(self.run_dir, place, choice, self.sampling.guided, note=note, **card)
            if self.push_to_hub is not None:
                note(f"pushed: {push(place, self.push_to_hub, license=self.license)}")
        print(place)
