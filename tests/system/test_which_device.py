"""Where nothing is said a call computes where the commands do: on the first GPU, or on the CPU without one."""

import ast
from pathlib import Path

import pytest
import torch
from reader import ROOT
from reading import nodes_of, tree_of
from runs.made import ONE, saved

import dualrate as dr
from dualrate.codecs.codec import CodecFolder, read_codec
from dualrate.comparison.compare import compare
from dualrate.data.latent_set import encode
from dualrate.metrics import pretrained
from dualrate.runs.store import codec_of, read_stored
from dualrate.sampling.cost import seconds_per_call
from dualrate.system.device import environment, pick_device
from dualrate.system.progress import Silent


@pytest.fixture
def a_gpu_that_fails(monkeypatch):
    """A machine that says it has a GPU, of which it has none: whoever takes it is refused."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU that works")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)


CALLS = {
    "load": lambda run: dr.load(run),
    "model": lambda run: read_stored(run).model(),
    "codec_of": lambda run: codec_of(run),
    "read_codec": lambda run: read_codec(run),
    "CodecFolder.at": lambda run: CodecFolder.at(run),
    "train": lambda run: dr.train(ONE, run.with_name("new"), images=[torch.zeros(1, 8, 8).sub(1)] * 2),
    "encode": lambda run: encode(run, run.with_name("new"), CodecFolder(str(run), "")),
    "compare": lambda run: compare([f"{run}:2"], run.with_name("page.html"), progress=Silent()),
    "inception": lambda run: pretrained.load("inception"),
    "seconds_per_call": lambda run: seconds_per_call(lambda: None, seconds=0),
    "environment": lambda run: environment(),
    "pick_device": lambda run: pick_device(None),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_takes_the_gpu_where_there_is_one(tmp_path, a_gpu_that_fails, name):
    run = saved(ONE, tmp_path / "run")
    with pytest.raises(ValueError, match="the device 'cuda' cannot be used"):
        CALLS[name](run)


def test_a_call_takes_the_cpu_where_there_is_no_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert dr.load(saved(ONE, tmp_path / "run")).device == pick_device(None) == torch.device("cpu")


def test_the_cpu_is_taken_where_it_is_asked_for(tmp_path, a_gpu_that_fails):
    assert dr.load(saved(ONE, tmp_path / "run"), device="cpu").device == torch.device("cpu")


def test_no_call_has_another_device_by_default():
    """But for what is private to a module."""
    strange = []
    for path in sorted((ROOT / "src").rglob("*.py")):
        for node in nodes_of(tree_of(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
                of = node.args
                places = [*zip(reversed([*of.posonlyargs, *of.args]), reversed(of.defaults), strict=False)]
                places += [pair for pair in zip(of.kwonlyargs, of.kw_defaults, strict=True) if pair[1] is not None]
                strange += [
                    f"{Path(path).name}: {node.name}"
                    for argument, default in places
                    if argument.arg == "device" and not (isinstance(default, ast.Constant) and default.value is None)
                ]
    assert not strange
