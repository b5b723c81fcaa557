"""A comparison from end to end on tiny runs: entries, resuming, time that runs out, and what the page says."""

import csv
import json
import multiprocessing
import os
import shutil
import signal
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cli.command import call
from drawing.stand import Stand
from metrics.untrained import untrained
from runs.made import saved_random
from trouble import children, forked, is_alive, wait_until

from dualrate.cli.main import main
from dualrate.compare import comparison, contenders, speed, work
from dualrate.compare import contenders as rivals_module
from dualrate.compare.comparison import Effort, compare
from dualrate.compare.contender import Contender
from dualrate.compare.contenders import Entry, contenders_of, rivals_of, switched_at, usual_student
from dualrate.compare.page import compare_page
from dualrate.denoisers.catalogue import DENOISERS
from dualrate.diffusion.plan import StepPlan
from dualrate.diffusion.values import Refresh
from dualrate.drawing.drawer import Drawer
from dualrate.experiment.experiment import DataConfig, Experiment
from dualrate.experiment.network_configs import OneNetwork, TwoNetworks
from dualrate.experiment.plan_support import Segments
from dualrate.methods.denoising import DenoisingConfig
from dualrate.methods.times import SingleTime, TimeSampler
from dualrate.metrics import evaluate
from dualrate.metrics.features import Architecture, FeatureNet, Mixed
from dualrate.metrics.store import FeatureStore
from dualrate.networks.uvit import Level, UViTConfig
from dualrate.report import html
from dualrate.runs.store import load, write_experiment
from dualrate.sampling.ancestral import Ancestral
from dualrate.sampling.catalogue import sampler_named
from dualrate.sampling.cost import CallCost, PlanCost
from dualrate.sampling.grids import grid_times
from dualrate.sampling.solvers import DPMSolver2M
from dualrate.system.progress import run_lock
from dualrate.training import checkpoint
from dualrate.training.config import FitConfig

NET = UViTConfig(8, 1, (Level("conv", 8, 1), Level("transformer", 16, 2)), 2, patch=2, embedding=16, head_dim=16)
SMALL = UViTConfig(8, 1, (Level("conv", 8, 1), Level("transformer", 16, 1)), 2, patch=2, embedding=16, head_dim=16)
EFFORT = Effort(minutes=5, screen=12, count=40)


class Notes:
    def __init__(self):
        self.lines = []

    def update(self, iteration, total, logs):
        assert 0 <= iteration <= total + 1

    def note(self, text):
        self.lines.append(text)

    def close(self): ...


@pytest.fixture(scope="session")
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
    """The working directory, a copy of `prepared`: little is timed and resampled, and no page is made (see `pages`)."""
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DUALRATE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(contenders, "LADDER", (3, 5))
    monkeypatch.setattr(contenders, "DUAL_PLANS", ((4, 2),))
    monkeypatch.setattr(contenders, "PLANNED_PLANS", ((4, 2), (8, 2)))
    monkeypatch.setattr(contenders, "SHARED_PLANS", ((4, 2),))
    monkeypatch.setattr(contenders, "PLANNER_GRID", 8)
    monkeypatch.setattr(contenders, "PLANNING_IMAGES", 8)
    monkeypatch.setattr(contenders, "SIMILARITY_IMAGES", 2)
    monkeypatch.setattr(speed, "LARGEST_BATCH", 2)
    monkeypatch.setattr(speed, "CALLING", 0.001)
    monkeypatch.setattr(work, "BATCH", 2)
    monkeypatch.setattr(work, "SHOWN", 2)
    monkeypatch.setattr(work, "memory_of", lambda *of, **how: 1)
    monkeypatch.setattr(comparison, "compare_page", lambda results: "no page")
    resampled = evaluate.resampled_distances
    few = {"resamples": 40}
    monkeypatch.setattr(evaluate, "resampled_distances", lambda *of, **how: resampled(*of, **how | few))
    return tmp_path


@pytest.fixture
def pages(here, monkeypatch) -> None:
    """Pages are made, without their figures."""
    monkeypatch.setattr(comparison, "compare_page", compare_page)
    monkeypatch.setattr(html, "svg", lambda figure: "<svg></svg>")


@pytest.fixture
def strange(tmp_path, monkeypatch) -> None:
    """A package with a step that is DDIM's."""
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "steps.py").write_text("import dualrate as dr\n\n\nclass Mine(dr.DDIM): ...\n")
    monkeypatch.syspath_prepend(tmp_path)


def run(here: Path, *entries: str, effort: Effort = EFFORT, **options):
    return compare(entries, here / "report.html", effort, features=here / "net", progress=Notes(), **options)


def test_all_kinds_of_contenders_on_one_page(here, monkeypatch):
    monkeypatch.setattr(comparison, "compare_page", compare_page)
    monkeypatch.setattr(contenders, "LADDER", (5,))
    monkeypatch.setattr(contenders, "PLANNED_PLANS", ((4, 2),))
    findings = run(here, "one network=heavy", "dual")
    samplers = {one.row.sampler for one in findings.screened if one.row.network == "one network"}
    second = "SDE-DPM-Solver++ 2M"
    noisy = {"ancestral", second, f"{second}, gamma 0.1", f"{second}, gamma 0.2"}
    assert samplers == noisy | {"DDIM", "Heun", "DPM-Solver++ 2M"}
    networks = {one.row.network for one in findings.screened}
    assert networks == {"one network", "one network, shared encoder", "dual"}
    notes = {one.contender.note for one in findings.screened if one.row.network == "dual"}
    assert {"", "planned", "late"} <= notes
    assert not findings.unfinished
    page = (here / "report.html").read_text()
    assert "http" not in page.replace("http://www.w3.org", "")
    assert "What dual-rate saves at equal quality" in page
    made = json.loads((here / "report.json").read_text())
    assert len(made["front"]) == len(findings.finished)
    assert len(made["screening"]) == len(findings.screened)
    for line, one in zip(made["front"], findings.finished, strict=True):
        assert StepPlan.from_json(json.dumps(line["plan"])) == one.contender.plan
        assert line["flops"] == 2 * line["macs"]
        assert line["seconds_alone"] > 0
        assert line["low"] <= line["value"] <= line["high"]
    for one in findings.screened:  # the replicates are those whose quantiles are the score's interval
        tails = np.quantile(one.replicates, [0.025, 0.975])
        assert tuple(tails) == pytest.approx((one.row.score.low, one.row.score.high))
    lines = list(csv.DictReader((here / "report.csv").open()))
    assert [line["network"] for line in lines] == [line["network"] for line in made["front"]]


def test_a_pair_whose_heavy_network_is_called_at_every_step_is_one_network(here):
    """As students of one network are: a rival of what goes without heavy calls."""
    findings = run(here, "pair=dual:4/2", "student=dual:4/4")
    assert [one.row.network for one in findings.own] == ["pair"]
    assert [one.row.network for one in findings.rivals] == ["student"]


def test_peak_memory_is_that_of_a_process_of_its_own(here):
    contender = Contender(Path("heavy"), "heavy", "ancestral", StepPlan.uniform(2))
    small, large = (speed.memory_of(contender, batch, device=torch.device("cpu")) for batch in (1, 4096))
    assert 1e7 < small < large


def test_nothing_that_measures_memory_outlives_a_kill(here):
    contender = Contender(Path("heavy"), "heavy", "ancestral", StepPlan.uniform(50_000))
    how = {"device": torch.device("cpu")}
    measuring = multiprocessing.get_context("fork").Process(target=speed.memory_of, args=(contender, 1), kwargs=how)
    measuring.start()
    try:
        wait_until(lambda: len(drawing(measuring.pid)) == 1)
        (process,) = drawing(measuring.pid)
        wait_until(lambda: "torch" in Path(f"/proc/{process}/maps").read_text())
    finally:
        measuring.kill()
        measuring.join()
    wait_until(lambda: not is_alive(process))


def drawing(measuring: int) -> list[int]:
    """What a process has started to draw: not the tracker of resources, which it may have started too."""
    return [one for one in children(measuring) if "spawn_main" in Path(f"/proc/{one}/cmdline").read_text()]


def test_a_batch_saturates_where_doubling_gains_less_than_5_percent(here, monkeypatch):
    # seconds of one call; per image 1, 1.1 (disturbed), 0.375, 0.37, 0.36
    calls = {1: 1.0, 2: 2.2, 4: 1.5, 8: 2.96, 16: 5.76}
    monkeypatch.setattr(speed, "LARGEST_BATCH", 64)
    monkeypatch.setattr(speed, "call_seconds", lambda model, batch, **how: CallCost(0, calls[batch] / batch))
    drawer = SimpleNamespace(model=None, precision="float32", cost=PlanCost(CallCost(1, 1), 0, 7))
    assert speed.saturating_batch(drawer) == 4  # type: ignore[arg-type]


def test_no_batch_is_tried_that_memory_does_not_suffice_for(here, monkeypatch):
    said = "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"

    def seconds(model, batch, **how):
        if batch > 4:
            raise RuntimeError(said)
        return CallCost(0, 1 / batch)

    monkeypatch.setattr(speed, "LARGEST_BATCH", 64)
    monkeypatch.setattr(speed, "call_seconds", seconds)
    drawer = SimpleNamespace(model=None, precision="float32", cost=PlanCost(CallCost(1, 1), 0, 7))
    assert speed.saturating_batch(drawer) == 4  # type: ignore[arg-type]
    said = "mat1 and mat2 shapes cannot be multiplied"
    with pytest.raises(RuntimeError, match="mat1"):
        speed.saturating_batch(drawer)  # type: ignore[arg-type]


def test_the_front_is_measured_on_other_seeds_than_the_screening(here):
    findings = run(here, "dual:4/2")
    (screened,), (finished,) = findings.screened, findings.finished
    assert screened.row.score.fingerprint.seeds.startswith("1000000-")
    assert finished.row.score.fingerprint.seeds == "0-39"


def test_a_second_call_draws_nothing_and_says_the_same(here, monkeypatch):
    first = run(here, "dual:4/2")
    monkeypatch.setattr("dualrate.metrics.store.FeatureStore.write", None)
    forget_rows(here)
    second = run(here, "dual:4/2")
    assert [one.row.score for one in first.finished] == [one.row.score for one in second.finished]


def forget_rows(here: Path) -> None:
    """So that what is kept of a call before are features alone."""
    for file in (here / "report.cells").glob("*.json"):
        file.unlink()


def test_rows_of_another_machine_stand_for_images_and_features(here, monkeypatch):
    first = run(here, "dual:4/2")
    shutil.move(here / "report.cells", here / "elsewhere")
    monkeypatch.setattr(work, "measure", None)
    monkeypatch.setattr(FeatureNet, "features", None)  # of real images neither
    second = run(here, "dual:4/2", rows=here / "elsewhere")
    for one, other in zip((*first.screened, *first.finished), (*second.screened, *second.finished), strict=True):
        assert one.row.score == other.row.score
    for one, other in zip(first.finished, second.finished, strict=True):
        assert np.array_equal(one.measured.replicates, other.measured.replicates)
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


@pytest.mark.parametrize("moment", [6, *(pytest.param(at, marks=pytest.mark.slow) for at in (2, 13))])
def test_a_killed_command_goes_on_to_the_same_figures(here, monkeypatch, moment):
    """Killed as it screens, or within a contender of the front; right before a block is written (odd) or after it."""
    command = ("compare", "heavy:2", "dual:4/2", "--features", "net", "--screen", "12", "--count", "300")

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


def test_two_judges_see_the_same_images_which_are_drawn_once_and_screen_with_the_first(here, pages, monkeypatch):
    drawn: list[int] = []
    draw = Drawer.draw
    monkeypatch.setattr(Drawer, "draw", lambda one, seeds, *of: drawn.append(len(seeds)) or draw(one, seeds, *of))
    how = {"features": "net,mixer", "progress": Notes()}
    findings = compare(["heavy:2", "dual:4/2"], here / "report.html", EFFORT, **how)
    assert [drawn.count(EFFORT.screen), drawn.count(EFFORT.count)] == [2, 2]
    assert {tuple(one.row.scores) for one in findings.screened} == {("FD-noise net",)}
    assert {tuple(one.row.scores) for one in findings.finished} == {("FD-noise net", "FD-noise mixer")}
    for one in findings.finished:
        score, replicates = one.row.scores["FD-noise mixer"], one.measured.beside["FD-noise mixer"]
        assert tuple(np.quantile(replicates, [0.025, 0.975])) == pytest.approx((score.low, score.high))
    page, lines = (here / "report.html").read_text(), list(csv.DictReader((here / "report.csv").open()))
    assert "Whether the judges agree" in page
    assert "FD-noise net" in page
    for line, one in zip(lines, findings.finished, strict=True):
        assert float(line["FD-noise mixer value"]) == one.row.scores["FD-noise mixer"].value
    drawn.clear()
    forget_rows(here)
    compare(["heavy:2", "dual:4/2"], here / "report.html", EFFORT, **how)
    assert EFFORT.count not in drawn


def test_evaluate_has_a_column_a_judge(here, capsys, monkeypatch):
    command = ["dualrate", "evaluate", "heavy", "--num", "40", "--steps", "3", "--device", "cpu", "--features"]
    monkeypatch.setattr("sys.argv", [*command, "net,mixer", "--json"])
    main()
    found = json.loads(capsys.readouterr().out)
    assert [score["metric"] for score in (found["score"], *found["beside"])] == ["FD-noise net", "FD-noise mixer"]
    monkeypatch.setattr("sys.argv", [*command, "mixer"])
    main()
    header = capsys.readouterr().out.splitlines()[0]
    assert "FD-noise mixer" in header
    assert "FD-noise net" not in header


def test_workers_draw_what_one_process_does(here, monkeypatch):
    """Blocks are sent as to workers, and done here; what processes do with them: see measuring/test_over_workers.py."""
    monkeypatch.setattr("dualrate.system.workers.Workers", Stand)
    monkeypatch.setattr(Stand, "asked", [])
    monkeypatch.setattr(Stand, "blocks", 0)
    one = run(here, "heavy:2", "dual:4/2")
    assert not Stand.asked
    shutil.rmtree(here / "report.cells")
    two = run(here, "heavy:2", "dual:4/2", workers=2)
    assert (Stand.asked, Stand.blocks) == ([2], 2 + 2 + 2)  # real images; of two contenders, screened and on the front
    for first, second in ((one.screened, two.screened), (one.finished, two.finished)):
        assert [each.row.score for each in first] == [each.row.score for each in second]


def test_time_that_runs_out_is_said_and_the_rest_done_later(here, pages, monkeypatch):
    with monkeypatch.context() as short:
        short.setattr("dualrate.compare.comparison.SCREENING", 1e-9)
        findings = run(here, "heavy:2", "heavy:3", "dual:4/2")
    assert "not screened in time" in findings.unfinished[0]
    assert "The same command goes on" in (here / "report.html").read_text()
    assert len(run(here, "heavy:2", "dual:4/2").finished) == 2


def test_however_little_time_there_is_something_is_on_the_front_and_both_sides_are(here, pages, monkeypatch):
    monkeypatch.setattr("dualrate.compare.speed.INCREMENT", 40)
    monkeypatch.setattr(comparison, "NAMED", 2)
    notes = Notes()
    effort = Effort(minutes=1e-9, screen=60, count=80)
    findings = compare(["heavy@ddim", "dual"], here / "report.html", effort, features=here / "net", progress=notes)
    assert {one.row.network for one in findings.finished} == {"heavy", "dual"}
    assert {one.row.score.fingerprint.count for one in findings.finished} == {40}
    page = (here / "report.html").read_text()
    for sentence in (
        "No plans were planned for dual",
        "contenders were not screened in time.",
        "2 were screened on 40 images, not on 60.",
        "2 were measured on 40 images, not on 80.",
    ):
        assert any(sentence in told for told in (*findings.unfinished, *findings.unplanned)), sentence
        assert sentence in page
    (all_of_it,) = [note for note in notes.lines if "at the speed measured now" in note]
    assert "60 images of each take about 0:0" in all_of_it
    (this_time,) = [note for note in notes.lines if note.startswith("screening 2 of them on 40 images each; left out")]
    assert this_time.endswith(" more")
    complete = run(here, "heavy@ddim", "dual", effort=Effort(minutes=5, screen=60, count=80))
    assert {one.row.score.fingerprint.count for one in complete.finished} == {80}
    assert not complete.unfinished
    assert not complete.unplanned
    assert "wants --minutes" in findings.unplanned[0]
    assert f"{findings.unplanned[0]} The same command goes on" not in page


def test_minutes_that_planning_wants_are_those_of_all_before_it_too(here, monkeypatch):
    """Each wants 216 s: a tenth of 60 minutes suffices for the first, and for both a tenth of 72."""
    entries = [Entry.parse(text) for text in ("heavy", "dual")]
    models = {Path(name): load(name) for name in ("heavy", "dual")}
    monkeypatch.setattr(comparison, "planning_seconds", lambda *of: 216.0)
    bench = SimpleNamespace(models=models, pace=1.0, call_seconds=lambda *of: CallCost(1, 1), progress=Notes())
    found = comparison._unplanned(entries, bench, comparison.Clock(3600))
    assert list(found) == entries[1:]
    assert "wants --minutes 73 or more" in found[entries[1]] or "wants --minutes 72 or more" in found[entries[1]]
    assert not comparison._unplanned(entries, bench, comparison.Clock(73 * 60))


def test_two_comparisons_do_not_fill_one_directory(here):
    (here / "report.cells").mkdir()
    with (
        run_lock(here / "report.cells"),
        pytest.raises(OSError, match="filled by a comparison by another process"),
    ):
        run(here, "heavy:2", "dual:4/2")


def test_the_levels_of_a_screening_are_those_of_the_judge_that_screens(here, monkeypatch):
    """At least twice its features are wanted, and not those of a judge with many that sees only the front."""
    asked, levels = [], comparison.levels

    def noted(most, fewest):
        asked.append(fewest)
        return levels(most, fewest)

    monkeypatch.setattr(comparison, "levels", noted)
    judges = f"{here / 'net'},{here / 'mixer'}"
    compare(["dual:4/2"], here / "report.html", EFFORT, features=judges, progress=Notes())
    assert asked == [2 * 4, 2 * 6]


def test_where_the_time_is_over_only_the_networks_that_are_measured_are_timed(here, monkeypatch):
    """And it is said before it is done."""
    timed, notes = [], Notes()

    def timing(model, batch, precision):
        timed.append(model.called_by or model.name)
        assert notes.lines[-1].startswith("timing calls of ")
        return CallCost(1 / 125, 1 / 125)

    monkeypatch.setattr(work, "time_calls", timing)
    effort = Effort(minutes=1e-9, screen=12, count=40)
    entries = ["heavy:3", "dual:4/2", "heavy:4/2"]  # the last one's encoder shared
    findings = compare(entries, here / "report.html", effort, features=here / "net", progress=notes)
    assert timed == ["heavy", "dual"]
    assert any(note.startswith("2 contenders of 3 (no time to time the others' calls): 12") for note in notes.lines)
    assert any("that takes about 0:00:0" in note and "no fewer can be compared" in note for note in notes.lines)
    assert findings.unfinished[0] == "1 of 3 contenders were not screened in time."


def test_a_call_says_first_what_all_contenders_will_take(here, monkeypatch):
    """At 8 seconds a call and image, 6 calls and a third more beside them; nothing for what is here already.

    When drawing then turns out to be faster, all images fit.
    """
    monkeypatch.setattr(work, "time_calls", lambda *of: CallCost(8, 8))
    monkeypatch.setattr("dualrate.compare.speed.INCREMENT", 40)
    effort, first, second = Effort(minutes=10, screen=12, count=80), Notes(), Notes()
    for notes in (first, second):
        forget_rows(here)  # features alone are here, which cost nothing to draw
        findings = compare(["heavy:2", "dual:4/2"], here / "report.html", effort, features=here / "net", progress=notes)
        assert {one.row.score.fingerprint.count for one in findings.finished} == {80}
    told = next(i for i, note in enumerate(first.lines) if note.startswith("2 contenders: "))
    assert first.lines[told].startswith("2 contenders: 12 images of each take about 0:12:29 at the speed measured now")
    assert first.lines[told + 1] == "screening 2 of them on 12 images each"
    assert not any("1/2" in note for note in first.lines[:told])
    assert any(note.startswith("2 contenders: 12 images of each take about 0:00:00 at") for note in second.lines)


def test_what_was_asked_for_is_always_measured(here):
    findings = run(here, "heavy:2", "heavy:3", "heavy:4@ddim")
    assert len(findings.finished) == 3


@pytest.mark.parametrize("entries", [("heavy:3", "heavy"), ("heavy", "heavy:3")])
def test_what_was_asked_for_stays_so_where_the_usual_plans_have_it_too(here, entries):
    models = {Path("heavy"): load("heavy")}
    found = contenders_of([Entry.parse(text) for text in entries], models, progress=Notes())
    assert [one.plan.num_steps for one in found if one.named] == [3]
    assert len({one.key for one in found}) == len(found) > 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("heavy", (Path("heavy"), "heavy")),
        ("big=heavy:8", (Path("heavy"), "big", "8")),
        ("dual:8/2", (Path("dual"), "dual", "8/2")),
        ("heavy:8@dpm++2m", (Path("heavy"), "heavy", "8", "dpm++2m")),
        ("heavy@ddim", (Path("heavy"), "heavy", None, "ddim")),
        ("heavy+shared-encoder-3:8", (Path("heavy"), "heavy", "8", None, None, "shared-encoder-3")),
        ("dual:8/2@ancestral:0.5", (Path("dual"), "dual", "8/2", "ancestral", 0.5)),
        ("heavy:8@strange.steps:Mine", (Path("heavy"), "heavy", "8", "strange.steps:Mine")),
        ("heavy@strange.steps:Mine:0.5", (Path("heavy"), "heavy", None, "strange.steps:Mine", 0.5)),
    ],
)
def test_entries(here, strange, text, expected):
    assert Entry.parse(text) == Entry(*expected)


def test_a_student_is_compared_under_the_sampler_that_it_was_made_for():
    entry = Entry(Path("four"), "four")
    (made,) = usual_student(entry, Segments(4), [8])
    assert (made.sampler, made.plan) == ("ddim", StepPlan.uniform(4))
    assert usual_student(replace(entry, sampler="ddim"), Segments(4), [8]) == [made]
    with pytest.raises(ValueError, match="four is a distilled student, for ddim sampling: drop heun"):
        usual_student(replace(entry, sampler="heun"), Segments(4), [8])


def test_a_step_of_another_package_is_compared_with_ours(here, strange, monkeypatch):
    monkeypatch.setattr(contenders, "LADDER", (3,))
    findings = run(here, "theirs=heavy:3@strange.steps:Mine", "heavy:3@ddim", "all=heavy@strange.steps:Mine")
    scores = {one.row.network: one.row.score.value for one in findings.screened if one.row.num_steps == 3}
    assert scores["theirs"] == scores["heavy"] == scores["all"]
    with pytest.raises(ValueError, match=r"reuses contexts, which strange\.steps:Mine cannot"):
        run(here, "dual@strange.steps:Mine")


@pytest.mark.parametrize("text", ["nothing", "nothing:3", "heavy:3@euler", "heavy:3@ancestral:x", "", "=", ":4"])
def test_entries_that_are_none(here, text):
    with pytest.raises(ValueError, match="there is no"):
        Entry.parse(text)


@pytest.mark.parametrize("text", ["heavy:x", "dual:8/x", "heavy:0", "dual:8/-1", "heavy:100001", "dual:9999999999/8"])
def test_plans_that_are_none(here, text):
    with pytest.raises(ValueError, match=r"is no plan|number of steps"):
        Entry.parse(text)


def test_a_plan_of_more_heavy_calls_than_steps_is_none(here):
    entry = Entry.parse("dual:4/8")
    with pytest.raises(ValueError, match="between 0 and the 4 steps"):
        contenders_of([entry], {entry.run: load(entry.run)}, progress=Notes())


def test_a_dual_rate_plan_under_ddim_is_refused(here):
    with pytest.raises(ValueError, match="Ancestral"):
        run(here, "dual:4/2@ddim")


@pytest.mark.parametrize("sampler", ["ddim", "heun", "dpm++2m"])
def test_a_sampler_that_may_not_reuse_a_context_is_refused_before_any_work(here, sampler):
    with pytest.raises(ValueError, match="reuses contexts"):
        run(here, f"dual@{sampler}")


def test_two_runs_of_one_name_are_refused(here):
    with pytest.raises(ValueError, match="two runs are called 'x'"):
        run(here, "x=heavy:2", "x=dual:4/2")


@pytest.mark.parametrize(("text", "gammas"), [("heavy@ancestral:0.4", {0.4}), ("heavy@sde-dpm++2m", {0.0, 0.1, 0.2})])
def test_a_noise_level_that_is_asked_for_is_the_one(here, text, gammas):
    entry = Entry.parse(text)
    made = contenders_of([entry], {entry.run: load(entry.run)}, progress=Notes())
    assert {one.gamma for one in made if one.denoiser is None} == gammas


def test_a_plan_file_of_a_single_network_that_reuses_is_a_shared_encoder(here):
    Path("mine.json").write_text(StepPlan.at(4, [0, 2]).to_json())
    entry = Entry.parse("heavy:mine.json")
    (made,) = contenders_of([entry], {entry.run: load(entry.run)}, progress=Notes())
    assert (made.network, made.denoiser, made.plan.num_heavy) == ("heavy, shared encoder", "shared-encoder", 2)


def test_a_run_that_was_trained_on_is_measured_anew(here):
    first = run(here, "heavy:2")
    weights = {name: tensor + 0.1 for name, tensor in load("heavy").networks.state_dict().items()}
    checkpoint.save(here / "heavy" / "checkpoints", 2, {"ema-model": weights, "model": weights}, {"iteration": 2})
    second = run(here, "heavy:2")
    assert first.finished[0].row.score.value != second.finished[0].row.score.value


def test_a_plan_file(here):
    plan = StepPlan.at(4, [1, 3])
    Path("mine.json").write_text(plan.to_json())
    entry = Entry.parse("dual:mine.json")
    (made,) = contenders_of([entry], {entry.run: load(entry.run)}, progress=Notes())
    assert made == Contender(entry.run, "dual", "ancestral", plan, note="mine", named=True)


def made_of(text: str) -> list[Contender]:
    entry = Entry.parse(text)
    return contenders_of([entry], {entry.run: load(entry.run)}, progress=Notes())


def test_a_single_network_shares_its_encoder_only_where_it_is_called_less_often_than_it_steps(here):
    (every,) = made_of("heavy:4/4")
    (fewer,) = made_of("heavy:4/3")
    assert (every.denoiser, every.network) == (None, "heavy")
    assert (fewer.denoiser, fewer.plan.num_heavy) == ("shared-encoder", 3)


def test_a_plan_that_reuses_is_equal_in_t_and_another_on_the_sampler_s_grid(here):
    (reused,) = made_of("dual:8/2@sde-dpm++2m")
    (every,) = made_of("dual:8/8@sde-dpm++2m")
    assert reused.plan == StepPlan.uniform(8, 2)
    assert every.plan.t == grid_times(sampler_named("sde-dpm++2m").grid, load("dual").process.schedule, 8)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("heavy+shared-encoder", ("heavy", "shared-encoder", None)),
        ("heavy+shared-encoder:8/4", ("heavy", "shared-encoder", "8/4")),
        ("heavy+dualrate.denoisers.denoiser:Metered", ("heavy", "dualrate.denoisers.denoiser:Metered", None)),
        ("heavy+dualrate.denoisers.denoiser:Metered:8/4", ("heavy", "dualrate.denoisers.denoiser:Metered", "8/4")),
        ("heavy+dual:8/4", ("heavy", "dual", "8/4")),
        ("heavy+dual", ("heavy", "dual", None)),
        ("a+b", ("a+b", None, None)),
        ("a+b:8", ("a+b", None, "8")),
    ],
)
def test_a_denoiser_of_an_entry_is_told_from_its_plan_and_from_a_name_with_a_plus(here, text, expected):
    Path("a+b").mkdir()
    entry = Entry.parse(text)
    assert (str(entry.run), entry.denoiser, entry.plan) == expected


def test_another_run_makes_the_first_steps(here, monkeypatch):
    monkeypatch.setattr(contenders, "SWITCHED_PLANS", ((4, 2), (4, 3)))
    (named,) = made_of("heavy+dual:8/6@dpm++2m")
    assert named.plan == StepPlan.late(grid_times("karras", load("heavy").process.schedule, 8), 6, 2)
    assert (named.network, named.denoiser) == ("heavy after dual", "dual")
    assert {(one.sampler, one.gamma) for one in made_of("heavy+dual")} == {("sde-dpm++2m", 0.1)}
    drawer = named.drawer(load("heavy"))
    assert drawer.draw(range(2)).images.shape == (2, 1, 8, 8)
    light = drawer.cost.macs - 6 * load("heavy").call_cost.light
    assert 0 < light < 2 * load("dual").call_cost.light  # alone, without the embedding of tau
    with pytest.raises(ValueError, match=r"there is no denoiser 'gone'.*nor is it the directory of a run"):
        Entry.parse("heavy+gone:8/6")


def test_beside_two_rates_another_run_makes_the_steps_that_a_plan_file_says(here):
    plan = StepPlan.late(4, 1, 2)
    Path("plan.json").write_text(plan.to_json())
    (named,) = made_of("dual+heavy:plan.json")
    assert (named.plan, named.network) == (plan, "dual after heavy")
    drawer = named.drawer(load("dual"))
    own, other = load("dual").call_cost, load("heavy").call_cost
    assert drawer.cost.macs == own.heavy + own.light + 2 * other.light
    for text in ("dual+heavy", "dual+heavy:8/6"):
        with pytest.raises(ValueError, match="has a light network of its own: which steps it leaves to heavy"):
            compare([text], Path("page.html"), Effort(), progress=Notes())


def test_another_run_makes_the_steps_until_a_time(here):
    """DuoDiff, T-Stitch: those that start before it, on the sampler's own times; what says its counts keeps them."""
    entries = [Entry.parse(text) for text in ("heavy+dual:8@dpm++2m", "heavy+dual", "heavy+dual:8/6", "heavy:8")]
    switched, usual, *others = switched_at(entries, 0.5)
    assert others == entries[2:]
    models = {entry.run: load(entry.run) for entry in entries}
    (named,) = contenders_of([switched], models, progress=Notes())
    for one in (named, *contenders_of([usual], models, progress=Notes())):
        starts = one.plan.t[:-1]
        assert one.plan.refresh == tuple(Refresh.NONE if t > 0.5 else Refresh.FULL for t in starts)
    assert named.plan.t == grid_times("karras", models[Path("heavy")].process.schedule, 8)
    with pytest.raises(ValueError, match=r"no entry is switched at 0\.5: --switch-at is for a light network before a"):
        compare(["heavy:8"], Path("page.html"), Effort(), progress=Notes(), switch_at=0.5)


@pytest.mark.parametrize("text", ["heavy+dual:8", "heavy+dual:8/9"])
def test_how_many_steps_each_run_makes_is_to_be_said(here, text):
    with pytest.raises(ValueError, match="say how many of the 8 steps are the heavy network's: 8/4"):
        made_of(text)


def test_where_a_shared_encoder_is_refreshed_is_found_under_its_own_sampler_on_seeds_of_planning(here, monkeypatch):
    asked = []

    def similar(denoiser, step, times, shape, seeds, labels, device):
        asked.append((step, list(seeds), labels))
        return np.eye(4)

    monkeypatch.setattr(contenders, "similarities", similar)
    made_of("heavy:4/2")
    made_of("heavy:4/2@ancestral:0.4")
    process, seeds = load("heavy").process, [contenders.SEED, contenders.SEED + 1]
    assert [step for step, _, _ in asked] == [DPMSolver2M(process), Ancestral(process, 0.4)]
    assert all(one[1:] == (seeds, [seed % 2 for seed in seeds]) for one in asked)


def rivals(*texts: str) -> tuple[list[Entry], list[str]]:
    """What --rivals adds to these entries, and what is said of it."""
    entries, notes = [Entry.parse(text) for text in texts], Notes()
    return rivals_of(entries, {entry.run: load(entry.run) for entry in entries}, progress=notes), notes.lines


def test_rivals_are_the_denoisers_of_the_catalogue_that_take_the_dearest_single_network(here, monkeypatch):
    def unfit(denoiser, process):
        raise ValueError("made for another network")

    monkeypatch.setattr(
        rivals_module, "DENOISERS", {"shared-encoder": unfit, "taylor": None, "unfit": None, "fora": None}
    )
    monkeypatch.setitem(DENOISERS, "unfit", unfit)
    found, notes = rivals("dual", "named=heavy@ddim")
    assert [(one.run.name, one.network, one.denoiser) for one in found] == [
        ("heavy", "named", "taylor"),
        ("heavy", "named", "fora"),
    ]
    assert {(one.sampler, one.plan) for one in found} == {(None, None)}
    assert notes == ["without unfit: heavy cannot be called by unfit: made for another network; drop the denoiser"]
    for texts in (("dual",), ("heavy:4", "dual"), ("heavy+fora",)):
        with pytest.raises(ValueError, match="other ways to call a single network"):
            rivals(*texts)


def test_the_dearest_of_two_single_networks_has_the_rivals(here):
    (here / "light").mkdir()
    light = replace(load("heavy").experiment, networks=OneNetwork(SMALL))
    write_experiment(here / "light", light)
    weights = light.build()[0].state_dict()
    checkpoint.save(here / "light" / "checkpoints", 1, {"ema-model": weights, "model": weights}, {"iteration": 1})
    for texts in (("light", "heavy"), ("heavy", "light")):
        found, notes = rivals(*texts)
        assert {one.run.name for one in found} == {"heavy"}
        of_single = [name for name in DENOISERS if name != "shared-encoder"]
        assert [one.denoiser for one in found] == [*of_single, "light"]
        assert not notes


def test_caches_are_refreshed_evenly_as_published_and_a_shared_encoder_where_features_change_most(here, monkeypatch):
    monkeypatch.setattr(contenders, "similarities", lambda *of, **more: np.diag([1.0, 2.0, 3.0, 9.0]))
    names = ("shared-encoder", "fora", "deep-cache", "taylor", "taylor-published")
    plans = {name: made_of(f"heavy+{name}")[0].plan for name in names}
    refreshed = {name: [i for i, now in enumerate(plan.refresh) if now is Refresh.FULL] for name, plan in plans.items()}
    assert refreshed == {name: [0, 2] for name in names[1:]} | {"shared-encoder": [0, 3]}


def test_rivals_are_compared_where_they_are_asked_for(here, monkeypatch):
    def told(entries, models, **more):
        raise RuntimeError([entry.denoiser for entry in entries])

    monkeypatch.setattr(comparison, "contenders_of", told)
    monkeypatch.setattr(rivals_module, "DENOISERS", {"taylor": None})
    with pytest.raises(RuntimeError, match=r"\[None, 'taylor'\]"):
        run(here, "heavy@dpm++2m", rivals=True)
    with pytest.raises(RuntimeError, match=r"\[None\]"):
        run(here, "heavy@dpm++2m")


def test_what_a_model_never_learned_is_not_tried(here):
    """A start without a context where none was dropped in training; a middle of one block is not shared."""
    late = [one for one in made_of("dual") if one.note == "late"]
    assert len(late) == len(contenders.PLANNED_PLANS)
    for name, networks, method in (
        ("always", TwoNetworks(NET, SMALL), DenoisingConfig(TimeSampler(dropout=0.0))),
        ("shallow", OneNetwork(SMALL), DenoisingConfig()),
    ):
        experiment = Experiment(name, networks, method, FitConfig(iterations=1), DataConfig("images.npz"))
        write_experiment(here / name, experiment)
        weights = experiment.build()[0].state_dict()
        checkpoint.save(here / name / "checkpoints", 1, {"model": weights}, {"iteration": 1})
    assert not [one for one in made_of("always") if one.note == "late"]
    assert {one.denoiser for one in made_of("shallow")} == {None}
    assert {one.denoiser for one in made_of("heavy")} == {None, "shared-encoder"}


def test_a_ladder_has_no_plans_of_fewer_than_three_steps_nor_samplers_beyond_their_longest(here, monkeypatch):
    monkeypatch.setattr(contenders, "LADDER", (2, 3, 16, 17))
    single = [one for one in made_of("heavy") if one.denoiser is None]
    assert min(one.plan.num_steps for one in single) == 3
    longest = {name: max(one.plan.num_steps for one in single if one.sampler == name) for name in ("ddim", "dpm++2m")}
    assert longest == {"ddim": 16, "dpm++2m": 17}


def test_keys_tell_contenders_apart():
    plans = [StepPlan.uniform(4, 2), StepPlan.at(4, [0, 1])]
    made = [Contender(Path(run), run, "ancestral", plan) for run in ("a", "b") for plan in plans]
    made.append(Contender(Path("a"), "a", "ddim", plans[0]))
    made.append(Contender(Path("a"), "a", "ancestral", plans[0], denoiser="shared-encoder"))
    made.append(Contender(Path("a"), "a", "ancestral", plans[0], gamma=0.5))
    assert len({one.key for one in made}) == len(made)


def test_starting_late_has_its_heavy_calls_after_the_first_eighth():
    plan = StepPlan.late(32, 8)
    assert plan.refresh[:4] == (Refresh.NONE,) * 4
    assert plan.refresh[4] is Refresh.FULL
    assert plan.num_heavy == 8


def test_runs_that_do_not_compare(here):
    experiment = load("heavy").experiment
    other = Experiment("other", OneNetwork(NET), DenoisingConfig(), experiment.fit, DataConfig("elsewhere.npz"))
    networks, _ = other.build()
    write_experiment(here / "other", other)
    checkpoint.save(here / "other" / "checkpoints", 1, {"model": networks.state_dict()}, {"iteration": 1})
    with pytest.raises(ValueError, match="--mixed"):
        run(here, "heavy:2", "other:2")
    assert len(run(here, "heavy:2", "other:2", mixed=True).finished) == 2


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["heavy:2", "--out", "report.txt"], ".html"),
        (["heavy:2", "--minutes", "0"], "minutes"),
        (["heavy:2", "--screen", "60", "--count", "50"], "screen"),
        (["heavy:2", "--screen", "4", "--count", "10"], "draw more"),
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


def test_planning_is_priced_for_the_denoiser_that_is_named(here):
    """Similarities of a cache around any network, errors of a dual-rate one, and nothing where plans are even."""
    models = {Path(name): load(name) for name in ("heavy", "dual")}
    seconds = CallCost(heavy=1.0, light=1.0)

    def priced(text: str) -> float:
        return contenders.planning_seconds(Entry.parse(text), models, seconds)

    similarity, errors = 2 * 4, 8 * (2 * 8 + 8 * 9 / 2)
    assert priced("heavy") == similarity
    models[Path("dearer")] = replace(models[Path("heavy")])
    models[Path("dearer")].__dict__["call_cost"] = CallCost(heavy=0, light=10**12)
    assert priced("heavy") == priced("heavy:4") == 0
    assert priced("heavy+shared-encoder") == similarity
    assert priced("heavy+taylor") == 0
    assert priced("dual") == errors
