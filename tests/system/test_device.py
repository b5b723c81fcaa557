import copy
import math
import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._inductor.runtime.cache_dir_utils import cache_dir
from torch.autograd import forward_ad

from dualrate.networks.uvit import Level, UViT, UViTConfig
from dualrate.system import device
from dualrate.system.device import (
    compile_calls,
    compiles,
    default_generator,
    memory_shortage,
    pays,
    pick_device,
    settle_products,
    whole_products,
)
from dualrate.training.loop import compile_blocks, recompute

CPU = torch.device("cpu")


@pytest.mark.parametrize(("float32", "bfloat16", "expected"), [(3.1, 2.0, True), (2.9, 2.0, False), (1.0, 2.0, False)])
def test_bfloat16_must_be_clearly_faster_on_cpu(monkeypatch, float32, bfloat16, expected):
    seconds = {torch.float32: float32, torch.bfloat16: bfloat16}
    monkeypatch.setattr(device, "_seconds", lambda _, dtype, most=0: seconds[dtype])
    pays.cache_clear()
    decided = pays(CPU), pays(CPU)
    pays.cache_clear()
    assert decided == (expected, expected)


@pytest.mark.parametrize(("most", "calls"), [(math.inf, 8), (3.5, 4), (0.0, 1)])
def test_a_type_that_is_far_too_slow_is_not_tried_again_and_again(monkeypatch, most, calls):
    """Every call takes a second of this clock."""
    asked = []
    monkeypatch.setattr(device.time, "process_time", lambda: float(asked.append(None) or len(asked)))
    assert device._seconds(CPU, torch.float32, most) == 1
    assert len(asked) == 2 * calls


def test_both_precisions_are_really_timed():
    assert all(0 < device._seconds(CPU, dtype, most=0) < 10 for dtype in (torch.float32, torch.bfloat16))


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


def test_what_a_device_is_called():
    assert pick_device("cpu") == pick_device("cpu:0") == CPU
    with pytest.raises(ValueError, match="mps lacks: use --device cpu"):
        pick_device("mps")


def test_a_device_that_is_here_and_does_not_work_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
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
        RuntimeError("HIP out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."),  # as a worker sends it
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_so_is_that_of_a_gpu(error):
    assert memory_shortage(error) == str(error).splitlines()[0]


def test_other_errors_are_none():
    assert memory_shortage(RuntimeError("mat1 and mat2 shapes cannot be multiplied (4x8 and 4x8)")) is None
    assert memory_shortage(RuntimeError("can't allocate memory for a chunk of x.h5")) is None  # of another library
    assert memory_shortage(RuntimeError()) is None


@pytest.fixture
def graphs(monkeypatch, tmp_path) -> list[torch.fx.GraphModule]:
    """List what is compiled: all of torch's way but for the last step, which takes minutes."""
    found: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, inputs: object) -> object:
        found.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=keep))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    yield found
    torch._dynamo.reset()


def test_calls_are_compiled_once_for_every_size_of_a_batch(graphs, tmp_path):
    network = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    eager = nn.Sequential(*network)
    compile_calls(network, tmp_path)
    with torch.no_grad():
        for size in (5, 3, 8):
            assert torch.equal(network(torch.ones(size, 4)), eager(torch.ones(size, 4)))
        assert len(graphs) == 1
        network(torch.ones(1, 4))
        assert len(graphs) == 2


def test_equal_blocks_share_what_is_compiled_in_training_whatever_their_rows(graphs):
    """Networks have two widths; their blocks are called with more rows and with fewer, and computed again."""
    levels = ((Level("conv", width, 2), Level("transformer", width, 2)) for width in (16, 32))
    networks = [UViT(UViTConfig(8, 1, of, 3, embedding=16, head_dim=16)) for of in levels]
    eager = copy.deepcopy(networks)
    compile_blocks(networks)
    recompute(networks, 1)
    for rows in (5, 3):
        of = torch.randn(rows, 1, 8, 8), torch.zeros(rows), torch.zeros(rows, dtype=torch.int64)
        for network, plain in zip(networks, eager, strict=True):
            network(*of).sum().backward()
            plain(*of).sum().backward()
            for own, other in zip(network.parameters(), plain.parameters(), strict=True):
                torch.testing.assert_close(own.grad, other.grad, rtol=1e-4, atol=1e-5)
    assert len(graphs) == 4  # of a level of convolutions and one of transformers, in two widths


def test_a_network_without_blocks_is_compiled_as_a_whole(graphs):
    network = nn.Linear(4, 4)
    compile_blocks([network])
    network(torch.ones(3, 4))
    assert len(graphs) == 1


def test_networks_of_many_widths_are_compiled(graphs):
    for width in range(2, 12):
        network = nn.Linear(width, 4)
        compile_calls(network)
        network(torch.ones(3, width))
    assert len(graphs) == 10


def test_compiled_calls_are_kept_where_it_is_said(graphs, monkeypatch, tmp_path):
    kept: list[Path] = []
    monkeypatch.setattr(device, "keep_compiled", kept.append)
    compile_calls(nn.Linear(4, 4))
    compile_calls(nn.Linear(4, 4), tmp_path)
    assert kept == [tmp_path]


def test_networks_within_networks_are_compiled_with_them_and_by_themselves(graphs):
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, x: Tensor, *, scale: Tensor) -> Tensor:
            return scale[:, None] * self.inner(x)

    network, x = Both(), torch.ones(3, 4)
    eager = copy.deepcopy(network)
    for part in (network.inner, network, network):
        compile_calls(part)
    assert torch.equal(network(x, scale=torch.arange(3)), eager(x, scale=torch.arange(3)))
    assert len(graphs) == 1
    assert torch.equal(network.inner(x), eager.inner(x))
    assert len(graphs) == 2


def test_a_derivative_carried_forward_passes_by_what_is_compiled(graphs, tmp_path):
    network = nn.Linear(4, 4)
    compile_calls(network, tmp_path)
    x, along = torch.zeros(3, 4), torch.ones(3, 4)
    with torch.no_grad(), forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(network(forward_ad.make_dual(x, along))).tangent
    assert torch.equal(tangent, along @ network.weight.T)
    assert graphs == []


def test_what_is_compiled_is_kept_in_the_cache_unless_another_place_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "before")  # so that it is set back in any case
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    assert device.keep_compiled(tmp_path / "own") == tmp_path / "own"
    assert cache_dir() == str(tmp_path / "own")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "named"))
    assert device.keep_compiled(tmp_path / "own") == tmp_path / "named"
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "named")


def test_float32_is_whole_on_a_gpu_where_it_is_asked_for():
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn

    def settled() -> tuple[bool, bool, bool]:
        return matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark

    before = settled()
    try:
        settle_products(CPU, bfloat16=not before[0], trains=True)
        assert settled() == before
        settle_products(torch.device("cuda"), bfloat16=False)
        assert settled() == (False, False, False)
        settle_products(torch.device("cuda"), bfloat16=True, trains=True)
        assert settled() == (True, True, True)
        with whole_products():
            assert settled() == (False, False, False)
        assert settled() == (True, True, True)
        with pytest.raises(ArithmeticError), whole_products():
            raise ArithmeticError
        assert settled() == (True, True, True)
        settle_products(torch.device("cuda"), bfloat16=True)
        assert settled() == (True, True, False)
    finally:
        matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before
