import errno
import json
import os
import random
import shutil
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from trouble import failing, unreadable

from dualrate.system import folders
from dualrate.system.files import when_seen
from dualrate.system.folders import MANIFEST, Damaged, Manifest
from dualrate.training import checkpoint
from training.toy import same_bits

TENSORS = {
    "model": {"w": torch.arange(6.0).view(2, 3), "n": torch.tensor(4)},
    "ema-a": {"w": torch.full((2, 3), 0.5)},
    "optim-a": {"w.step": torch.tensor(3.0)},
}


def write(directory: Path, *iterations: int) -> list[str]:
    for iteration in iterations:
        checkpoint.save(directory, iteration, TENSORS, {"iteration": iteration, "phases": {"a": {}}})
    return [path.name for path in checkpoint.saved_paths(directory)]


def test_what_is_saved_is_loaded(tmp_path):
    loaded = checkpoint.load(checkpoint.save(tmp_path, 7, TENSORS, {"iteration": 7}))
    assert same_bits(loaded.tensors, TENSORS)
    assert loaded.state["iteration"] == 7
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000007"]


def test_tied_and_strided_tensors_can_be_saved(tmp_path):
    w = torch.arange(6.0).view(2, 3)
    tensors = checkpoint.cpu_copies({"model": {"w": w, "tied": w, "t": w.T}})
    loaded = checkpoint.load(checkpoint.save(tmp_path, 1, tensors, {}))
    assert same_bits(loaded.tensors, {"model": {"w": w, "tied": w, "t": w.T}})


def test_weights_are_the_averages(tmp_path):
    write(tmp_path, 1)
    saved = checkpoint.latest(tmp_path)
    assert saved is not None
    assert "optim-a" not in saved.tensors
    assert torch.equal(saved.weights()["w"], TENSORS["ema-a"]["w"])
    assert torch.equal(saved.weights()["n"], TENSORS["model"]["n"])
    assert torch.equal(saved.tensors["model"]["w"], TENSORS["model"]["w"])


def test_only_the_newest_are_kept(tmp_path):
    write(tmp_path, 1, 2, 3, 10)
    checkpoint.prune(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000003", "step-00000010"]


def test_no_checkpoints_are_none_and_no_error(tmp_path):
    assert checkpoint.recover(tmp_path / "nothing", lambda text: None) is None
    (tmp_path / "nothing").mkdir()
    assert checkpoint.recover(tmp_path / "nothing", lambda text: None) is None


def flip(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


DAMAGE = {
    "bit flip": flip,
    "truncated": lambda path, rng: path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)]),
    "empty": lambda path, rng: path.write_bytes(b""),
    "missing": lambda path, rng: path.unlink(),
    "garbage": lambda path, rng: path.write_bytes(rng.randbytes(path.stat().st_size)),
    "nested": lambda path, rng: path.write_text("[" * 100_000),
    "other JSON": lambda path, rng: path.write_text('{"files": {"model.safetensors": 3, "state.json": []}}'),
    "a directory": lambda path, rng: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize(
    "file", ["model.safetensors", "ema-a.safetensors", "optim-a.safetensors", "state.json", MANIFEST]
)
def test_a_damaged_checkpoint_is_set_aside_and_the_older_one_used(tmp_path, file, damage):
    write(tmp_path, 1, 2)
    rng = random.Random(f"{file} {damage}")
    for _ in range(8):
        shutil.copytree(tmp_path / "step-00000002", tmp_path / "copy")
        DAMAGE[damage](tmp_path / "step-00000002" / file, rng)
        notes: list[str] = []
        found = checkpoint.recover(tmp_path, notes.append)
        assert found is not None
        assert found.state["iteration"] == 1
        assert len(notes) == 1
        assert file in notes[0] or file == MANIFEST  # a flip in a hash there accuses the file it is of
        assert "corrupt" in notes[0]
        (tmp_path / "copy").rename(tmp_path / "step-00000002")
    assert len(list(tmp_path.glob("*.corrupt"))) == 8


def test_readers_fall_back_too_but_move_nothing(tmp_path):
    write(tmp_path, 1, 2)
    (tmp_path / "step-00000002" / "model.safetensors").unlink()
    found = checkpoint.latest(tmp_path)
    assert found is not None
    assert found.state["iteration"] == 1
    assert len(checkpoint.saved_paths(tmp_path)) == 2


def test_the_newest_is_that_of_the_last_iteration_whatever_the_clock_says(tmp_path):
    assert write(tmp_path, 99_999_999, 100_000_000, 8) == ["step-00000008", "step-99999999", "step-100000000"]
    for age, name in enumerate(("step-00000008", "step-100000000", "step-99999999")):
        os.utime(tmp_path / name, (10**9 * age, 2 * 10**9 - 10**8 * age))  # in the future, too
    for found in (checkpoint.latest(tmp_path), checkpoint.recover(tmp_path, pytest.fail)):
        assert found is not None
        assert found.state["iteration"] == 100_000_000
    checkpoint.prune(tmp_path, 2)
    assert [path.name for path in checkpoint.saved_paths(tmp_path)] == ["step-99999999", "step-100000000"]


def test_if_none_is_intact_it_is_an_error_also_the_next_time(tmp_path):
    write(tmp_path, 1, 2)
    for path in checkpoint.saved_paths(tmp_path):
        (path / MANIFEST).unlink()
    for _ in range(2):
        with pytest.raises(OSError, match="none is intact"):
            checkpoint.recover(tmp_path, lambda text: None)


def test_a_manifest_cannot_reach_outside(tmp_path):
    write(tmp_path, 1)
    manifest = tmp_path / "step-00000001" / MANIFEST
    content = json.loads(manifest.read_text())
    content["files"]["../secret.safetensors"] = {"size": 0, "sha256": ""}
    manifest.write_text(json.dumps(content))
    with pytest.raises(Damaged, match="plain file names"):
        checkpoint.load(tmp_path / "step-00000001")


def test_another_format_is_refused_and_left_in_place(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT", 99)
    write(tmp_path, 1)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="format 99"):
        checkpoint.recover(tmp_path, lambda text: None)
    assert len(checkpoint.saved_paths(tmp_path)) == 1


@pytest.mark.parametrize("state", ["{}", "[1]", '{"format": "1"}', "null"])
def test_a_state_without_a_format_is_refused(tmp_path, state):
    write(tmp_path, 1)
    path = tmp_path / "step-00000001"
    (path / "state.json").write_text(state)
    Manifest.write(path, [file.name for file in path.iterdir() if file.name != MANIFEST])
    with pytest.raises(ValueError, match=r"has format .*, expected 1"):
        checkpoint.load(path)


@pytest.mark.parametrize("point", ["wrote model", "before manifest", "before rename"])
def test_a_failed_write_leaves_nothing_behind(tmp_path, monkeypatch, point):
    write(tmp_path, 1)

    def fail(reached: str) -> None:
        if reached == point:
            raise OSError("disk")

    monkeypatch.setattr(folders, "fault_point", fail)
    with pytest.raises(OSError, match="disk"):
        write(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def file_of(header: object, data: bytes = bytes(24)) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(first: int, last: int, shape: list, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [first, last]}


NO_TENSORS = {
    "empty": b"",
    "short": b"1234567",
    "a header longer than the file": (2**40).to_bytes(8, "little"),
    "no JSON": file_of({})[:8] + b"{{" + bytes(24),
    "no object": file_of([1]),
    "no entry": file_of({"w": 3}),
    "bytes at the end": file_of({"w": entry(0, 20, [5])}),
    "a hole": file_of({"w": entry(4, 24, [5])}),
    "one over the other": file_of({"v": entry(0, 24, [6]), "w": entry(0, 24, [6])}),
    "one over the other, together of the right size": file_of({"v": entry(0, 8, [2]), "w": entry(4, 20, [4])}),
    "an end that is none": file_of({"w": entry(0, 20, [6])}),
    "beyond the end": file_of({"w": entry(0, 2**50, [2**48])}),
    "another size": file_of({"w": entry(0, 24, [5])}),
    "negative sizes": file_of({"w": entry(0, 24, [-2, -3])}),
    "sizes that are none": file_of({"w": entry(0, 24, [6.0])}),
    "an unknown type": file_of({"w": entry(0, 24, [6], "F33")}),
}


@pytest.mark.parametrize("content", NO_TENSORS.values(), ids=NO_TENSORS.keys())
def test_a_file_of_the_right_hash_that_holds_no_tensors_is_damage(tmp_path, content):
    write(tmp_path, 1)
    path = tmp_path / "step-00000001"
    (path / "model.safetensors").write_bytes(content)
    Manifest.write(path, [file.name for file in path.iterdir() if file.name != MANIFEST])
    with pytest.raises(Damaged, match="matches its manifest but cannot be read"):
        checkpoint.load(path)


def test_tensors_of_every_type_and_of_other_writers_are_read(tmp_path):
    types = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
    types = (*types, torch.float16, torch.bfloat16, torch.float32, torch.float64)
    named = {str(dtype): torch.arange(6).view(2, 3).to(dtype) for dtype in types}
    named |= {"scalar": torch.tensor(2.5), "empty": torch.zeros(3, 0)}
    path = checkpoint.save(tmp_path, 1, {"model": named}, {})
    assert same_bits(checkpoint.load(path).tensors, {"model": named})
    (path / "model.safetensors").write_bytes(
        file_of(
            {"__metadata__": {"a": "b"}, "w": entry(8, 24, [2, 2]), "v": entry(0, 8, [2])}, bytes(20) + b"\0\0\x80?"
        )
    )
    Manifest.write(path, [file.name for file in path.iterdir() if file.name != MANIFEST])
    expected = {"v": torch.zeros(2), "w": torch.tensor([[0.0, 0.0], [0.0, 1.0]])}
    assert same_bits(checkpoint.load(path).tensors, {"model": expected})


def test_unfinished_writes_are_removed_by_the_owner_of_the_run(tmp_path):
    write(tmp_path, 1)
    (tmp_path / ".tmp-step-00000002-1").mkdir()
    (tmp_path / ".tmp-step-00000002-1" / "model.safetensors").write_bytes(b"half")
    checkpoint.recover(tmp_path, lambda text: None)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


# What cannot be read is not damaged

NUMBERS = [errno.EACCES, errno.EIO, errno.ESTALE, errno.EMFILE]


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("file", ["model.safetensors", "optim-a.safetensors", "state.json", MANIFEST])
def test_a_checkpoint_that_cannot_be_read_is_an_error_and_stays(tmp_path, monkeypatch, file, number):
    write(tmp_path, 1, 2)
    failing(monkeypatch, tmp_path / "step-00000002" / file, number)
    with pytest.raises(OSError, match=rf"step-00000002/{file}'") as caught:
        checkpoint.recover(tmp_path, lambda text: pytest.fail(text))
    assert caught.value.errno == number
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001", "step-00000002"]
    if file != "optim-a.safetensors":  # which readers do not read
        with pytest.raises(OSError, match=rf"step-00000002/{file}'"):
            checkpoint.latest(tmp_path, lambda path, error: pytest.fail(str(error)))


@pytest.mark.parametrize("place", ["step-00000002/ema-a.safetensors", "step-00000002", "."])
def test_a_checkpoint_of_somebody_else_is_an_error_and_stays(tmp_path, place):
    directory = tmp_path / "checkpoints"
    write(directory, 1, 2)
    with (
        unreadable(directory / place, tmp_path),
        pytest.raises(PermissionError, match=place.strip(".") or "checkpoints"),
    ):
        checkpoint.recover(directory, lambda text: pytest.fail(text))
    assert sorted(path.name for path in directory.iterdir()) == ["step-00000001", "step-00000002"]
    found = checkpoint.recover(directory, lambda text: pytest.fail(text))
    assert found is not None
    assert found.state["iteration"] == 2


def test_a_damaged_one_goes_aside_though_the_one_before_cannot_be_read(tmp_path, monkeypatch):
    write(tmp_path, 1, 2)
    (tmp_path / "step-00000002" / "state.json").write_text("{}")
    failing(monkeypatch, tmp_path / "step-00000001" / "state.json", errno.EIO)
    notes: list[str] = []
    with pytest.raises(OSError, match=r"step-00000001/state\.json"):
        checkpoint.recover(tmp_path, notes.append)
    assert len(notes) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001", "step-00000002.corrupt"]


def test_checkpoints_are_for_everyone_whom_the_umask_lets(tmp_path):
    write(tmp_path, 1)
    modes = {stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "step-00000001").iterdir()}
    (tmp_path / "mine").touch()
    assert modes == {stat.S_IMODE((tmp_path / "mine").stat().st_mode)}


def test_readers_are_told_of_each_damaged_one(tmp_path):
    write(tmp_path, 1, 2, 3)
    for name in ("step-00000002", "step-00000003"):
        (tmp_path / name / "ema-a.safetensors").write_bytes(b"")
    told: list[tuple[str, str]] = []
    found = checkpoint.latest(tmp_path, lambda path, error: told.append((path.name, str(error))))
    assert found is not None
    assert found.state["iteration"] == 1
    assert [name for name, _ in told] == ["step-00000003", "step-00000002"]
    assert all(f"{name}/ema-a.safetensors: its content is not" in error for name, error in told)


def test_one_that_is_removed_while_it_is_read_is_no_damage(tmp_path, monkeypatch):
    """The process that trains has saved two more, and keeps two."""
    write(tmp_path, 1, 2)
    content = Manifest.content

    def prune_first(manifest: Manifest, name: str) -> bytes:
        if manifest.folder / name == tmp_path / "step-00000002" / "ema-a.safetensors":
            write(tmp_path, 3, 4)
            checkpoint.prune(tmp_path, 2)
        return content(manifest, name)

    monkeypatch.setattr(Manifest, "content", prune_first)
    found = checkpoint.latest(tmp_path, lambda path, error: pytest.fail(str(error)))
    assert found is not None
    assert found.state["iteration"] == 4


def test_a_link_to_nowhere_in_place_of_a_checkpoint_is_damage(tmp_path):
    write(tmp_path, 1)
    (tmp_path / "step-00000002").symlink_to("nowhere")
    found = checkpoint.recover(tmp_path, lambda text: None)
    assert found is not None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001", "step-00000002.corrupt"]


def test_a_copy_waits_for_every_device_that_holds_a_part_of_it(monkeypatch):
    waited, on = [], [torch.device("cuda", 1), torch.device("cuda", 2)]
    like = {"shape": (1,), "dtype": torch.float32}
    tensors = {"model": {str(device): SimpleNamespace(is_cuda=True, device=device, **like) for device in on}}
    tensors["rest"] = {"cpu": SimpleNamespace(is_cuda=False, device=torch.device("cpu"), **like)}
    memory = SimpleNamespace(copy_=lambda tensor, non_blocking: torch.zeros(1))
    monkeypatch.setattr(torch, "empty", lambda shape, dtype, pin_memory: memory)
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    checkpoint.cpu_copies(cast("Any", tensors))
    assert sorted(waited, key=str) == on


def test_a_checkpoint_that_another_process_found_is_awaited(tmp_path, monkeypatch):
    """As on a disk of a network, whose folders are seen a while after they were written."""
    slept = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            write(tmp_path, 1)

    monkeypatch.setattr("dualrate.system.files.time.sleep", sleep)
    assert checkpoint.load(when_seen(checkpoint.path_of(tmp_path, 1), 60)).state["iteration"] == 1
    assert len(slept) == 3
    with pytest.raises(OSError, match="no manifest"):
        checkpoint.load(when_seen(checkpoint.path_of(tmp_path, 2), 0))
