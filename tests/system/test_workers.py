"""Worker processes: what one process computes, whatever dies, and nobody is left behind."""

import multiprocessing
import os
import signal
import time
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch import nn
from training.faults import context
from trouble import is_alive

from dualrate.system.workers import Workers, in_turn, mapper, number_of_workers

GET_CONTEXT = multiprocessing.get_context
BLOCKS = [range(i, i + 3) for i in range(0, 15, 3)]


@pytest.fixture(scope="module")
def two():
    """Forks, which start sooner than what is spawned."""
    with pytest.MonkeyPatch.context() as patch, Workers(2) as workers:
        patch.setattr("multiprocessing.get_context", lambda how: context)
        yield workers


def convolved(net: nn.Module, block: range) -> tuple[torch.Tensor, int, int]:
    generator = torch.Generator().manual_seed(block.start)
    with torch.no_grad():
        return net(torch.randn(len(block), 3, 8, 8, generator=generator)), torch.get_num_threads(), os.getpid()


def refused(block: range) -> None:
    raise ValueError(f"no {block.start}")


def dies(block: range) -> int:
    if block == BLOCKS[1]:
        os.kill(os.getpid(), signal.SIGKILL)
    return sum(block)


def slow(block: range) -> int:
    time.sleep(1000 if block.start else 0)
    return os.getpid()


def test_a_gpu_that_was_chosen_by_its_number_is_not_taken_for_another():
    with pytest.raises(ValueError, match="CUDA_VISIBLE_DEVICES"):
        mapper(2, torch.device("cuda:3"))
    for count, device in ((1, "cuda:3"), (2, "cuda"), (2, "cuda:0")):
        assert mapper(count, torch.device(device))


@pytest.mark.parametrize("spawned", [True, False])
def test_workers_compute_what_one_process_does_each_on_one_thread(two, spawned, monkeypatch):
    if spawned:
        monkeypatch.setattr("multiprocessing.get_context", GET_CONTEXT)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 5)).eval()
    job = partial(convolved, net)
    expected = dict(in_turn(job, BLOCKS))
    with Workers(1) if spawned else nullcontext(two) as workers:
        found = dict(workers(job, BLOCKS))
    assert list(found) == BLOCKS
    assert all(torch.equal(found[block][0], expected[block][0]) for block in BLOCKS)
    assert {threads for _, threads, _ in found.values()} == {1}
    processes = {process for _, _, process in found.values()}
    assert os.getpid() not in processes
    assert len(processes) <= 2


def test_an_error_of_the_job_is_raised_here(two):
    with pytest.raises(ValueError, match=r"no \d+") as caught:
        list(two(refused, BLOCKS[:1]))
    assert "in refused" in str(caught.value.__cause__)


def test_a_worker_that_dies_ends_the_work_with_an_error(two):
    with pytest.raises(ChildProcessError, match=r"a worker died.* use fewer \(--workers\)"):
        list(two(dies, BLOCKS))


def test_an_interruption_leaves_no_process(two):
    found = two(slow, BLOCKS)
    _, one = next(found)
    processes = set(two._pool._processes)
    assert one in processes
    assert len(processes) == 2
    with pytest.raises(KeyboardInterrupt):
        found.throw(KeyboardInterrupt)
    assert not any(map(is_alive, processes))


def test_what_cannot_be_sent_is_refused(two):
    with pytest.raises(ValueError, match=r"cannot be sent to a worker .*--workers 1"):
        list(two(lambda block: block, BLOCKS))


def test_as_many_as_threads_or_as_asked_for(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    assert number_of_workers(3, torch.device("cuda")) == 3
    assert number_of_workers("auto", torch.device("cuda")) == 8
    assert number_of_workers("auto", torch.device("cpu")) == torch.get_num_threads()
