"""`dualrate retrofit`: a light network beside a model of diffusers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import arg

from dualrate.cli.recipe import HELP, override, with_own_options
from dualrate.cli.train import Run
from dualrate.experiment.experiment import Experiment
from dualrate.recipes.retrofit import Retrofit as Recipe

USAGE = "usage: dualrate retrofit FOLDER --data.source IMAGES [options] (--help after the folder for its options)"


@dataclass(frozen=True)
class Retrofit(Run):
    """Make a model of diffusers dual-rate: train a light network beside it, or continue: the same command resumes."""

    experiment: Annotated[Experiment, arg(name="")]

    def run(self) -> None:
        self.train(self.experiment)


def parse_retrofit(arguments: list[str]) -> Retrofit:
    """A folder of diffusers first, then the recipe's options and those of the experiment that it makes."""
    if not arguments or arguments[0].startswith("-"):
        print(USAGE)
        raise SystemExit(0 if arguments[:1] and arguments[0] in HELP else 2)
    recipe, rest = with_own_options(Recipe(), arguments, "retrofit")
    return override(Retrofit(recipe(rest[0])), rest, "retrofit")
