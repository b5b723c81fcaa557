"""What a process knows of the others, where no group is needed to say it; the rest is in training/test_together.py."""

import os
import signal
import time
from pathlib import Path

import pytest
import torch
from training.faults import context

from dualrate.training import distributed as world_
from dualrate.training.distributed import (
    SUPERVISOR,
    Lost,
    World,
    buckets,
    follow_supervisor,
    joined,
    own_device,
    summed_gradients,
)


def test_shares_are_of_all_rows_and_of_nearly_one_size():
    for size in (1, 2, 3, 7):
        shares = [World(rank, size).share(5, 25) for rank in range(size)]
        assert [row for share in shares for row in share] == list(range(5, 25))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_one_process_changes_nothing():
    alone, parameter = World(), torch.nn.Parameter(torch.ones(2))
    with summed_gradients([parameter], alone):
        (3 * parameter).sum().backward()
    assert parameter.grad is not None
    assert parameter.grad.tolist() == [3, 3]
    assert alone.any(True, False) == (True, False)
    assert alone.of_leader(7) == 7
    with joined(torch.device("cpu")) as world:
        assert world == alone


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (torch.cuda.AcceleratorError("CUDA error: unspecified launch failure"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), True),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered\nCUDA kernel errors might be"), True),
        (torch.cuda.AcceleratorError("CUDA error: device-side assert triggered"), False),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), False),
        (torch.cuda.AcceleratorError("CUDA error: no kernel image is available for execution on the device"), False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_INVALID_VALUE when calling cublasGemmEx"), False),
        (RuntimeError("cuDNN error: CUDNN_STATUS_BAD_PARAM"), False),
        (RuntimeError("shapes do not match"), False),
    ],
)
def test_a_gpu_that_failed_is_lost_and_a_fault_of_the_program_is_none(error, lost):
    with pytest.raises(Lost if lost else type(error), match="lost its GPU" if lost else None), World().in_reach():
        raise error


def test_buckets_are_of_one_type_and_bounded():
    sizes = [(3, torch.float32), (1, torch.float64), (1, torch.float32), (1, torch.float32), (9, torch.float32)]
    made = buckets((torch.zeros(size, dtype=dtype) for size, dtype in sizes), 4)
    found = [[(tensor.numel(), tensor.dtype) for tensor in bucket] for bucket in made]
    assert found == [[sizes[0], sizes[2]], [sizes[3]], [sizes[4]], [sizes[1]]]


def test_more_processes_than_gpus_are_refused(monkeypatch):
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert own_device(torch.device("cpu")) == torch.device("cpu")
    with pytest.raises(ValueError, match="a GPU of its own, here are 1 for process 1: start fewer"):
        own_device(torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert own_device(torch.device("cuda")) == torch.device("cuda:1")
    with pytest.raises(ValueError, match=r"got cuda:4 for all of them: choose them by CUDA_VISIBLE_DEVICES"):
        own_device(torch.device("cuda:4"))


@pytest.mark.parametrize("text", ["0", "-1", "nan", "soon"])
def test_a_timeout_that_is_none_is_refused(monkeypatch, text):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "DUALRATE_TIMEOUT": text}.items():
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(ValueError, match="DUALRATE_TIMEOUT is a number of seconds above 0, got"),
        joined(torch.device("cpu")),
    ):
        pass


def orphan(folder: Path) -> None:
    """A supervisor that is killed while a process of its own works."""
    os.environ[SUPERVISOR] = str(os.getpid())
    child = os.fork()
    if child:
        while not (folder / "works").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
    signal.signal(signal.SIGTERM, lambda *_: ((folder / "ended").touch(), os._exit(0)))
    follow_supervisor()
    (folder / "works").touch()
    time.sleep(30)
    os._exit(1)


def test_processes_do_not_outlive_their_supervisor(tmp_path, monkeypatch):
    supervisor = context.Process(target=orphan, args=(tmp_path,))
    supervisor.start()
    supervisor.join(30)
    assert supervisor.exitcode == -signal.SIGKILL
    end = time.monotonic() + 20
    while not (tmp_path / "ended").exists():
        assert time.monotonic() < end
        time.sleep(0.01)
    monkeypatch.setenv(SUPERVISOR, "1")
    monkeypatch.setattr(world_.ctypes, "CDLL", lambda name: type("Library", (), {"prctl": lambda *_: 0}))
    monkeypatch.setattr(os, "getppid", lambda: 2)
    with pytest.raises(Lost, match="supervisor of this process is gone"):
        follow_supervisor()
