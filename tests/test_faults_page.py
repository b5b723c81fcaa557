"""docs/faults.md promises; every test that it names must exist."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = re.sub(r"^### A soak.*?(?=^## )", "", (ROOT / "docs/faults.md").read_text(), flags=re.MULTILINE | re.DOTALL)
ROWS = [line for line in PAGE.splitlines() if line.startswith("| ")]
NAMED = sorted(set(re.findall(r"`([\w/]+\.py)::(\w+)`", "\n".join(ROWS))))


@cache
def functions(file: str) -> set[str]:
    tree = ast.parse((ROOT / "tests" / file).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize(("file", "name"), NAMED, ids=map("::".join, NAMED))
def test_every_named_test_exists(file, name):
    assert name in functions(file)


def test_every_row_names_a_test_and_an_exit_code():
    rows = [row for row in ROWS if not row.startswith(("| what happens", "| ---"))]
    assert len(rows) > 30
    for row in rows:
        _, _, _, code, tests, _ = (cell.strip() for cell in row.split("|"))
        assert re.search(r"\d|signal", code), row
        assert re.search(r"`[\w/]+\.py::test_\w+`", tests), row
