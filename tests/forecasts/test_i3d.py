"""I3D from a user's file: its layers, windows as TensorFlow places them, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from dualrate.experiment.data_config import DataConfig
from dualrate.forecasts.clip_modality import MODALITY
from dualrate.forecasts.clip_set import Cut, prepare_clips
from dualrate.forecasts.i3d import CLASSES, FILE, I3D, ClipNet, load_i3d, padded
from dualrate.system.progress import Silent

FRAMES = 9


def saved(folder: Path) -> Path:
    """A folder of random weights."""
    torch.manual_seed(0)
    net = I3D(FRAMES)
    for name, part in net.state_dict().items():
        if "running" in name:  # statistics that are not 0 and 1
            part.uniform_(0.5, 1.5).sub_(1.0 if name.endswith("mean") else 0.0)
        elif part.ndim == 5:  # weights that keep what is seen alive
            nn.init.kaiming_normal_(part)
    folder.mkdir()
    save_file(net.state_dict(), folder / FILE)
    return folder


@pytest.mark.parametrize(("size", "width", "step"), [(9, 3, 2), (8, 3, 2), (7, 7, 2), (5, 2, 2), (6, 3, 1), (4, 1, 2)])
def test_windows_are_whole_and_zeros_are_more_behind(size: int, width: int, step: int) -> None:
    x = torch.arange(1.0, size + 1).view(1, 1, size, 1, 1)
    around = padded(x, (width, 1, 1), (step, 1, 1)).flatten()
    assert 1 + (len(around) - width) // step == -(-size // step)
    before = int((around != 0).nonzero()[0])
    assert len(around) - size - before in (before, before + 1)
    assert torch.equal(around[before : before + size], x.flatten())


def test_it_has_the_layers_and_numbers_of_the_paper() -> None:
    net = I3D(FRAMES)
    assert sum(weight.numel() for weight in net.parameters()) == 12_697_264
    shapes = {name: tuple(weight.shape) for name, weight in net.state_dict().items()}
    assert shapes["Conv3d_1a_7x7.conv3d.weight"] == (64, 3, 7, 7, 7)
    assert shapes["Mixed_4f.b1b.conv3d.weight"] == (320, 160, 3, 3, 3)
    assert shapes["Mixed_5c.b3b.bn.running_var"] == (128,)
    assert shapes["logits.conv3d.bias"] == (CLASSES,)


def test_a_unit_is_a_convolution_that_is_normalised(tmp_path: Path) -> None:
    unit = load_i3d(saved(tmp_path / "i3d"), FRAMES, "cpu").module.get_submodule("Conv3d_2c_3x3").double()
    x = torch.randn(1, 64, 3, 5, 4, dtype=torch.float64)
    conv, norm = unit.get_submodule("conv3d"), unit.get_submodule("bn")
    assert isinstance(conv, nn.Conv3d)
    assert isinstance(norm, nn.BatchNorm3d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    parts = norm.running_mean, norm.running_var, norm.weight, norm.bias
    mean, var, weight, bias = (part[:, None, None, None] for part in parts)
    expected = weight * (F.conv3d(x, conv.weight, padding=1) - mean) / (var + 1e-3).sqrt() + bias
    torch.testing.assert_close(unit(x), expected.relu())


def test_features_are_of_each_clip_in_grey_as_in_colours(tmp_path: Path) -> None:
    net = load_i3d(saved(tmp_path / "i3d"), FRAMES, "cpu")
    grey = np.random.default_rng(0).integers(0, 256, (2, FRAMES, 16, 16)).astype(np.uint8)
    features = net.features(grey)
    assert features.shape == (2, CLASSES)
    torch.testing.assert_close(net.features(grey[1:].repeat(3, 1)), features[1:], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(net.features(grey[1:, ::-1].copy()), features[1:], rtol=1e-3)  # time backwards
    with pytest.raises(ValueError, match="9 frames or more, got 8 frames"):
        ClipNet(I3D(8), net.identity, net.device).features(grey[:, :8])


def test_a_folder_is_known_by_its_file_and_others_are_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "i3d")
    prepare_clips("moving-sprites", tmp_path / "clips", Cut(FRAMES, stride=16), size=16)
    data = DataConfig(str(tmp_path / "clips"))
    assert MODALITY.evaluator_by(tmp_path, data, "cpu", Silent()) is None
    judge = MODALITY.evaluator_by(folder, data, "cpu", Silent())
    assert judge is not None
    assert (judge.net.metric, judge.net.module.frames) == ("FD-I3D", FRAMES)
    for content in (b"", b"no tensors", (folder / FILE).read_bytes()[:1000]):
        (folder / FILE).write_bytes(content)
        with pytest.raises(ValueError, match="does not hold the tensors of I3D"):
            load_i3d(folder, FRAMES, "cpu")
    save_file({"logits.conv3d.bias": torch.zeros(3)}, folder / FILE)
    with pytest.raises(ValueError, match="does not hold the tensors of I3D"):
        load_i3d(folder, FRAMES, "cpu")
