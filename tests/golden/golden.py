"""Makes the golden files beside this one: python tests/golden/golden.py. They hold what a refactoring must not change.

experiments/   an experiment file of each method, of each kind of network and of each condition, as a run has it
single, ...    runs with a checkpoint of random weights: the table is `runs`
fields.npz     what the forecasts are of
model          a text-to-image pipeline of diffusers, whose text encoders are stubs; latents: images and captions by it
pipeline       the dual run as a folder of diffusers
released       the single run as released weights
earlier        runs, experiments and a pipeline as an earlier version wrote them: these are not made again
earlier/begun  one that `train forecast` began before convolutions went over poles
killed-*       folders of forecasts and of samples that were left half way
images.npz     20 images of each sampler; samples, or four frames, of each other run (replay.py). All in float32 on a
               CPU: other machines draw them up to rounding
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cli.command import call
from latents import autoencoders
from pipelines.models import diffusers, dit, randomised, unet_text
from pipelines.stub_texts import encoders
from pipelines.test_retrofit import saved, tiny_recipe
from replay import GOLDEN, HEAVY, HERE, KILLED, RELEASED, drawn, forecast, images, interrupted, link

import dualrate as dr
from dualrate.cli.distill import Student
from dualrate.cli.train import RECIPES
from dualrate.config.serial import to_plain
from dualrate.data.conditions import SuperResolution
from dualrate.diffusion.categorical import Masked, Uniform
from dualrate.diffusion.prediction import Elbo, Sigmoid
from dualrate.forecasts import recipe as forecasts
from dualrate.forecasts.recipe import Forecasting, ForecastTier
from dualrate.pipelines.command import Export
from dualrate.pipelines.recipe import RetrofitRecipe
from dualrate.pipelines.retrofitted import Retrofitted
from dualrate.recipes import fashion_mnist, fashion_mnist_latents, students, tasks
from dualrate.recipes.auto import Auto
from dualrate.runs.store import read_experiment, write_experiment
from dualrate.sampling.catalogue import SAMPLERS
from dualrate.system.folders import Manifest
from dualrate.texts import recipe as token_models
from dualrate.texts.codec import GreyLevels
from dualrate.texts.networks import OneTransformer, TwoTransformers
from dualrate.texts.transformer import TokensConfig
from dualrate.training import checkpoint

NET = dr.UViTConfig(
    8, 1, (dr.Level("conv", 8, 1), dr.Level("transformer", 16, 1)), 3, patch=2, embedding=16, head_dim=16
)
GREY = GreyLevels(4)
TOKENS = TokensConfig(GREY.categories, 8, 8, 16, 2, 1, num_classes=3, embedding=16, head_dim=16)
FIT = dr.FitConfig(iterations=1)
PLAIN = {
    "single": dr.Experiment("single", dr.OneNetwork(NET), dr.DenoisingConfig(), FIT),
    "dual": dr.Experiment("dual", dr.TwoNetworks(NET, NET), dr.DenoisingConfig(times=dr.TimeSampler()), FIT),
}
STATE = {"iteration": 1, "seconds": 1.0, "skipped": 0, "precision": "float32", "phases": {"model": {}}}
TRAINED = (
    "fashion-mnist-light", "fashion-mnist-dual-25", "fashion-mnist-latents-first",
    "fashion-mnist-latents-base", "fashion-mnist-latents-base-dual", "fashion-mnist-tokens",
    "fashion-mnist-tokens-dual", "fashion-mnist-tokens-uniform", "imagenet64-heavy", "imagenet128-dual",
    "text-tokens",
)  # fmt: skip
FORECASTS = {
    "channels": Forecasting(frames=2),
    "leads": Forecasting(frames=2, window="leads", difference=True),
    "attention": Forecasting(frames=2, window="attention"),
    "rolling": Forecasting(frames=2, trained_by="rolling"),
    "refiner": Forecasting(frames=2, trained_by="refiner"),
}
FIELDS, LATENTS, MODEL = str(GOLDEN / "fields.npz"), str(GOLDEN / "latents"), str(GOLDEN / "model")


def of_condition(name: str, rate: tasks.Rate, trained_by: tasks.TrainedBy) -> dr.Experiment:
    """Experiment of images whose condition has half their side."""
    task, heavy = SuperResolution(2), replace(NET, levels=(dr.Level("conv", 8, 1),) * 2, num_classes=0)
    networks, method = tasks.conditional_networks(task, heavy.shape, heavy, rate, trained_by)
    return dr.Experiment(name, networks, method, FIT, dr.DataConfig("images.npz"), condition=task)


def of_fields(recipe: Forecasting) -> dr.Experiment:
    """Experiment of the fields here, by networks of a few channels."""
    forecasts.TIERS["tiny"] = ForecastTier((8, 8), (1, 1), FIT, embedding=16)
    return replace(recipe, data=dr.DataConfig(FIELDS))()


def retrofitted(data: str, model: str) -> dr.Experiment:
    """Experiment with a light network of a smaller embedding than the recipe's."""
    experiment = RetrofitRecipe(dr.DataConfig(data), share=0.5)(model)
    assert isinstance(experiment.networks, Retrofitted)
    return replace(
        experiment, networks=replace(experiment.networks, light=replace(experiment.networks.light, embedding=16))
    )


def runs() -> dict[str, dr.Experiment]:
    """Experiments of the runs besides `PLAIN`. Their sources are below GOLDEN, or gone."""
    two, pair = dr.DenoisingConfig(times=dr.TimeSampler()), TwoTransformers(TOKENS, TOKENS)
    uniform = replace(GREY, mask=False)
    small = replace(TOKENS, vocabulary=uniform.categories)
    tokens = dr.DataConfig(size=8)
    return {
        "super-resolution": of_condition("super-resolution", "dual", "diffusion"),
        "both": of_condition("both", "both", "diffusion"),
        "residual": of_condition("residual", "dual", "residual"),
        "crps": of_condition("crps", "dual", "crps"),
        **{name: of_fields(recipe) for name, recipe in FORECASTS.items()},
        "tokens": dr.Experiment("tokens", pair, two, FIT, tokens, Masked(), GREY),
        "uniform": dr.Experiment(
            "uniform", OneTransformer(small), dr.DenoisingConfig(), FIT, tokens, Uniform(), uniform
        ),
        "retrofit": retrofitted("images.npz", "dit"),
        "text-to-image": retrofitted(LATENTS, MODEL),
        "phases": students.Adapt(rank=2)(GOLDEN / "single"),
    }


def experiments() -> dict[str, dr.Experiment]:
    """Experiments of the kinds that no run here has, and recipes at their own size."""
    recipe, single = students.StudentRecipe(None, NET, students.DISTILLING), GOLDEN / "single"
    table = {name: RECIPES[name]() for name in TRAINED} | {"fashion-mnist-early-exit": fashion_mnist.early_exit()}
    for by, more in {"moments": {}, "consistency": {}, "em": {}, "instant": {"version": "instant"}}.items():
        student = Student(recipe, by="moments" if by == "instant" else by, **more)  # pyright: ignore[reportArgumentType]
        table[f"student-{by}"] = student.of(single)
    table["student-plain"] = Student(recipe, student="plain").of(single)
    table["student-tokens"] = Student(token_models.distilled_images(), student="plain").of(GOLDEN / "uniform")
    table["consistency"] = students.by_consistency(RECIPES["fashion-mnist-dual-25"]())
    data = dr.DataConfig("photos.npz")
    for name, auto in {
        "auto": Auto(data, "tiny", "dual"),
        "auto-super-resolution": Auto(data, "tiny", "both", "super-resolution:2"),
        "auto-inpainting": Auto(data, "tiny", "dual", "inpainting:8", "residual"),
        "auto-colour": Auto(data, "tiny", "light", "colour", "crps"),
        "auto-pairs": Auto(data, "tiny", "single", "pairs:photos.npz", "regression"),
    }.items():
        table[name] = auto()
    colour = {"light": replace(NET, image_size=16, image_channels=3, num_classes=0)}
    networks, method, given = fashion_mnist_latents.decoding("light", colour, Path(MODEL, "vae"), Sigmoid())
    table["ks-forecast"] = of_fields(Forecasting(frames=3, lead=4, every=4, noise=0.1))
    table["decoder"] = dr.Experiment("decoder", networks, method, FIT, condition=given)
    table["retrofit-own-blocks"] = RetrofitRecipe(dr.DataConfig("images.npz"), own_blocks=2)("dit")
    table["diffusers"] = read_experiment(MODEL)
    for name, network in {"dit": dr.DiTConfig(8, 1, 16, 3, head_dim=16), "dis": dr.DiSConfig(8, 1, 16, 3)}.items():
        table[name] = dr.Experiment(name, dr.OneNetwork(network), dr.DenoisingConfig(weighting=Elbo()), FIT)
    return table


def save_run(path: Path, experiment: dr.Experiment) -> None:
    """Write a run at iteration 1 with random weights, none of them zero."""
    networks, _ = experiment.build()
    generator = torch.Generator().manual_seed(0)
    weights = {name: 0.2 * torch.randn(p.shape, generator=generator) for name, p in networks.state_dict().items()}
    write_experiment(path, experiment)
    checkpoint.save(path / "checkpoints", 1, {"model": weights}, STATE)


def save_sources(patch: pytest.MonkeyPatch) -> None:
    """Write fields, a pipeline, and latents and prompts by it; images and a network into the current folder."""
    random, photos = np.random.default_rng(0), autoencoders.photos(12).transpose(0, 2, 3, 1)
    steps = random.standard_normal((4, 20, 2, 16)).cumsum(1).astype(np.float32)
    np.savez_compressed(FIELDS, fields=steps, variables=["u", "v"], step=0.5)
    np.savez("photos.npz", images=photos)
    np.savez("images.npz", images=random.integers(0, 255, (16, 8, 8, 1), np.uint8), labels=np.arange(16) % 3)
    classes = {"in_channels": 1, "out_channels": 2, "num_embeds_ada_norm": 3, "num_layers": 3}
    saved(Path("dit"), randomised(dit(**classes)), "transformer")
    save_pipeline(Path(MODEL))
    Path("captions.txt").write_text("\n".join(f"picture {i}" for i in range(len(photos))))
    options = ("--prompts", "captions.txt", MODEL, "--no-mirrored", "--device", "cpu")
    assert call(patch, "data", "encode", "photos.npz", LATENTS, *options) == 0


def save_pipeline(folder: Path) -> None:
    """Write a text U-Net on latents of 4 x 8 x 8, with a VAE and files of a text encoder."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    parts = {"vae": ["diffusers", "AutoencoderKL"], "text_encoder": ["transformers", "CLIPTextModel"]}
    saved(folder, randomised(unet_text(block_out_channels=(4, 8))), "unet", scheduler, **parts)
    vae = diffusers.AutoencoderKL(**autoencoders.KL | {"block_out_channels": (4, 8)})
    randomised(vae).save_pretrained(folder / "vae")
    for part in ("text_encoder", "tokenizer"):
        (folder / part).mkdir()
        (folder / part / "config.json").write_text("{}")


def save_killed() -> None:
    """Write folders that the same calls go on with."""
    for run, after in KILLED.items():
        with suppress(KeyboardInterrupt):
            write = images if run in HEAVY else forecast
            write(run, HERE / f"killed-{run}", progress=interrupted(after))


def forget_places() -> None:
    """Take the folders of this machine out of what was written, and mend its manifests."""
    for file in HERE.rglob("*.json"):
        text = file.read_text()
        if (short := text.replace(str(HERE), str(GOLDEN)).replace(f"{Path.cwd()}/", "")) != text:
            file.write_text(short)
            if (manifest := Manifest.read(file.parent, ())) is not None and file.name in manifest.entries:
                Manifest.write(file.parent, manifest.entries)
    for lock in HERE.rglob(".lock"):
        lock.unlink()


def samplers(run: str) -> list[str]:
    """Names of samplers that need no table of the model, and may reuse a context where the run does."""
    return [name for name, of in SAMPLERS.items() if run == "single" or of.markovian]


@contextmanager
def elsewhere() -> Iterator[pytest.MonkeyPatch]:
    """Work in an empty folder that has GOLDEN, where recipes are small and nothing is kept."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        link(Path(folder))
        patch.chdir(folder)
        patch.setenv("DUALRATE_CACHE", "cache")
        tiny_recipe(patch)
        encoders(patch)
        yield patch


def main() -> None:
    torch.set_num_threads(1)
    for folder in HERE.iterdir():
        if folder.is_dir() and folder.name != "earlier":
            shutil.rmtree(folder)
    with elsewhere() as patch:
        for name, experiment in PLAIN.items():
            save_run(GOLDEN / name, experiment)
        save_sources(patch)
        conditional = runs()
        for name, experiment in conditional.items():
            save_run(GOLDEN / name, experiment)
        for name, experiment in experiments().items():
            (GOLDEN / "experiments").mkdir(exist_ok=True)
            (GOLDEN / "experiments" / f"{name}.json").write_text(json.dumps(to_plain(experiment), indent=1) + "\n")
        Export(HERE / "dual", to=("diffusers", HERE / "pipeline")).run()
        dr.export(GOLDEN / "single", GOLDEN / "released")
        save_killed()
        forget_places()
        names = [f"{run} {name}" for run in PLAIN for name in samplers(run)]
        names += [*conditional, "text-to-image text", "model text", "released", *RELEASED]
        np.savez_compressed(GOLDEN / "images.npz", **{name: drawn(name) for name in names})  # pyright: ignore[reportArgumentType]


if __name__ == "__main__":
    main()
