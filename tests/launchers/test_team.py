"""Processes that share out work: what one process computes, whoever dies; all end together, and no stranger joins."""

import json
import os
import re
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import launched
import pytest
import torch
from trouble import wait_until

from dualrate.launchers.team import PLACE, WORD, _store
from dualrate.system.launch import LOST, STOPPED
from dualrate.system.workers import in_turn, mapper, streamed

BLOCKS = [range(i, i + 3) for i in range(0, 36, 3)]
CPU = torch.device("cpu")


def squared(block: range) -> tuple[list[int], int, int]:
    time.sleep(0.03)
    return [number**2 for number in block], os.getpid(), torch.get_num_threads()


def counted(block: range) -> Iterator[tuple[int, int]]:
    for number in block:
        time.sleep(0.01)
        yield number, os.getpid()


def refused(block: range) -> int:
    if block.start == 6:
        raise ValueError(f"no {block.start}")
    time.sleep(0.01)
    return sum(block)


def dying(place: Path, block: range) -> int:
    """Waits in the block that its process dies of, until the others have come as far as they can."""
    if block.start == 9 and os.environ["RANK"] != "0" and not place.exists():
        place.write_text(os.environ["RANK"])
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)
    return sum(block)


def endless(place: Path, block: range) -> None:
    (place / os.environ["RANK"]).write_text(str(os.getpid()))
    time.sleep(100)


def saved(file: Path, work: Callable[[], object]) -> Callable[[], None]:
    return launched.team(lambda: file.write_text(json.dumps(work())) and None)


def mapped(job: Callable, blocks: list[range] = BLOCKS) -> list:
    return [(block.start, result) for block, result in mapper(CPU)(job, blocks)]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_team_does_what_one_process_does_each_block_once_and_all_take_part(tmp_path, size):
    file = tmp_path / "results"
    assert launched.ended(launched.start(saved(file, lambda: mapped(squared)), size, tmp_path / "log")) == [0] * size
    results = json.loads(file.read_text())
    expected = [(block.start, [n**2 for n in block]) for block in BLOCKS]
    assert [(start, numbers) for start, (numbers, _, _) in results] == [*map(tuple, expected)]
    assert {threads for _, (_, _, threads) in results} == {1}
    shares = Counter(process for _, (_, process, _) in results)
    assert len(shares) == size
    assert min(shares.values()) >= len(BLOCKS) // size - 2


def test_a_leader_on_another_machine_is_reached_by_its_address(tmp_path):
    """Not by localhost: it listens on all interfaces, of which this is one."""
    file = tmp_path / "sums"
    run = saved(file, lambda: mapped(sum))
    assert launched.ended(launched.start(run, 2, tmp_path / "log", MASTER_ADDR="127.0.0.2")) == [0, 0]
    assert json.loads(file.read_text()) == [[block.start, sum(block)] for block in BLOCKS]


def test_items_come_as_they_are_and_those_of_a_block_in_their_order(tmp_path):
    def work() -> list:
        return list(streamed(mapper(CPU), counted, BLOCKS))

    file = tmp_path / "items"
    assert launched.ended(launched.start(saved(file, work), 3, tmp_path / "log")) == [0] * 3
    items = json.loads(file.read_text())
    numbers, processes = zip(*items, strict=True)
    assert sorted(numbers) == [number for block in BLOCKS for number in block]
    assert all(numbers.index(n) < numbers.index(n + 1) for block in BLOCKS for n in block[:-1])
    assert len(set(processes)) == 3
    assert [number for number, _ in streamed(in_turn, counted, BLOCKS)] == sorted(numbers)


def test_an_error_of_the_job_is_raised_in_the_leader_which_can_go_on(tmp_path):
    def work() -> list:
        said = []
        for blocks in (BLOCKS[:3], BLOCKS[2:3] * 3):
            with pytest.raises(ValueError, match="no 6") as caught:
                mapped(refused, blocks)
            said.append(str(caught.value))
        return [said, mapped(sum, BLOCKS[:5])]

    file = tmp_path / "said"
    assert launched.ended(launched.start(saved(file, work), 2, tmp_path / "log")) == [0, 0]
    assert json.loads(file.read_text()) == [["no 6", "no 6"], [[block.start, sum(block)] for block in BLOCKS[:5]]]


def test_a_call_that_is_broken_off_leaves_nothing_to_the_next(tmp_path):
    def work() -> list:
        next(mapper(CPU)(squared, BLOCKS))
        return mapped(sum)

    file = tmp_path / "results"
    assert launched.ended(launched.start(saved(file, work), 3, tmp_path / "log")) == [0] * 3
    assert json.loads(file.read_text()) == [[block.start, sum(block)] for block in BLOCKS]


def test_a_process_that_is_killed_ends_all_after_what_the_others_did(tmp_path):
    def work() -> None:
        for block, result in mapper(CPU)(partial(dying, tmp_path / "victim"), BLOCKS):
            with (tmp_path / "results").open("a") as file:
                file.write(f"{block.start} {result}\n")

    codes = launched.ended(launched.start(launched.team(work), 3, tmp_path / "log"))
    victim = int((tmp_path / "victim").read_text())
    assert codes == [-signal.SIGKILL if rank == victim else LOST for rank in range(3)]
    lines = [tuple(map(int, line.split())) for line in (tmp_path / "results").read_text().splitlines()]
    assert len(lines) == len(set(lines))
    assert set(lines) < {(block.start, sum(block)) for block in BLOCKS}
    assert len(lines) >= len(BLOCKS) - 2  # but what it had in hand
    assert f"process {victim} of 3 was lost" in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    ("rank", "how", "codes"),
    [
        (0, signal.SIGKILL, [-signal.SIGKILL, LOST, LOST]),
        (0, signal.SIGTERM, [STOPPED] * 3),
        (1, signal.SIGUSR1, [STOPPED] * 3),
    ],
)
def test_in_the_middle_of_blocks_all_end_with_the_codes_of_training(tmp_path, rank, how, codes):
    started = launched.start(launched.team(lambda: mapped(partial(endless, tmp_path))), 3, tmp_path / "log")
    wait_until(lambda: all((tmp_path / str(process)).exists() for process in range(3)), seconds=30)
    if rank:  # its leader is in a block, and learns of it there as from a launcher
        os.kill(started[0].pid, how)
    os.kill(started[rank].pid, how)
    assert launched.ended(started, 30) == codes
    if how == signal.SIGKILL:
        assert re.search("process [12] of 3 lost process 0, which leads", (tmp_path / "log").read_text())


def test_a_signal_to_a_follower_alone_stops_all(tmp_path):
    def work() -> None:
        for _ in mapper(CPU)(squared, BLOCKS * 100):
            (tmp_path / "begun").touch()

    started = launched.start(launched.team(work), 2, tmp_path / "log")
    wait_until((tmp_path / "begun").exists, seconds=30)
    os.kill(started[1].pid, signal.SIGTERM)
    assert launched.ended(started, 30) == [STOPPED, STOPPED]


def test_a_mistake_of_the_leader_s_is_its_exit_code_alone(tmp_path):
    run = launched.command("sample", tmp_path / "none", "--out", tmp_path / "out")
    assert launched.ended(launched.start(run, 2, tmp_path / "log")) == [2, 0]
    assert (tmp_path / "log").read_text().count("is no run") == 1


def test_whoever_does_not_know_the_word_is_not_of_the_team(tmp_path):
    """One that says nothing at all is left after FAREWELL seconds."""

    def work() -> None:
        if os.environ["RANK"] != "1":
            return launched.team(lambda: (tmp_path / "sums").write_text(json.dumps(mapped(sum))) and None)()
        port, word = _store().get(PLACE).decode().split()
        for guess in (bytes(WORD + 4), bytes.fromhex(word)[:-1] + b"x" + bytes(4), b"short"):
            with socket.create_connection(("127.0.0.1", int(port))) as stranger:
                stranger.sendall(guess)
                stranger.shutdown(socket.SHUT_WR)
                assert stranger.recv(1) == b""
        return launched.team(lambda: None)()

    assert launched.ended(launched.start(work, 3, tmp_path / "log")) == [0] * 3
    assert json.loads((tmp_path / "sums").read_text()) == [[block.start, sum(block)] for block in BLOCKS]


def test_a_word_may_come_in_parts(tmp_path):
    def work() -> None:
        if os.environ["RANK"] == "1":
            at_once = socket.socket.sendall

            def in_parts(self: socket.socket, content: bytes) -> None:
                for first in range(0, len(content), 10):
                    at_once(self, content[first : first + 10])
                    time.sleep(0.1)

            socket.socket.sendall = in_parts
        launched.team(lambda: (tmp_path / "sums").write_text(json.dumps(mapped(sum))) and None)()

    assert launched.ended(launched.start(work, 2, tmp_path / "log"), 60) == [0, 0]


def test_processes_that_do_not_come_are_waited_for_so_long(tmp_path):
    run = launched.team(lambda: None)
    (alone, _) = launched.start(
        lambda: run() if os.environ["RANK"] == "0" else None, 2, tmp_path / "log", DUALRATE_TIMEOUT="1"
    )
    assert launched.ended([alone], 30) == [LOST]


def test_one_that_waits_for_its_leader_is_stopped_by_a_signal(tmp_path):
    def work() -> None:
        if os.environ["RANK"] == "1":
            (tmp_path / "waits").touch()
            launched.team(lambda: None)()

    (_, waiting) = launched.start(work, 2, tmp_path / "log")
    wait_until((tmp_path / "waits").exists, seconds=30)
    time.sleep(0.5)
    os.kill(waiting.pid, signal.SIGTERM)
    assert launched.ended([waiting], 20) == [-signal.SIGTERM]


def test_a_gpu_that_was_chosen_by_its_number_is_not_taken_for_all(tmp_path):
    def work() -> None:
        with pytest.raises(ValueError, match="CUDA_VISIBLE_DEVICES"):
            mapper(torch.device("cuda:1"))

    assert launched.ended(launched.start(launched.team(work), 2, tmp_path / "log")) == [0, 0]


def test_more_processes_than_gpus_are_a_mistake_which_the_leader_says(tmp_path):
    def work() -> None:
        with pytest.raises(ValueError, match="every process needs its GPU, here are 0 for process 0: start fewer"):
            list(mapper(torch.device("cuda"))(sum, BLOCKS[:1]))

    assert launched.ended(launched.start(launched.team(work), 2, tmp_path / "log")) == [0, 0]
