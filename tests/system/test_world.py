"""Knowledge of the other processes that needs no group; the rest is in training/test_together.py."""

import pytest
import torch
import torch.distributed as dist

from dualrate.system.launch import device_of_process
from dualrate.training import distributed
from dualrate.training.distributed import World, launched_world, sum_gradients


def test_shares_are_of_all_rows_and_of_nearly_one_size():
    for size in (1, 2, 3, 7):
        shares = [World(rank, size).share(5, 25) for rank in range(size)]
        assert [row for share in shares for row in share] == list(range(5, 25))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_what_is_added_up_travels_in_buffers_of_limited_size(monkeypatch):
    sizes = []
    monkeypatch.setattr(distributed, "TOGETHER", 5)
    monkeypatch.setattr(dist, "all_reduce", lambda flat: sizes.append(len(flat)) or flat.mul_(2))
    tensors = [torch.arange(3.0), torch.ones(2, 2), torch.ones(1), torch.ones(2, dtype=torch.float64), torch.ones(4)]
    expected = [2 * tensor for tensor in tensors]
    World(0, 2).add_up(tensors)
    assert sizes == [7, 1, 2, 4]
    assert all(map(torch.equal, tensors, expected))


def test_one_process_changes_nothing():
    alone, parameter = World(), torch.nn.Parameter(torch.ones(2))
    (3 * parameter).sum().backward()
    sum_gradients([parameter], alone)
    assert parameter.grad is not None
    assert parameter.grad.tolist() == [3, 3]
    assert alone.any(True, False) == (True, False)
    assert alone.of_leader(7) == 7
    with launched_world(torch.device("cpu")) as world:
        assert world == alone


def test_more_processes_than_gpus_are_refused(monkeypatch):
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert device_of_process(torch.device("cpu")) == torch.device("cpu")
    with pytest.raises(ValueError, match="its GPU, here are 1 for process 1: start fewer"):
        device_of_process(torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert device_of_process(torch.device("cuda")) == torch.device("cuda:1")
    with pytest.raises(ValueError, match=r"got cuda:4 for all: choose them by CUDA_VISIBLE_DEVICES"):
        device_of_process(torch.device("cuda:4"))


@pytest.mark.parametrize("text", ["0", "-1", "nan", "soon"])
def test_a_timeout_that_is_none_is_refused(monkeypatch, text):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "DUALRATE_TIMEOUT": text}.items():
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(ValueError, match="DUALRATE_TIMEOUT is a number of seconds above 0, got"),
        launched_world(torch.device("cpu")),
    ):
        pass
