"""Numbers that a user may set: each has a range, and what lies outside is refused by name, wherever it comes from."""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import pkgutil
import re
import typing
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import numpy as np
import pytest
import torch
from cli.command import call
from theory.held_context import NeededContext
from torch import nn

import dualrate as dr
from dualrate.cli import distill as cli_distill
from dualrate.cli import main as cli
from dualrate.cli import train as cli_train
from dualrate.cli.compare import Compare
from dualrate.cli.data import (
    CheckCodec,
    Encode,
    Prepare,
    Verify,
    _Images,
    _ToFolder,
)
from dualrate.cli.demo import Demo
from dualrate.cli.distill import Distill
from dualrate.cli.evaluate import Evaluate
from dualrate.cli.plan import Plan
from dualrate.cli.sample import Cost, Sample
from dualrate.cli.train import Adapt, Train
from dualrate.codecs.codec import CodecFolder
from dualrate.comparison.candidates import Candidate, RunRequest
from dualrate.comparison.yardstick import Terms
from dualrate.config.ranges import Range, Ranged, Steps, checked, described, many
from dualrate.config.serial import from_plain, to_plain
from dualrate.data.conditions import Inpainting, SuperResolution
from dualrate.data.decode import Options
from dualrate.data.pairs import Pairs
from dualrate.denoisers.early_exit import EarlyExit, ExitUViT
from dualrate.denoisers.feature_cache import FeatureCache, TokenCache
from dualrate.denoisers.guidance import Guided, Sharpened
from dualrate.diffusion.categorical import Masked
from dualrate.diffusion.prediction import Discrete, Flow
from dualrate.diffusion.schedule import Betas, Cosine, RectifiedFlow, Truncated
from dualrate.diffusion.weighting import Sigmoid
from dualrate.experiment.network_configs import OneConditional, OneNetwork, ThreeConditional, TwoConditional
from dualrate.experiment.plan_support import AnyPlan, AtLeast, OnePlan, OwnSteps, steps_at, steps_of_ddim
from dualrate.forecasts.clip_networks import (
    ClipEncoderConfig,
    ClipPrior,
    OneClipDecoder,
    TwoClipDecoders,
    TwoClipPriors,
)
from dualrate.forecasts.clip_recipe import ClipStages
from dualrate.forecasts.clip_set import Cut
from dualrate.forecasts.command import Forecast as ForecastCommand
from dualrate.forecasts.command import Simulate
from dualrate.forecasts.condition import Forecast
from dualrate.forecasts.latent_forecast import LatentForecast
from dualrate.forecasts.refiner import Levels, RefinerConfig, Refining
from dualrate.forecasts.rolling import RollingConfig, RollingDenoising
from dualrate.forecasts.rolling_process import Rolling, SharedNoise
from dualrate.forecasts.simulations import Kolmogorov, KuramotoSivashinsky
from dualrate.forecasts.sphere import Barotropic
from dualrate.forecasts.sprites import MovingSprites
from dualrate.forecasts.systems import Evolving, Simulation, System
from dualrate.methods.consistency import Consistency, ConsistencyConfig
from dualrate.methods.crps import OneCall, OneCallConfig
from dualrate.methods.denoising import Denoising, DualRateLoss, WeightedDenoising
from dualrate.methods.early_exit import EarlyExitConfig, EarlyExitTraining
from dualrate.methods.em_distillation import EMDistillation, EMDistillationConfig
from dualrate.methods.glance import AdaptedNetwork, ByPhase, Glance, GlanceConfig
from dualrate.methods.moment_matching import InstantMomentMatching, MomentMatching, MomentMatchingConfig
from dualrate.methods.residual import Residual, ResidualConfig, ResidualDenoising, ResidualNetworks
from dualrate.methods.student_states import (
    Distillation,
    ForwardPairs,
    FromData,
    FullRollout,
    PlanStates,
    SegmentRollout,
    StudentMethod,
)
from dualrate.methods.times import BothTimes, GivenTimes, SingleTime
from dualrate.methods.unified_latents import UnifiedLatents
from dualrate.metrics.features import Architecture, Card, Mixed, Stacked
from dualrate.metrics.pretrained import PhotoNet
from dualrate.metrics.trained_network import NetworkCard
from dualrate.networks.concatenated import concatenated
from dualrate.networks.dis import DiSConfig
from dualrate.networks.dit import DiTConfig, FlatConfig
from dualrate.networks.sid2 import SiD2Config
from dualrate.networks.uvit import UViT, UViTCut
from dualrate.options.acting import acts
from dualrate.options.sampling import SamplingOptions
from dualrate.options.training import OfExperiment, Run
from dualrate.pipelines.clip import Clip
from dualrate.pipelines.command import Export, Retrofit
from dualrate.pipelines.condition import Prompts
from dualrate.pipelines.cut_transformer import CutNetwork
from dualrate.pipelines.foreign import ForeignConfig
from dualrate.pipelines.policies import FirstBlock, Fixed, SpeCa, Verified
from dualrate.pipelines.recipe import RetrofitRecipe
from dualrate.pipelines.retrofitted import OwnBlocks, Tap
from dualrate.recipes import imagenet
from dualrate.recipes.students import AdaptRecipe
from dualrate.runs.store import read_experiment
from dualrate.sampling.covariance import Bands, NoiseCovariance
from dualrate.sampling.fourier import FourierCovariance
from dualrate.sampling.lanczos import LanczosCovariance
from dualrate.serving.command import Serve
from dualrate.serving.offer import Request
from dualrate.texts.language_model import LanguageCard, Recurrent
from dualrate.texts.noise_planes import NoisePlanes
from dualrate.training.method import Loss, OnePhase, Phase

BAD = (math.nan, math.inf, -math.inf, -1, 0, 1e308, 2**63)
WEIGHTS = sorted((Path(__file__).parents[2] / "weights").glob("*/experiment.json"))

MADE = {  # dataclasses whose numbers the program makes and no user sets; a StepPlan has rules of its own
    "dualrate.forecasts.trajectories.FieldSource",
    "dualrate.forecasts.trajectories.Lazy",
    "dualrate.forecasts.trajectories.Timing",
    "dualrate.forecasts.fields.Fields",
    "dualrate.forecasts.statistics.Statistics",
    "dualrate.forecasts.datasets.Part",
    "dualrate.forecasts.geometry.Order",
    "dualrate.forecasts.geometry.Hiding",
    "dualrate.forecasts.clips.ClipReading",
    "dualrate.forecasts.clip_modality.ClipFiles",
    "dualrate.forecasts.clip_set.ClipWindows",
    "dualrate.forecasts.i3d.ClipNet",
    "dualrate.data.images.ImageSet",
    "dualrate.forecasts.externals.Externals",
    "dualrate.forecasts.externals.Forcings",
    "dualrate.forecasts.film.Film",
    "dualrate.forecasts.rollout.MemberBatch",
    "dualrate.forecasts.views.Reliability",
    "dualrate.serving.engine.Capacity",
    "dualrate.serving.engine.Drawing",
    "dualrate.forecasts.metadata.Coordinate",
    "dualrate.forecasts.metadata.Description",
    "dualrate.forecasts.evaluation.ForecastReport",
    "dualrate.forecasts.coastlines.Axis",
    "dualrate.sampling.bound.Bound",
    "dualrate.runs.train._Hooks",
    "dualrate.training.loop._Update",
    "dualrate.denoisers.denoiser.Meter",
    "dualrate.pipelines.classes.kind.NetworkSpec",
    "dualrate.pipelines.classes.kind.PromptPart",
    "dualrate.forecasts.curves.Panel",
    "dualrate.report.table.Table",
    *(
        f"dualrate.pipelines.caching.{name}"
        for name in ("Cache", "CacheMethod", "Features", "CachedTokens", "CachedLevels")
    ),
    "dualrate.comparison.rows.KeptRow",
    "dualrate.comparison.rows.Saving",
    "dualrate.comparison.compare.Session",
    "dualrate.comparison.rows.MeasuredCandidate",
    "dualrate.sampling.catalogue.Sampler",
    "dualrate.sampling.cost.CallCost",
    "dualrate.sampling.cost.PlanCost",
    "dualrate.data.source.Member",
    "dualrate.data.tars.TarImage",
    "dualrate.data.cache.Shard",
    "dualrate.data.loader.ByteBatch",
    "dualrate.data.source.Listed",
    "dualrate.pipelines.autoencoder.Normalisation",
    "dualrate.data.source.Raw",
    "dualrate.diffusion.random.Draws",
    "dualrate.diffusion.context.Context",
    "dualrate.diffusion.context.Elsewhere",
    "dualrate.training.distributed.World",
    "dualrate.metrics.store.StoredFeatures",
    "dualrate.metrics.ensembles.EnsembleScores",
    "dualrate.metrics.quality.Details",
    "dualrate.metrics.quality.QualityScore",
    "dualrate.forecasts.scores.Score",
    "dualrate.metrics.store.Fingerprint",
    "dualrate.texts.language_model.GradientMoment",
    "dualrate.metrics.distances.GaussianStats",
    "dualrate.metrics.distances.KernelDistance",
    "dualrate.metrics.distances.PrecisionRecall",
    "dualrate.sampling.planner.GridCall",
    "dualrate.sampling.planner.Errors",
    "dualrate.sampling.planner.Planned",
    "dualrate.config.ranges.Range",
    "dualrate.recipes.auto.Tier",
    "dualrate.forecasts.recipe.ForecastTier",
    "dualrate.forecasts.scores.ForecastScores",
    "dualrate.forecasts.folder.Record",
    "dualrate.forecasts.starts.Starts",
    "dualrate.forecasts.folder.ForecastWritten",
    "dualrate.report.image_grid.Pictures",
    "dualrate.texts.pieces.TextFiles",
    "dualrate.drawing.record.SamplingRecord",
    "dualrate.drawing.samples.SampleRecord",
    "dualrate.drawing.samples.Written",
    "dualrate.runs.store.StoredModel",
    "dualrate.report.table.Row",
    "dualrate.serving.jobs.Job",
    "dualrate.forecasts.seasons.Anomalies",
    "dualrate.serving.offer.Limits",
    "dualrate.serving.offer.Side",
    "dualrate.forecasts.rolling_process.FirstFrame",
    "dualrate.drawing.likelihood.Estimate",
    "dualrate.drawing.likelihood.Likelihood",
    "dualrate.drawing.drawer.Samples",
    "dualrate.drawing.planning.BestPlan",
    "dualrate.experiment.model.Model",
    "dualrate.forecasts.rolling.Window",
    "dualrate.forecasts.latent_forecast.ClipCoder",
    "dualrate.methods.watch.LogWatch",
    "dualrate.sampling.trajectory.State",
    "dualrate.diffusion.plan.StepPlan",
    "dualrate.training.config.FitResult",
    "dualrate.sampling.bound.FittedVariance",
    "dualrate.drawing.latents.LatentScores",
    "dualrate.data.images.Everything",
}


# One of every dataclass that has ranges


def process() -> dr.GaussianProcess:
    return dr.GaussianProcess(Cosine())


def network() -> dr.UViTConfig:
    levels = (dr.Level("conv", 4, 1), dr.Level("transformer", 16, 2))
    return dr.UViTConfig(8, 1, levels, 3, patch=2, embedding=8, head_dim=16)


DIT = '{"in_channels": 4, "num_layers": 3, "sample_size": 8}'


def examples() -> Iterator[Any]:
    """Instances that between them hold one of every class."""
    run, plan, of, config = Path("run"), dr.StepPlan.uniform(4, 2), process(), network()
    yield from (recipe for recipe in cli_train.RECIPES.values() if is_dataclass(recipe))
    yield from (recipe() for recipe in cli_train.RECIPES.values() if not is_dataclass(recipe))
    yield from (Distill(recipe(), teacher=run) for recipe in cli_distill.RECIPES.values())
    method = MomentMatchingConfig("teacher", OnePlan(4, 2), rollout="full")
    yield replace(cli_train.RECIPES["fashion-mnist-dual-45"](), method=method)
    yield from (Sample(run, run), Evaluate(run), Cost(run), Demo())
    yield from (Serve(run), Request(), Export(run, run))
    yield from (
        Retrofit(imagenet.heavy()),
        Adapt(imagenet.heavy()),
        Run(),
        OfExperiment(imagenet.heavy()),
        cli_distill.Student(imagenet.distilled()),
    )
    yield from (Prepare(source="photos", out=run, size=64), Encode(source="photos", out=run, codec=run), Verify(run))
    yield CheckCodec(folder=run, source="photos")
    yield from (Simulate(system="kolmogorov", out=run), KuramotoSivashinsky(), Kolmogorov())
    yield from (Barotropic(), MovingSprites())
    yield from (_Images(), _ToFolder(source="photos", out=run))
    yield from (CodecFolder("vae", "f" * 64, steps=4), Options(8, 3, "fail"))
    yield from (Train(cli_train.RECIPES["fashion-mnist-dual-45"]()), AnyPlan((1, 2)))
    yield from (Plan(run, "1x"), Compare(("run",)), Terms(), dr.Guidance())
    yield SamplingOptions()
    yield from (
        RunRequest(run, "run", dr.Choice()),
        Candidate(run, "run", "ancestral", plan),
        dr.Choice(4),
    )
    yield from (AtLeast(4), steps_of_ddim(4), dr.Ancestral(of), dr.SDEDPMSolver2M(of), NoiseCovariance(of))
    yield from (
        FourierCovariance(of),
        LanczosCovariance(of),
    )
    two = cli_train.RECIPES["fashion-mnist-dual-45"]()
    yield dr.Drawer(dr.Model("dual", two, nn.ModuleDict(), NeededContext(of, 1.0), 1, "0"), dr.Ancestral(of), plan)
    yield Bands((1, 4, 4))
    yield UViTCut(UViT(config), 1, 1)
    yield from (DiTConfig(8, 1, 16, 2, head_dim=8), DiSConfig(8, 1, 16, 3), concatenated(config, "run"))
    yield SiD2Config(**vars(config))
    yield DiTConfig(8, 1, 16, 2, head_dim=8).network().cut(0)
    exits = EarlyExit(ExitUViT(config), of)
    yield from (EarlyExitConfig(), exits, EarlyExitTraining(nn.ModuleDict(), exits, of, Sigmoid()))
    yield TokenCache(UViT(config).token_cut(scores=False), of, 0.1)
    yield from (FeatureCache(UViT(config).cut(1), of), CutNetwork(SimpleNamespace(net=nn.Identity()), "blocks"))
    denoiser, networks = NeededContext(of, 1.0), nn.ModuleDict()
    yield Guided(denoiser, of, 1.0, 3)
    yield Sharpened(denoiser, NoisePlanes(Masked()))
    yield from (FromData(4, of), SegmentRollout(plan, of), FullRollout(plan, of), ForwardPairs(plan, of))
    yield Denoising(networks, denoiser, of, Sigmoid(), SingleTime())
    yield DualRateLoss(nn.Identity(), nn.Identity())
    roles: dict[str, Any] = {"networks": networks, "student": denoiser, "teacher": denoiser, "process": of}
    roles |= {"weighting": Sigmoid()}
    yield EMDistillation(**roles, auxiliaries=nn.ModuleDict(), auxiliary=denoiser)
    yield replace(cli_train.RECIPES["fashion-mnist-heavy"](), method=EMDistillationConfig("teacher"))
    roles |= {"states": FromData(4, of)}
    yield MomentMatching(**roles, auxiliaries=nn.ModuleDict(), auxiliary=denoiser)
    yield from (
        Consistency(networks, denoiser, of, 4),
        replace(cli_train.RECIPES["fashion-mnist-heavy"](), method=ConsistencyConfig()),
    )
    yield InstantMomentMatching(**roles)
    yield Phase("model", (), lambda *_: Loss(torch.zeros(())))
    yield from (
        RectifiedFlow(),
        Truncated(Cosine(), -6.0),
        ForeignConfig("DiTTransformer2DModel", DIT, Discrete(Betas())),
        Flow(),
        Tap(0, 1, 1),
        RetrofitRecipe(),
    )
    yield UnifiedLatents(networks, nn.Identity(), denoiser, denoiser, of, of, Sigmoid(), loss_factor=1.5)
    yield from (OneConditional(config, (4, 2, 2)), TwoConditional(config, config, (4, 2, 2)), GivenTimes(), BothTimes())
    yield ThreeConditional(config, config, config, (4, 2, 2))
    of_clip: Any = {"leads": (1, 2), "frames": 4}
    yield from (OneClipDecoder(config, (8, 2, 2), **of_clip), TwoClipDecoders(config, config, (8, 2, 2), **of_clip))
    yield from (TwoClipPriors(config, config, **of_clip), LatentForecast())
    yield from (ClipPrior(config, **of_clip), ClipEncoderConfig(8, 3, 4, (8,)), ClipStages(), Cut(2))
    yield from (SuperResolution(), Inpainting(), Pairs("photos"), OneCallConfig(), ResidualConfig(), RollingConfig())
    yield from (Levels(), RefinerConfig(), OwnSteps(4))
    yield from (Prompts(), Fixed(4), FirstBlock(0.1), Verified(0.1), SpeCa(0.1))
    yield from (steps_at((1.0, 0.5)), AdaptedNetwork(OneNetwork(config)), GlanceConfig("run"), AdaptRecipe())
    yield Glance(networks, ByPhase(networks, of), of, ((1.0, 0.5),))
    yield from (Forecast(scale=(1.0, 2.0), step=0.5), ForecastCommand(Path("run"), Path("out")))
    yield from (ResidualNetworks(config, config, (4, 2, 2)), Residual(networks, networks, of, 0.25))
    yield RollingDenoising(nn.ModuleDict(), denoiser, Rolling(), Sigmoid(), SingleTime())
    yield SharedNoise(Cosine())
    for kind in (ResidualDenoising, Refining):
        yield kind(networks, denoiser, of, Sigmoid(), GivenTimes())
    yield OneCall(networks, denoiser, of, 2, "crps")
    yield OwnBlocks(ForeignConfig("DiTTransformer2DModel", DIT, Discrete(Betas())), 2)
    yield Card("name", "0", Architecture(1, 8, 2), "0", 0.5, 0, 1)
    yield from (Stacked(1, 8, 2), Mixed(1, 8, 2))
    yield LanguageCard("name", "0", Recurrent(3, 8, 8), "0", 16, 2.0, 0, 1)
    yield PhotoNet("inception", nn.Identity(), "name", 8, torch.device("cpu"), 10)
    yield Clip("clip", nn.Identity(), "name", 8, torch.device("cpu"), 10)


def within(value: Any) -> Iterator[Any]:
    """A dataclass and all in its fields."""
    if is_dataclass(value) and not isinstance(value, type):
        yield value
        for field in fields(value):
            yield from within(getattr(value, field.name))
    elif isinstance(value, tuple):
        for item in value:
            yield from within(item)


EXAMPLES = {type(value): value for example in examples() for value in within(example) if isinstance(value, Ranged)}


# No number without a range


def dataclasses_of_the_package() -> Iterator[type]:
    for module in pkgutil.walk_packages(dr.__path__, "dualrate."):
        for value in vars(importlib.import_module(module.name)).values():
            if isinstance(value, type) and is_dataclass(value) and value.__module__ == module.name:
                yield value


def numbers(kind: Any) -> Iterator[tuple[Any, Range | None]]:
    """The numbers in an annotation, and the range of each."""
    if get_origin(kind) is Annotated and get_args(kind)[0] in (int, float):
        yield get_args(kind)[0], next((note for note in kind.__metadata__ if isinstance(note, Range)), None)
    elif get_origin(kind) in (Annotated, Union, UnionType, tuple, list):
        yield from (found for part in get_args(kind) for found in numbers(part))
    elif kind in (int, float):
        yield kind, None


def hints(kind: type) -> dict[str, Any]:
    found = typing.get_type_hints(kind, include_extras=True)
    return {field.name: found[field.name] for field in fields(kind)}


@pytest.fixture(scope="module")
def package() -> dict[str, type]:
    return {f"{kind.__module__}.{kind.__name__}": kind for kind in dataclasses_of_the_package()}


def test_every_number_that_a_user_sets_has_a_range(package):
    bare = {
        f"{name}.{field}"
        for name, kind in package.items()
        for field, hint in hints(kind).items()
        for _, allowed in numbers(hint)
        if name not in MADE and not (allowed and issubclass(kind, Ranged))
    }
    assert not bare, f"declare a range: {sorted(bare)}"
    assert set(package) >= MADE


def test_every_class_with_ranges_is_walked(package):
    ranged = {kind for kind in package.values() if issubclass(kind, Ranged)}
    abstract = {Distillation, StudentMethod, NetworkCard, PlanStates, OnePhase, WeightedDenoising, FlatConfig}
    abstract |= {System, Evolving, Simulation}
    assert ranged - abstract == set(EXAMPLES)


def set_to(value: Any, hint: Any) -> Any:
    """The number where the annotation wants one, or as often as it wants it."""
    parts = [part for part in get_args(hint) if get_origin(part) is tuple] or [hint]
    items = get_args(parts[0]) if get_origin(parts[0]) is tuple else ()
    return (value,) * (2 if items and items[-1] is Ellipsis else len(items)) if items else value


def outcome(example: Any, field: str, value: Any) -> tuple[Any, str]:
    """Return the value of the field then, and the error."""
    try:
        return getattr(replace(example, **{field: value}), field), ""
    except ValueError as error:
        return None, str(error)


@pytest.mark.parametrize("example", EXAMPLES.values(), ids=[kind.__name__ for kind in EXAMPLES])
def test_a_number_is_within_its_range_or_refused_by_name(example):
    for field, hint in hints(type(example)).items():
        if list(numbers(hint)) and str not in get_args(hint):  # a class is given by its number or its name
            check_number(example, field, hint)


def check_number(example, field, hint):
    (kind, allowed), *_ = numbers(hint)
    for bad in BAD:
        fits = isinstance(bad, int if kind is int else (int, float)) and bad in allowed
        changed, error = outcome(example, field, set_to(bad, hint))
        if error:  # of a number in its range, by its relation to another field
            assert fits or error.startswith(f"{field} is {described(hint)}, got ")
            assert "\n" not in error
        else:
            assert fits, f"{bad} was accepted"
            assert type(changed[0] if isinstance(changed, tuple) else changed) is kind
    for bad in (True, "1", 1j, [1.5, None], torch.tensor(1)):
        with pytest.raises(ValueError, match=rf"^{field} is .*, got"):
            replace(example, **{field: bad})


def test_every_choice_is_one_of_those_listed():
    for kind, example in EXAMPLES.items():
        for field, hint in hints(kind).items():
            if get_origin(hint) is Literal:
                with pytest.raises(ValueError, match=f"^{field} is .* or .*, got 'none of them'"):
                    replace(example, **{field: "none of them"})


# How a range is written and what fits


@dataclass(frozen=True)
class Sampling(Ranged):
    steps: Steps = 64
    pair: tuple[Annotated[float, Range(0, 1)], Annotated[float, Range(0, 1)]] = (0.5, 1.0)
    times: tuple[Annotated[float, Range(0, 1, above=True)], ...] | None = None
    clip: Annotated[float, Range(0, math.inf, above=True)] = 1.0
    kernel: Literal[1, 3] = 1
    name: str = "anything"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"steps": 0}, "steps is a whole number from 1 to 100,000, got 0"),
        ({"steps": 2.0}, "steps is a whole number from 1 to 100,000, got 2.0"),
        ({"steps": True}, "steps is a whole number from 1 to 100,000, got True"),
        ({"steps": None}, "steps is a whole number from 1 to 100,000, got None"),
        ({"pair": (0.5,)}, "pair is 2 values, each a number from 0 to 1, got (0.5,)"),
        ({"pair": 0.5}, "pair is 2 values, each a number from 0 to 1, got 0.5"),
        ({"times": (1, 0)}, "times is a list of values, each a number above 0 and at most 1, or None, got (1, 0)"),
        ({"clip": 0}, "clip is a number above 0, got 0"),
        ({"clip": 10**400}, f"clip is a number above 0, got {10**400}"),
        ({"kernel": 2}, "kernel is 1 or 3, got 2"),
        ({"kernel": True}, "kernel is 1 or 3, got True"),
    ],
)
def test_the_message_says_the_field_what_it_may_be_and_what_it_got(given, message):
    with pytest.raises(ValueError) as caught:
        Sampling(**given)
    assert str(caught.value) == message
    with pytest.raises(ValueError, match=re.escape(message)):
        replace(Sampling(), **given)


def test_numbers_of_numpy_and_lists_become_python_s():
    made = Sampling(np.int64(8), [np.float32(0.5), 1], times=[Fraction(1, 2)], clip=math.inf)
    assert made == Sampling(8, (0.5, 1.0), (0.5,), math.inf)
    assert [type(value) for value in (made.steps, *made.pair, made.times[0])] == [int, float, float, float]
    json.dumps(dataclasses.asdict(made))


@pytest.mark.parametrize(
    ("allowed", "text", "members", "others"),
    [
        (Range(0, 1), "from 0 to 1", (0, 0.5, 1), (-1e-9, 1.1, math.nan)),
        (Range(0, 1, below=True), "from 0 to below 1", (0, 0.999), (1, math.nan)),
        (Range(0, 1, above=True), "above 0 and at most 1", (1e-9, 1), (0, math.nan)),
        (Range(0, 1, above=True, below=True), "above 0 and below 1", (0.5,), (0, 1)),
        (Range(0, math.inf), "of 0 or more", (0, math.inf, 10**400), (-1, math.nan)),
        (Range(0, math.inf, above=True), "above 0", (1e-300, math.inf), (0, math.nan)),
        (Range(1, 1_000_000), "from 1 to 1,000,000", (1, 10**6), (0, 10**6 + 1)),
        (Range(-0.5, 2.5), "from -0.5 to 2.5", (-0.5, 2.5), (2.6,)),
        (Range(0, 0), "equal to 0", (0,), (1, math.nan)),
    ],
)
def test_a_range_holds_what_it_says(allowed, text, members, others):
    assert str(allowed) == text
    assert all(number in allowed for number in members)
    assert not any(number in allowed for number in others)


def test_a_value_that_is_no_field_is_checked_alike():
    assert checked("N", np.int32(4), Steps) == 4
    with pytest.raises(ValueError, match="N is a whole number from 1 to 100,000, got 0"):
        checked("N", 0, Steps)


# Files


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("fit", "iterations"), 0, r"file\.fit: iterations is a whole number from 1 to 1,000,000,000, or None, got 0"),
        (("fit", "optim", "betas"), [0.9, 1.0], r"file\.fit\.optim: betas is 2 values, .* got \(0\.9, 1\.0\)"),
        (("networks", "light", "levels", 1, "blocks"), -1, r"file\.networks\.light\.levels\[1\]: blocks is"),
        (
            ("process", "schedule", "log_snr_max"),
            math.inf,
            r"file\.process\.schedule: log_snr_max is a number from -60 to 60, got inf",
        ),
        (("method", "label_dropout"), math.nan, r"file\.method: label_dropout is a number from 0 to 1, got nan"),
        (
            ("method", "weighting", "bias"),
            10**400,
            r"file\.method\.weighting\.bias: expected a number, got one with 401 digits",
        ),
        (("networks", "light", "patch"), True, r"file\.networks\.light\.patch: expected an integer"),
    ],
)
def test_a_number_in_a_file_is_refused_with_its_place(path, value, message):
    plain = place = json.loads(json.dumps(to_plain(cli_train.RECIPES["fashion-mnist-dual-45"]())))
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(ValueError, match=message):
        from_plain(dr.Experiment, json.loads(json.dumps(plain)), "file")


@pytest.mark.parametrize("file", WEIGHTS, ids=lambda file: file.parent.name)
def test_experiments_of_released_weights_are_within_the_ranges(file):
    assert read_experiment(file.parent).name


# Options

CLASSES = {name: cli.command_named(name) for name in cli.COMMANDS}
COMMANDS: dict[str, Any] = {name: EXAMPLES[kind] for name, kind in CLASSES.items() if kind in EXAMPLES}
TRAINED = {name: recipe() for name, recipe in cli_train.RECIPES.items() if not is_dataclass(recipe)}
COMMANDS |= {f"train {name}": Train(experiment) for name, experiment in TRAINED.items()}
COMMANDS |= {f"distill {name}": Distill(recipe(), teacher=Path("run")) for name, recipe in cli_distill.RECIPES.items()}
ONE_WORD = [name for name, kind in CLASSES.items() if isinstance(kind, type) and " " not in name]
# others are like them
TRIED = ("train fashion-mnist-dual-45", "train imagenet64-heavy", "distill cifar10", *ONE_WORD)
REQUIRED = {
    "sample": ["run", "--out", "out"],
    "forecast": ["run", "--out", "out"],
    "demo": [],
    "distill": ["--teacher", "run"],
    "train": [],
}
REQUIRED |= {"plan": ["run", "--budget", "1x"]}


def helps(page: str) -> dict[str, str]:
    """Return what a help page in one column says of every option, without its default."""
    found, name = {}, ""
    for line in page.splitlines():
        if option := re.match(r"[│ ] (--?[a-z][^ ,]*|RUN|\[NAME=\S+)(.*)", line):
            name, said = option.groups()
            found[name] = said
        elif name and re.match(r"[│ ] [ {]", line):
            found[name] += line
    values = r"\{[^}]*\}|\((default:|required).*|(?<!\S)(-h|--\S+|INT|FLOAT|STR|PATH|\||\[\S+|\[?\.\.\.\]*)(?!\S)"
    return {name: re.sub(values, "", said).strip("│ ,") for name, said in found.items()}


def with_options_of_their_own() -> Iterator[str]:
    """All commands, and of the recipes of one those that have a class of options which no recipe before has."""
    yield from ONE_WORD
    seen: set[tuple[str, type]] = set()
    for name, value in COMMANDS.items():
        if " " in name:
            kinds = {(name.split()[0], type(part)) for part in within(value)}
            if not kinds <= seen:
                yield name
            seen |= kinds


def test_one_is_counted_in_the_singular():
    counts = (0, "frame"), (1, "time step"), (2000, "frame"), (1, "class"), (3, "class"), (2, "trajectory")
    said = ["0 frames", "1 time step", "2,000 frames", "1 class", "3 classes", "2 trajectories"]
    assert [many(*each) for each in counts] == said


@pytest.mark.parametrize("command", list(with_options_of_their_own()))
def test_every_option_has_a_help_of_its_own(command, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "110")
    assert call(monkeypatch, *command.split(), "--help") == 0
    found = helps(capsys.readouterr().out)
    assert len(found) > 2
    assert not [name for name, said in found.items() if len(said.split()) < 2]


def test_an_option_without_help_is_found():
    page = """usage: x [-h]

╭─ options ─────────────────────────────╮
│ RUN   run-dir (required)              │
│ -h, --help  show this help message    │
│ --num INT  (default: 64)              │
│ --steps {None}|INT                    │
│       Steps of the                    │
│       --sampler. (default: None)      │
│ --fit.kind {a,b,                      │
│ c}                                    │
│       (default: a)                    │
╰───────────────────────────────────────╯"""
    assert {name for name, said in helps(page).items() if len(said.split()) < 2} == {"RUN", "--num", "--fit.kind"}


def numeric_options(value: Any, prefix: str = "--") -> Iterator[tuple[type, str, str, int]]:
    """(class, option, field, numbers that it takes) of all numeric options of a command."""
    for field, hint in hints(type(value)).items():
        unnamed = any(getattr(note, "name", None) == "" for note in getattr(hint, "__metadata__", ()))
        name, held = prefix if unnamed else f"{prefix}{field.replace('_', '-')}", getattr(value, field)
        parts = list(enumerate(held)) if isinstance(held, tuple) and held and is_dataclass(held[0]) else []
        for i, part in parts:
            yield from numeric_options(part, f"{name}.{i}.")
        if is_dataclass(held):
            yield from numeric_options(held, prefix if unnamed else f"{name}.")
        elif not parts and str not in get_args(hint) and (count := len(list(numbers(hint)))):
            yield type(value), name, field, count


def options() -> Iterator[tuple[str, str, str, int]]:
    """List the first numeric option of every command, and all fields of classes that no command before it takes."""
    seen: set[tuple[type, str]] = set()
    for command in TRIED:
        taken = numeric_options(COMMANDS[command]) if command in COMMANDS else ()
        for i, (kind, name, field, count) in enumerate(taken):
            idle = command.startswith("train") and not acts("train", name, {})  # of other data: refused by its name
            if not idle and (i == 0 or (kind, field) not in seen):
                yield command, name, field, count
            seen.add((kind, field))


@pytest.mark.parametrize(("command", "option", "field", "count"), list(options()))
def test_an_option_out_of_range_is_one_line_and_exit_code_2(
    command, option, field, count, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    kind, *_ = words = command.split()
    assert call(monkeypatch, *words, *REQUIRED.get(kind, ["run"]), option, *["nan"] * count) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1
    assert re.fullmatch(rf"dualrate: {field} is .*, got .*nan.*", told[0])
    assert not list(tmp_path.iterdir())
