import numpy as np
import pytest
import torch
from torch import nn

from dualrate.machine import device
from dualrate.machine.device import compiles, default_generator, devices, memory_shortage, pays, pick_device

CPU = torch.device("cpu")


@pytest.mark.parametrize(("float32", "bfloat16", "expected"), [(3.1, 2.0, True), (2.9, 2.0, False), (1.0, 2.0, False)])
def test_bfloat16_must_be_clearly_faster_on_cpu(monkeypatch, float32, bfloat16, expected):
    seconds = {torch.float32: float32, torch.bfloat16: bfloat16}
    monkeypatch.setattr(device, "_seconds", lambda _, dtype: seconds[dtype])
    pays.cache_clear()
    decided = pays(CPU), pays(CPU)
    pays.cache_clear()
    assert decided == (expected, expected)


def test_both_precisions_are_really_timed():
    assert all(0 < device._seconds(CPU, dtype) < 10 for dtype in (torch.float32, torch.bfloat16))


def test_dropout_reads_the_default_generator():
    masks = []
    with torch.random.fork_rng(devices=[]):
        for _ in range(2):
            default_generator(CPU).manual_seed(5)
            masks.append(nn.functional.dropout(torch.ones(64)))
    assert torch.equal(*masks)


def test_a_compiler_that_fails_is_reported_in_one_line(monkeypatch):
    def fail(function):
        raise RuntimeError("no g++\nlong story")

    monkeypatch.setattr(torch, "compile", fail)
    assert compiles(CPU) == "RuntimeError: no g++"


@pytest.mark.parametrize("name", ["meta", "abacus", "", "cpu:1", "cpu ", "cuda:7", "xpu", "privateuseone", "vulkan"])
def test_a_device_that_is_not_here_is_refused_with_those_that_are(name):
    with pytest.raises(ValueError, match=rf"no device '{name}' here, only cpu"):
        pick_device(name)


def test_what_a_device_is_called(monkeypatch):
    assert pick_device("cpu") == pick_device("cpu:0") == CPU
    with pytest.raises(ValueError, match="mps lacks: use --device cpu"):
        pick_device("mps")
    for kind, count, expected in (("cuda", 2, ["cpu", "cuda:0", "cuda:1"]), ("mps", 1, ["cpu"]), ("cuda", 0, ["cpu"])):
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda kind=kind, **_: torch.device(kind))
        monkeypatch.setattr(torch.accelerator, "device_count", lambda count=count: count)
        assert devices() == expected


def test_a_device_that_is_here_and_does_not_work_is_refused(monkeypatch):
    monkeypatch.setattr(device, "devices", lambda: ["cpu", "cuda:0"])
    if not torch.cuda.is_available():
        for name in ("cuda", "cuda:0"):
            with pytest.raises(ValueError, match=f"device '{name}' cannot be used .*; --device cpu always works"):
                pick_device(name)


@pytest.mark.parametrize(
    ("fail", "said"),
    [
        (lambda: torch.empty(2**45), "can't allocate memory: you tried to allocate 140737488355328 bytes"),
        (lambda: torch.zeros(2**40, 2**30), "calculation overflowed"),
        (lambda: np.zeros(2**50), "Unable to allocate"),
        (lambda: bytearray(2**62), "an allocation failed"),
    ],
)
def test_an_allocation_that_fails_is_a_shortage_of_memory(fail, said):
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        fail()
    told = memory_shortage(caught.value)
    assert told is not None
    assert said in told
    assert len(told.splitlines()) == 1


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_so_is_that_of_a_gpu(error):
    assert memory_shortage(error) == str(error).splitlines()[0]


def test_other_errors_are_none():
    assert memory_shortage(RuntimeError("mat1 and mat2 shapes cannot be multiplied (4x8 and 4x8)")) is None
    assert memory_shortage(RuntimeError()) is None
