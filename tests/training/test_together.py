"""Training over two processes, and four: the numbers of one, whatever the method, and an end for all when one ends.

Each holds all of the networks, or several hold them together.
"""

import json
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
import torch

from dualrate.training import checkpoint
from dualrate.training.distributed import LOST, Share, World
from training import faults, together
from training.together import Held, InBfloat16, InTurn, Toys, Work
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
STRAIGHT = 10  # more than the warm-up of 5; a fault of either kind shows in the iteration that follows it


@dataclass(frozen=True)
class TrainAll:
    """stops: iterations, each with whether the processes hold the weights together until then."""

    folder: Path
    stops: tuple[tuple[int, bool], ...]
    cases: Cases

    def __call__(self, world: World) -> None:
        for case, (batch_size, micro_batch) in self.cases.items():
            for iterations, together_held in self.stops:
                here = world if together_held else replace(world, mesh=None)
                together.train(case, self.folder / case, iterations, here, batch_size, micro_batch)


def losses(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if "/" in name} for line in lines]


def trained(folder: Path, cases: Cases, *more: Callable[[Path], Work]) -> dict[str, Path]:
    """Runs of one process, of two that hold the weights together, and of both kinds in turn.

    In turn: one, two that hold all, two that hold them together, one: three changes, for a single start of processes.
    more: what else the processes do, given the runs of one
    """
    one, held, in_turn = (folder / name for name in ("one", "held together", "in turn"))
    TrainAll(in_turn, ((3, False),), cases)(World())
    TrainAll(one, ((STRAIGHT, False),), cases)(World())
    middle = TrainAll(in_turn, ((5, False), (8, True)), cases)
    works = InTurn((middle, TrainAll(held, ((STRAIGHT, True),), cases), *(work(one) for work in more)))
    assert together.ended(together.start(works, shard=2)) == [0, 0]
    TrainAll(in_turn, ((STRAIGHT, False),), cases)(World())
    return {run.name: run for run in (one, held, in_turn)}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("together")
    nan = Toys(folder / "nan", nan=14, iterations=4)
    rounded = InBfloat16(folder / "frozen")
    case = "denoising, dual"
    return trained(folder, CASES, lambda one: Held(case, one / case), lambda one: InTurn((nan, rounded)))


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


@pytest.mark.parametrize("how", ["held together", "in turn"])
@pytest.mark.parametrize("case", CASES)
def test_two_processes_have_the_losses_of_one_also_resumed_by_another_number(folders, case, how):
    assert_equal(folders["one"] / case, folders[how] / case)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("case", FOUR)
def test_four_processes_have_the_losses_of_one_however_many_of_them_hold_the_weights_together(tmp_path, case):
    """Two and two, all four, or each all; in turn: two and two until 3, all four until 7, each all to the end."""
    cases = {case: FOUR[case]}
    TrainAll(tmp_path / "one", ((STRAIGHT, False),), cases)(World())
    for shard, stop in ((2, 3), (4, 7), (1, STRAIGHT)):
        straight = TrainAll(tmp_path / str(shard), ((STRAIGHT, True),), cases)
        works = InTurn((TrainAll(tmp_path / "in turn", ((stop, True),), cases), straight))
        assert together.ended(together.start(works, 4, shard=shard)) == [0] * 4
    for run in ("1", "2", "4", "in turn"):
        assert_equal(tmp_path / "one" / case, tmp_path / run / case)


@pytest.mark.slow
@pytest.mark.parametrize("shard", [2, 4])
def test_of_four_each_holds_its_part_and_samples_as_one_does(tmp_path, shard):
    case = "denoising, dual"
    TrainAll(tmp_path, ((5, False),), {case: CASES[case]})(World())
    assert together.ended(together.start(Held(case, tmp_path / case), 4, shard=shard)) == [0] * 4


@pytest.mark.slow
def test_so_have_those_of_other_students(tmp_path):
    runs = trained(tmp_path, STUDENTS)
    for case in STUDENTS:
        assert_same_losses(runs["one"] / case, runs["held together"] / case)
        assert_same_losses(runs["one"] / case, runs["in turn"] / case)


def test_under_autocast_a_frozen_encoder_that_is_held_together_stays_what_it_was(tmp_path, folders):
    """Its first forward is a frozen one. The others' losses are those of one process, but for what bfloat16 rounds.

    Before the first update that is less than 1e-4, and float32 is 3.5e-4 away; afterwards gradients of other rows are
    rounded: measured were 1e-4 of losses, 8e-3 of norms.
    """
    together_held, one = folders["one"].with_name("frozen"), InBfloat16(tmp_path)
    one(World())
    alone, shared = losses(tmp_path), losses(together_held)
    assert len(alone) == len(shared) == 6
    assert shared[0]["model/loss"] == pytest.approx(alone[0]["model/loss"], rel=1e-4)
    for expected, got in zip(alone, shared, strict=True):
        for log, value in expected.items():
            assert got[log] == pytest.approx(value, rel=2**-6 if "norm" in log else 2**-10, abs=2**-10), log
    begun = one.method().networks.state_dict()
    for iteration in (3, 6):
        path = checkpoint.path_of(together_held / "checkpoints", iteration)
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


def disturbed(folder: Path, act: Callable[[], None], rank: int, size: int, shard: int) -> list[int]:
    """Exit codes of processes of which one acts; that they then go on to the bits of undisturbed ones."""

    def toys(name: str, *of: object) -> list[int]:
        return together.ended(together.start(Toys(folder / name, *of), size, shard=shard), seconds=60)

    assert toys("straight") == [0] * size
    codes = toys("run", act, rank, 6)
    assert saved(folder / "run")[-1] < saved(folder / "straight")[-1]
    assert toys("run") == [0] * size
    assert "resuming at iteration" in notes(folder / "run")
    assert "not bit for bit" not in notes(folder / "run")
    assert same_bits(final(folder / "straight"), final(folder / "run"))
    return codes


@pytest.mark.parametrize("shard", [1, 2])
def test_two_that_a_signal_stopped_go_on_to_the_same_bits(tmp_path, shard):
    assert disturbed(tmp_path, faults.terminate, 1, 2, shard) == [75, 75]


@pytest.mark.slow
@pytest.mark.parametrize("shard", [1, 2, 4])
def test_four_of_which_one_is_killed_go_on_to_the_same_bits(tmp_path, shard):
    codes = disturbed(tmp_path, faults.kill, 2, 4, shard)
    assert codes == [LOST, LOST, -signal.SIGKILL, LOST]


@pytest.mark.parametrize(("rank", "shard"), [(0, 1), (1, 1), pytest.param(1, 2, marks=pytest.mark.slow)])
def test_when_one_is_killed_the_others_end_and_say_why(tmp_path, rank, shard):
    run_dir = tmp_path / "run"
    killed = Toys(run_dir, partial(faults.settled, faults.kill), rank, when=6)
    codes = together.ended(together.start(killed, shard=shard), seconds=30)
    assert codes[rank] == -signal.SIGKILL
    assert codes[1 - rank] == LOST
    assert f"process {1 - rank} of 2 lost another one" in notes(run_dir, 1 - rank)
    assert saved(run_dir) == ["step-00000004"]


@pytest.mark.parametrize(
    ("stalls", "where", "stack"),
    [(False, "iteration 5", "in loss"), (True, "making the batch of iteration 5", "in batch")],
)
def test_when_one_hangs_the_others_end_after_the_timeout_and_it_says_where_it_stands(tmp_path, stalls, where, stack):
    said = tmp_path / "said"
    hung = Toys(tmp_path / "run", partial(faults.hang_aloud, said), 1, when=6, stalls=stalls)
    started = together.start(hung, timeout=2)
    assert together.ended(started[:1], seconds=60) == [LOST]
    assert "process 0 of 2 lost another one" in notes(tmp_path / "run")
    assert together.ended(started[1:], seconds=60) == [LOST]
    assert f"process 1 of 2: {where} has not ended after 4 seconds, the process is ended" in said.read_text()
    assert stack in said.read_text()


@pytest.mark.parametrize("held", ["whole", "together"])
def test_data_that_is_not_finite_in_one_process_is_skipped_in_all_and_named(tmp_path, folders, held):
    run_dir = tmp_path / "run" if held == "whole" else folders["one"].with_name("nan")
    if held == "whole":
        assert together.ended(together.start(Toys(run_dir, nan=14, iterations=4))) == [0, 0]
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
