"""The commands behind docs/results: trainings that `dualrate train` takes, models that are released, ways to draw."""

from __future__ import annotations

import shlex
import sys
from dataclasses import fields
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

import dualrate as dr
from dualrate.cli.train import Train, parse_train
from dualrate.compare.contenders import Entry
from dualrate.diffusion.schedule import Cosine
from dualrate.sampling.grids import grid_times

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "studies"))

import levers
import results
import screening
import train

# by its path: tests have a folder of its name
SPEC = spec_from_file_location("studies_report", Path(results.__file__).with_name("report.py"))
assert SPEC is not None
assert SPEC.loader is not None
report = sys.modules[SPEC.name] = module_from_spec(SPEC)
SPEC.loader.exec_module(report)

LINES = {name: line.command for name, line in levers.STUDY.lines.items() if line.command}
OWN = [name for name in train.RUNS if not name.startswith("decoder")]  # the others read a codec


@pytest.mark.parametrize("name", OWN)
def test_a_run_is_trained_by_a_command(name: str) -> None:
    words = train.command(name)[1:]
    found = parse_train(words)
    assert found.out == Path("runs") / name
    if isinstance(found, Train) and "--fit.iterations" in words:
        assert found.experiment.fit.iterations == int(words[words.index("--fit.iterations") + 1])


@cache
def experiment_of(lever: str) -> dr.Experiment:
    found = parse_train(shlex.split(LINES[lever])[1:])
    assert isinstance(found, Train)
    return found.experiment


@pytest.mark.parametrize("name", LINES)
def test_a_lever_is_a_training_of_equal_seconds(name: str) -> None:
    experiment = experiment_of(name)
    seconds = levers.LEVERS[name][2] * levers.STUDY.lines[name].iterations
    assert seconds == pytest.approx(levers.SECONDS, rel=1e-3)
    assert experiment.fit.batch_size == 64
    assert experiment.fit.optim.decay == "cosine"


def differing(one: object, other: object) -> set[str]:
    return {field.name for field in fields(one) if getattr(one, field.name) != getattr(other, field.name)}


@pytest.mark.parametrize("name", [name for name in LINES if name != "base"])
def test_a_lever_changes_one_thing(name: str) -> None:
    lever, beside = experiment_of(name), experiment_of(levers.compared_with(name))
    assert differing(lever.fit, beside.fit) <= {"iterations"}
    changed = differing(lever.method, beside.method) | differing(lever.networks, beside.networks)
    assert len(changed - {"targets_share"}) == 1


def test_the_headline_is_of_released_models_and_that_of_its_page() -> None:
    for entry in (*report.REPORTS["settled"].entries, *report.REPORTS["settled-25"].entries):
        found = Entry.parse(entry)
        for run in (found.run, *found.again):
            assert (report.ROOT / run / "model.safetensors").exists(), entry

    header, _, *judged = (
        block((report.RESULTS / "settled.md").read_text(), "settled-25 verdicts").partition("\n\n")[0].splitlines()
    )
    found = [dict(zip(cells_of(header), cells_of(line), strict=True)) for line in judged]
    verdicts = {(one["network"], one["sampler"], one["plan"], one["judge"]): one["FLOPs"] for one in found}
    for page in report.FIRST:
        head, _, *lines = block(page.read_text(), "settled-25 headline").splitlines()
        metrics = cells_of(head)[4:]
        assert len(metrics) == 4
        assert lines
        for network, sampler, plan, _, *savings in map(cells_of, lines):
            for metric, saving in zip(metrics, savings, strict=True):
                assert verdicts[network, sampler, plan, metric] == saving, page.name


def test_released_weights_stay_below_30_mb() -> None:
    """They are in every clone; those that no table needs are retired (dev/queue.md)."""
    files = [file for file in (report.ROOT / "weights").rglob("*") if file.is_file()]
    assert 10_000_000 < sum(file.stat().st_size for file in files) < 30_000_000


def cells_of(line: str) -> list[str]:
    """Of a line of a table."""
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def block(page: str, kind: str) -> str:
    """A table between the markers of a page."""
    return page.partition(f"<!-- {kind} -->\n")[2].partition("<!-- end of")[0].strip()


@pytest.mark.parametrize("name", results.TABLES)
def test_a_table_on_a_page_is_made_of_kept_results_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dr, "load", None)
    page = results.common.page_of(name, sorted(results.RESULTS.glob("*.md")))
    assert results.TABLES[name]() in page.read_text()


def test_nothing_is_measured_over_the_results_of_other_weights() -> None:
    light = results.Cell("light alone", results.LIGHT, 32)  # the released network is another than was measured then
    with pytest.raises(ValueError, match="other weights"):
        results.common.to_measure([light])


@pytest.mark.parametrize("steps", [8, 10, 12])
def test_a_single_network_as_a_pair_is_sampled_has_the_pair_s_times(steps: int) -> None:
    file = report.ROOT / report.PLANS / "single" / str(steps) / "blend-0.5.json"
    plan = dr.StepPlan.from_json(file.read_text())
    assert plan.t == pytest.approx(grid_times("blend:0.5", Cosine(), steps), rel=1e-14)
    assert plan.num_heavy == steps


def test_a_way_to_draw_is_what_it_says() -> None:
    model = dr.load(report.ROOT / "weights" / "fashion-mnist-dual-25")
    drawer = screening.drawer(model, "8/2@sde-dpm++2m:0.1,grid=blend:0.7,alone=3")
    kept = dr.StepPlan.from_json((report.ROOT / report.PLANS / "blend-0.7-8-2.json").read_text())
    assert drawer.plan.refresh == kept.refresh
    assert drawer.plan.t == pytest.approx(kept.t, rel=1e-14)  # another processor's logarithm has another last digit
    assert "gamma 0.1" in drawer.sampler
    assert screening.drawer(model, "8/2@sde-dpm++2m").plan == dr.Choice(steps=8, heavy=2).drawer(model).plan
    with pytest.raises(ValueError, match="no setting eta"):
        screening.drawer(model, "8/2@sde-dpm++2m,eta=1")
