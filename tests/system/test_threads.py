"""Threads of a run that goes on."""

import json

import pytest
import torch

from dualrate.runs.train import resume_threads


@pytest.fixture(autouse=True)
def number():
    """Keep the number of threads of before the test after it."""
    threads = torch.get_num_threads()
    yield threads
    torch.set_num_threads(threads)


def last_start(run, text: str) -> None:
    first = {"command": "dualrate train", "threads": "7"}
    (run / "history.jsonl").write_text(f"{json.dumps(first)}\n{text}\n")


def test_an_automatic_number_gives_way_to_that_of_the_last_start(tmp_path, monkeypatch, number):
    monkeypatch.setenv("DUALRATE_THREADS", "auto")
    last_start(tmp_path, json.dumps({"command": "dualrate train", "threads": str(number + 1)}))
    resume_threads(tmp_path)
    assert torch.get_num_threads() == number + 1


@pytest.mark.parametrize("asked", [None, "3"])
def test_a_number_that_was_asked_for_stays(asked, tmp_path, monkeypatch, number):
    monkeypatch.delenv("DUALRATE_THREADS", raising=False)
    if asked:
        monkeypatch.setenv("DUALRATE_THREADS", asked)
    last_start(tmp_path, json.dumps({"threads": str(number + 1)}))
    resume_threads(tmp_path)
    assert torch.get_num_threads() == number


@pytest.mark.parametrize(
    "line", ['{"threads": "2', '{"command": "x"}', '{"threads": "many"}', '{"threads": null}', "3"]
)
def test_a_history_that_does_not_tell_changes_nothing(line, tmp_path, monkeypatch, number):
    monkeypatch.setenv("DUALRATE_THREADS", "auto")
    last_start(tmp_path, line)
    resume_threads(tmp_path)
    resume_threads(tmp_path / "no run")
    assert torch.get_num_threads() == number
