"""FD-DINOv2's extractor: what the net is fed against Pillow and closed forms, and transformers' own net, tiny."""

import hashlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dualrate.cli import main as cli
from dualrate.drawing import evaluators as runs_evaluator
from dualrate.metrics import pretrained
from dualrate.metrics.pretrained import DinoV2Features, PhotoNet, build, load_dinov2, prepared, shrunk
from metrics.squares import two_classes

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")


class StandIn(nn.Module):
    """Its class token is a linear map of the pixels; the other tokens are NaN, so that nothing may come of them."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(3 * 8 * 8, 8, bias=False)
        nn.init.normal_(self.map.weight, 0, 0.1, generator=torch.Generator().manual_seed(0))
        self.calls: list[int] = []

    def forward(self, pixels: Tensor) -> SimpleNamespace:
        assert (pixels.shape[1:], pixels.dtype) == ((3, 224, 224), torch.float32)
        assert not torch.is_grad_enabled()
        self.calls.append(len(pixels))
        token = self.map(nn.functional.adaptive_avg_pool2d(pixels, 8).flatten(1))
        return SimpleNamespace(last_hidden_state=torch.stack([token, torch.full_like(token, torch.nan)], dim=1))


def small(batch_size: int = 50) -> PhotoNet:
    module = DinoV2Features(StandIn())
    return PhotoNet("dinov2", module, "dinov2-large:0", 8, CPU, batch_size, usual_count=100)


def pixels(count: int = 7, channels: int = 3, size: int = 16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, channels, size, size), dtype=np.uint8)


def test_features_are_the_class_token_in_batches():
    net = small(batch_size=3)
    found = net.features(pixels())
    assert net.module.net.calls == [3, 3, 1]
    assert (found.shape, found.dtype, found.requires_grad) == ((7, 8), torch.float32, False)
    assert torch.equal(found, net.features(torch.from_numpy(pixels())))
    with torch.no_grad():
        assert torch.equal(found[:3], net.module(torch.from_numpy(pixels()[:3])))


@pytest.mark.parametrize("size", [64, 300])
def test_images_are_resized_as_pillow_does_it(size):
    image = pixels(1, size=size)[0]
    found = prepared(torch.from_numpy(image[None]))[0]
    for channel in range(3):
        whole = Image.fromarray(image[channel].astype(np.float32)).resize((224, 224), Image.Resampling.BICUBIC)
        mean, std = ((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))[channel]  # those that it was trained with
        expected = (np.asarray(whole) / 255 - mean) / std
        np.testing.assert_allclose(found[channel].numpy(), expected, rtol=0, atol=1e-4)


def test_grey_images_are_three_equal_channels():
    grey = pixels(2, channels=1)
    assert torch.equal(prepared(torch.from_numpy(grey)), prepared(torch.from_numpy(grey.repeat(3, 1))))


@pytest.mark.parametrize("images", [pixels(2, channels=2), pixels(2)[0], pixels(2) / 255, pixels(2)[:0]])
def test_other_images_are_refused(images):
    with pytest.raises(ValueError, match="C = 1 or 3"):
        small().features(images)


def test_position_embeddings_shrink_as_in_the_original():
    """By the cubic kernel of a = -0.75, rows and columns sampled at steps of 37 / 16.1, the edge repeated."""
    positions = torch.randn(1, 1 + 37**2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = shrunk(positions, 16)
    at = (torch.arange(16, dtype=torch.float64) + 0.5) * 37 / 16.1 - 0.5
    taps = at.floor().long()[:, None] + torch.arange(-1, 3)
    d, a = (at[:, None] - taps).abs(), -0.75
    near, far = (a + 2) * d**3 - (a + 3) * d**2 + 1, a * (d**3 - 5 * d**2 + 8 * d - 4)
    weights = torch.zeros(16, 37, dtype=torch.float64)
    weights.scatter_add_(1, taps.clamp(0, 36), torch.where(d <= 1, near, far))
    grid = positions[0, 1:].reshape(37, 37, 2)
    torch.testing.assert_close(found[0, 1:].reshape(16, 16, 2), torch.einsum("ir,jc,rcd->ijd", weights, weights, grid))
    assert torch.equal(found[:, 0], positions[:, 0])
    assert shrunk(found, 16) is found


def tiny(directory: Path, patches: int = 5) -> tuple[Path, Path]:
    """A random net of transformers', saved: its config and its weights."""
    transformers = pytest.importorskip("transformers")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.Dinov2Config(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=14 * patches, patch_size=14
        )
        transformers.Dinov2Model(config).save_pretrained(directory)
    return directory / pretrained.CONFIG, directory / pretrained.WEIGHTS


def test_the_net_is_transformers_own_with_the_weights_of_the_file(tmp_path):
    config, weights = tiny(tmp_path)
    transformers = pytest.importorskip("transformers")
    module, identity = build(transformers, config, weights)
    assert identity == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert not module.training
    assert not any(parameter.requires_grad for parameter in module.parameters())
    images = torch.from_numpy(pixels(3))
    theirs = transformers.Dinov2Model.from_pretrained(tmp_path, local_files_only=True).eval()
    found = PhotoNet("dinov2", DinoV2Features(module), "", 16, CPU, 50).features(images)
    positions = theirs.embeddings.position_embeddings.detach()
    with torch.no_grad():
        otherwise = theirs(prepared(images)).pooler_output
        theirs.embeddings.position_embeddings = nn.Parameter(shrunk(positions, 16))
        expected = theirs(prepared(images)).pooler_output  # class token after the last norm
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found, otherwise, rtol=0, atol=0.2)  # the offset is a detail
    assert not torch.allclose(found, otherwise, rtol=0, atol=1e-5)  # that matters


def test_weights_that_are_not_all_there_are_refused(tmp_path):
    config, weights = tiny(tmp_path)
    transformers = pytest.importorskip("transformers")
    tensors = load_file(weights)
    del tensors["layernorm.weight"]
    save_file(tensors, weights)
    with pytest.raises(ValueError, match=r"lacks 1 .* layernorm\.weight"):
        build(transformers, config, weights)


def stub_packages(directory: Path, report: dict[str, set[str]]) -> tuple[SimpleNamespace, SimpleNamespace, list]:
    """transformers and huggingface_hub, as far as they are used, of files in a directory; and what was asked for."""
    asked = []

    class Model(nn.Module):
        def __init__(self, tensors: dict[str, Tensor]) -> None:
            super().__init__()
            self.embeddings = nn.Module()
            self.embeddings.position_embeddings = nn.Parameter(tensors["positions"])
            self.config = SimpleNamespace(patch_size=14, hidden_size=8)

        @staticmethod
        def from_pretrained(name, *, config, state_dict, dtype, output_loading_info):
            asked.append((name, config, dtype, output_loading_info))
            return Model(state_dict), {"missing_keys": set(), "mismatched_keys": set()} | report

    def download(repo: str, name: str, *, revision: str) -> str:
        asked.append((repo, name, revision))
        if not (directory / name).exists():
            raise FileNotFoundError("no network")
        return str(directory / name)

    config = SimpleNamespace(from_json_file=lambda path: json.loads(Path(path).read_text()))
    return SimpleNamespace(Dinov2Model=Model, Dinov2Config=config), SimpleNamespace(hf_hub_download=download), asked


@pytest.fixture
def files(tmp_path) -> Path:
    (tmp_path / pretrained.CONFIG).write_text('{"patch_size": 14}')
    save_file({"positions": torch.randn(1, 1 + 37**2, 8)}, tmp_path / pretrained.WEIGHTS)
    return tmp_path


def stubbed(monkeypatch, directory: Path, **report: set[str]) -> list:
    transformers, hub, asked = stub_packages(directory, report)
    monkeypatch.setitem(sys.modules, "transformers", transformers)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    return asked


def test_loading_pins_the_revision_and_names_what_was_loaded(files, monkeypatch):
    asked = stubbed(monkeypatch, files)
    net = load_dinov2()
    digest = hashlib.sha256((files / pretrained.WEIGHTS).read_bytes()).hexdigest()
    assert net.identity == f"dinov2-large:{digest[:12]}"
    assert (net.metric, net.dim, net.usual_count) == ("FD-DINOv2", 8, 50_000)
    assert net.module.net.embeddings.position_embeddings.shape == (1, 257, 8)
    assert asked == [
        ("facebook/dinov2-large", "config.json", pretrained.DINOV2_REVISION),
        ("facebook/dinov2-large", "model.safetensors", pretrained.DINOV2_REVISION),
        (None, {"patch_size": 14}, torch.float32, True),
    ]
    save_file({"positions": torch.randn(1, 257, 8)}, files / pretrained.WEIGHTS)
    assert load_dinov2().identity != net.identity


def test_incomplete_and_damaged_weights_are_refused(files, monkeypatch):
    stubbed(monkeypatch, files, missing_keys={"layernorm.bias"}, mismatched_keys={("embeddings.cls_token", 1, 2)})
    with pytest.raises(ValueError, match="lacks 2"):
        load_dinov2()
    (files / pretrained.WEIGHTS).write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="no safetensors file"):
        load_dinov2()


def test_without_a_network_the_message_says_how_to_fetch_the_files(tmp_path, monkeypatch):
    stubbed(monkeypatch, tmp_path)
    with pytest.raises(OSError, match="no network") as caught:
        load_dinov2()
    assert pretrained.DINOV2_REVISION in str(caught.value)


def test_without_transformers_the_message_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=r"pip install 'dualrate\[dinov2\]'"):
        load_dinov2()


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("DUALRATE_CACHE", str(tmp_path / "cache"))


def evaluate(monkeypatch, capsys, *options) -> str:
    """Return what `dualrate evaluate --features dinov2` prints of the light network, with squares as the data set."""
    splits = (two_classes(size=28), two_classes(60, seed=1, size=28, split="test"))
    monkeypatch.setattr(runs_evaluator, "splits_of", lambda data, progress: splits)
    monkeypatch.setattr(pretrained, "load_dinov2", lambda device: small())
    monkeypatch.setitem(pretrained.DIMS, "dinov2", small().dim)
    arguments = ["--features", "dinov2", "--steps", "1", "--num", "40", "--device", "cpu", *map(str, options)]
    monkeypatch.setattr(sys, "argv", ["dualrate", "evaluate", str(ROOT / "weights/fashion-mnist-light"), *arguments])
    cli.main()
    return capsys.readouterr().out


def test_the_command_prints_details_where_they_are_asked_for(monkeypatch, capsys):
    score = json.loads(evaluate(monkeypatch, capsys, "--details", "--json"))["score"]
    assert score["metric"] == "FD-DINOv2"
    assert score["low"] < score["value"] < score["high"]
    details = score["details"]
    assert (details["kernel_metric"], details["reference_count"]) == ("KD-DINOv2", 40)
    text = evaluate(monkeypatch, capsys, "--details")
    assert f"KD-DINOv2: {details['kernel']['value']:.3g} +- " in text
    assert f"recall {details['precision_recall']['recall']:.3f}" in text
    assert "KD-DINOv2" not in evaluate(monkeypatch, capsys)


def test_details_of_a_file_of_statistics_are_refused_before_anything_is_drawn(monkeypatch, capsys, tmp_path):
    np.savez(tmp_path / "ref.npz", mu=np.zeros(8), sigma=np.eye(8))
    monkeypatch.setattr("dualrate.drawing.drawer.Drawer.draw", None)
    with pytest.raises(SystemExit):
        evaluate(monkeypatch, capsys, "--details", "--reference", tmp_path / "ref.npz")
    assert "training images" in capsys.readouterr().err
