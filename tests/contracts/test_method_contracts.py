"""Promises of every training method, and of every configuration of one. Methods are tested as configurations make them.

Losses are in double precision. No network has dropout, whose numbers are the trainer's to repeat.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import fields, is_dataclass, replace
from functools import cache
from typing import Any

import pytest
import torch
from contracts.rooms import in_room
from torch import nn

import dualrate as dr
from dualrate.codecs.diffusion import DiffusionDecoding
from dualrate.config.serial import from_plain, to_plain
from dualrate.data.conditions import SuperResolution
from dualrate.diffusion.categorical import Masked
from dualrate.diffusion.context import Batch
from dualrate.diffusion.process import NoisyEnd
from dualrate.diffusion.random import Draws
from dualrate.diffusion.schedule import Cosine
from dualrate.diffusion.weighting import Elbo
from dualrate.experiment import experiment as experiment_module
from dualrate.experiment.experiment import MethodConfig, Prepared, Start
from dualrate.experiment.modality import WINGS
from dualrate.experiment.network_configs import NetworksConfig, OneConditional, ThreeConditional, TwoConditional
from dualrate.experiment.plan_support import AtLeast, OnePlan
from dualrate.forecasts.condition import Forecast
from dualrate.forecasts.refiner import Refinement, RefinerConfig
from dualrate.forecasts.rolling import RollingConfig
from dualrate.forecasts.rolling_process import Rolling
from dualrate.methods import moment_matching
from dualrate.methods.consistency import ConsistencyConfig
from dualrate.methods.crps import OneCallConfig
from dualrate.methods.early_exit import EarlyExitConfig, EarlyExitNetwork
from dualrate.methods.em_distillation import EMDistillationConfig, Langevin
from dualrate.methods.glance import AdaptedNetwork, GlanceConfig
from dualrate.methods.moment_matching import InstantMomentMatching, MomentMatchingConfig
from dualrate.methods.residual import ResidualConfig, ResidualNetworks
from dualrate.methods.student_states import Distillation, StudentMethod
from dualrate.methods.times import BothTimes, GivenTimes, SingleTime
from dualrate.methods.unified_latents import LatentNetworks, UnifiedLatentsConfig
from dualrate.networks.image_encoder import EncoderConfig
from dualrate.sampling.catalogue import ANCESTRAL, make_step
from dualrate.texts.codec import GreyLevels
from dualrate.texts.networks import OneTransformer, TwoTransformers
from dualrate.texts.transformer import TokensConfig
from dualrate.training.config import FitConfig
from dualrate.training.method import Method, Phase

NET = dr.UViTConfig(
    8, 1, (dr.Level("conv", 8, 1), dr.Level("transformer", 16, 1)), 3, patch=2, embedding=16, head_dim=16
)
LIGHT = replace(NET, levels=(dr.Level("conv", 4, 1), dr.Level("transformer", 16, 1)))
DEEP = replace(NET, levels=(*NET.levels[:-1], replace(NET.levels[-1], blocks=3)))  # with blocks to leave out
ONE, TWO, EXITS = dr.OneNetwork(NET), dr.TwoNetworks(NET, LIGHT), EarlyExitNetwork(DEEP)
MATCHING = MomentMatchingConfig("one", AtLeast(4))
TAUGHT = ConsistencyConfig(4, "one", teacher_steps=(8, 16))
DUAL = replace(MATCHING, plans=OnePlan(8, 4), rollout="full")
CONFIGS: dict[str, tuple[NetworksConfig, MethodConfig]] = {
    "denoising": (ONE, dr.DenoisingConfig(weighting=Elbo())),
    "denoising, dual": (TWO, dr.DenoisingConfig(dr.TimeSampler((2, 4)), encoder_weight=0.5)),
    "denoising, from runs": (
        TWO, dr.DenoisingConfig(dr.TimeSampler(), encoder_from="one", freeze_encoder=True, light_from="light"),
    ),
    "denoising, late plans": (TWO, dr.DenoisingConfig(dr.TimeSampler((1, 8), first=(0.6, 0.9)), multiscale=1)),
    "moment matching": (ONE, MATCHING),
    "moment matching, guided": (ONE, replace(MATCHING, guidance=1.5)),
    "moment matching, segment": (TWO, replace(DUAL, rollout="segment", pretraining=2, light_from="light")),
    "moment matching, full": (TWO, replace(DUAL, pairs=2, student_from="two")),
    "consistency": (ONE, TAUGHT),
    "consistency, guided": (ONE, replace(TAUGHT, guidance=1.5, huber=0.1)),
    "consistency, dual": (TWO, replace(TAUGHT, heavy=2, light_from="light")),
    "consistency, dual, from data": (TWO, replace(TAUGHT, heavy=1, teacher=None, student_from="two")),
    "consistency, from data": (ONE, replace(TAUGHT, teacher=None, student_from="one")),
    "em": (ONE, EMDistillationConfig("one", Langevin(2, 0.16, 0.01), guidance=1.5)),
    "glance": (AdaptedNetwork(ONE), GlanceConfig("one")),
    "early exit": (EXITS, EarlyExitConfig("deep")),
    "instant": (ONE, replace(MATCHING, version="instant")),
    "instant, dual": (TWO, replace(DUAL, plans=OnePlan(4, 2), version="instant", pretraining=2)),
}  # fmt: skip
CASES = {
    name: dr.Experiment(name.replace(", ", "-").replace(" ", "-"), networks, method, FitConfig(9, batch_size=8))
    for name, (networks, method) in CONFIGS.items()
}
LATENT = dr.UViTConfig(4, 2, (dr.Level("transformer", 16, 1),), embedding=16, head_dim=16)
STAGE = LatentNetworks(EncoderConfig(8, 1, 2, (8,), blocks=1), LATENT, replace(NET, num_classes=0))
CASES["unified latents"] = dr.Experiment(
    "unified-latents",
    STAGE,
    UnifiedLatentsConfig(),
    FitConfig(9, batch_size=8),
    process=NoisyEnd(Cosine(log_snr_max=5.0)),
    codec=DiffusionDecoding(channels=1, factor=2),
)
PLAIN = replace(NET, num_classes=0)
PAIR = TwoConditional(PLAIN, replace(LIGHT, num_classes=0), (1, 4, 4))
THREE = ThreeConditional(PLAIN, replace(PLAIN, head=True), PAIR.light, (1, 4, 4))
for name, networks, method in (
    ("conditional", OneConditional(PLAIN, (1, 4, 4)), dr.DenoisingConfig(label_dropout=0.0)),
    ("conditional, dual", PAIR, dr.DenoisingConfig(GivenTimes(draws=2), label_dropout=0.0)),
    ("conditional, both", THREE, dr.DenoisingConfig(BothTimes((2, 4), draws=2), label_dropout=0.0)),
    ("one call", PAIR, OneCallConfig()),
    ("residual", ResidualNetworks(PAIR.encoder, PAIR.light, (1, 4, 4)), ResidualConfig(draws=2)),
):
    fit, given = FitConfig(9, batch_size=8), SuperResolution(2)
    CASES[name] = dr.Experiment(name.replace(", ", "-").replace(" ", "-"), networks, method, fit, condition=given)
for name, method in (
    ("moment matching", replace(MATCHING, teacher="given", plans=AtLeast(4, heavy=1))),
    ("consistency", replace(TAUGHT, teacher="given", heavy=1)),
):
    given = replace(CASES["conditional, dual"], name=f"{name.split()[0]}-of-a-condition", method=method)
    CASES[f"{name}, of a condition"] = given
CASES["rolling"] = dr.Experiment(
    "rolling",
    TwoConditional(replace(PAIR.encoder, image_channels=2), replace(PAIR.light, image_channels=2), (2, 8, 8)),
    RollingConfig(GivenTimes(draws=2)),
    FitConfig(9, batch_size=8),
    process=Rolling(frames=2),
    condition=Forecast(past=2, frames=2),
)
CASES["rolling, both"] = replace(
    CASES["rolling"],
    name="rolling-both",
    networks=ThreeConditional(
        replace(THREE.reader, image_channels=2),
        replace(THREE.encoder, image_channels=2),
        replace(THREE.light, image_channels=2),
        (2, 8, 8),
    ),
)
CASES["refiner"] = dr.Experiment(
    "refiner",
    PAIR,
    RefinerConfig(GivenTimes(draws=2)),
    FitConfig(9, batch_size=8),
    process=Refinement(),
    condition=SuperResolution(2),
)
GREYS, TOKENS = GreyLevels(4), TokensConfig(5, 8, 8, channels=16, blocks=1, num_classes=3, embedding=16, head_dim=16)
for name, networks, times in (
    ("tokens", OneTransformer(TOKENS), SingleTime()),
    ("tokens, dual", TwoTransformers(TOKENS, replace(TOKENS, channels=32)), dr.TimeSampler((2, 4))),
):
    CASES[name] = dr.Experiment(
        name.replace(", ", "-"),
        networks,
        dr.DenoisingConfig(times),
        FitConfig(9, batch_size=8),
        process=Masked(),
        codec=GREYS,
    )
CASES["moment matching, tokens"] = replace(CASES["tokens"], name="student", method=replace(MATCHING, teacher="tokens"))
RUNS = {
    "one": dr.Experiment("one", ONE, dr.DenoisingConfig(), FitConfig(1)),
    "light": dr.Experiment("light", dr.OneNetwork(LIGHT), dr.DenoisingConfig(), FitConfig(1)),
    "two": dr.Experiment("two", TWO, dr.DenoisingConfig(dr.TimeSampler()), FitConfig(1)),
    "tokens": CASES["tokens"],
    "given": CASES["conditional, dual"],
    "deep": dr.Experiment("deep", dr.OneNetwork(DEEP), dr.DenoisingConfig(), FitConfig(1)),
}
every_case = pytest.mark.parametrize("experiment", CASES.values(), ids=CASES)
every_name = pytest.mark.parametrize("name", CASES)


@pytest.fixture(scope="module", autouse=True)
def _few_batches_make_a_preconditioner() -> Iterator[None]:
    """The instant version takes them; 64 take most of the time that it takes to prepare."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(moment_matching, "PRECONDITIONING", 2)
        yield


@contextmanager
def in_double() -> Iterator[None]:
    """An experiment builds in float32 whatever the default is: not here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment_module, "own_defaults", nullcontext)
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(torch.float32)


def randomised(networks: nn.ModuleDict, seed: int) -> None:
    """Every parameter random, the zero-initialised ones too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in networks.parameters():
            parameter.normal_(0, 0.2, generator=generator)


def loaded(run: str) -> dr.Model:
    """The model of a run, on random weights."""
    networks, denoiser = RUNS[run].build()
    randomised(networks, 1 + list(RUNS).index(run))
    return dr.Model(run, RUNS[run], networks.eval(), denoiser, 1, weights_hash=f"of {run}")


def prepared(
    experiment: dr.Experiment,
    *,
    fresh: bool,
    read: list[str] | None = None,
) -> Prepared:
    """read: the runs that were loaded are added to it."""

    def load(run: str) -> dr.Model:
        if read is not None:
            read.append(run)
        return loaded(run)

    def note(text: str) -> None: ...

    def batch(iteration: int) -> Batch:
        return images(8, 8 * iteration, torch.get_default_dtype())

    start = Start(fresh, torch.device("cpu"), False, load, batch, note)
    return experiment.method.prepare(experiment, start)


def images(rows: int, first: int = 0, dtype: torch.dtype = torch.float64) -> Batch:
    draws = Draws(3, torch.arange(first, first + rows))
    return Batch(draws.normal("x", 1, 8, 8).clamp(-1, 1).to(dtype), draws.row % 3, draws.row)


def batch_of(experiment: dr.Experiment, first: int = 0) -> Batch:
    """Eight images, or what a codec that encodes batch by batch makes of them."""
    batch = images(8, first)
    if experiment.codec.instant:
        return replace(batch, x=GREYS.build(nn.ModuleDict(), "cpu").encode(batch.x).mean)
    if experiment.networks.given is None:
        return batch
    x = torch.cat([images(8, first + 8 * channel).x for channel in range(experiment.shape[0])], 1)
    given = experiment.condition.build("cpu")(x.float(), Draws(3, batch.sample))
    return replace(batch, x=x, label=None, given=given.to(x.dtype))


def method_of(experiment: dr.Experiment) -> Method:
    """In double precision; no two of its networks have the same weights."""
    with in_double():
        method = prepared(experiment, fresh=True).method
    randomised(method.networks, 7)
    randomised(method.auxiliaries, 8)
    return method


@cache
def shared_method_of(name: str) -> Method:
    """Return the method of a case, for tests that leave it as it was: making one takes longer than its losses."""
    return method_of(CASES[name])


def phases_of(method: Method) -> dict[str, tuple[int, Phase]]:
    """The phases of the first iterations by name, each with the first of its iterations."""
    found: dict[str, tuple[int, Phase]] = {}
    for iteration in range(6):
        for phase in method.phases(iteration):
            found.setdefault(phase.name, (iteration, phase))
    return found


def losses(method: Method, batch: Batch) -> dict[str, torch.Tensor]:
    """Return the losses of every phase, and their logs, without gradient."""
    found = {}
    for name, (iteration, phase) in phases_of(method).items():
        loss = phase.loss(batch, iteration, Draws(0, batch.sample))
        found |= {name: loss.total.detach()} | {f"{name}/{log}": value for log, value in loss.logs.items()}
    return found


def parameters_within(part: object, seen: set[int] | None = None) -> Iterator[nn.Parameter]:
    """All that a method holds, its denoisers' networks and the teacher's among them."""
    seen = set() if seen is None else seen
    if id(part) in seen:
        return
    seen.add(id(part))
    if isinstance(part, nn.Module):
        yield from part.parameters()
    elif is_dataclass(part):
        for field in fields(part):
            yield from parameters_within(getattr(part, field.name), seen)


def test_every_method_and_every_configuration_is_tested_here():
    rooms = ("methods", *(name.split(".")[1] for name in WINGS))
    kinds = set().union(*map(in_room, rooms))
    found = {kind for kind in kinds if hasattr(kind, "phases")} - {Method, Distillation, StudentMethod}
    assert found == {type(shared_method_of(name)) for name in CASES}
    assert {kind for kind in kinds if issubclass(kind, MethodConfig)} == {type(case.method) for case in CASES.values()}


# A method


@every_name
def test_phases_train_parameters_of_the_networks_or_the_auxiliaries(name):
    method = shared_method_of(name)
    assert isinstance(method.networks, nn.ModuleDict)
    assert not set(method.networks) & set(method.auxiliaries)
    owned = {id(p) for part in (method.networks, method.auxiliaries) for p in part.parameters() if p.requires_grad}
    trained = [[id(p) for p in phase.parameters] for _, phase in phases_of(method).values()]
    assert all(ids and len(set(ids)) == len(ids) for ids in trained)
    assert set().union(*trained) == owned  # nothing else, and nothing is left as it was


@every_name
def test_a_loss_is_a_mean_over_rows(name):
    """Parts of a batch, weighted by their rows, average to the whole, logs too: micro-batches change nothing.

    The instant version's loss is over pairs of rows, one from each half: there every half is halved again.
    """
    method, batch = shared_method_of(name), batch_of(CASES[name], 5)
    whole, two, six = (losses(method, batch[rows]) for rows in (slice(0, 8), slice(0, 2), slice(2, 8)))
    for log, value in whole.items():
        mean = (2 * two[log] + 6 * six[log]) / len(batch)
        if isinstance(method, InstantMomentMatching) and log in ("student", *halved(whole)):
            assert not torch.isclose(mean, value, rtol=1e-3, atol=0), log
        else:
            torch.testing.assert_close(mean, value, msg=lambda told, log=log: f"{log}: {told}")


def halved(logs) -> list[str]:
    """Logs of the gap between auxiliary and teacher, where it is not zero."""
    return [name for name, value in logs.items() if "gap" in name and value]


@every_name
def test_every_number_drawn_is_one_of_a_sample(name):
    """The same batch gives the same bits whatever was drawn before, another the same mean in another order."""
    method, batch = shared_method_of(name), batch_of(CASES[name], 5)
    first = losses(method, batch)
    torch.manual_seed(123)
    assert losses(method, batch) == first
    # within the halves, which the instant version makes
    for log, value in losses(method, batch[torch.tensor([2, 0, 3, 1, 7, 4, 6, 5])]).items():
        torch.testing.assert_close(value, first[log], msg=lambda told, log=log: f"{log}: {told}")
    others = losses(method, replace(batch, sample=batch.sample + 8))
    assert all(others[phase] != first[phase] for phase in phases_of(method))


@every_name
def test_a_phase_s_gradient_reaches_its_parameters_alone(name):
    """Also where the caller has not frozen the others; and every flag is afterwards as it was before."""
    method = shared_method_of(name)
    everything = list({id(p): p for p in parameters_within(method)}.values())
    flags = [p.requires_grad for p in everything]
    for phase_name, (iteration, phase) in phases_of(method).items():
        own = {id(p) for p in phase.parameters}
        loss = phase.loss(batch_of(CASES[name]), iteration, Draws(0, torch.arange(8)))
        assert loss.total.shape == ()
        assert all(value.shape == () and not value.requires_grad for value in loss.logs.values())
        loss.total.backward()
        assert {id(p) for p in everything if p.grad is not None} <= own, phase_name
        assert sum(p.grad is not None and bool(p.grad.any()) for p in phase.parameters) > 0.9 * len(own), phase_name
        assert [p.requires_grad for p in everything] == flags
        for parameter in everything:
            parameter.grad = None


@every_case
def test_its_denoiser_samples_finite_images_by_its_networks_current_weights(experiment):
    method = prepared(experiment, fresh=True).method
    serves = experiment.serves
    (plan, *_), step = serves.ladder([4]), make_step(serves.sampler or ANCESTRAL, experiment.process)

    def drawn() -> torch.Tensor:
        label = range(2) if experiment.num_classes else None
        given = None if experiment.networks.given is None else lambda seeds: batch_of(experiment).given[seeds].float()
        drawn = dr.sample_batches(method.denoiser(), step, plan, experiment.shape, range(2), label, given=given)
        return torch.cat(list(drawn))

    before = drawn()
    randomised(method.networks, 7)
    after = drawn()
    assert torch.isfinite(before).all()
    assert torch.isfinite(after).all()
    assert after.shape == (2, *experiment.shape)
    assert not torch.equal(before, after)


@pytest.mark.parametrize("name", ["denoising", "denoising, dual"])
def test_a_method_lowers_its_loss(name):
    """Methods of denoising alone: a student's loss has a meaning in its gradient only."""
    learner = method_of(CASES[name])
    x = torch.linspace(-1, 1, 64, dtype=torch.float64).view(1, 1, 8, 8).expand(8, -1, -1, -1)
    data = Batch(x, torch.zeros(8, dtype=torch.int64), torch.arange(8))
    optimizer = torch.optim.Adam(learner.networks.parameters(), lr=2e-2)
    found = []
    for _ in range(30):
        (phase,) = learner.phases(0)
        loss = phase.loss(data, 0, Draws(0, data.sample)).total
        found.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert found[-1] < 0.5 * found[0]


# A configuration


@every_case
def test_a_configuration_is_written_and_read(experiment):
    plain = json.loads(json.dumps(to_plain(experiment)))
    assert from_plain(dr.Experiment, plain) == experiment
    assert from_plain(MethodConfig, plain["method"]) == experiment.method


@every_case
def test_its_own_plan_and_sampler_are_served(experiment):
    serves = experiment.serves
    for plan in (serves.default_plan(), *serves.ladder([1, 8, 100])):
        serves.check(plan)
    networks, denoiser = experiment.build()
    model = dr.Model(experiment.name, experiment, networks, denoiser, 1, weights_hash="")
    drawer = dr.Choice().drawer(model)  # checks both
    assert drawer.plan.num_steps == serves.steps
    serves.check_step(make_step(serves.sampler or ANCESTRAL, experiment.process))


@every_case
def test_it_prepares_the_experiment_s_networks_and_starts_them_once(experiment):
    """A run that goes on has weights of its own: it reads what it learns from, not what it started from."""
    expected = {name: tensor.shape for name, tensor in experiment.build()[0].state_dict().items()}
    read: dict[bool, list[str]] = {True: [], False: []}
    begun, resumed = (prepared(experiment, fresh=fresh, read=read[fresh]) for fresh in (True, False))
    for one in (begun, resumed):
        assert {name: tensor.shape for name, tensor in one.method.networks.state_dict().items()} == expected
        assert {phase.name for phase in one.method.phases(0)}
    method = experiment.method
    sources = [getattr(method, name, None) for name in ("encoder_from", "light_from", "student_from", "backbone_from")]
    teacher = getattr(method, "teacher", None)
    assert set(read[True]) == {run for run in (teacher, *sources) if run}
    assert set(read[False]) == {run for run in (teacher,) if run}
    assert begun.identity == resumed.identity
    assert json.loads(json.dumps(dict(begun.identity))) == begun.identity
    assert begun.weights.items() >= resumed.weights.items()
    assert all(run in " ".join(begun.weights.values()) for run in read[True])
    again = prepared(experiment, fresh=True).method.networks.state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in begun.method.networks.state_dict().items())


@pytest.mark.parametrize("case", ["consistency, dual", "moment matching, segment"])
def test_what_the_light_network_alone_learns_from_spares_the_encoder_s_u_vit(case):
    method: Any = method_of(CASES[case])
    assert method.backbone is method.networks["encoder"].net
