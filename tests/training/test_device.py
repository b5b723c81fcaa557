import pytest
import torch
from torch import nn

from dualrate.training import device
from dualrate.training.device import compiles, default_generator, pays

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
