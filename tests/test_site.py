"""The documentation's site: every page has its place, every public name an example. `make docs` builds it."""

from __future__ import annotations

import ast
import importlib
import re
import runpy
from pathlib import Path

import pytest

import dualrate

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = {  # of docs/conf.py, read: it imports Sphinx, which tests do not need
    node.targets[0].id: ast.literal_eval(node.value)
    for node in ast.parse((ROOT / "docs/conf.py").read_text()).body
    if isinstance(node, ast.Assign)
    and isinstance(node.targets[0], ast.Name)
    and node.targets[0].id in ("CONTENTS", "include_patterns", "root_doc")
}
MOST_NAMES = 39  # with one call for each thing that is done: sample, forecast, evaluate, compare


def examples(*pages: str) -> str:
    text = "".join((ROOT / "docs" / page).read_text() for page in pages)
    return "".join(re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL))


def test_every_page_stands_in_the_contents_once() -> None:
    listed = [entry for captions in SETTINGS["CONTENTS"].values() for pages in captions.values() for entry in pages]
    found = [page for entry in listed for page in sorted(ROOT.glob(f"{entry}.md"))]
    pages = {
        page for pattern in SETTINGS["include_patterns"] for page in ROOT.glob(pattern.replace("**.md", "**/*.md"))
    }
    assert len(found) == len(set(found))
    assert pages - set(found) == {ROOT / f"{SETTINGS['root_doc']}.md"}
    assert not [entry for entry in listed if not list(ROOT.glob(f"{entry}.md"))]


def test_the_contents_for_models_have_every_page_with_a_sentence() -> None:
    pytest.importorskip("sphinx")
    text = runpy.run_path(str(ROOT / "docs/conf.py"))["contents_for_models"]()
    assert text.startswith("# dualrate\n\n> Sample diffusion models with two networks: ")
    lines = re.findall(r"^- \[([^]]+)\]\((.+)\.html\): (.+)$", text, re.MULTILINE)
    assert [page for _, page, _ in lines] == [page for part in SETTINGS["CONTENTS"]["README"].values() for page in part]
    for title, page, sentence in lines:
        assert title == (ROOT / f"{page}.md").read_text().split("\n")[0].removeprefix("# ").replace("`", "")
        assert re.fullmatch(r"[A-Z][^`*\n]{10,199}\.|import dualrate as dr .*\.|dualrate .*\.", sentence), page


def test_every_public_name_has_an_example() -> None:
    used = set(re.findall(r"\bdr\.(\w+)", examples("api.md", "extending.md")))
    assert set(dualrate.__all__) <= used, sorted(set(dualrate.__all__) - used)


def test_the_page_of_public_names_has_all_of_them_and_no_other() -> None:
    named = set(re.findall(r"\bdr\.(\w+)", (ROOT / "docs/api.md").read_text()))
    assert named == set(dualrate.__all__)


def test_pages_call_public_what_is() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    named = {name for page in pages for name in re.findall(r"\bdr\.(\w+)", page.read_text())}
    assert named <= set(dualrate.__all__)


def test_what_comes_from_a_module_is_there() -> None:
    rows = re.findall(r"^\|[^|]*\| `(dualrate\.[\w.]+)` \| (.*) \|$", (ROOT / "docs/api.md").read_text(), re.MULTILINE)
    assert len(rows) > 20
    for module, names in rows:
        for name in re.findall(r"`(\w+)`", names):
            assert hasattr(importlib.import_module(module), name), f"{module} has no {name}"
            assert name not in dualrate.__all__


def test_public_names_do_not_become_more() -> None:
    """Another one wants one that goes, or a reason."""
    assert len(dualrate.__all__) <= MOST_NAMES


def test_the_tutorials_are_the_eight_and_each_is_run_by_a_test() -> None:
    from test_docs import RUN

    tutorials = SETTINGS["CONTENTS"]["README"]["Tutorials"]
    assert len(tutorials) == 8
    assert {f"{page}.md" for page in tutorials} - RUN == {"docs/scaling.md"}  # for many GPUs: its commands are read
