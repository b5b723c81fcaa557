"""The IDX parser, the checks, and the order of the routes, on tiny made files: nothing is fetched."""

from __future__ import annotations

import gzip
import hashlib
import io
import struct
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trouble import unreadable

from dualrate.data import fashion_mnist
from dualrate.data.images import load_images

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 28, 28)).astype(np.uint8)
LABELS = np.array([0, 9, 3, 3, 1, 2], np.uint8)


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}i", *array.shape) + array.tobytes()


def write_four(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in fashion_mnist.CONTENT:
        pixels = PIXELS if name.startswith("train") else PIXELS[:2]
        labels = LABELS if name.startswith("train") else LABELS[:2]
        (folder / name).write_bytes(gzip.compress(idx(pixels if "images" in name else labels)))


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Made content in place of the real one, no installed package, and routes that fail; what they were asked for."""
    write_four(tmp_path / "made")
    content = {}
    for name in fashion_mnist.CONTENT:
        data = gzip.decompress((tmp_path / "made" / name).read_bytes())
        content[name] = (len(data), hashlib.sha256(data).hexdigest())
    asked: list[str] = []

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        asked.append(" ".join(command))
        return subprocess.CompletedProcess(command, 100, "", "warning\nE: no such package\n")

    def urlopen(url: str, timeout: float) -> None:
        asked.append(url)
        raise OSError("no route to host")

    monkeypatch.setattr(fashion_mnist, "CONTENT", content)
    monkeypatch.setattr(fashion_mnist, "INSTALLED", tmp_path / "installed")
    monkeypatch.setattr("subprocess.run", run)
    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    return asked


def test_parse_idx() -> None:
    array = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    assert np.array_equal(fashion_mnist.parse_idx(idx(array)), array)
    assert np.array_equal(fashion_mnist.parse_idx(idx(array.ravel())), array.ravel())


def test_the_cache_comes_first(tmp_path: Path, offline: list[str]) -> None:
    write_four(tmp_path / "cache" / "fashion-mnist")
    train = load_images("fashion-mnist", split="train", cache=tmp_path / "cache")
    test = load_images("fashion-mnist", split="test", cache=tmp_path / "cache")
    assert np.array_equal(train.images, PIXELS[:, None])
    assert train.labels is not None
    assert train.labels.tolist() == LABELS.tolist()
    assert (len(test), train.num_classes, test.name) == (2, 10, "fashion-mnist/test")
    assert offline == []


def test_then_the_installed_package(tmp_path: Path, offline: list[str]) -> None:
    write_four(tmp_path / "installed")
    assert len(load_images("fashion-mnist", split="train", cache=tmp_path / "cache")) == 6
    assert offline == []


def test_then_debian_without_root(tmp_path: Path, offline: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], cwd: Path, **options: Any) -> subprocess.CompletedProcess[str]:
        offline.append(" ".join(command))
        if command[0] == "dpkg-deb":
            write_four(cwd / "unpacked" / fashion_mnist.INSTALLED.relative_to("/"))
        elif command[-2:] == ["download", fashion_mnist.PACKAGE]:
            (cwd / "package.deb").touch()
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr("subprocess.run", run)
    said: list[str] = []
    for _ in range(2):
        load_images(
            "fashion-mnist", split="train", cache=tmp_path / "cache", progress=lambda i, n, text: said.append(text)
        )
    assert [command.split()[0] for command in offline] == ["apt-get", "apt-get", "dpkg-deb"]
    assert offline[0].endswith("update")
    assert "fetching Fashion-MNIST (30 MB) by apt-get download" in said
    assert sorted(path.name for path in (tmp_path / "cache" / "fashion-mnist").iterdir()) == sorted(
        fashion_mnist.CONTENT
    )


def test_then_the_mirror(tmp_path: Path, offline: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    made = tmp_path / "made"
    monkeypatch.setattr("urllib.request.urlopen", lambda url, timeout: io.BytesIO((made / Path(url).name).read_bytes()))
    assert len(load_images("fashion-mnist", split="test", cache=tmp_path / "cache")) == 2


def test_a_mirror_with_other_content_is_refused(
    tmp_path: Path, offline: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "t10k-labels-idx1-ubyte.gz"
    (tmp_path / "made" / name).write_bytes(gzip.compress(idx(LABELS[1:3])))
    made = tmp_path / "made"
    monkeypatch.setattr("urllib.request.urlopen", lambda url, timeout: io.BytesIO((made / Path(url).name).read_bytes()))
    with pytest.raises(OSError, match=f"HTTPS: .*{name} does not hold Fashion-MNIST"):
        load_images("fashion-mnist", split="test", cache=tmp_path / "cache")
    assert list((tmp_path / "cache" / "fashion-mnist").iterdir()) == []


def test_every_route_is_in_the_final_error(tmp_path: Path, offline: list[str]) -> None:
    with pytest.raises(OSError, match="could not be fetched") as caught:
        load_images("fashion-mnist", split="train", cache=tmp_path / "cache")
    message = str(caught.value)
    assert "apt-get download: apt-get ended with 100: E: no such package" in message
    assert "HTTPS: no route to host" in message
    assert f"into {tmp_path / 'cache' / 'fashion-mnist'}" in message
    assert all(name in message for name in fashion_mnist.CONTENT)


@pytest.mark.parametrize(
    "content", [b"not gzip", gzip.compress(idx(LABELS))[:-9], b""], ids=["no gzip", "cut", "empty"]
)
def test_a_broken_file_is_named(content: bytes, tmp_path: Path, offline: list[str]) -> None:
    write_four(tmp_path / "cache" / "fashion-mnist")
    (tmp_path / "cache" / "fashion-mnist" / "train-labels-idx1-ubyte.gz").write_bytes(content)
    with pytest.raises(ValueError, match=r"train-labels-idx1-ubyte\.gz .*delete it and run again"):
        load_images("fashion-mnist", split="train", cache=tmp_path / "cache")


def test_a_checksum_mismatch_says_both_sums(tmp_path: Path, offline: list[str]) -> None:
    file = tmp_path / "train-labels-idx1-ubyte.gz"
    data = idx(LABELS[::-1])
    file.write_bytes(gzip.compress(data))
    expected = fashion_mnist.CONTENT[file.name][1]
    with pytest.raises(ValueError, match=f"sha256 {hashlib.sha256(data).hexdigest()}, expected {expected}"):
        fashion_mnist.verified(file)


def test_a_file_that_cannot_be_read_is_not_broken(tmp_path: Path, offline: list[str]) -> None:
    folder = tmp_path / "cache" / "fashion-mnist"
    write_four(folder)
    with (
        unreadable(folder / "train-labels-idx1-ubyte.gz", tmp_path),
        pytest.raises(PermissionError, match=r"train-labels"),
    ):
        load_images("fashion-mnist", split="train", cache=tmp_path / "cache")
    assert len(load_images("fashion-mnist", split="train", cache=tmp_path / "cache")) == 6
