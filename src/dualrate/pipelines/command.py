"""`dualrate retrofit`: a light network beside a model of diffusers."""

from __future__ import annotations

from dualrate.options.training import OfExperiment, of_model
from dualrate.pipelines.recipe import RetrofitRecipe


class Retrofit(OfExperiment):
    """Make a diffusers model dual-rate by training a light network beside it. The same command resumes."""


def parse_retrofit(arguments: list[str]) -> Retrofit:
    """A diffusers folder first, then the recipe's options and those of the experiment that it makes."""
    like = "mymodel --data.source photos --share 0.3 --out runs/pair"
    return of_model("retrofit", RetrofitRecipe(), Retrofit, arguments, "FOLDER --data.source IMAGES", like)
