"""Things that contributors meet first: the workflow, pre-commit and the targets of make agree with the rest."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from tools.house import WINGS

ROOT = Path(__file__).resolve().parents[2]


def make(*arguments: str) -> str:
    if not shutil.which("make"):
        pytest.skip("needs make")
    return subprocess.run(
        ["make", "--no-print-directory", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout


@pytest.mark.parametrize("wing", WINGS)
def test_make_runs_the_tests_of_one_wing(wing: str) -> None:
    assert (ROOT / "tests" / wing).is_dir()
    assert make("--dry-run", f"test-{wing}").rstrip().endswith(f"tests/{wing}")


def test_help_lists_every_target_that_says_what_it_does() -> None:
    rules = re.findall(r"^([a-z0-9 -]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert re.findall(r"^  make (\S+)", make("help"), re.MULTILINE) == " ".join(rules).split()
    assert {f"test-{wing}" for wing in WINGS} <= set(" ".join(rules).split())


def test_pre_commit_has_the_ruff_that_make_lint_has() -> None:
    (tested,) = re.findall(r"^ruff==(\S+)$", (ROOT / "constraints" / "cpu.txt").read_text(), re.MULTILINE)
    assert re.findall(r"^ +rev: v(\S+)$", (ROOT / ".pre-commit-config.yaml").read_text(), re.MULTILINE) == [tested]


def test_the_workflow_checks_the_oldest_and_the_newest_python() -> None:
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    classifiers = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["classifiers"]
    named = re.findall(r"Python :: (3\.\d+)", " ".join(classifiers))
    assert re.findall(r'"(3\.\d+)"', workflow) == [named[0], named[-1]]
    assert re.findall(r"- run: (.*)", workflow) == ["make check"]
    assert re.findall(r"permissions:\n((?:  .*\n)+)", workflow) == ["  contents: read\n"]
    assert "secrets" not in workflow
