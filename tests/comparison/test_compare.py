"""A comparison from end to end on tiny runs: entries, resuming, time that runs out, and what the page says."""

import csv
import json
import os
import shutil
import signal
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from cli.command import call
from drawing.stand import Stand
from metrics.untrained import untrained
from runs.made import saved_random
from trouble import forked

import dualrate as dr
from dualrate.cli.main import main
from dualrate.comparison import candidates, yardstick
from dualrate.comparison import compare as comparison
from dualrate.comparison.candidates import (
    Candidate,
    RunRequest,
    baselines_of,
    candidates_of,
)
from dualrate.comparison.compare import compare, seconds_each
from dualrate.comparison.results import compare_page
from dualrate.denoisers.catalogue import DENOISERS
from dualrate.diffusion.plan import StepPlan
from dualrate.drawing.choice import Choice
from dualrate.drawing.drawer import Drawer
from dualrate.experiment.data_config import DataConfig
from dualrate.experiment.experiment import Experiment
from dualrate.experiment.network_configs import OneNetwork, TwoNetworks
from dualrate.methods.denoising import DenoisingConfig
from dualrate.methods.times import SingleTime, TimeSampler
from dualrate.metrics.features import Architecture, FeatureNet, Mixed
from dualrate.metrics.store import FeatureStore
from dualrate.networks.uvit import Level, UViTConfig
from dualrate.report.figures import svg
from dualrate.report.image_grid import read_png
from dualrate.runs.store import load, write_experiment
from dualrate.sampling.grids import grid_times
from dualrate.system.progress import run_lock
from dualrate.system.workers import leading
from dualrate.training import checkpoint
from dualrate.training.config import FitConfig

NET = UViTConfig(8, 1, (Level("conv", 8, 1), Level("transformer", 16, 2)), 2, patch=2, embedding=16, head_dim=16)
SMALL = UViTConfig(8, 1, (Level("conv", 8, 1), Level("transformer", 16, 1)), 2, patch=2, embedding=16, head_dim=16)
EFFORT = {"minutes": 5, "screen": 12, "count": 40}


class Notes:
    def __init__(self):
        self.lines = []

    def update(self, iteration, total, logs):
        assert 0 <= iteration <= total + 1

    def note(self, text):
        self.lines.append(text)

    def close(self): ...


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """A directory with runs `heavy` and `dual` of random weights, their images, and feature nets `net` and `mixer`."""
    made = tmp_path_factory.mktemp("prepared")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (64, 8, 8, 1), dtype=np.uint8)
    np.savez(made / "images.npz", images=images, labels=np.arange(64) % 2)
    data = DataConfig("images.npz")
    for name, networks in {"heavy": OneNetwork(NET), "dual": TwoNetworks(NET, SMALL)}.items():
        times = TimeSampler() if name == "dual" else SingleTime()
        experiment = Experiment(name, networks, DenoisingConfig(times), FitConfig(iterations=1), data)
        saved_random(experiment, made / name)
    for name, architecture in {"net": Architecture(1, 8, 2, features=4), "mixer": Mixed(1, 8, 2, features=6)}.items():
        untrained(architecture, f"noise {name}").save(made / name)
    return made


@pytest.fixture
def here(prepared, tmp_path, monkeypatch) -> Path:
    """The working directory, a copy of `prepared`: little is timed, and no page is made (see `pages`)."""
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DUALRATE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(candidates, "LADDER", (3, 5))
    monkeypatch.setattr(candidates, "DUAL_PLANS", ((4, 2), (6, 2)))
    monkeypatch.setattr(comparison, "BATCH", 2)
    monkeypatch.setattr(comparison, "SHOWN", 2)
    monkeypatch.setattr(comparison, "environment", lambda device: {"processor": "one", "commit": "1234567"})
    monkeypatch.setattr(comparison, "compare_page", lambda results: "no page")
    return tmp_path


@pytest.fixture
def pages(here, monkeypatch) -> None:
    """Pages are made, without their figures."""
    monkeypatch.setattr(comparison, "compare_page", compare_page)


@pytest.fixture
def strange(tmp_path, monkeypatch) -> None:
    """A package with a step that is DDIM's."""
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "steps.py").write_text("import dualrate as dr\n\n\nclass Mine(dr.DDIM): ...\n")
    monkeypatch.syspath_prepend(tmp_path)


def run(here: Path, *entries: str, **options):
    how = {"features": here / "net", "progress": Notes(), **EFFORT}
    return compare(entries, here / "report.html", **(how | options))


def test_usual_plans_on_one_page(here, pages, monkeypatch):
    monkeypatch.setattr("dualrate.comparison.results.svg", svg)
    findings = run(here, "one network=heavy", "dual")
    assert {one.row.network for one in findings.screened} == {"one network", "dual"}
    assert {one.row.sampler for one in findings.screened} == {"SDE-DPM-Solver++ 2M, gamma 0.1"}
    assert not findings.unfinished
    page = (here / "report.html").read_text()
    assert page.count("<path") > 9
    assert "http" not in page.replace("http://www.w3.org", "")
    assert "Two rates" in page
    made = json.loads((here / "report.json").read_text())
    assert len(made["front"]) == len(findings.finished)
    assert len(made["screening"]) == len(findings.screened)
    for line, one in zip(made["front"], findings.finished, strict=True):
        assert StepPlan.from_json(json.dumps(line["plan"])) == one.candidate.plan
        assert line["flops"] == 2 * line["macs"]
        assert line["seconds_alone"] > 0
        assert line["low"] <= line["value"] <= line["high"]
        assert ("saving_ratio" in line) == (line["network"] == "dual")
    for one in findings.screened:  # the replicates are those whose quantiles are the score's interval
        tails = np.quantile(one.replicates[one.row.score.metric], [0.025, 0.975])
        assert tuple(tails) == pytest.approx((one.row.score.low, one.row.score.high))


@pytest.mark.parametrize(("text", "steps", "heavy"), [("dual:8/2", 8, 2), ("dual:8", 8, None), ("heavy:6", 6, None)])
def test_the_command_sample_and_python_mean_the_same(here, monkeypatch, text, steps, heavy):
    """One plan and one sampler, and bit-equal images."""
    name = text.partition(":")[0]
    loaded = load(name)
    (made,) = made_of(text)
    own = Choice(steps, heavy).drawer(loaded)
    drawer = made.drawer(loaded)
    assert (drawer.plan, drawer.step) == (own.plan, own.step)
    options = ["--steps", str(steps), *(["--heavy", str(heavy)] if heavy else [])]
    assert call(monkeypatch, "sample", name, *options, "--num", "3", "--out", "drawn", "--device", "cpu") == 0
    drawn = np.stack([read_png(here / "drawn" / f"{seed:06d}.png") for seed in range(3)])
    assert np.array_equal(drawn, own.draw(range(3)).images)
    assert np.array_equal(drawn, drawer.draw(range(3)).images)
    assert np.array_equal(drawn, dr.sample(loaded, 3, steps=steps, heavy=heavy))


def test_a_pair_whose_heavy_network_is_called_at_every_step_is_one_network(here):
    findings = run(here, "pair=dual:4/2", "student=dual:4/4")
    assert [one.row.network for one in findings.dual_rate] == ["pair"]
    assert [one.row.network for one in findings.baselines] == ["student"]


def test_the_front_is_measured_on_other_seeds_than_the_screening(here):
    findings = run(here, "dual")
    assert all(one.row.score.fingerprint.seeds.startswith("1000000-") for one in findings.screened)
    assert {one.row.score.fingerprint.seeds for one in findings.finished} == {"0-39"}
    assert not run(here, "dual:4/2").screened  # there is nothing to choose


@pytest.mark.parametrize("equal", [False, True])
def test_both_commands_draw_classes_by_their_shares_in_the_data_or_equally_often(here, monkeypatch, capsys, equal):
    """The data set has 52 images of one class and 12 of the other, of which a tenth is held out."""
    content = dict(np.load("images.npz"))
    np.savez("images.npz", **content | {"labels": (np.arange(64) > 51).astype(np.int64)})
    ones = int((dr.load_images("images.npz", split="train").labels == 1).sum())
    rule = "seed mod classes" if equal else f"classes by turns, {58 - ones}:{ones}"
    note = "classes are drawn equally often" if equal else "classes are drawn by their shares"
    words = ["--features", "net", "--device", "cpu", *(["--equal-classes"] if equal else [])]
    assert call(monkeypatch, "compare", "dual:4/2", "heavy:3", "--count", 40, "--screen", 12, *words) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert note in said
    assert json.loads(Path("report.json").read_text())["headline"] in said
    with Path("report.csv").open() as lines:
        assert {row["num_steps"] for row in csv.DictReader(lines)} == {"3", "4"}
    assert all(Path(f"report.{cost}.svg").read_text().startswith("<svg") for cost in ("flops", "seconds"))
    rows = json.loads(Path("report.json").read_text())["front"]
    assert [row["fingerprint"]["labels"] for row in rows] == [rule] * 2
    assert call(monkeypatch, "evaluate", "dual", "--steps", 4, "--heavy", 2, "--num", 40, "--json", *words) == 0
    alone = json.loads(capsys.readouterr().out)["score"]
    assert alone["fingerprint"]["labels"] == rule
    (pair,) = (row for row in rows if row["network"] == "dual")
    assert alone["value"] == pytest.approx(pair["value"], rel=1e-3)


def test_a_second_call_draws_nothing_and_says_the_same(here, monkeypatch):
    first = run(here, "dual:4/2")
    monkeypatch.setattr("dualrate.metrics.store.FeatureStore.write", None)
    forget_rows(here)
    second = run(here, "dual:4/2")
    assert [one.row.score for one in first.finished] == [one.row.score for one in second.finished]


def test_times_are_kept_for_the_machine_and_a_fuller_page_stays(here, pages, monkeypatch):
    drawings, draw = [], yardstick.Yardstick.draw
    monkeypatch.setattr(yardstick.Yardstick, "draw", lambda *of: drawings.append(of) or draw(*of))
    monkeypatch.setattr(comparison, "seconds_each", lambda *of: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(here, "dual:4/2", "heavy:3")
    page = here / "report.html"
    early = page.read_text()
    assert "Nothing was timed yet" in early
    assert "Score against FLOPs" in early
    assert "measured time" not in early
    monkeypatch.setattr(comparison, "seconds_each", seconds_each)
    first = run(here, "dual:4/2", "heavy:3")
    seen = len(drawings)
    assert "Nothing was timed yet" not in page.read_text()
    monkeypatch.setattr(comparison.Session, "write", lambda session, results: written.append(results))
    written = []
    second = run(here, "dual:4/2", "heavy:3")
    assert len(drawings) == seen
    assert [results.finished for results in written] == [second.finished]
    assert [one.seconds_alone for one in second.finished] == [one.seconds_alone for one in first.finished]
    monkeypatch.setattr(comparison, "environment", lambda device: {"processor": "two"})
    run(here, "dual:4/2", "heavy:3")
    assert len(drawings) > seen


def forget_rows(here: Path) -> None:
    """So that what is kept of a call before are features alone."""
    for file in (here / "report.cells").glob("*.json"):
        file.unlink()


def test_rows_of_another_machine_stand_for_images_and_features(here, monkeypatch):
    first = run(here, "dual:4/2")
    shutil.move(here / "report.cells", here / "elsewhere")
    monkeypatch.setattr(yardstick, "measure", None)
    monkeypatch.setattr(FeatureNet, "features", None)  # of real images neither
    (here / "report.cells").mkdir()
    for file in (here / "elsewhere").glob("*.json"):
        shutil.copy(file, here / "report.cells")
    second = run(here, "dual:4/2")
    for one, other in zip((*first.screened, *first.finished), (*second.screened, *second.finished), strict=True):
        assert one.row.score == other.row.score
    for one, other in zip(first.finished, second.finished, strict=True):
        for metric, replicates in one.replicates.items():
            assert np.array_equal(replicates, other.replicates[metric])
    assert json.loads((here / "report.json").read_text())["front"][0]["ran_on"]


def test_rows_in_another_precision_are_measured_anew(here):
    run(here, "dual:4/2", precision="float32")
    kept = set((here / "report.cells").glob("*.json"))
    findings = run(here, "dual:4/2", precision="bfloat16")
    assert {one.row.precision for one in findings.finished} == {"bfloat16"}
    assert len(set((here / "report.cells").glob("*.json")) - kept) == len(kept)


def blocks(kept: Path) -> dict[str, int]:
    """Files of features, and when they were written."""
    return {str(file.relative_to(kept)): file.stat().st_mtime_ns for file in kept.rglob("*.safetensors")}


@pytest.mark.parametrize("moment", [6, *(pytest.param(at, marks=pytest.mark.slow) for at in (2, 9))])
def test_a_killed_command_goes_on_to_the_same_figures(here, monkeypatch, moment):
    """Killed as it screens, or within a candidate of the front; right before a block is written (odd) or after it."""
    command = ("compare", "heavy:2", "dual", "--features", "net", "--screen", "12", "--count", "300")

    def figures() -> object:
        assert call(monkeypatch, *command, "--out", "report.html") == 0
        made = json.loads((here / "report.json").read_text())
        names = ("network", "num_steps", "macs", "value", "low", "high")
        return [[line[name] for name in names] for kind in ("screening", "front") for line in made[kind]]

    def dies() -> None:
        moments, write = count(1), FeatureStore.write

        def reached() -> None:
            if next(moments) == moment:
                os.kill(os.getpid(), signal.SIGKILL)

        def written(*of: object) -> None:
            reached()
            write(*of)
            reached()

        monkeypatch.setattr(FeatureStore, "write", written)
        figures()

    expected, kept = figures(), here / "report.cells"
    whole = blocks(kept)
    shutil.rmtree(kept)
    assert forked(dies) == -signal.SIGKILL
    before = blocks(kept)
    assert len(before) == moment // 2
    assert figures() == expected
    assert {file: at for file, at in blocks(kept).items() if file in before} == before  # none is drawn again
    assert blocks(kept).keys() == whole.keys()


def test_two_metrics_see_the_same_images_which_are_drawn_once_and_screen_with_the_first(here, pages, monkeypatch):
    drawn: list[int] = []
    draw = Drawer.draw
    monkeypatch.setattr(Drawer, "draw", lambda one, seeds, *of: drawn.append(len(seeds)) or draw(one, seeds, *of))
    how = {"features": "net,mixer", "progress": Notes()}
    findings = compare(["heavy:2", "dual"], here / "report.html", **EFFORT, **how)
    assert [drawn.count(EFFORT["screen"]), drawn.count(EFFORT["count"])] == [3, len(findings.finished)]
    assert {tuple(one.row.scores) for one in findings.screened} == {("FD-noise net",)}
    assert {tuple(one.row.scores) for one in findings.finished} == {("FD-noise net", "FD-noise mixer")}
    for one in findings.finished:
        score, replicates = one.row.scores["FD-noise mixer"], one.replicates["FD-noise mixer"]
        assert tuple(np.quantile(replicates, [0.025, 0.975])) == pytest.approx((score.low, score.high))
    page, lines = (here / "report.html").read_text(), json.loads((here / "report.json").read_text())["front"]
    assert "FD-noise net" in page
    assert "FD-noise mixer" in page
    for line, one in zip(lines, findings.finished, strict=True):
        assert line["FD-noise mixer value"] == one.row.scores["FD-noise mixer"].value


def test_a_team_draws_what_one_process_does(here):
    """Blocks are sent as to other processes, and done here; what these do: see cli/test_several_processes.py."""
    one = run(here, "heavy:2", "dual:4/2")
    shutil.rmtree(here / "report.cells")
    with leading(team := Stand()):
        two = run(here, "heavy:2", "dual:4/2")
    assert team.blocks == 2  # of two candidates
    for first, second in ((one.screened, two.screened), (one.finished, two.finished)):
        assert [each.row.score for each in first] == [each.row.score for each in second]


def test_however_little_time_there_is_something_is_on_the_front_and_both_sides_are(here, pages, monkeypatch):
    monkeypatch.setattr(yardstick, "INCREMENT", 40)
    notes = Notes()
    findings = run(here, "heavy@ddim", "dual", minutes=1e-9, screen=60, count=80, progress=notes)
    assert {one.row.network for one in findings.finished} == {"heavy", "dual"}
    assert {one.row.score.fingerprint.count for one in findings.finished} == {40}
    page = (here / "report.html").read_text()
    for sentence in (
        "candidates were not screened in time.",
        "2 were screened on 40 images, not on 60.",
        "2 were measured on 40 images, not on 80.",
    ):
        assert any(sentence in one for one in findings.unfinished), sentence
        assert sentence in page
    assert any(
        note.startswith("4 candidates to be screened on 40 images each, which takes about") for note in notes.lines
    )
    complete = run(here, "heavy@ddim", "dual", screen=60, count=80)
    assert {one.row.score.fingerprint.count for one in complete.finished} == {80}
    assert not complete.unfinished


def test_two_comparisons_do_not_fill_one_directory(here):
    (here / "report.cells").mkdir()
    with (
        run_lock(here / "report.cells"),
        pytest.raises(OSError, match="filled by a comparison by another process"),
    ):
        run(here, "heavy:2", "dual:4/2")


def test_what_was_asked_for_is_always_measured(here):
    findings = run(here, "heavy:2", "heavy:3", "heavy:4@ddim")
    assert len(findings.finished) == 3


@pytest.mark.parametrize("texts", [("heavy:3", "heavy"), ("heavy", "heavy:3")])
def test_what_was_asked_for_stays_so_where_the_usual_plans_have_it_too(here, texts):
    models = {Path("heavy"): load("heavy")}
    found = candidates_of([RunRequest.parse(text) for text in texts], models)
    assert [one.plan.num_steps for one in found if one.named] == [3]
    assert len({one.key for one in found}) == len(found) > 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("heavy", RunRequest(Path("heavy"), "heavy", Choice())),
        ("big=heavy:8", RunRequest(Path("heavy"), "big", Choice(8))),
        ("dual:8/2", RunRequest(Path("dual"), "dual", Choice(8, 2))),
        ("heavy:8@dpm++2m", RunRequest(Path("heavy"), "heavy", Choice(8, sampler="dpm++2m"))),
        ("heavy@ddim", RunRequest(Path("heavy"), "heavy", Choice(sampler="ddim"))),
        ("heavy+shared-encoder:8", RunRequest(Path("heavy"), "heavy", Choice(8), "shared-encoder")),
        ("dual:8/2@ancestral:0.5", RunRequest(Path("dual"), "dual", Choice(8, 2, "ancestral", 0.5))),
    ],
)
def test_requests(here, text, expected):
    assert RunRequest.parse(text) == expected


def test_a_request_may_name_a_step_of_another_package(here, strange):
    assert RunRequest.parse("heavy:8@strange.steps:Mine").choice == Choice(8, sampler="strange.steps:Mine")
    assert RunRequest.parse("heavy@strange.steps:Mine:0.5").choice == Choice(sampler="strange.steps:Mine", gamma=0.5)


def test_a_step_of_another_package_is_compared_with_ours(here, strange, monkeypatch):
    findings = run(here, "theirs=heavy:3@strange.steps:Mine", "heavy:3@ddim")
    theirs, ours = (one.row.score.value for one in findings.finished)
    assert theirs == ours
    with pytest.raises(ValueError, match="reuse"):
        run(here, "dual@strange.steps:Mine")


@pytest.mark.parametrize("text", ["nothing", "nothing:3", "heavy:3@euler", "heavy:3@ancestral:x", "", "=", ":4"])
def test_requests_that_are_none(here, text):
    with pytest.raises(ValueError, match="there is no"):
        RunRequest.parse(text)


@pytest.mark.parametrize("text", ["heavy:x", "dual:8/x", "heavy:0", "dual:8/-1", "heavy:100001", "dual:9999999999/8"])
def test_plans_that_are_none(here, text):
    with pytest.raises(ValueError, match=r"is no plan|number of steps"):
        RunRequest.parse(text)


def test_a_plan_of_more_heavy_calls_than_steps_is_none(here):
    with pytest.raises(ValueError, match="between 0 and the number of steps, 4, got 8"):
        made_of("dual:4/8")


@pytest.mark.parametrize("sampler", ["ddim", "heun", "dpm++2m"])
def test_a_sampler_that_may_not_reuse_a_context_is_refused_before_any_work(here, sampler):
    with pytest.raises(ValueError, match="reuse"):
        run(here, f"dual@{sampler}")


def test_two_runs_of_one_name_are_refused(here):
    with pytest.raises(ValueError, match="two runs are called 'x'"):
        run(here, "x=heavy:2", "x=dual:4/2")


@pytest.mark.parametrize(("text", "gamma"), [("heavy@ancestral:0.4", 0.4), ("heavy@sde-dpm++2m", 0.0), ("heavy", 0.1)])
def test_a_noise_level_that_is_asked_for_is_the_one(here, text, gamma):
    assert {one.gamma for one in made_of(text)} == {gamma}


def test_a_run_that_was_trained_on_is_measured_anew(here):
    first = run(here, "heavy:2")
    weights = {name: tensor + 0.1 for name, tensor in load("heavy").networks.state_dict().items()}
    checkpoint.save(here / "heavy" / "checkpoints", 2, {"ema-model": weights, "model": weights}, {"iteration": 2})
    second = run(here, "heavy:2")
    assert first.finished[0].row.score.value != second.finished[0].row.score.value


def test_a_plan_file(here):
    plan = StepPlan.at(4, [1, 3])
    Path("mine.json").write_text(plan.to_json())
    (made,) = made_of("dual:mine.json@ancestral")
    assert made == Candidate(Path("dual"), "dual", "ancestral", plan, note="mine", named=True)


def made_of(text: str) -> list[Candidate]:
    request = RunRequest.parse(text)
    return candidates_of([request], {request.run: load(request.run)})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("heavy+shared-encoder", ("heavy", "shared-encoder", Choice())),
        ("heavy+shared-encoder:8/4", ("heavy", "shared-encoder", Choice(8, 4))),
        ("heavy+dualrate.denoisers.denoiser:Metered", ("heavy", "dualrate.denoisers.denoiser:Metered", Choice())),
        (
            "heavy+dualrate.denoisers.denoiser:Metered:8/4",
            ("heavy", "dualrate.denoisers.denoiser:Metered", Choice(8, 4)),
        ),
        ("heavy+dual:8/4", ("heavy", "dual", Choice(8, 4))),
        ("heavy+dual", ("heavy", "dual", Choice())),
        ("a+b", ("a+b", None, Choice())),
        ("a+b:8", ("a+b", None, Choice(8))),
    ],
)
def test_a_denoiser_of_an_entry_is_told_from_its_plan_and_from_a_name_with_a_plus(here, text, expected):
    Path("a+b").mkdir()
    request = RunRequest.parse(text)
    assert (str(request.run), request.denoiser, request.choice) == expected


def test_another_run_makes_the_first_steps(here, monkeypatch):
    monkeypatch.setattr(candidates, "LIGHT_FIRST_PLANS", ((4, 2), (4, 3)))
    (named,) = made_of("heavy+dual:8/6@dpm++2m")
    assert named.plan == StepPlan.late(grid_times("karras", load("heavy").process.schedule, 8), 6, 2)
    assert (named.network, named.denoiser) == ("heavy after dual", "dual")
    assert {(one.sampler, one.gamma) for one in made_of("heavy+dual")} == {("sde-dpm++2m", 0.1)}
    drawer = named.drawer(load("heavy"))
    assert drawer.draw(range(2)).images.shape == (2, 1, 8, 8)
    light = drawer.cost.macs - 6 * load("heavy").call_cost.light
    assert 0 < light < 2 * load("dual").call_cost.light  # alone, without the embedding of tau
    options = ["--denoiser", "dual", "--steps", "8", "--heavy", "6", "--sampler", "dpm++2m", "--num", "2"]
    assert call(monkeypatch, "sample", "heavy", *options, "--out", "drawn", "--device", "cpu") == 0
    drawn = np.stack([read_png(here / "drawn" / f"{seed:06d}.png") for seed in range(2)])
    assert np.array_equal(drawn, drawer.draw(range(2)).images)
    with pytest.raises(ValueError, match=r"there is no denoiser 'gone'.*nor is it the directory of a run"):
        RunRequest.parse("heavy+gone:8/6")
    with pytest.raises(ValueError, match="say how many of the 8 steps are those of heavy: 8/4"):
        run(here, "heavy+dual:8")


def baselines(*texts: str) -> tuple[list[RunRequest], list[str]]:
    """Return the requests that --baselines adds to these, and what is said of them."""
    requests, notes = [RunRequest.parse(text) for text in texts], Notes()
    return baselines_of(requests, {one.run: load(one.run) for one in requests}, progress=notes), notes.lines


def test_baselines_are_the_denoisers_of_the_catalogue_that_take_the_dearest_single_network(here, monkeypatch):
    def unfit(denoiser, process):
        raise ValueError("made for another network")

    monkeypatch.setattr(candidates, "DENOISERS", {"taylor": None, "unfit": None, "fora": None})
    monkeypatch.setitem(DENOISERS, "unfit", unfit)
    found, notes = baselines("dual", "named=heavy@ddim")
    assert [(one.run.name, one.network, one.denoiser) for one in found] == [
        ("heavy", "named", "taylor"),
        ("heavy", "named", "fora"),
    ]
    assert {one.choice for one in found} == {Choice()}
    assert notes == ["without unfit: heavy cannot be called by unfit: made for another network; drop the denoiser"]
    for texts in (("dual",), ("heavy:4", "dual"), ("heavy+fora",)):
        with pytest.raises(ValueError, match="call a single network in other ways"):
            baselines(*texts)


def test_the_dearest_of_two_single_networks_has_the_baselines(here):
    (here / "light").mkdir()
    light = replace(load("heavy").experiment, networks=OneNetwork(SMALL))
    write_experiment(here / "light", light)
    weights = light.build()[0].state_dict()
    checkpoint.save(here / "light" / "checkpoints", 1, {"ema-model": weights, "model": weights}, {"iteration": 1})
    for texts in (("light", "heavy"), ("heavy", "light")):
        found, notes = baselines(*texts)
        assert {one.run.name for one in found} == {"heavy"}
        assert [one.denoiser for one in found] == [*DENOISERS, "light"]
        assert not notes


def test_baselines_are_compared_where_they_are_asked_for(here, monkeypatch):
    def told(requests, models):
        raise RuntimeError([one.denoiser for one in requests])

    monkeypatch.setattr(comparison, "candidates_of", told)
    monkeypatch.setattr(candidates, "DENOISERS", {"taylor": None})
    with pytest.raises(RuntimeError, match=r"\[None, 'taylor'\]"):
        run(here, "heavy@dpm++2m", baselines=True)
    with pytest.raises(RuntimeError, match=r"\[None\]"):
        run(here, "heavy@dpm++2m")


def test_keys_tell_candidates_apart():
    plans = [StepPlan.uniform(4, 2), StepPlan.at(4, [0, 1])]
    made = [Candidate(Path(run), run, "ancestral", plan) for run in ("a", "b") for plan in plans]
    made.append(Candidate(Path("a"), "a", "ddim", plans[0]))
    made.append(Candidate(Path("a"), "a", "ancestral", plans[0], denoiser="shared-encoder"))
    made.append(Candidate(Path("a"), "a", "ancestral", plans[0], gamma=0.5))
    assert len({one.key for one in made}) == len(made)


def test_runs_that_do_not_compare(here):
    experiment = load("heavy").experiment
    other = Experiment("other", OneNetwork(NET), DenoisingConfig(), experiment.fit, DataConfig("elsewhere.npz"))
    networks, _ = other.build()
    write_experiment(here / "other", other)
    checkpoint.save(here / "other" / "checkpoints", 1, {"model": networks.state_dict()}, {"iteration": 1})
    with pytest.raises(ValueError, match="--mixed"):
        run(here, "heavy:2", "other:2")
    assert len(run(here, "heavy:2", "other:2", mixed=True).finished) == 2


def test_members_of_runs_without_a_condition_are_refused_in_python_too(here):
    with pytest.raises(ValueError, match="no condition that members would share"):
        run(here, "heavy:2", members=4)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["heavy:2", "--out", "report.txt"], ".html"),
        (["heavy:2", "--minutes", "0"], "minutes"),
        (["heavy:2", "--screen", "60", "--count", "50"], "screen"),
        (["heavy:2", "--screen", "4", "--count", "10"], "draw or give more"),
        (["heavy:2", "--features", "nowhere"], "nowhere"),
        (["gone:2"], "there is no run"),
        ([], "nothing to compare"),
    ],
)
def test_bad_input_is_one_clear_line(here, capsys, monkeypatch, arguments, expected):
    if "--features" not in arguments:
        arguments = [*arguments, "--features", "net"]
    monkeypatch.setattr("sys.argv", ["dualrate", "compare", *arguments, "--device", "cpu"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert expected in told[-1]
