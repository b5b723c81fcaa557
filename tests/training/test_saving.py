"""Saving in the background: training stops for the copy alone; nothing that was promised of a checkpoint changes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import safetensors.torch
import torch
from trouble import full_disk

from dualrate.system import folders
from dualrate.training import checkpoint
from dualrate.training.checkpoint import Saver


def tensors(value: float) -> dict[str, dict[str, torch.Tensor]]:
    return {"model": {"w": torch.full((3, 2), value)}, "optim-a": {"w.step": torch.tensor(value)}}


def saved(directory: Path) -> list[str]:
    return [path.name for path in checkpoint.saved_paths(directory)]


class Gate:
    """Holds the writing up at a fault point until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, point: str) -> None:
        self.reached, self.open = threading.Event(), threading.Event()

        def wait(name: str) -> None:
            if name == point:
                self.reached.set()
                assert self.open.wait(20)

        monkeypatch.setattr(folders, "fault_point", wait)


@contextmanager
def beside(work: Callable[[], object]) -> Iterator[threading.Thread]:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    yield thread
    thread.join(20)
    assert not thread.is_alive()


@pytest.mark.parametrize("point", ["wrote model", "before rename", "after rename"])
def test_what_is_saved_is_what_was_there_however_training_goes_on(tmp_path, monkeypatch, point):
    gate = Gate(monkeypatch, point)
    live, state = tensors(1.0), {"iteration": 4, "meter": {"a": [1.0, 2]}}
    with Saver(tmp_path, 2, pytest.fail) as saver:
        saver.save(4, live, state, last=False)
        assert gate.reached.wait(20)  # it has returned, and the checkpoint is not there yet
        saver.look()
        live["model"]["w"].add_(1)
        live["optim-a"]["w.step"].add_(1)
        state["meter"]["a"][0] = 5.0
        gate.open.set()
    loaded = checkpoint.load(checkpoint.path_of(tmp_path, 4))
    assert saver.saved_at == 4
    assert torch.equal(loaded.tensors["model"]["w"], torch.ones(3, 2))
    assert loaded.tensors["optim-a"]["w.step"] == 1
    assert loaded.state["meter"] == {"a": [1.0, 2]}


def test_the_next_one_waits_for_the_one_before(tmp_path, monkeypatch):
    gate = Gate(monkeypatch, "before rename")
    with Saver(tmp_path, 5, pytest.fail) as saver:
        saver.save(4, tensors(1.0), {}, last=False)
        assert gate.reached.wait(20)
        with beside(lambda: saver.save(8, tensors(2.0), {}, last=False)) as next_one:
            next_one.join(0.1)
            assert next_one.is_alive()
            assert saved(tmp_path) == []
            gate.open.set()
    assert saved(tmp_path) == ["step-00000004", "step-00000008"]


def test_only_the_newest_are_kept_and_the_oldest_stays_until_the_new_one_is_there(tmp_path, monkeypatch):
    with Saver(tmp_path, 1, pytest.fail) as saver:
        saver.save(4, tensors(1.0), {}, last=True)
        gate = Gate(monkeypatch, "before rename")
        saver.save(8, tensors(2.0), {}, last=False)
        assert gate.reached.wait(20)
        assert saved(tmp_path) == ["step-00000004"]
        gate.open.set()
    assert saved(tmp_path) == ["step-00000008"]


def test_a_failure_is_told_once_and_training_goes_on(tmp_path):
    notes: list[str] = []
    with Saver(tmp_path, 2, notes.append) as saver:
        for iteration in (4, 8):
            with full_disk(16):
                saver.save(iteration, tensors(1.0), {}, last=False)
                while any(thread.name == "saving" for thread in threading.enumerate()):
                    time.sleep(0.001)
            saver.look()
            assert len(notes) == 1
            assert "could not save a checkpoint, training goes on: " in notes[0]
        assert saver.saved_at == -1
        saver.save(12, tensors(1.0), {}, last=False)
    assert (saver.saved_at, saved(tmp_path), len(notes)) == (12, ["step-00000012"], 1)


def test_the_last_one_may_not_fail(tmp_path):
    with full_disk(16), pytest.raises(OSError, match=r"model\.safetensors cannot be written"):
        Saver(tmp_path, 2, pytest.fail).save(4, tensors(1.0), {}, last=True)


def test_a_fault_of_the_program_is_no_notice(tmp_path, monkeypatch):
    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(checkpoint, "prune", broken)
    saver = Saver(tmp_path, 2, pytest.fail)
    saver.save(4, tensors(1.0), {}, last=False)
    with pytest.raises(RuntimeError, match="a bug"):
        saver.finish()


def test_an_error_waits_for_what_is_being_written_and_a_second_control_c_does_not(tmp_path, monkeypatch):
    gate = Gate(monkeypatch, "before rename")
    saver = Saver(tmp_path, 2, pytest.fail)

    def ended_by(error: type[BaseException], iteration: int) -> None:
        with saver:
            saver.save(iteration, tensors(1.0), {}, last=False)
            assert gate.reached.wait(20)
            raise error

    with pytest.raises(KeyboardInterrupt):
        ended_by(KeyboardInterrupt, 4)
    assert saved(tmp_path) == []
    gate.open.set()
    with pytest.raises(ArithmeticError):
        ended_by(ArithmeticError, 8)
    assert saved(tmp_path) == ["step-00000004", "step-00000008"]


def test_files_have_the_bytes_that_the_library_writes(tmp_path):
    named = {"b": torch.arange(6.0).view(2, 3).T, "a": torch.tensor(True), "c": torch.zeros(0, 4, dtype=torch.bfloat16)}
    path = checkpoint.save(tmp_path, 1, checkpoint.cpu_copies({"model": named}), {"iteration": 1})
    expected = safetensors.torch.save({name: tensor.contiguous() for name, tensor in named.items()})
    assert (path / "model.safetensors").read_bytes() == expected
    assert (path / "state.json").read_text() == '{\n "format": 1,\n "iteration": 1\n}'
