"""The piece `paper_curve`: what it trains and draws, whole and cut off, on a CPU; and the rule of its outcomes."""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import dualrate as dr
from dualrate.diffusion.context import Batch, Refresh
from dualrate.diffusion.plan import StepPlan
from dualrate.diffusion.random import Draws
from dualrate.experiment.experiment import Start
from dualrate.sampling.cost import call_cost, expected_costs
from dualrate.training import checkpoint
from dualrate.training.config import lr_at
from tools.gpu import cifar10, judges, outcome, paper_curve, training
from tools.gpu.piece import SECONDS, Job, read

ROOT = Path(__file__).resolve().parents[2]

pytest.importorskip("efficientnet_lite_pytorch")
CPU = torch.device("cpu")
PAIRS = [plan for plans in paper_curve.PLANS.values() for plan in plans if plan.startswith("pair")]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place beside which the judges lie."""
    return tmp_path_factory.mktemp("data") / "cifar10.npz"


@pytest.fixture
def job(tmp_path: Path, data: Path) -> Job:
    return Job(paper_curve.NAME, tmp_path / "out", tmp_path / "work", time.time() + 300, data=data, smoke=True)


@pytest.fixture
def real(job: Job) -> Job:
    """Not a smoke run: networks and settings of the GPU."""
    return replace(job, smoke=False)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two plans of a set, one rate, three trainings."""
    monkeypatch.setattr(paper_curve, "PLANS", {"ancestral": (outcome.PAIR, outcome.WHOLE), "sde-dpm++2m": ()})
    monkeypatch.setattr(paper_curve, "RATES", (1e-3,))
    monkeypatch.setattr(paper_curve, "TRAINED", {0: ("heavy", "light", "pair")})
    monkeypatch.setattr(paper_curve, "SETS", 1)


def costs(job: Job, plan: str):
    """Return the costs of an image under the ancestral sampler."""
    drawing = paper_curve.Drawing("ancestral", plan)
    experiment = paper_curve.experiment(job, drawing.parts[0], 1e-3)
    denoiser = experiment.build()[1]
    step, steps = drawing.steps(experiment.gaussian, smoke=False)
    return expected_costs(
        call_cost(denoiser, cifar10.SHAPE, 0, CPU), denoiser.reuse, step, steps, cifar10.SHAPE, label=0
    )[-1]


# What is trained and drawn


@pytest.mark.parametrize(("name", "millions"), [("heavy", 508), ("mid", 190), ("light", 98)])
def test_networks_cost_what_the_page_says(real: Job, name: str, millions: int) -> None:
    cost = costs(real, f"{name} 1/1")
    assert round(cost.macs / 1e6) == millions


def test_mid_costs_what_the_pair_costs(real: Job) -> None:
    """Its call lies between the mean calls of pairs at N / 4 and N / 8, and 112 of them cost what the pair does."""
    assert costs(real, "pair 16/2").macs / 16 < costs(real, "mid 1/1").macs < costs(real, "pair 16/4").macs / 16
    assert costs(real, outcome.PAIR).macs == pytest.approx(costs(real, outcome.BASELINES[1]).macs, rel=0.005)


@pytest.mark.parametrize("plan", ["pair 128/16", "pair 64/64", "pair 8/2"])
def test_the_light_network_runs_at_every_step(real: Job, plan: str) -> None:
    _, steps, heavy = paper_curve.Drawing("ancestral", plan).parts
    cost = costs(real, plan)
    assert (cost.light_calls, cost.heavy_calls) == (steps, heavy)


@pytest.mark.parametrize("sampler", paper_curve.PLANS)
def test_heavy_calls_are_even_and_the_first_is_at_1(real: Job, sampler: str) -> None:
    process = paper_curve.experiment(real, "pair", 1e-3).gaussian
    for plan in PAIRS:
        steps: StepPlan = paper_curve.Drawing(sampler, plan).steps(process, smoke=False)[1]
        heavy = [i for i, refresh in enumerate(steps.refresh) if refresh is Refresh.FULL]
        assert steps.t[0] == 1
        assert heavy[0] == 0
        assert {later - earlier for earlier, later in pairwise(heavy)} == {steps.num_steps // steps.num_heavy}


def test_contexts_are_trained_on_the_paper_s_grid(real: Job) -> None:
    """The first of H calls between 4 and 32 is at 1, and half of the images have no context."""
    times = paper_curve.experiment(real, "pair", 1e-3).method.times
    rows = torch.arange(4096)
    t, tau, with_context = times(Draws(0, rows, rows))
    heavy = times._num_heavy(Draws(0, rows, rows))
    assert (heavy.min(), heavy.max()) == (4, 32)
    assert torch.equal(tau, torch.maximum(torch.ceil(t * heavy) / heavy, t))
    assert tau[t > 1 - 1 / 32].unique().tolist() == [1]
    assert len(with_context) == len(rows) // 2


@pytest.mark.parametrize("name", ["heavy", "mid", "light", "pair"])
def test_all_train_on_as_many_images_with_the_same_schedule(real: Job, name: str) -> None:
    experiment = paper_curve.experiment(real, name, 1e-3, seed=1)
    fit = experiment.fit
    assert fit.iterations is not None
    assert abs(fit.batch_size * fit.iterations - 3.6e6) < fit.batch_size
    assert (fit.batch_size, fit.ema_halflife, fit.precision, fit.compile, fit.seed) == (512, 250_000, "auto", True, 1)
    assert fit.max_seconds is None  # the rate falls with iterations, however many calls they take
    rest = fit.iterations - fit.optim.warmup
    rates = [lr_at(fit, fit.optim.warmup + int(part * rest), 0.0) for part in (0, 1 / 3, 2 / 3, 1)]
    assert rates == pytest.approx([1e-3, 0.75e-3, 0.25e-3, 0], abs=1e-6)
    assert experiment.num_classes == 10
    assert experiment.method.label_dropout == 0
    trial = paper_curve.experiment(real, name, 1e-3, seconds=20.0).fit
    assert (trial.iterations, trial.max_seconds, trial.falling) == (None, 20.0, 20.0)


def test_the_pair_s_loss_is_of_the_light_network_alone(job: Job) -> None:
    """An encoder without a head has no loss of its own, and its x_hat is no feature."""
    experiment = paper_curve.experiment(job, "pair", 1e-3)
    start = Start(True, CPU, False, dr.load, lambda i: Batch(torch.zeros(2, 3, 32, 32)), print)
    method = experiment.method.prepare(experiment, start).method
    logs = method.loss(cifar10.Batches(cifar10.images(job, "train"), 4).batch(0), 0, Draws(0, torch.arange(4))).logs
    assert "context_loss" in logs
    assert "encoder_loss" not in logs
    assert method.networks["encoder"].pixels is None


def test_seeds_see_other_images(job: Job) -> None:
    train = cifar10.images(job, "train")
    first, second = (cifar10.Batches(train, 8, seed=seed).batch(0).x for seed in (0, 1))
    assert not torch.equal(first, second)


def test_one_rate_serves_both_networks() -> None:
    losses = {4e-4: (1.0, 2.0), 1e-3: (1.1, 1.5), 2e-3: (0.9, None)}
    rows = {
        f"rate {rate:g}, {name}": {"diverged": "nan"} if loss is None else {"loss": loss}
        for rate, both in losses.items()
        for name, loss in zip(paper_curve.SEARCHED, both, strict=True)
    }
    assert paper_curve.best_rate(rows) == {"rate": 1e-3}


@pytest.mark.parametrize(
    ("high", "says"),
    [(1.02, "will not be below both"), (1.08, "nothing"), (1.2, "will be below both"), (0.9, "will not be below")],
)
def test_the_prediction_is_of_the_excess_at_high_noise(high: float, says: str) -> None:
    def row(last: float) -> dict:
        return {"losses": {"0": {"levels": [{"loss": 1.0}] * 8 + [{"loss": last}] * 4}}}

    announced = paper_curve.prediction({"heavy, training 0": row(1.0), "light, training 0": row(high)})
    assert announced["excess"]["high"] == pytest.approx(high - 1)
    assert announced["excess"]["low"] == 0
    assert says in announced["says"]


# Judges


def test_judges_compare_with_the_training_images(job: Job) -> None:
    train = cifar10.images(job, "train")
    paper_curve.run(replace(job, ends=time.time()))  # a smoke run writes them
    panel = judges.Judges(job.beside(judges.FILE), CPU)
    assert set(panel.nets) == {"Lite0", "Lite2", "pyramid", "stack", "mixer"}
    same, other = panel.distances(train.pixels), panel.distances(255 - train.pixels)
    assert all(abs(same[name]) < 1e-6 * other[name] for name in same)


# Calls


def test_a_smoke_run_scores_everything(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """In two calls: the first ends with the prediction, before any pair is trained."""
    monkeypatch.setattr(paper_curve, "SETS", 1)
    monkeypatch.setattr(
        paper_curve, "PLANS", {"ancestral": outcome.DECIDING, "sde-dpm++2m": ("pair 64/16", "light 64/64")}
    )
    monkeypatch.setattr(paper_curve, "RATES", (1e-3,))
    assert not paper_curve.run(job)
    first = read(job.out, paper_curve.NAME)["rows"]
    assert {"rate", "heavy, training 0", "light, training 0", "prediction"} <= set(first)
    assert "pair, training 0" not in first
    assert (job.out / "paper_curve.png").stat().st_size > 1000
    again = replace(job, work=job.work / "elsewhere")
    assert paper_curve.run(again)
    rows = again.rows
    assert {name: row for name, row in rows.items() if name in first and name != "outcome"} == {
        name: row for name, row in first.items() if name != "outcome"
    }
    assert set(rows["pair, training 0"]["losses"]) == {"0", "0.03125", "0.0625", "0.125"}
    assert {f"ancestral, {plan}, training 0, set 0" for plan in outcome.DECIDING} < set(rows)
    assert "ancestral, pair 128/16, training 1, set 0" in rows
    for row in rows.values():
        assert set(row.get("fd", judges.TRAINED | judges.LITE)) == {*judges.TRAINED, *judges.LITE}
    assert set(rows["outcome"]) >= {"curve", "pays"}
    files = sorted(path.name for path in job.out.iterdir() if "partial" not in path.name)
    nets = [("heavy", 0), ("light", 0), ("mid", 0), ("mid", 1), ("pair", 0), ("pair", 1)]
    assert files == sorted([*(paper_curve.averages(*net) for net in nets), "paper_curve.json", "paper_curve.png"])
    weights = load_file(job.out / paper_curve.averages("pair", 0))
    assert all(value.dtype == torch.bfloat16 for value in weights.values() if value.ndim)
    assert paper_curve.following(job.out) == ([], [])


class Killed(BaseException):
    """Stand-in for a kill, which does not end the process."""


@pytest.mark.usefixtures("few")
def test_a_kill_loses_the_unfinished_part_alone(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call is killed as soon as it left anything, on a machine that is new every time."""
    monkeypatch.setattr(paper_curve, "OFTEN", -1.0)
    leave, put, begun, rows = training.leave, Job.put, {}, []

    def left(job: Job, name: str) -> None:
        before = checkpoint.saved_paths(training.state_of(job, name))
        leave(job, name)
        (after,) = checkpoint.saved_paths(training.state_of(job, name)) or (None,)
        if after is not None and [after] != before:
            begun.setdefault(name, []).append(int(after.name.removeprefix("step-")))
            raise Killed

    def putting(job: Job, name: str, row: dict) -> None:
        put(job, name, row)
        rows.append(name)
        raise Killed

    monkeypatch.setattr(training, "leave", left)
    monkeypatch.setattr(Job, "put", putting)
    done = False
    for i in range(60):
        if done:
            break
        here = Job(job.name, job.out, job.work / str(i), job.ends, data=job.data, smoke=True)
        try:
            done = paper_curve.run(here)
        except Killed:
            done = bool(rows) and rows[-1] == "outcome" and paper_curve.following(job.out) == ([], [])
    assert done
    assert all(rows.count(name) == 1 for name in rows if name != "outcome")
    assert {"prediction", "pair, training 0", paper_curve.Drawing("ancestral", outcome.PAIR).row} <= set(rows)
    for steps in begun.values():
        assert steps == sorted(set(steps))  # it went on from what was left
    assert begun[f"{paper_curve.NAME}-pair-0"]


@pytest.mark.usefixtures("few")
def test_a_training_stops_with_the_call_and_goes_on_in_the_next(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter([1.0] * 6)  # two trials, the rate, the first training, two of its four iterations

    class Short(Job):
        left = property(lambda self: next(looks, 0.0))

    short = Short(job.name, job.out, job.work, job.ends, data=job.data, smoke=True)
    assert not paper_curve.run(short)
    (state,) = job.out.glob("*.state")
    (path,) = checkpoint.saved_paths(state)
    saved = checkpoint.load(path)
    assert 0 < saved.state["iteration"] < 4
    assert not any(key.endswith(training.FIRST) for key in saved.tensors["optim-model"])
    begun: list[int] = []
    honest = training.train

    def train(*of, **how):
        result = honest(*of, **how)
        begun.append(result.begun)
        return result

    monkeypatch.setattr(training, "train", train)
    paper_curve.run(Job(job.name, job.out, job.work / "elsewhere", job.ends, data=job.data, smoke=True))
    assert begun[0] == saved.state["iteration"]
    assert not list(job.out.glob("*.state"))


def test_what_a_call_reads_fits_through_the_door(real: Job, tmp_path: Path) -> None:
    """64 MiB with the sources (3), CIFAR-10 (18) and the judges (33); what comes back is eight files of 16 MiB."""
    built = {}
    for name in paper_curve.TRAINED[0]:
        with torch.device("meta"):
            networks = paper_curve.networks(name).build(paper_curve.experiment(real, "light", 1e-3).gaussian)[0]
        built[name] = sum(parameter.numel() for parameter in networks.parameters()) / 2**20
    assert all(2 * count < 16 for count in built.values())  # a file of each state, and of the weights
    out, rows = tmp_path / "out", {}
    travels = {paper_curve.CIFAR10: 18, judges.FILE: 33}

    def size() -> float:
        loads, reads = paper_curve.following(out)
        weights = [part.removeprefix("paper_curve-").partition("-")[0] for part in reads]
        counts = [
            (6 if part.endswith(".state") else 2) * built[name] for part, name in zip(reads, weights, strict=True)
        ]
        return 3 + sum(travels[name] for name in loads) + sum(counts)

    def write(name: str, row: dict) -> None:
        rows[name] = row
        out.mkdir(exist_ok=True)
        (out / "paper_curve.json").write_text(json.dumps({"done": False, "smoke": False, "rows": rows}))

    for seed, names in paper_curve.TRAINED.items():
        for name in names:
            assert size() < 64
            assert paper_curve.CIFAR10 in paper_curve.following(out)[0]
            write(f"{name}, training {seed}", {})
        assert size() < 64
        assert paper_curve.following(out)[0] == [judges.FILE]
        for drawing in paper_curve.drawings(seed):
            rows[drawing.row] = {"fd": {}}
        write("outcome", {})


def test_no_set_begins_that_outlasts_the_call() -> None:
    longest = max(drawing.seconds for seed in (0, 1) for drawing in paper_curve.drawings(seed))
    assert longest < SECONDS / 4  # so that little of a call is left over
    assert SECONDS + paper_curve.GRACE < 600


# The rule

JUDGES = (*judges.LITE, *judges.TRAINED)
LEVELS = {"heavy 256/256": 10.0, "heavy 128/128": 10.2, "heavy 64/64": 10.6, "heavy 32/32": 14.0, "mid 112/112": 13.0}
EQUAL = {"pair 128/16": 10.1, "pair 128/8": 10.5, "pair 64/16": 10.7, "pair 64/8": 11.0, "pair 256/16": 10.0}


def rows_of(sets: int = 5, trainings: int = 2, noise: float = 0.005, **levels: float) -> dict:
    """As if sets had been scored. levels: of plans, their slashes and blanks as underscores."""
    plans = LEVELS | EQUAL | {"pair 64/64": 10.6}
    plans |= {name.replace("_", " ", 1).replace("_", "/"): level for name, level in levels.items()}
    rows = {}
    for training_number in range(trainings):
        for plan, level in plans.items():
            if training_number and plan not in (outcome.PAIR, outcome.BASELINES[1]):
                continue
            for number in range(sets if plan in outcome.DECIDING else 1):
                swing = 1 + noise * math.sin(7 * number + len(plan) + 3 * training_number)
                row = {"fd": {name: level * swing * (1 + i) for i, name in enumerate(JUDGES)}}
                rows[outcome.key("ancestral", plan, training_number, number)] = row
    return rows


WORSE = {name: name.replace(" ", "_").replace("/", "_") for name in EQUAL}  # as arguments of `rows_of`


@pytest.mark.parametrize(
    ("rows", "curve", "pays"),
    [
        ({}, "open", "open"),
        (rows_of(), "reproduced", "below"),
        (rows_of(trainings=1), "reproduced", "below, once"),
        (rows_of(sets=1), "open", "open"),
        (rows_of(noise=0.2), "open", "unclear"),
        (rows_of(pair_128_16=9.0), "reproduced", "below"),  # better than the heavy network
        (rows_of(heavy_32_32=10.2), "reproduced", "baseline"),
        (rows_of(mid_112_112=10.0), "reproduced", "baseline"),
        (rows_of(heavy_32_32=10.6, noise=0.06), "open", "unclear"),
        (rows_of(heavy_32_32=10.6), "reproduced", "below"),
        (rows_of(pair_128_16=10.8), "between", "below"),
        (rows_of(pair_64_64=12.5), "bug", "below"),
        (rows_of(pair_64_64=11.9), "reproduced", "below"),
        (rows_of(**dict.fromkeys(WORSE.values(), 15.0)), "weak", "baseline"),
        (rows_of(pair_128_16=15.0, pair_256_16=15.0), "between", "baseline"),
    ],
)  # fmt: skip
def test_each_outcome_follows_from_rows(rows: dict, curve: str, pays: str) -> None:
    assert outcome.decided(rows) == {"curve": curve, "pays": pays}
    if rows:
        printed = outcome.page(rows)
        assert f"curve: {outcome.MEANING[curve]}" in printed
        assert f"pays: {outcome.MEANING[pays]}" in printed


def test_judges_have_to_agree() -> None:
    rows = rows_of()
    for name, row in rows.items():
        if "heavy 32/32" in name:
            row["fd"]["stack"] *= 10.1 / 14
    decided = outcome.decided(rows)
    assert decided["curve"] == "reproduced"
    assert "disagree" in decided["pays"]
    assert "'stack': 'baseline'" in decided["pays"]


def test_the_second_training_has_to_agree() -> None:
    rows = rows_of()
    for name, row in rows.items():
        if f"{outcome.PAIR}, training 1" in name:
            row["fd"] = {judge: 1.4 * value for judge, value in row["fd"].items()}
    assert outcome.decided(rows) == {"curve": "between", "pays": "unclear"}


def test_an_interval_is_student_s_of_paired_sets() -> None:
    logs = [0.01, 0.03, 0.02]
    base = [10.0, 20.0, 15.0]
    rows = {
        outcome.key("ancestral", plan, 0, number): {"fd": {"Lite0": level}}
        for plan, levels in (("a", [math.exp(d) * b for d, b in zip(logs, base, strict=True)]), ("b", base))
        for number, level in enumerate(levels)
    }
    ratio = outcome.compare(rows, "Lite0", ("a", "b"), 0)
    half = 4.303 * 0.01 / math.sqrt(3)
    assert ratio == pytest.approx([math.expm1(0.02), math.expm1(0.02 - half), math.expm1(0.02 + half)])
    assert ratio.inverse.mean == pytest.approx(math.expm1(-0.02))
