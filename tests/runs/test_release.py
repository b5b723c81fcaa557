"""Released weights: what export writes and where it may, that it is whole or absent, and that damage is found."""

import json
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from runs.made import NET, ONE, TWO, saved
from safetensors.torch import load_file
from torch import nn
from trouble import flips, full_disk, killed, somebody, unreadable

from dualrate.denoisers.denoiser import Denoiser
from dualrate.diffusion.process import Process
from dualrate.experiment.network_configs import OneNetwork
from dualrate.runs.release import export
from dualrate.runs.store import CLASSES, RELEASED, load, read_experiment, write_class_names
from dualrate.system.files import append_record, write_tensors
from dualrate.system.folders import MANIFEST, Manifest
from dualrate.system.progress import run_lock

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = sorted(path.name for path in (ROOT / "weights").iterdir())


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Not to be changed."""
    return saved(TWO, tmp_path_factory.mktemp("runs") / "run", 3, 7)


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    """Not to be changed."""
    place = tmp_path_factory.mktemp("weights") / "released"
    export(run, place)
    return place


@pytest.fixture
def released(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "released")


def test_export_keeps_the_function_to_bfloat16(run, released):
    before, after = load(run), load(released)
    for name, tensor in before.networks.state_dict().items():
        torch.testing.assert_close(after.networks.state_dict()[name], tensor, rtol=2**-8, atol=0)
    assert after.iteration == 7


@dataclass(frozen=True)
class Counting(OneNetwork):
    """With a counter, which has no axes and more digits than bfloat16."""

    def build(self, process: Process) -> tuple[nn.ModuleDict, Denoiser]:
        networks, denoiser = super().build(process)
        networks.register_buffer("seen", torch.tensor(12345))
        return networks, denoiser


def test_a_counter_among_the_weights_is_kept_as_it_is(tmp_path):
    run = saved(replace(ONE, networks=Counting(NET)), tmp_path / "run")
    export(run, tmp_path / "released")
    for path in (run, tmp_path / "released"):
        assert load(path).networks.state_dict()["seen"] == 12345


def test_a_release_is_a_manifest_an_experiment_weights_and_a_card(run, released):
    assert sorted(content(released)) == [MANIFEST, "README.md", "experiment.json", "model.safetensors"]
    manifest = Manifest.read(released, RELEASED)
    assert manifest is not None
    assert sorted(manifest.entries) == ["experiment.json", "model.safetensors"]
    assert (released / "README.md").read_text().startswith("# released\n")
    assert [path.name for path in released.parent.iterdir()] == ["released"]


def test_names_of_classes_are_released_and_checked(run, tmp_path):
    named = shutil.copytree(run, tmp_path / "run")
    write_class_names(named, ["a", "b", "c"])
    export(named, tmp_path / "released")
    assert load(tmp_path / "released").class_names == ("a", "b", "c")
    (tmp_path / "released" / CLASSES).write_text('["a", "c", "b"]')
    with pytest.raises(OSError, match=rf"is damaged \(.*{CLASSES}"):
        load(tmp_path / "released")
    (named / CLASSES).write_text('{"0": "a"}')
    with pytest.raises(ValueError, match=rf"{CLASSES}: expected a list"):
        load(named)


# Where it may be written


def test_a_new_place_an_empty_one_and_a_link_to_one_will_do(run, released, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "link").symlink_to("other")
    for out in (tmp_path / "empty", tmp_path / "new" / "deep", tmp_path / "link"):
        export(run, out)
        assert load(out).weights_hash == load(released).weights_hash
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "other" / "README.md").read_text().startswith("# other\n")


@pytest.mark.parametrize("manifest", [True, False])
@pytest.mark.parametrize("link", [True, False])
def test_released_weights_are_replaced_as_a_whole(run, released, tmp_path, manifest, link):
    (released / "loss.svg").write_text("of the old ones")
    (released / "covariance.safetensors").write_text("of the old ones")
    if not manifest:
        (released / MANIFEST).unlink()
    (tmp_path / "link").symlink_to(released)
    other = saved(TWO, tmp_path / "run", 9)
    export(other, tmp_path / "link" if link else released)
    assert load(released).iteration == 9
    assert sorted(content(released)) == [MANIFEST, "README.md", "experiment.json", "model.safetensors"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "released", "run"]


def another_run(place: Path, run: Path) -> Path:
    shutil.copytree(run, place / "run")
    return place / "run"


def itself(place: Path, run: Path) -> Path:
    return run


def itself_by_a_link(place: Path, run: Path) -> Path:
    (place / "link").symlink_to(run)
    return place / "link"


def itself_the_long_way(place: Path, run: Path) -> Path:
    return run / "checkpoints" / ".."


def inside_a_run(place: Path, run: Path) -> Path:
    return run / "released"


def a_checkpoint_to_be(place: Path, run: Path) -> Path:
    return run / "checkpoints" / "step-00000099"


def the_parent_of_runs(place: Path, run: Path) -> Path:
    return another_run(place, run).parent


def a_run_that_starts(place: Path, run: Path) -> Path:
    (place / "run").mkdir()
    (place / "run" / ".lock").write_text("process 1")
    return place / "run"


def photos(place: Path, run: Path) -> Path:
    (place / "cat.jpg").write_text("mine")
    return place


def released_weights_with_notes(place: Path, run: Path) -> Path:
    export(run, place / "weights")
    (place / "weights" / "notes.txt").write_text("mine")
    return place / "weights"


def a_card_alone(place: Path, run: Path) -> Path:
    (place / "README.md").write_text("mine")
    return place


def a_file(place: Path, run: Path) -> Path:
    (place / "file").write_text("mine")
    return place / "file"


def below_a_file(place: Path, run: Path) -> Path:
    return a_file(place, run) / "weights"


def a_link_to_nowhere(place: Path, run: Path) -> Path:
    (place / "link").symlink_to("nowhere")
    return place / "link"


def a_link_to_itself(place: Path, run: Path) -> Path:
    (place / "link").symlink_to("link")
    return place / "link"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (another_run, "is, or lies in, the run"),
        (itself, "is, or lies in, the run"),
        (itself_by_a_link, "is, or lies in, the run"),
        (itself_the_long_way, "is, or lies in, the run"),
        (inside_a_run, "is, or lies in, the run"),
        (a_checkpoint_to_be, "is, or lies in, the run"),
        (the_parent_of_runs, "holds run: choose a new or empty"),
        (a_run_that_starts, r"holds \.lock: choose a new or empty"),
        (photos, r"holds cat\.jpg: choose a new or empty"),
        (released_weights_with_notes, r"holds notes\.txt: choose a new or empty"),
        (a_card_alone, r"holds README\.md: choose a new or empty"),
        (a_file, "is a file"),
        (below_a_file, "is a file"),
        (a_link_to_nowhere, "leads nowhere"),
        (a_link_to_itself, "leads nowhere"),
    ],
)
def test_anything_else_is_refused_and_left_alone(run, tmp_path, make, message):
    out = make(tmp_path, run)
    before = content(tmp_path), content(run)
    with pytest.raises(ValueError, match=message):
        export(run, out)
    assert (content(tmp_path), content(run)) == before


def test_the_root_of_a_file_system_is_refused(run, tmp_path, monkeypatch):
    monkeypatch.setattr("os.path.ismount", lambda path: path == tmp_path)
    with pytest.raises(ValueError, match="choose a directory in it"):
        export(run, tmp_path)


def test_a_run_that_is_being_trained_is_refused(run, tmp_path):
    other = another_run(tmp_path, run)
    with run_lock(other), pytest.raises(ValueError, match="is, or lies in, the run"):
        export(run, other)


def test_released_weights_and_no_runs_are_not_exported(run, released, tmp_path):
    before = content(tmp_path)
    for source, message in ((released, "holds released weights: copy"), (tmp_path, "is no run")):
        for out in (tmp_path / "new", released):
            with pytest.raises(ValueError, match=message):
                export(source, out)
    assert content(tmp_path) == before


def test_who_may_read_it_the_umask_says(run, tmp_path):
    before = os.umask(0o027)
    try:
        export(run, tmp_path / "out")
    finally:
        os.umask(before)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o750
    assert {file.stat().st_mode & 0o777 for file in (tmp_path / "out").iterdir()} == {0o640}


# Whole or absent


@pytest.mark.parametrize("size", [100, 2048, 6000])
def test_a_full_disk_leaves_what_was_there(run, released, tmp_path, size):
    before = content(tmp_path)
    for out in (released, tmp_path / "new"):
        with full_disk(size), pytest.raises(OSError, match=r"too large.*json|safetensors cannot be written: .*large"):
            export(run, out)
    assert content(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["released"]


def test_a_place_that_cannot_be_written_to_is_an_error(run, tmp_path):
    (tmp_path / "place").mkdir()
    (tmp_path / "place").chmod(0o500)
    source = shutil.copytree(run, tmp_path / "run")
    with somebody(tmp_path), pytest.raises(PermissionError, match="place"):
        export(source, tmp_path / "place" / "out")


@pytest.mark.parametrize("line", ["garbage", "{}"])
def test_a_history_that_is_none_is_told_before_anything_is_there(run, tmp_path, line):
    source = shutil.copytree(run, tmp_path / "run")
    append_record(source / "history.jsonl", {"command": "dualrate train"})
    with (source / "history.jsonl").open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(ValueError, match=r"history\.jsonl, line 2 .*; remove that line"):
        export(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize(("point", "left"), [("before rename", 5), ("after rename", 7)])
def test_a_killed_export_leaves_the_old_or_the_new(run, tmp_path, monkeypatch, point, left):
    """As every writer of a folder does: system/test_folders.py."""
    out = tmp_path / "out"
    export(saved(TWO, tmp_path / "old", 5), out)
    assert killed(monkeypatch, point, lambda: export(run, out)) == 9
    assert load(out).iteration == left
    export(run, out)
    assert load(out).iteration == 7
    assert not list(tmp_path.glob(".*"))


# Damage


@pytest.mark.parametrize("name", [*RELEASED, MANIFEST])
def test_any_flipped_bit_is_an_error_that_names_the_file(released, name):
    for flipped in flips((released / name).read_bytes(), 60):
        (released / name).write_bytes(flipped)
        with pytest.raises(
            OSError, match=rf"{released} is damaged \(.*{'json|safetensors' if name == MANIFEST else name}"
        ):
            load(released)


@pytest.mark.parametrize("name", RELEASED)
def test_a_file_that_is_cut_off_empty_or_missing_is_an_error(released, name):
    whole = (released / name).read_bytes()
    for damaged in (whole[:-10], b"", None):
        (released / name).write_bytes(damaged) if damaged is not None else (released / name).unlink()
        with pytest.raises((OSError, ValueError), match=name):
            load(released)


def pipe(file: Path) -> None:
    os.mkfifo(file)


def device(file: Path) -> None:
    file.symlink_to("/dev/zero")


def sparse(file: Path) -> None:
    with file.open("wb") as opened:
        opened.truncate(2**43)


@pytest.mark.parametrize("name", [*RELEASED, MANIFEST])
@pytest.mark.parametrize("made", [pipe, device, sparse])
def test_a_pipe_a_device_and_what_no_memory_holds_are_refused_at_once(released, name, made):
    """Opening the first would wait, reading the others would never end."""
    (released / name).unlink(missing_ok=True)
    made(released / name)
    with pytest.raises((ValueError, OSError), match=f"{name}|no checkpoint"):
        load(released)


def test_two_tensors_of_a_name_are_refused(released):
    file = released / "model.safetensors"
    content = file.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + size].decode().rstrip()
    name, entry = next((name, entry) for name, entry in json.loads(header).items() if name != "__metadata__")
    twice = f'{{"{name}":{json.dumps(entry)},{header[1:]}'.encode()
    file.write_bytes(len(twice).to_bytes(8, "little") + twice + content[8 + size :])
    Manifest.write(released, RELEASED)
    with pytest.raises(OSError, match=r"is damaged .*stands there twice"):
        load(released)


@pytest.mark.parametrize("iteration", ["-5", "many", "1e3"])
def test_an_iteration_that_is_none_is_refused(released, iteration):
    file = released / "model.safetensors"
    write_tensors(file, load_file(file), {"iteration": iteration})
    Manifest.write(released, RELEASED)
    with pytest.raises(OSError, match=r"is damaged .*expected a number from 0 on"):
        load(released)


def test_whoever_reads_the_experiment_alone_checks_it_too(released):
    text = (released / "experiment.json").read_text()
    (released / "experiment.json").write_text(text.replace("8", "9"))
    with pytest.raises(OSError, match=r"is damaged .*experiment\.json"):
        read_experiment(released)


def test_a_file_of_somebody_else_is_no_damage(released):
    for name in (*RELEASED, MANIFEST):
        with unreadable(released / name, released), pytest.raises(PermissionError, match=name):
            load(released)


def test_the_card_may_be_edited(released):
    (released / "README.md").write_text("# Mine\n")
    (released / "loss.svg").write_text("mine")
    (released / "notes.md").write_text("mine")
    assert load(released).iteration == 7


def test_released_weights_without_a_manifest_are_refused(released):
    (released / MANIFEST).unlink()
    with pytest.raises(OSError, match=rf"{released} is damaged \(it has no MANIFEST\.json\)"):
        load(released)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_weights_are_what_their_manifest_says(name, recwarn):
    manifest = Manifest.read(ROOT / "weights" / name, RELEASED)
    assert manifest is not None
    for file in RELEASED:
        manifest.content(file)
    assert load(ROOT / "weights" / name).iteration > 0
    assert not recwarn.list


@pytest.mark.parametrize("name", SHIPPED)
def test_a_flipped_bit_in_shipped_weights_is_found(name, tmp_path):
    shutil.copytree(ROOT / "weights" / name, tmp_path / name, ignore=shutil.ignore_patterns("model*"))
    (tmp_path / name / "model.safetensors").write_bytes(
        next(flips((ROOT / "weights" / name / "model.safetensors").read_bytes(), 1))
    )
    with pytest.raises(OSError, match=r"is damaged .*model\.safetensors"):
        load(tmp_path / name)


def test_an_experiment_of_another_version_is_named(released):
    experiment = json.loads((released / "experiment.json").read_text())
    (released / "experiment.json").write_text(json.dumps(experiment | {"colour": "red"}))
    Manifest.write(released, RELEASED)
    with pytest.raises(ValueError, match=r"experiment\.json: Experiment has no field 'colour'"):
        load(released)


def test_one_network_is_exported_too(tmp_path):
    run = saved(ONE, tmp_path / "run", ema=0.25)
    export(run, tmp_path / "out")
    assert all((p == 0.25).all() for p in load(tmp_path / "out").networks.parameters())
