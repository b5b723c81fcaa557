"""A drawer is all that decides its images; kept in blocks they score as drawn at once, and the same after a kill."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from runs.made import saved_random

from dualrate.data.images import ImageSet
from dualrate.denoisers.denoiser import DualRate, Plain
from dualrate.denoisers.guidance import Guided
from dualrate.diffusion.plan import StepPlan
from dualrate.drawing.cost import call_seconds, cost_report
from dualrate.drawing.drawer import Drawer, Guidance
from dualrate.drawing.measure import drawn_alike, measure
from dualrate.experiment.data_config import DataConfig
from dualrate.experiment.experiment import Experiment
from dualrate.experiment.network_configs import TwoNetworks
from dualrate.experiment.plan_support import OnePlan
from dualrate.methods.denoising import DenoisingConfig
from dualrate.methods.moment_matching import MomentMatchingConfig
from dualrate.methods.times import TimeSampler
from dualrate.metrics.distances import GaussianStats
from dualrate.metrics.evaluate import Evaluator
from dualrate.metrics.features import Architecture, Card, FeatureNet, Mixed
from dualrate.metrics.references import Reference
from dualrate.metrics.store import PIXELS
from dualrate.networks.uvit import Level, UViTConfig
from dualrate.runs.store import Model, load
from dualrate.sampling.ancestral import Ancestral
from dualrate.sampling.cost import CallCost
from dualrate.sampling.covariance import NoiseCovariance
from dualrate.sampling.ddim import AdjustedDDIM
from dualrate.system.workers import in_turn
from dualrate.training.config import FitConfig

NET = UViTConfig(8, 1, (Level("conv", 8, 1), Level("transformer", 16, 1)), 3, patch=2, embedding=16, head_dim=16)
EXPERIMENT = Experiment("two", TwoNetworks(NET, NET), DenoisingConfig(times=TimeSampler()), FitConfig(iterations=1))
PLAN = StepPlan.uniform(2, 1)
SEEDS = range(5, 45)


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Model:
    path = tmp_path_factory.mktemp("run")
    return load(saved_random(EXPERIMENT, path))


@pytest.fixture(scope="module")
def judge(model) -> Evaluator:
    return noise_judge(model, "noise", Architecture)


@pytest.fixture(scope="module")
def other(model) -> Evaluator:
    return noise_judge(model, "other noise", Mixed)


def noise_judge(model: Model, name: str, kind: type[Architecture]) -> Evaluator:
    channels, size, _ = model.shape
    arch = kind(channels, size, 2, features=4)
    module = arch.build()
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        parameter.data.normal_(0, 0.3, generator=generator)
    net = FeatureNet(Card(name, "0" * 64, arch, "", None, 0, 1), module.eval().requires_grad_(False))
    images = torch.randint(256, (60, *model.shape), generator=generator, dtype=torch.uint8).numpy()
    return Evaluator(net, ImageSet(images, None, (), "noise/train"), None)


@pytest.fixture(scope="module")
def drawer(model) -> Drawer:
    return Drawer(model, Ancestral(model.process), PLAN, batch_size=8)


def unconditional(model) -> Model:
    net = replace(NET, num_classes=0)
    return replace(model, experiment=replace(EXPERIMENT, networks=TwoNetworks(net, net)))


def measured(drawer, judge, directory, **options):
    return measure(drawer, SEEDS, judge, keep=directory, shard_size=16, **options).row


# What a drawer is


def test_classes_take_turns_unless_one_is_asked_for(model, drawer):
    assert (drawer.labels(range(5, 9)), drawer.labels_rule) == ([2, 0, 1, 2], "seed mod classes")
    one = replace(drawer, label=1)
    assert (one.labels(range(5, 9)), one.labels_rule) == ([1] * 4, "class 1")
    none = replace(drawer, model=unconditional(model))
    assert (none.labels(SEEDS), none.labels_rule) == (None, "none")


def test_classes_take_turns_by_shares(model, drawer):
    """A function of the seed alone; in any row of seeds each class has its share; one without any is never drawn."""
    some = replace(drawer, shares=(540, 60, 0))
    for first in (0, 7, 1_000_000):
        counts = np.bincount(some.labels(range(first, first + 200)), minlength=3)
        assert counts.tolist() == [180, 20, 0]
    assert [some.labels([seed])[0] for seed in range(30)] == some.labels(range(30))
    assert (some.labels_rule, some.shares) == ("classes by turns, 9:1:0", (9, 1, 0))
    assert replace(drawer, shares=(5, 5, 5)).labels_rule == drawer.labels_rule  # as ever
    many = [replace(drawer, shares=(10**8 + i, 10**8, 10**8)).labels_rule for i in (1, 2)]
    assert [len(rule) for rule in many] == [len("classes by turns, sha256 ") + 12] * 2
    assert many[0] != many[1]
    assert replace(some, label=2).labels(range(3)) == [2, 2, 2]
    for wrong in ((1, 2), (0, 0, 0)):
        with pytest.raises(ValueError, match="a number for each of the 3 classes of run0, not all 0"):
            replace(drawer, shares=wrong)
    assert replace(some, label=None).origin("net").digest != drawer.origin("net").digest


def labelled(judge: Evaluator, *counts: int) -> Evaluator:
    """With so many images of each class in its reference."""
    labels = np.repeat(np.arange(len(counts)), counts)
    names = tuple(map(str, range(len(counts))))
    return replace(judge, reference=replace(judge.reference, labels=labels, class_names=names))


@pytest.mark.parametrize(
    ("counts", "equal", "drawn", "note"),
    [
        ((45, 15, 0), False, [30, 10, 0], "by their shares: each is 25% to 75% of the real images and 1 without real"),
        ((45, 15, 0), True, [20, 20, 0], "equally often: each is 25% to 75% of the real images and 1 without real"),
        ((30, 30, 0), False, [20, 20, 0], "classes are drawn by their shares: 1 without real images is not drawn"),
        ((20, 20, 20), False, [14, 13, 13], ""),
        ((20, 20, 20), True, [14, 13, 13], ""),
        ((60,), False, [40, 0, 0], "2 without real images are not drawn"),
    ],
)
def test_a_score_draws_classes_as_often_as_the_real_images_have_them(
    drawer, judge, tmp_path, counts, equal, drawn, note
):
    judge = labelled(judge, *counts)
    row = measure(replace(drawer, equal_classes=equal), range(40), judge).row
    asked = drawn_alike(replace(drawer, equal_classes=equal), [judge])
    labels = asked.labels(range(40))
    assert np.bincount(labels, minlength=3).tolist() == drawn
    assert row.score.fingerprint.labels == asked.labels_rule
    assert note in row.score.note
    assert ("classes are drawn" in row.score.note) == bool(note)
    features = judge.net.features(asked.draw(range(40)).images)
    assert row.score.value == pytest.approx(judge.value(features)[0], rel=1e-4)
    if drawn == [14, 13, 13]:
        assert row.score.fingerprint.labels == "seed mod classes"


def test_a_score_of_one_class_says_so(drawer, judge):
    score = measure(replace(drawer, label=1), SEEDS, labelled(judge, 45, 15, 0)).row.score
    assert score.fingerprint.labels == "class 1"
    assert "all images are of class 1" in score.note


def test_against_statistics_classes_are_drawn_as_in_training(drawer, judge, tmp_path, model, monkeypatch):
    """Or equally often, which is said, where the images are not here."""
    statistics = Evaluator(judge.net, Reference(GaussianStats.of(torch.randn(9, 4)), "statistics.npz", "0"), None)
    seen = labelled(judge, 45, 15, 0).reference
    monkeypatch.setattr(DataConfig, "images", lambda *of: seen)
    assert measure(drawer, SEEDS, statistics).row.score.fingerprint.labels == "classes by turns, 3:1:0"

    def missing(*_: object) -> None:
        raise OSError("no such folder")

    monkeypatch.setattr(DataConfig, "images", missing)
    score = measure(drawer, SEEDS, statistics).row.score
    assert score.fingerprint.labels == "seed mod classes"
    assert "shares of classes in the real images are not known: drawn by seed mod classes" in score.note


def test_strata_are_the_classes_where_each_has_two_images(model, drawer):
    strata = drawer.strata(range(5, 11))
    assert strata is not None
    assert strata.tolist() == [2, 0, 1, 2, 0, 1]
    assert drawer.strata(range(5, 10)) is None
    assert drawer.strata(range(2)) is None
    assert replace(drawer, model=unconditional(model)).strata(SEEDS) is None


def test_batches_are_the_images_as_they_are_drawn(drawer):
    told: list[tuple[int, int]] = []
    batches = list(drawer.batches(range(10), lambda *counts: told.append(counts)))
    assert [len(batch) for batch in batches] == [8, 2]
    assert told == [(8, 10), (10, 10)]
    assert (drawer.draw(range(10)).images == np.concatenate(batches)).all()


def test_what_cannot_be_drawn_is_refused_when_the_drawer_is_made(model, drawer):
    method = MomentMatchingConfig("x", OnePlan(4, 2), rollout="full")
    student = replace(model, experiment=replace(EXPERIMENT, method=method))
    labelled = replace(model, experiment=replace(EXPERIMENT, method=replace(EXPERIMENT.method, label_dropout=0)))
    for change, message in (
        ({"model": student}, "was distilled for 4 steps"),
        ({"label": 3}, "knows the classes 0 to 2, got label 3"),
        ({"model": unconditional(model), "label": 0}, "has no classes: drop the label"),
        ({"model": unconditional(model), "guidance": Guidance(2.0)}, "nothing to guide"),
        ({"model": labelled, "guidance": Guidance(2.0)}, "has nothing to guide against"),
        ({"batch_size": 0}, "batch_size is a whole number from 1"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(drawer, **change)


def test_guidance_is_away_from_the_null_class(drawer):
    """It is the number after the last class; without guidance nothing is called twice."""
    drawer = replace(drawer, precision="float32")
    guided = replace(drawer, guidance=Guidance(2.0, (0.1, 1.0))).denoiser
    assert guided == Guided(drawer.model.denoiser, drawer.model.process, 2.0, 3, (0.1, 1.0))
    assert drawer.denoiser is drawer.model.denoiser
    assert [str(one) for one in (Guidance(), Guidance(2.0, (0.1, 1.0)))] == ["", ", guidance 2 in (0.1, 1]"]
    with pytest.raises(ValueError, match="needs a guidance weight"):
        Guidance(interval=(0.1, 1.0))


def test_whatever_changes_an_image_changes_the_origin(model, drawer):
    drawer = replace(drawer, precision="float32")
    changes = [
        {},
        {"precision": "bfloat16"},
        {"guidance": Guidance(2.0)},
        {"guidance": Guidance(2.0, (0.1, 1.0))},
        {"step": Ancestral(model.process, 0.3)},
        {"step": NoiseCovariance(model.process)},
        {"plan": StepPlan.at([1, 0.4, 0], [0])},
        {"plan": StepPlan.uniform(2, 2)},
        {"model": replace(model, weights_hash="0")},
        {"label": 0},
    ]
    origins = [replace(drawer, **change).origin("net") for change in changes] + [drawer.origin(PIXELS)]
    assert len({origin.digest for origin in origins}) == len(origins)
    again = replace(drawer, step=Ancestral(model.process), batch_size=3, name="other")
    assert again.origin("net") == origins[0]
    refitted = replace(model, experiment=replace(EXPERIMENT, fit=FitConfig(iterations=2)))
    assert replace(drawer, model=refitted).origin("net") == origins[0]  # the weights tell


def test_a_step_that_holds_functions_has_an_origin(model, drawer):
    """A variance by its name."""
    adjusted, each = AdjustedDDIM(model.process), StepPlan.uniform(2, 2)
    assert "analytic_variance" in replace(drawer, step=adjusted, plan=each).origin("net").sampler


# Measuring


def test_kept_or_not_it_is_the_same_row(drawer, judge, tmp_path):
    ours = measured(drawer, judge, tmp_path / "blocks")
    theirs = measure(drawer, SEEDS, judge).row
    assert ours.score.value == pytest.approx(theirs.score.value, rel=1e-4)
    assert ours.seconds_per_image > 0
    same = replace(ours, score=theirs.score, seconds_per_image=theirs.seconds_per_image)
    assert same == theirs
    assert ours.score.fingerprint == theirs.score.fingerprint
    assert "with as many images of each class" in ours.score.note
    assert (ours.network, ours.macs, ours.batch_size) == (drawer.model.name, drawer.cost.macs, 8)
    assert measure(replace(drawer, name="mine"), SEEDS, judge).row.network == "mine"


def test_a_row_has_the_counts_and_seconds_of_what_was_drawn(drawer, judge, tmp_path, monkeypatch):
    """A batch is no larger than what is drawn at once: all seeds, or a block of them."""
    clock = iter(range(0, 10_000, 80))  # seconds, at the beginning and at the end of a batch
    monkeypatch.setattr("dualrate.metrics.store.time", SimpleNamespace(perf_counter=lambda: next(clock)))
    at_once = replace(drawer, batch_size=1000)
    row = measure(at_once, SEEDS, judge).row
    assert (row.num_steps, row.num_heavy, row.precision) == (2, 1, "bfloat16" if drawer.bfloat16 else "float32")
    assert (row.seconds_per_image, row.batch_size) == (80.0 / len(SEEDS), len(SEEDS))
    assert row.score.fingerprint.seeds == "5-44"
    assert measured(at_once, judge, tmp_path / "a").batch_size == 16
    assert measure(at_once, SEEDS, judge, keep=tmp_path / "b", shard_size=1000).row.batch_size == len(SEEDS)


@pytest.mark.parametrize("keep", [False, True])
def test_what_cannot_be_scored_is_refused_before_anything_is_drawn(drawer, judge, tmp_path, keep):
    directory = tmp_path / "blocks" if keep else None
    statistics = Evaluator(judge.net, Reference(GaussianStats.of(torch.randn(9, 4)), "statistics.npz", "0"), None)
    for seeds, one, details, message in (
        (range(3), judge, False, "draw or give more"),
        (SEEDS, statistics, True, "need single reference images"),
    ):
        with pytest.raises(ValueError, match=message):
            measure(drawer, seeds, one, keep=directory, details=details, progress=lambda *_: pytest.fail("drawn"))
    assert directory is None or not directory.exists()


def test_seconds_of_calls_are_those_of_a_row_and_of_a_kind(model, monkeypatch):
    """In calls of four rows: 8 s a heavy one, 4 s with its context; 2 s to renew a part, 6.4 s with none, if priced."""
    alone = replace(model, denoiser=Plain(model.networks.get_submodule("encoder.net"), model.process))
    taken = iter([8.0, 4.0, 8.0, 4.0, 2.0, 6.4])
    monkeypatch.setattr("dualrate.drawing.cost.seconds_per_call", lambda call, **_: (call(), next(taken))[1])
    for one, partial, without in ((model, 0.0, None), (alone.with_denoiser("toca"), 0.5, 1.6)):
        assert call_seconds(one, 4) == CallCost(2.0, 1.0, denoised=True, partial=partial, alone=without)


def test_a_report_of_costs_adds_up(drawer, model, monkeypatch):
    """FLOPs are twice the multiply-adds; a light call is timed beside a context, without what `encode` knew."""
    drawer, asked = replace(drawer, batch_size=2), []
    denoise = DualRate.denoise
    monkeypatch.setattr(DualRate, "denoise", lambda *of: asked.append(of[3]) or denoise(*of))
    monkeypatch.setattr("dualrate.drawing.cost.seconds_per_call", lambda call, **_: (call(), 0.5)[1])
    found = cost_report(drawer)
    for of in ("heavy_call", "light_call", "per_image"):
        flops, macs = (found[f"{what}_{of}"] for what in ("flops", "macs"))
        assert flops == 2 * macs > 0
    assert found["macs_per_image"] == found["macs_heavy_call"] + found["macs_light_call"]  # one step has the encoder's
    assert asked[-1].features
    assert asked[-1].x_hat is None
    draw = Drawer.draw
    taken = iter((800.0, 80.0))  # the first draw compiles, or records
    monkeypatch.setattr(Drawer, "draw", lambda *of: replace(draw(*of), seconds=next(taken, 80.0)))
    found = cost_report(drawer)
    assert [found[f"seconds_{of}"] for of in ("heavy_call", "light_call", "per_image")] == [0.5, 0.5, 40.0]
    alone = replace(model, denoiser=Plain(model.networks.get_submodule("encoder.net"), model.process))
    found = cost_report(replace(drawer, model=alone))
    assert [found[f"{what}_heavy_call"] for what in ("macs", "flops", "seconds")] == [0, 0, 0]


def test_the_features_are_those_that_were_scored(drawer, judge):
    found = measure(drawer, SEEDS, judge)
    tails = np.quantile(judge.replicates(found.features[judge.metric], drawer.strata(SEEDS)), [0.025, 0.975])
    assert tuple(tails) == pytest.approx((found.row.score.low, found.row.score.high))


def test_a_kill_changes_no_bit_and_nothing_is_drawn_twice(drawer, judge, tmp_path):
    def dies(done: int, total: int) -> None:
        if done > 10:
            raise Killed

    whole = measured(drawer, judge, tmp_path / "whole")
    with pytest.raises(Killed):
        measured(drawer, judge, tmp_path / "killed", progress=dies)
    told: list[int] = []
    resumed = measured(drawer, judge, tmp_path / "killed", progress=lambda done, total: told.append(done))
    assert told[0] > 10
    assert resumed.score == whole.score
    again = measured(drawer, judge, tmp_path / "killed", progress=lambda done, total: told.append(done))
    assert told[-1] == len(SEEDS)
    assert again == resumed


def test_a_directory_of_another_plan_is_refused(drawer, judge, tmp_path):
    measured(drawer, judge, tmp_path)
    with pytest.raises(ValueError, match="differ in plan"):
        measured(replace(drawer, plan=StepPlan.uniform(3, 1)), judge, tmp_path)


# Several judges


@pytest.mark.parametrize("keep", [False, True])
def test_an_image_is_drawn_once_for_all_judges(drawer, judge, other, tmp_path, monkeypatch, keep):
    drawn: list[int] = []
    draw = Drawer.draw
    monkeypatch.setattr(Drawer, "draw", lambda one, seeds, *of: drawn.extend(seeds) or draw(one, seeds, *of))
    how = {"keep": tmp_path / "kept", "shard_size": 16} if keep else {}
    found = measure(drawer, SEEDS, judge, other, **how)
    assert drawn == list(SEEDS)
    alone = [measure(drawer, SEEDS, one).row.score for one in (judge, other)]
    assert list(found.row.scores) == ["FD-noise", "FD-other noise"] == list(found.features)
    for score, one in zip(found.row.scores.values(), alone, strict=True):
        assert score.value == pytest.approx(one.value, rel=1e-4)
        assert score.fingerprint == one.fingerprint


def test_only_the_first_judge_has_details(drawer, judge, other):
    row = measure(drawer, SEEDS, judge, other, details=True).row
    assert row.score.details is not None
    assert row.beside[0].details is None


def test_a_judge_that_comes_later_has_its_images_drawn_and_the_first_one_s_features_stay(
    drawer, judge, other, tmp_path, monkeypatch
):
    first = measured(drawer, judge, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    row = measure(drawer, SEEDS, judge, other, keep=tmp_path, shard_size=16).row
    assert row.score == first.score
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
    monkeypatch.setattr(Drawer, "draw", None)
    assert measure(drawer, SEEDS, judge, other, keep=tmp_path, shard_size=16).row == row
    assert measured(drawer, judge, tmp_path) == first


def test_real_images_are_seen_by_whoever_draws_before_anything_is_drawn(drawer, judge, tmp_path):
    jobs = []

    def mapper(job, blocks):
        jobs.append([type(block).__name__ for block in blocks])
        return in_turn(job, blocks)

    kept = replace(judge, keep=tmp_path)
    assert measured(drawer, kept, None, mapper=mapper).score == measured(drawer, judge, None).score
    assert jobs == [["list"], ["list"] * 3]


@pytest.mark.parametrize(("details", "alone"), [(False, [True, True]), (True, [False, True])])
def test_reconstructions_need_no_other_real_images_than_their_own(drawer, judge, other, monkeypatch, details, alone):
    asked = []

    def drawn(*_: object, **how: object) -> None:
        raise Killed

    monkeypatch.setattr("dualrate.drawing.measure._originals", lambda *of: torch.tensor(SEEDS))
    monkeypatch.setattr("dualrate.drawing.measure.fill_stores", drawn)
    monkeypatch.setattr(Evaluator, "prepare", lambda self, mapper, **how: asked.append(how["held_out_alone"]))
    with pytest.raises(Killed):
        measure(drawer, SEEDS, judge, other, details=details)
    assert asked == alone


def test_every_judge_needs_enough_images_before_any_is_drawn(drawer, judge, other):
    arch = replace(other.net.card.architecture, features=64)
    dear = replace(other, net=replace(other.net, card=replace(other.net.card, architecture=arch)))
    with pytest.raises(ValueError, match="FD-other noise needs at least 128"):
        measure(drawer, SEEDS, judge, dear, progress=lambda *_: pytest.fail("drawn"))
