"""Every table and figure of docs/results that code writes is what it writes now, of the rows that are kept."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("diffusers")  # of captions

from benchmarks import peers
from studies import (
    captions,
    clips,
    common,
    conditions,
    decoders,
    excess,
    forecasts,
    on_gpu,
    report,
    roll_outs,
    sudoku,
    where,
)

DOCS = common.RESULTS.parent
MODULES = (
    captions,
    clips,
    common,
    conditions,
    decoders,
    excess,
    forecasts,
    on_gpu,
    report,
    roll_outs,
    sudoku,
    where,
)
PLACE = re.compile(r"(<!-- (?!end of )([^\n]+) -->\n).*?(?=<!-- end of \2 -->)", re.DOTALL)
NONE = Path("no rows of one's own")
WRITTEN = {  # by code
    "where.json", "settled-25.json",
    *(f"{name}.png" for name in ("settled-25-flops", "decoders-flops", "captions", "where")),
    *(f"contest-{name}.png" for name in ("kolmogorov", "kuramoto-sivashinsky", "kuramoto-sivashinsky-leads", "sphere")),
}  # fmt: skip


def write_settled() -> None:
    sys.argv = ["report", "settled-25", "--kept"]
    report.main()


def write_peers() -> None:
    common.place("scores", peers.page(common.RESULTS / "peers") + "\n", common.RESULTS / "peers.md")


WRITERS: tuple[Callable[[], None], ...] = (
    write_settled, write_peers, forecasts.page, decoders.page, on_gpu.page,
    lambda: conditions.page(NONE), lambda: captions.page(NONE), lambda: sudoku.page(NONE),
    excess.page, roll_outs.page, clips.page,
    where.page,  # of what others write
)  # fmt: skip


def measures(*_: object, **__: object) -> None:
    raise AssertionError("kept rows are taken, and nothing is measured")


def moved(module: ModuleType, docs: Path, patch: pytest.MonkeyPatch) -> None:
    """Every path of docs/ that a module names is then in another folder."""
    for name, value in vars(module).items():
        if isinstance(value, Path) and value.is_relative_to(DOCS):
            patch.setattr(module, name, docs / value.relative_to(DOCS))


@pytest.fixture(scope="module")
def regenerated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of docs/ whose places were emptied and whose figures were taken away, after all writers."""
    docs = tmp_path_factory.mktemp("pages") / "docs"
    shutil.copytree(DOCS, docs, ignore=shutil.ignore_patterns("*.png"))
    for page in docs.rglob("*.md"):
        page.write_text(PLACE.sub(r"\1", page.read_text()))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(common.ROOT)
        patch.setattr(sys, "argv", sys.argv)
        patch.setattr(report, "compare", measures)
        for timer in ("comparison.compare.seconds_each", "drawing.cost.call_seconds"):
            patch.setattr(f"dualrate.{timer}", measures)
        patch.setattr(report, "on_one_thread", lambda: None)  # of the whole process
        for module in MODULES:
            moved(module, docs, patch)
        for write in WRITERS:
            write()
    return docs


PAGES = [str(page.relative_to(DOCS)) for page in sorted(DOCS.rglob("*.md")) if PLACE.search(page.read_text())]


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_what_code_writes_of_kept_rows(page: str, regenerated: Path) -> None:
    assert (regenerated / page).read_text() == (DOCS / page).read_text()


def near(text: str) -> object:
    """The value of JSON, its numbers to nine digits: machines add in another order."""
    return json.loads(text, parse_float=lambda number: f"{float(number):.9g}")


def test_numbers_and_figures_are_written(regenerated: Path) -> None:
    results = regenerated / "results"
    for name in ("settled-25.json", "where.json"):
        assert near((results / name).read_text()) == near((DOCS / "results" / name).read_text())
    assert {file.name for file in results.glob("*.png")} | {"settled-25.json", "where.json"} == WRITTEN
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in results.glob("*.png"))


def tables_of_studies() -> Iterator[tuple[Callable[[list[common.Row]], object], list[common.Row]]]:
    """List what makes tables, with its kept rows."""
    for file in common.RESULTS.glob("contest-*.json.xz"):
        yield from ((make, common.kept_in(file)) for make in forecasts.TABLES.values())
    rows = common.kept_in(roll_outs.FILE)
    yield from ((roll_outs.table, [row for row in rows if row["system"] == name]) for name in roll_outs.SIZES)
    rows = [row for row in common.kept_in(clips.FILE) if row["source"] == "sprites"]
    yield clips.settings_table, [row for row in rows if row["part"] == "setting" and "crps" in row]
    yield clips.latents_table, [row for row in rows if row["part"] == "latents"]
    if any(row["part"] == "score" for row in rows):
        yield clips.table, rows
    rows = common.kept_in(common.RESULTS / "conditions.json.xz")
    yield conditions.ratio_table, rows
    yield from ((conditions.scored_table, own) for own in conditions.by_task(rows).values())
    yield captions.table, common.kept_in(common.RESULTS / "captions.json.xz")
    yield sudoku.table, common.kept_in(sudoku.KEPT)


def test_tables_do_not_depend_on_the_order_of_rows() -> None:
    for make, rows in tables_of_studies():
        assert make(rows[::-1]) == make(rows), make


def test_a_report_does_not_depend_on_the_order_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(common.ROOT)
    results = report.kept_results("settled-25")
    other = replace(results, measured=results.measured[::-1], finished=results.finished[::-1])
    for table in report.TABLES.values():
        assert table(other) == table(results)


def test_a_kept_row_without_times_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shutil.copytree(common.RESULTS / "rows", tmp_path / "rows")
    known = json.loads((common.RESULTS / "settled-25.json").read_text())
    (tmp_path / "settled-25.json").write_text(json.dumps(known | {"front": known["front"][1:]}))
    monkeypatch.chdir(common.ROOT)
    for module in (report, common):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    with pytest.raises(ValueError, match=r"light-10 DPM-Solver.. 2M 5 has a row that is kept and no times: measure it"):
        report.kept_results("settled-25")
