"""`dualrate retrofit`: a light network beside a model of diffusers. `dualrate export`: a run's averaged weights as a
pipeline of diffusers, or for release.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from dualrate.config.ranges import Ranged
from dualrate.options.console import reporter
from dualrate.options.sampling import SamplingOptions
from dualrate.options.training import OfExperiment, of_model
from dualrate.pipelines.recipe import RetrofitRecipe
from dualrate.runs.release import export

CARD = {"license": "unknown", "score": None, "push_to_hub": None}  # of a pipeline alone
LEFT_OUT = ("denoiser", "codec", "codec_sampler", "codec_steps", "members")  # options of sampling, by a pipeline
NO_DIFFUSERS = "a diffusers pipeline needs diffusers, which is not installed: pip install 'dualrate[diffusers]'"


class Retrofit(OfExperiment):
    """Make a diffusers model dual-rate by training a light network beside it. The same command resumes."""


def parse_retrofit(arguments: list[str]) -> Retrofit:
    """A diffusers folder first, then the recipe's options and those of the experiment that it makes."""
    like = "mymodel --data.source photos --share 0.3 --out runs/pair"
    return of_model("retrofit", RetrofitRecipe(), Retrofit, arguments, "FOLDER --data.source IMAGES", like)


@dataclass(frozen=True)
class Export(Ranged):
    """Write a run's averaged weights for release, with a card, or a diffusers pipeline."""

    run_dir: Annotated[Positional[Path], arg(metavar="RUN")]
    """Directory of a run; with --to also of released weights."""
    out: Path | None = None
    """Directory for released weights: bfloat16 safetensors, the run's experiment and a card."""
    to: Annotated[tuple[Literal["diffusers"], Path] | None, arg(metavar="diffusers DIR")] = None
    """Instead of --out: a pipeline, for DualRatePipeline.from_pretrained(DIR)."""
    sampling: Annotated[SamplingOptions, arg(name="")] = SamplingOptions()
    license: str = "unknown"
    """Licence of the weights, for the pipeline's card, as the Hub names it: apache-2.0, ..."""
    score: Path | None = None
    """A file with the output of dualrate evaluate RUN --json, for the pipeline's card."""
    push_to_hub: Annotated[str | None, arg(metavar="OWNER/NAME")] = None
    """Push the pipeline to this repository of the Hub. A new repository is created as private."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.out is None) == (self.to is None):
            raise ValueError("name one place: --out DIR (released weights) or --to diffusers DIR")
        usual, mine = vars(SamplingOptions()) | CARD, vars(self.sampling) | vars(self)
        named = [name for name in usual if mine[name] != usual[name] and (self.to is None or name in LEFT_OUT)]
        if wrong := [f"--{name.replace('_', '-')}" for name in named]:
            what = "released weights do" if self.to is None else "a pipeline does"
            raise ValueError(f"{what} not hold {' and '.join(wrong)}: drop them")
        if self.push_to_hub is not None and self.license == "unknown":
            raise ValueError("weights for others need a licence: name one, such as --license apache-2.0")

    def run(self) -> None:
        if self.out is not None:
            export(self.run_dir, self.out, reporter().note)
            print(self.out)
        elif self.to is not None:
            self._pipeline(self.to[1])
            print(self.to[1])

    def _pipeline(self, folder: Path) -> None:
        try:
            from dualrate.pipelines.hub import export_pipeline, push
        except ModuleNotFoundError as error:
            if str(error.name).split(".")[0] not in ("diffusers", "huggingface_hub"):
                raise
            raise ValueError(NO_DIFFUSERS) from error

        note, how, hub = reporter().note, self.sampling, self.push_to_hub
        export_pipeline(
            self.run_dir, folder, how.choice(), how.guided, license=self.license, score=self.score, name=hub, note=note
        )
        if hub is not None:
            note(f"pushed: {push(folder, hub, license=self.license)}")
