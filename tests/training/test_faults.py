"""Troubles that a run survives: death at any moment, a full disk, signals, a second process. They are really killed."""

import os
import random
import signal
import time
from functools import partial

import pytest

from dualrate.system.folders import MANIFEST
from dualrate.training import checkpoint
from training import faults
from training.faults import Plan
from training.test_loop import metrics
from training.toy import final, same_bits

# of writing a folder every point is one of system/test_folders.py
POINTS = ["wrote model", "before rename", "after rename", "in prune", "loss"]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The directory of an uninterrupted run."""
    run_dir = tmp_path_factory.mktemp("faults") / "straight"
    faults.train(run_dir)
    return run_dir


def assert_same(straight, run_dir):
    assert same_bits(final(straight), final(run_dir))
    assert metrics(straight) == metrics(run_dir)
    assert not list((run_dir / "checkpoints").glob(".tmp-*"))
    assert not list((run_dir / "checkpoints").glob("*.corrupt"))


@pytest.mark.parametrize("point", POINTS)
def test_killed_at_a_point_of_writing_the_run_ends_the_same(tmp_path, straight, point):
    run_dir = tmp_path / "run"
    assert faults.run(run_dir, Plan(2, faults.kill, point)) == -signal.SIGKILL
    faults.train(run_dir)
    assert_same(straight, run_dir)


def test_killed_again_and_again_at_random_events_the_run_ends_the_same(tmp_path, straight):
    rng, run_dir, deaths = random.Random(1), tmp_path / "run", 0
    while (code := faults.run(run_dir, Plan(rng.randint(1, 30), faults.kill))) != 0:
        assert code == -signal.SIGKILL
        deaths += 1
    assert deaths >= 3
    assert_same(straight, run_dir)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_storm_of_kills_at_random_times_changes_nothing(tmp_path, seed):
    rng, run_dir, deaths = random.Random(seed), tmp_path / "run", 0
    faults.train(tmp_path / "straight", iterations=1500)
    while True:
        child = faults.start(run_dir, iterations=1500)
        time.sleep(rng.uniform(0.05, 1.5))
        child.kill()
        child.join()
        if child.exitcode == 0:
            break
        deaths += 1
        if rng.random() < 0.3 and len(paths := checkpoint.saved_paths(run_dir / "checkpoints")) > 1:
            victim = rng.choice(sorted(paths[-1].iterdir()))
            content = bytearray(victim.read_bytes())
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
            victim.write_bytes(content)
    assert deaths >= 10  # 30 over the seeds
    assert same_bits(final(tmp_path / "straight"), final(run_dir))
    assert metrics(tmp_path / "straight") == metrics(run_dir)


@pytest.mark.parametrize("sent", [faults.terminate, faults.interrupt, faults.warn])
def test_a_signal_saves_first(tmp_path, straight, sent):
    run_dir = tmp_path / "run"
    assert faults.run(run_dir, Plan(12, sent, "loss")) == 3
    assert checkpoint.saved_paths(run_dir / "checkpoints")[-1].name == "step-00000006"
    faults.train(run_dir)
    assert_same(straight, run_dir)


def test_a_second_signal_ends_at_once_and_harms_nothing(tmp_path, straight):
    run_dir = tmp_path / "run"
    assert faults.run(run_dir, Plan(12, partial(faults.settled, faults.terminate_twice), "loss")) == -signal.SIGTERM
    assert checkpoint.saved_paths(run_dir / "checkpoints")[-1].name == "step-00000004"
    plans = (Plan(1, faults.terminate, "loss"), Plan(1, faults.terminate, "before manifest"))
    assert faults.run(run_dir, *plans) == -signal.SIGTERM
    faults.train(run_dir)
    assert_same(straight, run_dir)


@pytest.mark.parametrize(("point", "when"), [("wrote model", 3), ("before rename", 3), ("in prune", 1)])
def test_control_c_twice_the_second_time_during_the_save_harms_nothing(tmp_path, straight, point, when):
    """The save after iteration 12, the third one and the first that removes an old checkpoint."""
    run_dir = tmp_path / "run"
    code = faults.run(run_dir, Plan(24, faults.interrupt, "loss"), Plan(when, faults.interrupt, point))
    assert code == 1  # KeyboardInterrupt, as if nobody had listened
    assert checkpoint.latest(run_dir / "checkpoints") is not None
    faults.train(run_dir)
    assert_same(straight, run_dir)


def test_a_flipped_bit_in_the_newest_checkpoint_costs_that_one_only(tmp_path, straight):
    run_dir = tmp_path / "run"
    assert faults.run(run_dir, Plan(19, partial(faults.settled, faults.kill), "loss")) == -signal.SIGKILL
    newest = checkpoint.saved_paths(run_dir / "checkpoints")[-1]
    content = bytearray((newest / "optim-a.safetensors").read_bytes())
    content[-9] ^= 4
    (newest / "optim-a.safetensors").write_bytes(content)
    faults.train(run_dir)
    notes = run_dir.with_suffix(".notes").read_text()
    assert f"corrupt checkpoint set aside as {newest.name}.corrupt: " in notes
    assert f"{newest.name}/optim-a.safetensors" in notes
    assert "resuming at iteration 4" in notes
    assert same_bits(final(straight), final(run_dir))
    assert metrics(straight) == metrics(run_dir)


def test_if_no_checkpoint_is_intact_the_run_does_not_start_over(tmp_path):
    run_dir = tmp_path / "run"
    faults.train(run_dir)
    before = metrics(run_dir)
    for path in checkpoint.saved_paths(run_dir / "checkpoints"):
        (path / MANIFEST).write_text("garbage")
    for _ in range(2):
        assert faults.run(run_dir) == 1
        assert {path.suffix for path in (run_dir / "checkpoints").iterdir()} == {".corrupt"}
        assert metrics(run_dir) == before


def test_a_full_disk_for_the_log_costs_the_log_only(tmp_path, straight):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "metrics.jsonl").symlink_to("/dev/full")
    faults.train(run_dir)
    assert same_bits(final(straight), final(run_dir))
    (note,) = run_dir.with_suffix(".notes").read_text().splitlines()
    assert "metrics.jsonl (No space left on device): training goes on without its log" in note


def test_a_full_disk_while_saving_costs_that_checkpoint_only(tmp_path, straight):
    """From the second checkpoint on files end at 2 KiB, less than the model needs; later there is room again."""
    run_dir = tmp_path / "run"
    full, free = partial(faults.settled, faults.full_disk), partial(faults.settled, faults.free_disk)
    plans = (Plan(9, full, "loss"), Plan(26, free, "loss"))
    assert faults.run(run_dir, *plans) == 0
    (note,) = run_dir.with_suffix(".notes").read_text().splitlines()[:1]
    assert "could not save a checkpoint, training goes on" in note
    assert run_dir.with_suffix(".notes").read_text().count("could not save") == 1
    names = [path.name for path in checkpoint.saved_paths(run_dir / "checkpoints")]
    assert names == ["step-00000004", "step-00000016"]
    assert same_bits(final(straight), final(run_dir))
    assert not list((run_dir / "checkpoints").glob(".tmp-*"))


def test_if_the_last_checkpoint_cannot_be_written_that_is_an_error(tmp_path):
    assert faults.run(tmp_path / "run", Plan(9, partial(faults.settled, faults.full_disk), "loss")) == 1
    assert [path.name for path in checkpoint.saved_paths(tmp_path / "run" / "checkpoints")] == ["step-00000004"]


def test_two_processes_cannot_train_one_run(tmp_path, straight):
    run_dir, hangs = tmp_path / "run", tmp_path / "hangs"
    first = faults.start(run_dir, Plan(3, partial(faults.hang_aloud, hangs), "loss"))
    while not hangs.exists():
        time.sleep(0.01)
    link = tmp_path / "link"
    link.symlink_to(run_dir)
    for path in (run_dir, link):
        with pytest.raises(OSError, match="is being trained by another process"):
            faults.train(path)
    os.kill(first.pid, signal.SIGKILL)
    first.join()
    faults.train(run_dir)  # the dead process's lock is no obstacle
    assert_same(straight, run_dir)
