"""The commands behind docs/results: trainings that `dualrate train` takes, models that are released, kept rows."""

from __future__ import annotations

from pathlib import Path

import pytest

import dualrate as dr
from dualrate.cli.train import Train, parse_train
from dualrate.comparison.candidates import RunRequest
from dualrate.diffusion.schedule import Cosine
from dualrate.sampling.grids import grid_times
from studies import common, report, train


@pytest.mark.parametrize("name", train.RUNS)
def test_a_run_is_trained_by_a_command(name: str) -> None:
    words = train.command(name)[1:]
    found = parse_train(words)
    assert found.out == Path("runs") / name
    if isinstance(found, Train) and "--fit.iterations" in words:
        assert found.experiment.fit.iterations == int(words[words.index("--fit.iterations") + 1])


def test_the_headline_is_of_released_models_and_that_of_its_page() -> None:
    for text in report.REPORTS["settled-25"].requests:
        assert (report.ROOT / RunRequest.parse(text).run / "model.safetensors").exists(), text

    header, _, *judged = (
        block((report.RESULTS / "settled.md").read_text(), "settled-25 verdicts").partition("\n\n")[0].splitlines()
    )
    metrics, verdicts, plan = cells_of(header)[3:-1], {}, ("", "")
    for network, sampler, what, *cells, _ in map(cells_of, judged):
        plan = (network, sampler) if network else plan
        verdicts[*plan, what] = cells
    head, _, *lines = block(report.FIRST.read_text(), "settled-25 headline").splitlines()
    assert cells_of(head)[3:] == metrics
    assert len(metrics) == 4
    assert lines
    for network, sampler, _, *savings in map(cells_of, lines):
        assert verdicts[network, sampler, "FLOPs"] == savings


def test_released_weights_stay_below_31_mb() -> None:
    """They are in every clone; those that no table needs are retired (dev/queue.md)."""
    files = [file for file in (report.ROOT / "weights").rglob("*") if file.is_file()]
    assert 10_000_000 < sum(file.stat().st_size for file in files) < 31_000_000


def cells_of(line: str) -> list[str]:
    """Return the cells of a line of a table."""
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def block(page: str, kind: str) -> str:
    """A table between the markers of a page."""
    return page.partition(f"<!-- {kind} -->\n")[2].partition("<!-- end of")[0].strip()


@pytest.mark.parametrize("steps", [8, 10, 12])
def test_a_single_network_as_a_pair_is_sampled_has_the_pair_s_times(steps: int) -> None:
    file = report.ROOT / report.PLANS / "single" / str(steps) / "blend-0.5.json"
    plan = dr.StepPlan.from_json(file.read_text())
    assert plan.t == pytest.approx(grid_times("blend:0.5", Cosine(), steps), rel=1e-14)
    assert plan.num_heavy == steps


def test_a_report_s_rows_are_those_of_its_archive() -> None:
    with common.kept_rows("settled-25") as folder:
        assert len(list(folder.glob("*.json"))) == 77  # one for each training of each candidate
    assert not folder.exists()
