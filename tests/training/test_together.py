"""Training over two processes, and four: the numbers of one, whatever the method, and an end for all when one ends."""

import json
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch

from dualrate.training import checkpoint
from dualrate.training.distributed import Share, World
from training import faults, together
from training.together import LOST, InBfloat16, InTurn, Toys, Work
from training.toy import final, same_bits

Cases = Mapping[str, tuple[int, int | None]]
CASES: Cases = {  # batch size, micro-batch: shares of unequal size, with unequal numbers of kept contexts
    "denoising, dual": (7, 5),
    "moment matching": (5, None),
    "instant": (7, None),
}
# of four, every one has a row of every micro-batch
FOUR: Cases = {"denoising": (6, None), **CASES, "denoising, dual": (9, 5)}
STUDENTS: Cases = {"moment matching, full": (6, 4), "instant, dual": (10, 5), "em": (6, 4)}
STRAIGHT = 4  # more than the warm-up; a fault of either kind shows in the iteration that follows it


@dataclass(frozen=True)
class TrainAll:
    """Each case up to so many iterations."""

    folder: Path
    iterations: int
    cases: Cases

    def __call__(self, world: World) -> None:
        for case, (batch_size, micro_batch) in self.cases.items():
            together.train(case, self.folder / case, self.iterations, world, batch_size, micro_batch)


def losses(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if "/" in name} for line in lines]


def trained(folder: Path, cases: Cases, *more: Work) -> dict[str, Path]:
    """Runs of one process, of two, and of one and two in turn: one, two, one. more: what else the two do."""
    one, two, in_turn = (folder / name for name in ("one", "two", "in turn"))
    TrainAll(in_turn, 1, cases)(World())
    TrainAll(one, STRAIGHT, cases)(World())
    works = InTurn((TrainAll(in_turn, 3, cases), TrainAll(two, STRAIGHT, cases), *more))
    assert together.ended(together.start(works)) == [0, 0]
    TrainAll(in_turn, STRAIGHT, cases)(World())
    return {run.name: run for run in (one, two, in_turn)}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("together")
    nan = Toys(folder / "nan", nan=14, iterations=4)
    return trained(folder, CASES, nan, InBfloat16(folder / "frozen"))


def assert_same_losses(one: Path, two: Path) -> None:
    alone, shared = losses(one), losses(two)
    assert len(alone) == len(shared) == STRAIGHT
    for expected, got in zip(alone, shared, strict=True):
        assert expected.keys() == got.keys()
        for name, value in expected.items():
            assert got[name] == pytest.approx(value, rel=1e-10, abs=1e-10), name


def assert_equal(one: Path, two: Path) -> None:
    """Losses and norms of gradients; and at the end weights, averages and moments."""
    assert_same_losses(one, two)
    alone, shared = final(one), final(two)
    assert alone.keys() == shared.keys()
    for file, tensors in alone.items():
        assert tensors.keys() == shared[file].keys()
        for name, value in tensors.items():
            torch.testing.assert_close(shared[file][name], value, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("how", ["two", "in turn"])
@pytest.mark.parametrize("case", CASES)
def test_two_processes_have_the_losses_of_one_also_resumed_by_another_number(folders, case, how):
    assert_equal(folders["one"] / case, folders[how] / case)


@pytest.mark.slow
def test_four_processes_have_the_losses_of_one(tmp_path):
    TrainAll(tmp_path / "one", STRAIGHT, FOUR)(World())
    assert together.ended(together.start(TrainAll(tmp_path / "four", STRAIGHT, FOUR), 4)) == [0] * 4
    for case in FOUR:
        assert_equal(tmp_path / "one" / case, tmp_path / "four" / case)


@pytest.mark.slow
def test_so_have_those_of_other_students(tmp_path):
    runs = trained(tmp_path, STUDENTS)
    for case in STUDENTS:
        assert_same_losses(runs["one"] / case, runs["two"] / case)
        assert_same_losses(runs["one"] / case, runs["in turn"] / case)


def test_under_autocast_a_frozen_encoder_stays_what_it_was(tmp_path, folders):
    """Its first forward is a frozen one. The others' losses are those of one process, but for what bfloat16 rounds.

    Before the first update that is less than 1e-4, and float32 is 3.5e-4 away; afterwards gradients of other rows are
    rounded: measured were 1e-4 of losses, 8e-3 of norms.
    """
    shared_run, one = folders["one"].with_name("frozen"), InBfloat16(tmp_path)
    one(World())
    alone, shared = losses(tmp_path), losses(shared_run)
    assert len(alone) == len(shared) == 4
    assert shared[0]["model/loss"] == pytest.approx(alone[0]["model/loss"], rel=1e-4)
    for expected, got in zip(alone, shared, strict=True):
        for log, value in expected.items():
            assert got[log] == pytest.approx(value, rel=2**-6 if "norm" in log else 2**-10, abs=2**-10), log
    begun = one.method().networks.state_dict()
    for iteration in (2, 4):
        path = checkpoint.path_of(shared_run / "checkpoints", iteration)
        for weight, value in checkpoint.load(path).tensors["model"].items():
            assert torch.equal(value, begun[weight]) == weight.startswith("encoder.net."), f"{weight} at {iteration}"


def saved(run_dir: Path) -> list[str]:
    return [path.name for path in checkpoint.saved_paths(run_dir / "checkpoints")]


def notes(run_dir: Path, rank: int = 0) -> str:
    return run_dir.with_suffix(f".notes{rank}").read_text()


@pytest.mark.parametrize(("rank", "sent"), [(0, faults.terminate), (1, faults.warn)])
def test_a_signal_to_one_process_stops_all_at_the_same_iteration(tmp_path, rank, sent):
    run_dir = tmp_path / "run"
    assert together.ended(together.start(Toys(run_dir, sent, rank, when=6))) == [75, 75]
    assert saved(run_dir) == ["step-00000004", "step-00000006"]
    Toys(tmp_path / "straight")(World())
    Toys(run_dir)(World())
    assert "resuming, but not bit for bit: processes was 2, is 1" in notes(run_dir)
    straight, resumed = final(tmp_path / "straight"), final(run_dir)
    for name, value in straight["model"].items():
        assert torch.allclose(value, resumed["model"][name], rtol=1e-4, atol=1e-6)


def disturbed(folder: Path, act: Callable[[], None], rank: int, size: int) -> list[int]:
    """Exit codes of processes of which one acts; that they then go on to the bits of undisturbed ones."""

    def toys(name: str, *of: object) -> list[int]:
        return together.ended(together.start(Toys(folder / name, *of), size), seconds=60)

    assert toys("straight") == [0] * size
    codes = toys("run", act, rank, 6)
    assert saved(folder / "run")[-1] < saved(folder / "straight")[-1]
    assert toys("run") == [0] * size
    assert "resuming at iteration" in notes(folder / "run")
    assert "not bit for bit" not in notes(folder / "run")
    assert same_bits(final(folder / "straight"), final(folder / "run"))
    return codes


def test_two_that_a_signal_stopped_go_on_to_the_same_bits(tmp_path):
    assert disturbed(tmp_path, faults.terminate, 1, 2) == [75, 75]


@pytest.mark.slow
def test_four_of_which_one_is_killed_go_on_to_the_same_bits(tmp_path):
    assert disturbed(tmp_path, faults.kill, 2, 4) == [LOST, LOST, -signal.SIGKILL, LOST]


@pytest.mark.parametrize("rank", [0, 1])
def test_when_one_is_killed_the_others_end_and_say_why(tmp_path, rank):
    run_dir = tmp_path / "run"
    killed = Toys(run_dir, partial(faults.settled, faults.kill), rank, when=6)
    codes = together.ended(together.start(killed), seconds=30)
    assert codes[rank] == -signal.SIGKILL
    assert codes[1 - rank] == LOST
    assert f"process {1 - rank} of 2 lost another one" in notes(run_dir, 1 - rank)
    assert saved(run_dir) == ["step-00000004"]


def test_when_one_hangs_the_others_end_after_the_timeout_and_it_says_where_it_stands(tmp_path):
    said = tmp_path / "said"
    hung = Toys(tmp_path / "run", partial(faults.hang_aloud, said), 1, when=6)
    started = together.start(hung, timeout=2)
    assert together.ended(started[:1], seconds=60) == [LOST]
    assert "process 0 of 2 lost another one" in notes(tmp_path / "run")
    assert together.ended(started[1:], seconds=60) == [1]
    assert "Timeout" in said.read_text()
    assert "in loss" in said.read_text()


def test_data_that_is_not_finite_in_one_process_is_skipped_in_all_and_named(folders):
    run_dir = folders["one"].with_name("nan")
    for rank in range(2):
        assert "samples 8 to 15: loss nan" in notes(run_dir, rank)
        assert "not finite in samples [14]: update skipped" in notes(run_dir, rank)
    assert all(torch.isfinite(value).all() for value in final(run_dir)["model"].values())


def test_every_process_has_a_row_of_every_micro_batch():
    assert Share(7, 3, World(0, 1)).rows.tolist() == list(range(7))
    with pytest.raises(ValueError, match=r"2 processes need a row each of every micro-batch, .* have one of 1: raise"):
        Share(7, 3, World(0, 2))
    shares = [Share(8, 5, World(rank, 3)).rows.tolist() for rank in range(3)]
    assert shares == [[0, 5], [1, 2, 6], [3, 4, 7]]
