"""docs/pipeline.md: its commands and its Python run, on a small run."""

import os
import re
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # read when the library is imported
pytest.importorskip("diffusers")

from reader import commands, follow
from runs.made import TWO, saved

from dualrate.cli import main

PAGE = Path(__file__).parents[2] / "docs" / "pipeline.md"


def test_commands_and_python_of_the_page_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved(TWO, tmp_path / "runs" / "mine")
    for words in commands(PAGE):
        follow(words, monkeypatch)
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    exec(compile(block, "pipeline.md", "exec"), {})


def test_commands_of_the_page_that_push_are_ones():
    (block,) = re.findall(r"```text\n(dualrate.*?)```", PAGE.read_text(), flags=re.DOTALL)
    for line in block.splitlines():
        assert main.parsed(line.split(">")[0].split()[1:])
