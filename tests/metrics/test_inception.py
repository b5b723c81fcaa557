"""FID's extractor, with a stand-in for torch-fidelity's net: what it is fed, and what is refused before it is built."""

import hashlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from dualrate.cli import main as cli
from dualrate.drawing import evaluators as runs_evaluator
from dualrate.experiment.data_config import DataConfig
from dualrate.metrics import pretrained
from dualrate.metrics.pretrained import PhotoNet, inception_path, load_inception
from dualrate.system.progress import PlainReporter
from metrics.armed import armed_pickle
from metrics.scored import score_of

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
CONTENT = b"stands for 96 MB of weights"


class StandIn(nn.Module):
    """Takes what torch-fidelity's net takes, strictly; its features are a linear map of the pixels."""

    def __init__(self, name: str, features_list: list[str], feature_extractor_weights_path) -> None:
        super().__init__()
        self.asked = features_list
        self.weights = feature_extractor_weights_path.read()
        self.map = nn.Linear(3 * 8 * 8, 8)
        self.calls: list[int] = []

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        assert x.dtype == torch.uint8
        assert x.shape[1] == 3
        assert not torch.backends.cudnn.allow_tf32
        assert not torch.backends.cuda.matmul.allow_tf32
        assert not torch.is_grad_enabled()
        self.calls.append(len(x))
        return (self.map(nn.functional.adaptive_avg_pool2d(x.float(), 8).flatten(1)),)


@pytest.fixture(autouse=True)
def fidelity(monkeypatch, tmp_path):
    """torch-fidelity with the stand-in, and its weights where they belong."""
    monkeypatch.setitem(sys.modules, "torch_fidelity", SimpleNamespace(FeatureExtractorInceptionV3=StandIn))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(pretrained, "INCEPTION_SHA256", hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setattr(pretrained, "INCEPTION_URL", (tmp_path / "nothing here").as_uri())
    inception_path().parent.mkdir(parents=True)
    inception_path().write_bytes(CONTENT)


def small(batch_size: int = 100) -> PhotoNet:
    """The stand-in behind the seam, with its own number of features."""
    return replace(load_inception(), dim=8, usual_count=100, batch_size=batch_size)


def pixels(count: int = 23, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, channels, 16, 16), dtype=np.uint8)


def test_the_pinned_hash_is_that_of_the_file_name():
    source = Path(pretrained.__file__).read_text()
    assert f'INCEPTION_SHA256 = "{Path(pretrained.INCEPTION_WEIGHTS).stem.rsplit("-", 1)[1]}' in source


def test_features_are_the_last_pooling_in_batches_of_the_images_as_they_are():
    net = small(batch_size=10)
    images = pixels()
    found = net.features(images)
    assert net.module.net.asked == ["2048"]
    assert net.module.net.calls == [10, 10, 3]
    assert (found.shape, found.dtype, found.requires_grad) == ((23, 8), torch.float32, False)
    expected = net.module.net.map(
        torch.from_numpy(images).float().unflatten(2, (8, 2)).mean(3).unflatten(3, (8, 2)).mean(4).flatten(1)
    )
    torch.testing.assert_close(found, expected.detach(), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(net.features(torch.from_numpy(images)), found, rtol=0, atol=0)


def test_grey_is_repeated_to_three_channels():
    net, grey = small(), pixels(channels=1)
    torch.testing.assert_close(net.features(grey), net.features(grey.repeat(3, axis=1)), rtol=0, atol=0)


def test_features_are_float32_wherever_they_are_asked_for():
    net, cudnn, matmul = small(), torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    cudnn.allow_tf32 = matmul.allow_tf32 = True
    try:
        plain = net.features(pixels())  # the net looks, too
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.testing.assert_close(net.features(pixels()), plain, rtol=0, atol=0)
        assert (cudnn.allow_tf32, matmul.allow_tf32) == (True, True)
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = before


def test_only_these_features_are_called_fid():
    net = load_inception()
    assert (net.metric, net.dim, net.usual_count) == ("FID", 2048, 50_000)
    assert net.identity == f"torch-fidelity/inception-2015-12-05:{pretrained.INCEPTION_SHA256[:12]}"


@pytest.mark.parametrize(
    "images",
    [pixels().astype(np.float32), pixels()[0], pixels(channels=2), pixels()[:0]],
    ids=["float", "3d", "2", "0"],
)
def test_other_images_are_refused(images):
    with pytest.raises(ValueError, match=r"takes \(N, C, H, W\) uint8"):
        small().features(images)


def test_without_the_extra_the_message_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(ValueError, match=r"pip install 'dualrate\[eval\]'.*torchvision.*whl/cpu"):
        load_inception()


@pytest.mark.parametrize(
    "source", ["import no_such_torchvision", "raise RuntimeError('operator torchvision::nms does not exist\\nmore')"]
)
def test_a_torchvision_that_does_not_import_is_named(source, monkeypatch, tmp_path):
    monkeypatch.delitem(sys.modules, "torch_fidelity")
    (tmp_path / "site" / "torch_fidelity").mkdir(parents=True)
    (tmp_path / "site" / "torch_fidelity" / "__init__.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path / "site")
    with pytest.raises(ValueError, match=r"does not import beside torch 2.*torchvision.*from one index") as caught:
        load_inception()
    assert "\n" not in str(caught.value)


def test_the_net_gets_the_very_bytes_that_were_checked():
    assert load_inception().module.net.weights == CONTENT


def test_other_weights_are_refused_before_anything_opens_them(monkeypatch, tmp_path):
    sentinel = tmp_path / "sentinel"
    inception_path().write_bytes(armed_pickle(sentinel))

    def opens(*arguments, feature_extractor_weights_path):
        torch.load(feature_extractor_weights_path, weights_only=False)

    monkeypatch.setitem(sys.modules, "torch_fidelity", SimpleNamespace(FeatureExtractorInceptionV3=opens))
    with pytest.raises(ValueError, match=r"bytes with sha256 .*not opened: delete it"):
        load_inception()
    assert not sentinel.exists()


def test_weights_are_fetched_once_and_checked_before_they_are_kept(monkeypatch, tmp_path):
    served, notes = tmp_path / "served", []
    monkeypatch.setattr(pretrained, "INCEPTION_URL", served.as_uri())
    inception_path().unlink()
    served.write_bytes(CONTENT[::-1])
    with pytest.raises(OSError, match="invalid hash value"):
        load_inception(note=notes.append)
    assert not list(inception_path().parent.iterdir())
    served.write_bytes(CONTENT)
    assert load_inception(note=notes.append).module.net.weights == CONTENT
    served.unlink()
    assert load_inception(note=notes.append).module.net.weights == CONTENT
    assert len(notes) == 2
    assert str(inception_path()) in notes[0]


def test_without_a_network_the_message_says_where_to_put_the_file():
    inception_path().unlink()
    with pytest.raises(OSError, match="by hand") as caught:
        load_inception()
    for said in (pretrained.INCEPTION_URL, str(inception_path()), pretrained.INCEPTION_SHA256, "TORCH_HOME"):
        assert said in str(caught.value)


@pytest.fixture
def loaded_small(monkeypatch):
    made = small()
    monkeypatch.setattr(pretrained, "load_inception", lambda device, *, note: made)
    monkeypatch.setitem(pretrained.DIMS, "inception", made.dim)


def test_with_a_reference_file_no_data_set_is_needed(loaded_small, tmp_path):
    np.savez(tmp_path / "ref.npz", mu=np.zeros(8), sigma=np.eye(8))
    nowhere = DataConfig(str(tmp_path / "no data here"))
    reporter = PlainReporter()
    judge = runs_evaluator.evaluator(
        nowhere, features="inception", reference=tmp_path / "ref.npz", device=CPU, progress=reporter
    )
    score = score_of(judge, pixels(40), seeds="0-39", labels="none", resamples=10)
    assert score.metric == "FID"
    assert "FID of 40 images is biased upward" in score.note
    with pytest.raises(OSError, match="no data here"):
        runs_evaluator.evaluator(nowhere, features="inception", device=CPU, progress=reporter)


def test_the_command_prints_an_fid(loaded_small, monkeypatch, capsys, tmp_path):
    np.savez(tmp_path / "ref.npz", mu=np.zeros(8), sigma=np.eye(8))
    run = ROOT / "weights" / "fashion-mnist-light"
    arguments = ["--features", "inception", "--reference", tmp_path / "ref.npz", "--steps", 1, "--num", 20, "--json"]
    monkeypatch.setattr(sys, "argv", ["dualrate", "evaluate", str(run), *map(str, arguments), "--device", "cpu"])
    cli.main()
    score = json.loads(capsys.readouterr().out)["score"]
    assert score["metric"] == "FID"
    assert score["low"] < score["value"] < score["high"]
    assert score["fingerprint"]["features"].startswith("torch-fidelity/inception")
    assert score["fingerprint"]["reference"].startswith("ref.npz:")
