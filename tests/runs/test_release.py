"""Released weights: what export writes, where it may, and that a damaged one is refused."""

import pytest
import torch
from runs.made import ONE, TWO, saved

from dualrate.runs.release import export
from dualrate.runs.store import load


def test_export_keeps_the_function_to_bfloat16(tmp_path):
    run = saved(TWO, tmp_path / "run")
    export(run, tmp_path / "out")
    before, after = load(run), load(tmp_path / "out")
    for name, tensor in before.networks.state_dict().items():
        torch.testing.assert_close(after.networks.state_dict()[name], tensor, rtol=2**-8, atol=0)
    assert after.iteration == 7


def test_a_damaged_file_is_refused(tmp_path):
    export(saved(ONE, tmp_path / "run"), tmp_path / "out")
    file = tmp_path / "out" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(OSError, match="damaged"):
        load(tmp_path / "out")
