"""`dualrate train`: a recipe, trained. `dualrate adapt`: low-rank adapters by phase."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from dualrate.data.latent_set import ENCODING
from dualrate.experiment.experiment import Experiment, Stages
from dualrate.forecasts import clip_recipe
from dualrate.forecasts import recipe as forecasts
from dualrate.options.console import data_progress, reporter
from dualrate.options.going_on import options_of
from dualrate.options.parsing import HELP, Device, override, recipe_named, recipe_result, with_own_options
from dualrate.options.training import OfExperiment, Run, of_model
from dualrate.recipes import auto, cifar10, fashion_mnist, fashion_mnist_latents, imagenet
from dualrate.recipes.published import as_published, as_sid2, listed_costs
from dualrate.recipes.students import AdaptRecipe, by_consistency
from dualrate.runs.train import in_stages
from dualrate.system.device import pick_device
from dualrate.system.launch import is_launched
from dualrate.texts import recipe as texts

FILES = (auto, forecasts, clip_recipe, fashion_mnist, fashion_mnist_latents, texts, cifar10, imagenet)
RECIPES: dict[str, Callable[[], Experiment]] = {
    name: recipe for file in FILES for name, (_, recipe) in file.RECIPES.items()
}
STAGES: dict[str, Callable[[], Stages]] = {
    name: recipe for file in (clip_recipe, fashion_mnist_latents, imagenet) for name, (_, recipe) in file.STAGES.items()
}
DESCRIBED: dict[str, str] = {
    name: text for file in FILES for name, (text, _) in (file.RECIPES | getattr(file, "STAGES", {})).items()
}
FIRST = (  # of each family, what to begin with
    "auto",
    "forecast",
    "fashion-mnist-first",
    "fashion-mnist-dual-45",
    "fashion-mnist-latents",
    "fashion-mnist-decoder",
    "fashion-mnist-tokens-dual",
    "text-tokens",
    "cifar10-dual",
    "imagenet64-dual",
    "imagenet256-dual",
    "imagenet512-latents",
    "imagenet-decoder",
)
# sources of recipes; empty: of fields or clips, as is said later
SOURCES = {name: recipe.data.source for name, (_, recipe) in forecasts.RECIPES.items()} | {"forecast": "", "clips": ""}
NO_IMAGES = {name: {"condition": {"type": "Forecast"}, "data": {"source": place}} for name, place in SOURCES.items()}
NO_IMAGES |= {"text-tokens": {"codec": {"type": "Characters"}}}
LIST = "--list"


@dataclass(frozen=True)
class Train(OfExperiment):
    """Train a recipe. The same command resumes."""

    by: Annotated[Literal["denoising", "consistency"], arg(name="method")] = "denoising"
    """denoising: the recipe's own loss. consistency: training from data for few steps of DDIM (--method.steps)."""
    form: Annotated[Literal["recipe", "paper", "sid2"], arg(name="as")] = "recipe"
    """paper: a dual-rate recipe in the form of its paper. Features are concatenated, the light network runs at every
    step, heavy calls lie on an even grid from t = 1, sampling is ancestral. sid2: U-ViTs with GroupNorm, as
    in SiD2, and with patches by a wavelet or with skips of every block where --networks.model.downsampling and
    --networks.model.skips say so."""


FORMS = {"paper": as_published, "sid2": as_sid2}


class Adapt(OfExperiment):
    """Give a run few steps: a grid of times, and low-rank adapters by phase. The same command resumes."""

    enough = 0  # Glance's has 60 samples, and the grid alone none


@dataclass(frozen=True)
class TrainStages:
    """Train a recipe of two stages. The same command resumes.

    In one process; for several, train the stages one by one (dualrate data encode in between).
    """

    stages: Annotated[Stages, arg(name="")]
    out: Path | None = None
    """Directory of the stages first (the codec), latents and base (the model to sample); runs/<recipe> if not given."""
    device: Device = None

    def run(self) -> None:
        if is_launched():
            raise ValueError("two stages are trained in one process: train them one by one, or drop torchrun")
        out, where, progress = self.out or Path("runs") / self.stages.name, pick_device(self.device), reporter()
        for experiment, folder in in_stages(self.stages, out, device=where, progress=data_progress(progress, ENCODING)):
            progress.close()
            if Run(out=folder, device=self.device).train(experiment, whole=False).stopped != "done":
                return


def usage(every: bool) -> str:
    """The text of `dualrate train` without a recipe: FIRST, or every recipe."""
    lines = ["usage: dualrate train RECIPE [options]    (dualrate train RECIPE --help for its options)", ""]
    lines += [f"  {name:28} {text}" for name, text in DESCRIBED.items() if every or name in FIRST]
    lines.append(f"  {'package.module:function':28} a recipe of your own")
    more = [] if every else ["", f"dualrate train {LIST} names all {len(DESCRIBED)} recipes."]
    return "\n".join(lines + more)


def parse_train(arguments: list[str]) -> Train | TrainStages:
    """The options of a recipe. Raises SystemExit after listing the recipes, ValueError for a name that is none."""
    name = arguments[0] if arguments else ""
    if name in ("", LIST, *HELP):
        print(usage(name == LIST))
        raise SystemExit(0 if name else 2)
    if name in STAGES:
        stages, rest = with_own_options(STAGES[name], arguments, "train", {})
        return override(TrainStages(stages()), rest, "train")
    run = NO_IMAGES.get(name, {} if name in RECIPES else None)
    recipe, rest = with_own_options(recipe_named(name, RECIPES, "train"), arguments, "train", run)
    experiment, options = recipe_result(recipe(), Experiment, name), options_of(rest)
    if options.get("--method") == ["consistency"]:  # which has its own options
        experiment = (imagenet.pixels_by_consistency if name in imagenet.ON_PIXELS else by_consistency)(experiment)
    if form := FORMS.get("".join(options.get("--as", ()))):
        ours, experiment = experiment, form(experiment)
        if not is_launched():
            print(listed_costs(experiment, ours), file=sys.stderr)
    return override(Train(experiment), rest, "train", recipe)


def parse_adapt(arguments: list[str]) -> Adapt:
    """A run first, then the recipe's options and those of the experiment that it makes."""
    like = "runs/heavy --images photos --phases 2 --out runs/ten"
    return of_model("adapt", AdaptRecipe(), Adapt, arguments, "RUN", like)
