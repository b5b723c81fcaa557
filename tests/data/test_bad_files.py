"""Data files that are damaged, foreign or hostile: one line that names the file, at once and in little memory."""

from __future__ import annotations

import io
import json
import os
import resource
import signal
import socket
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dualrate.data.images import ImageSet, load_images
from dualrate.data.source import MAX_CLASSES, class_numbers, printable
from dualrate.diffusion.plan import StepPlan
from dualrate.drawing.choice import read_plan
from dualrate.metrics.references import load_reference

IMAGES = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
LABELS = np.arange(20) % 4
SECONDS = 5
MEMORY = 1 << 30  # bytes of address space beyond what the tests themselves take


@pytest.fixture(autouse=True)
def bounds() -> Iterator[None]:
    """No test waits for ever or fills the memory."""

    def refuse(*_: object) -> None:
        pytest.fail(f"took more than {SECONDS} seconds")

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limits = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGALRM, refuse)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, limits[1]))
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, limits)


def load(source: Path, **options: Any) -> ImageSet:
    return load_images(source, split="train", cache=Path(os.environ["DUALRATE_CACHE"]), **options)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUALRATE_CACHE", str(tmp_path_factory.mktemp("cache")))


def png(image: np.ndarray = IMAGES[0]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


def npz(compressed: bool = False, **arrays: np.ndarray) -> bytes:
    stream = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(stream, **arrays)  # type: ignore[arg-type]
    return stream.getvalue()


def members(contents: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return stream.getvalue()


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def header(descr: str, shape: tuple[int, ...]) -> bytes:
    """A .npy file that promises an array and has none."""
    stream = io.BytesIO(b"")
    np.lib.format.write_array_header_1_0(stream, {"descr": descr, "fortran_order": False, "shape": shape})
    return stream.getvalue()


def changed(data: bytes, offset: int, value: int) -> bytes:
    """Each local and each central header of a zip file with a 16-bit field set; offset is from the field `flags`."""
    found = bytearray(data)
    for signature, start in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = data.find(signature)
        while at >= 0:
            struct.pack_into("<H", found, at + start + offset, value)
            at = data.find(signature, at + 4)
    return bytes(found)


def liar(size: int) -> bytes:
    """An archive in which header and directory agree on an array of `size` bytes, which is not there."""
    start = header("|u1", (size // 64, 8, 8))
    data = bytearray(members({"images.npy": start}))
    directory = data.find(b"PK\x01\x02")
    extra = struct.pack("<HHQ", 1, 8, size + len(start))  # zip64: the uncompressed size
    data[directory + 46 + 10 : directory + 46 + 10] = extra
    struct.pack_into("<I", data, directory + 24, 0xFFFFFFFF)
    struct.pack_into("<H", data, directory + 30, len(extra))
    end = data.find(b"PK\x05\x06")
    struct.pack_into("<I", data, end + 12, end - directory)
    return bytes(data)


def parquet(images: Any = None, label: Any = None, metadata: Any = None, **options: Any) -> bytes:
    encoded = pa.array([png(image) for image in IMAGES] if images is None else images)
    columns: dict[str, Any] = {"image": encoded.cast(pa.binary()) if encoded.null_count == len(encoded) else encoded}
    if label is not None:
        columns["label"] = label
    table = pa.table(columns)
    if metadata is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps(metadata)})
    stream = io.BytesIO()
    pq.write_table(table, stream, **options)
    return stream.getvalue()


def class_label(names: Any) -> dict[str, Any]:
    return {"info": {"features": {"label": {"names": names}}}}


def at(array: np.ndarray, row: int, value: int, dtype: Any = None) -> np.ndarray:
    array = array.astype(dtype or array.dtype)
    array[row] = value
    return array


def flipped(data: bytes, part: bytes) -> bytes:
    """One bit changed in the middle of a part of the data."""
    place = data.index(part) + len(part) // 2
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


HUGE = 2**62
FILES: dict[str, tuple[str, bytes, str]] = {  # what is wrong: the file's name, its content, the message
    # labels
    "npz label of a flipped bit": ("x.npz", npz(images=IMAGES, labels=at(LABELS, 3, HUGE)), f"{HUGE} in row 3"),
    "npz label too far": ("x.npz", npz(images=IMAGES, labels=at(LABELS, 3, 10**5)), "100000 in row 3"),
    "npz label negative": ("x.npz", npz(images=IMAGES, labels=at(LABELS, 3, -1)), "labels run from -1 to 3.*row 3"),
    "npz label uint64": ("x.npz", npz(images=IMAGES, labels=at(LABELS, 3, 2**64 - 1, "u8")), f"{2**64 - 1} in row 3"),
    "npz labels are floats": ("x.npz", npz(images=IMAGES, labels=LABELS / 2), "float64 .*expected 20 integers"),
    "npz labels are booleans": ("x.npz", npz(images=IMAGES, labels=LABELS > 1), "bool .*expected 20 integers"),
    "npz labels too many": ("x.npz", npz(images=IMAGES, labels=np.arange(21)), r"int64 \(21,\); expected 20 integers"),
    "npz labels in rows": ("x.npz", npz(images=IMAGES, labels=LABELS[None]), "expected 20 integers"),
    "parquet label of a flipped bit": ("x.parquet", parquet(label=at(LABELS, 3, HUGE)), f"{HUGE} in row 3"),
    "parquet label negative": ("x.parquet", parquet(label=at(LABELS, 3, -1)), "labels run from -1 to 3"),
    "parquet label uint64": ("x.parquet", parquet(label=at(LABELS, 3, 2**64 - 1, "u8")), f"{2**64 - 1} in row 3"),
    "parquet labels are floats": ("x.parquet", parquet(label=LABELS / 2), "double with 0 nulls; expected integers"),
    "parquet labels are lists": ("x.parquet", parquet(label=[[1]] * 20), "list<.*expected integers or strings"),
    "parquet labels are no text": (
        "x.parquet",
        parquet(label=pa.array([b"\xff"] * 20).view(pa.string())),
        "cannot be read as Parquet: .*utf-8",
    ),
    # class names
    "names is a number": ("x.parquet", parquet(label=LABELS, metadata=class_label(5)), "names of label are 5, no list"),
    "names is text": ("x.parquet", parquet(label=LABELS, metadata=class_label("abcd")), "names of label are abcd"),
    "names are numbers": ("x.parquet", parquet(label=LABELS, metadata=class_label([1, 2, 3, 4])), "no list of strings"),
    "too many names": (
        "x.parquet",
        parquet(label=LABELS, metadata=class_label(["a"] * (MAX_CLASSES + 1))),
        "declares 100,001 classes, more than the 100,000 accepted",
    ),
    "info is a list": ("x.parquet", parquet(label=LABELS, metadata={"info": []}), "huggingface metadata"),
    "metadata is null": ("x.parquet", parquet(label=LABELS, metadata=[None]), "huggingface metadata"),
    # archives
    "a .npy file named .npz": ("x.npz", npy(IMAGES), "a single array .* not an archive"),
    "a parquet file named .npz": ("x.npz", parquet(), "not a zip file"),
    "an npz file named .parquet": ("x.parquet", npz(images=IMAGES), "cannot be read as Parquet"),
    "an encrypted archive": ("x.npz", changed(npz(images=IMAGES), 0, 1), "encrypted"),
    "an unknown compression": ("x.npz", changed(npz(images=IMAGES), 2, 99), "compression"),
    "a compression that it has not": ("x.npz", changed(npz(images=IMAGES), 2, 8), "cannot be read as .npz"),
    "another that it has not": ("x.npz", changed(npz(images=IMAGES), 2, 14), "cannot be read as .npz"),
    "a gigantic claim": ("x.npz", members({"images.npy": header("|u1", (2**40, 8, 8))}), r"claims uint8 \(1099511"),
    "a claim beyond integers": ("x.npz", members({"images.npy": header("|u1", (2**40,) * 4)}), "claims uint8"),
    "a negative claim": ("x.npz", members({"images.npy": header("|u1", (-1, 8, 8))}), "claims uint8"),
    "a claim that the directory repeats": ("x.npz", liar(2**50), "this machine has .* bytes of memory"),
    "a claim that fits": ("x.npz", liar(2**20), "cannot be read as .npz"),
    "objects": ("x.npz", npz(images=np.array([object()] * 3)), "Python objects, which are never unpickled"),
    "a member cut off": ("x.npz", members({"images.npy": npy(IMAGES)[:-9]}), "3,840 bytes; it has 3,831"),
    "a member too long": ("x.npz", members({"images.npy": npy(IMAGES) + b"12"}), "it has 3,842"),
    "a member without content": ("x.npz", members({"images.npy": b""}), "cannot be read as .npz"),
    "a member of a later version": ("x.npz", members({"images.npy": b"\x93NUMPY\x09\x00"}), r"version \(9, 0\)"),
    "a flipped bit": ("x.npz", flipped(npz(images=IMAGES), IMAGES.tobytes()), "Bad CRC-32"),
    "an archive cut off": ("x.npz", npz(images=IMAGES)[:-30], "not a zip file"),
    "images of no height": ("x.npz", npz(images=IMAGES[:, :0]), r"shape \(20, 0, 8, 3\)"),
    "no images": ("x.npz", npz(images=IMAGES[:0], labels=LABELS[:0]), r"shape \(0, 8, 8, 3\)"),
    # parquet
    "images are lists": ("x.parquet", parquet(pa.array([[b"x"]] * 20)), "is list<.*; expected a struct"),
    "images are null": ("x.parquet", parquet([None] * 20), "none of the first images .*: the file is empty"),
    "no rows": ("x.parquet", parquet([]), r"0 images in .* cannot be divided"),
    "a corrupt page": (
        "x.parquet",
        flipped(parquet(compression="none", use_dictionary=False, write_page_checksum=True), png(IMAGES[7])),
        "CRC checksum verification failed",
    ),
    "cut off": ("x.parquet", parquet()[:-1], "cannot be read as Parquet"),
    "empty": ("x.parquet", b"", "cannot be read as Parquet"),
    "more than one line": ("x.parquet", b"PAR1\0\0\0\0\0\0\0\0PAR1", "cannot be read as Parquet"),
    "fields": ("x.nc", b"x", r"fields over time are for `dualrate train forecast`"),
    "another kind": ("x.zip", b"x", r"expected \.tar \(not compressed\), \.parquet, \.npz, or a folder"),
}  # fmt: skip


def the_line(error: BaseException) -> str:
    text = str(error)
    assert "\n" not in text
    text.encode()
    return text


@pytest.mark.parametrize(("name", "content", "message"), FILES.values(), ids=FILES.keys())
def test_a_bad_file_is_one_line_that_names_it(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises((ValueError, OSError), match=message) as caught:
        load(tmp_path / name)
    assert name in the_line(caught.value)


def test_readable_files_of_the_same_kinds(tmp_path: Path) -> None:
    """The table's makers make good files too, and a class without images is no mistake."""
    (tmp_path / "x.npz").write_bytes(npz(True, images=IMAGES, labels=at(LABELS, 3, 999, "u8")))
    (tmp_path / "x.parquet").write_bytes(parquet(label=LABELS, metadata=class_label(list("abcd"))))
    assert load(tmp_path / "x.npz").num_classes == 1000
    assert load(tmp_path / "x.parquet").class_names == tuple("abcd")


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.uint64])
def test_class_numbers(dtype: type) -> None:
    labels, names = class_numbers(np.array([2, 0], dtype), "x", 2)
    assert (labels.dtype, labels.tolist(), names) == (np.int64, [2, 0], ("0", "1", "2"))
    many = np.arange(200_000)
    with pytest.raises(ValueError, match="100000 in row 100000; 100000 classes allow 0 to 99999"):
        class_numbers(many, "x", len(many))
    with pytest.raises(ValueError, match="2 in row 0; 2 classes allow 0 to 1"):
        class_numbers(labels, "x", 2, reference=np.array([0, 1]))


# What is no regular file


def pipe(path: Path) -> None:
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def listening(path: Path) -> None:
    here = os.open(path.parent, os.O_RDONLY)
    try:
        with socket.socket(socket.AF_UNIX) as opened:
            opened.bind(f"/proc/self/fd/{here}/{path.name}")  # the name of a socket is at most 107 bytes
    finally:
        os.close(here)


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def nowhere(path: Path) -> None:
    path.symlink_to("nothing")


def huge(path: Path) -> None:
    with open(path, "wb") as file:
        file.write(png())
        file.truncate(2**40)


SPECIAL: list[tuple[Callable[[Path], None], str]] = [
    (pipe, "is a named pipe"),
    (endless, "is a device"),
    (listening, "is a socket"),
    (loop, "[Ll]oop|Too many levels of symbolic links"),
    (nowhere, "no data at|No such file"),
]


def named(values: list[tuple[Callable[[Path], None], str]]) -> Any:
    return pytest.mark.parametrize(("make", "message"), values, ids=[make.__name__ for make, _ in values])


@named(SPECIAL)
@pytest.mark.parametrize("name", ["x.npz", "x.parquet", "x"])
def test_a_source_that_is_no_file_is_refused(
    make: Callable[[Path], None], message: str, name: str, tmp_path: Path
) -> None:
    make(tmp_path / name)
    with pytest.raises((ValueError, OSError), match=message) as caught:
        load(tmp_path / name)
    assert name in the_line(caught.value) or make in (endless, nowhere)  # which name what the link leads to


@named([*SPECIAL, (huge, "more than 400,000,000 bytes")])
@pytest.mark.parametrize("folder", ["", "cat"])
def test_an_image_that_is_no_file_is_a_bad_image(
    make: Callable[[Path], None], message: str, folder: str, tmp_path: Path
) -> None:
    place = tmp_path / "data" / folder
    place.mkdir(parents=True)
    for i in range(20):
        (place / f"{i:02}.png").write_bytes(png(IMAGES[i]))
    make(place / "bad.png")
    with pytest.raises(ValueError, match=f"({message}).* of 1.* images .*pass --data.on-bad skip") as caught:
        load(tmp_path / "data")
    assert "bad.png" in the_line(caught.value)
    assert len(load(tmp_path / "data", on_bad="skip")) in (18, 19)


def test_a_parquet_file_among_others_that_is_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train-0.parquet").write_bytes(parquet())
    pipe(tmp_path / "train-1.parquet")
    with pytest.raises(ValueError, match=r"train-1\.parquet is a named pipe"):
        load(tmp_path)


def test_a_class_folder_that_leads_back_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "0.png").write_bytes(png())
    (tmp_path / "dog").symlink_to(".")
    with pytest.raises(ValueError, match="dog is a link to a folder above it"):
        load(tmp_path)


@pytest.mark.parametrize("source", ["~nobody-of-this-name/x", "a\0b"])
def test_a_source_that_is_no_path_is_refused(source: str) -> None:
    with pytest.raises((ValueError, OSError), match="is no path") as caught:
        load_images(source, split="train")
    assert repr(source) in the_line(caught.value)


# What the operating system says


@pytest.mark.parametrize("name", ["x.npz", "x.parquet"])
def test_a_file_that_may_not_be_read_is_not_called_damaged(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As root everything is readable: let the system say no."""
    (tmp_path / name).write_bytes(npz(images=IMAGES) if name == "x.npz" else parquet())

    def refuse(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("dualrate.data.source.zipfile.ZipFile", refuse)
    monkeypatch.setattr("pyarrow.parquet.ParquetFile", refuse)
    with pytest.raises(OSError, match="Input/output error") as caught:
        load(tmp_path / name)
    assert caught.value.errno == 5
    assert "cannot be read as" not in the_line(caught.value)
    assert name in the_line(caught.value)


def test_a_folder_that_may_not_be_read_is_not_called_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cat").mkdir()
    true = os.scandir

    def scandir(path: Any) -> Any:
        if str(path).endswith("cat"):
            raise PermissionError(13, "Permission denied", str(path))
        return true(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(PermissionError, match="cat"):
        load(tmp_path)


# Names that are no UTF-8


def test_names_that_are_no_utf8(tmp_path: Path) -> None:
    odd = os.fsdecode(b"\xff\xe9")
    for i in range(20):
        place = tmp_path / odd / f"{odd}{i % 2}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{odd}{i:02}.png").write_bytes(png(IMAGES[i]) if i else b"")
    with pytest.raises(ValueError, match=r"\\xff\\xe90/\\xff\\xe900\.png: the file is empty") as caught:
        load(tmp_path / odd)
    the_line(caught.value)
    images = load(tmp_path / odd, on_bad="skip")
    assert images.class_names == (r"\xff\xe90", r"\xff\xe91")
    assert images.name == r"\xff\xe9/train"
    for name, content in (("x.npz", npz(images=IMAGES)), ("x.parquet", parquet())):
        (tmp_path / (odd + name)).write_bytes(content)
        assert load(tmp_path / (odd + name)).name.startswith(r"\xff\xe9x")
    assert printable("größe/猫") == "größe/猫"


# Other files that a command takes


class Means:
    """Three features: the mean of every colour."""

    metric, identity, dim, usual_count = "FD-means", "means:00", 3, 100

    def features(self, images: Any) -> Any:
        return pytest.fail("images were measured")


BOMB = members({"mu.npy": header("<f8", (2**40,)), "sigma.npy": header("<f8", (2**40, 2**40))})
REFERENCES = {
    "a gigantic claim": (BOMB, "claims float64"),
    "an encrypted archive": (changed(npz(mu=np.zeros(3), sigma=np.eye(3)), 0, 1), "encrypted"),
    "an unknown compression": (changed(npz(mu=np.zeros(3), sigma=np.eye(3)), 2, 99), "compression"),
    "other dimensions": (npz(mu=np.zeros(4), sigma=np.eye(4)), "expected dimensions of 3"),
    "images alone": (npz(arr_0=IMAGES), "it holds arr_0; expected mu and sigma"),
    "one array": (npy(IMAGES), "is no .npz file"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "message"), REFERENCES.values(), ids=REFERENCES.keys())
def test_a_bad_reference_is_one_line_that_names_it(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "ref.npz").write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        load_reference(tmp_path / "ref.npz", Means())
    assert "ref.npz" in the_line(caught.value)
    assert "means:00" in the_line(caught.value)


PLANS: dict[str, tuple[bytes, str]] = {
    "binary": (png(), "cannot be read as text in UTF-8: "),
    "empty": (b"", "cannot be read as a plan: "),
    "nested": (b"[" * 100_000, "cannot be read as a plan: "),
    "a list": (b"[1]", "cannot be read as a plan: "),
    "another version": (b'{"t": [1, 0], "refresh": ["often"]}', "cannot be read as a plan: "),
    "partial": (
        b'{"t": [1, 0], "refresh": ["partial"]}',
        "step 0 reuses a context, but no step before it computed one",
    ),
    "half": (b'{"t": [1, 0], "refresh": ["half"]}', r"refresh\[0\]: expected one of .*, got 'half'"),
}


@pytest.mark.parametrize(("content", "message"), PLANS.values(), ids=PLANS.keys())
def test_a_bad_plan_is_one_line_that_names_it(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_plan(tmp_path / "plan.json")
    assert "plan.json" in the_line(caught.value)


@named([*SPECIAL, (Path.mkdir, "is a directory"), (huge, "more than")])
def test_a_plan_or_reference_that_is_no_file_is_refused(
    make: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "plan.json"
    make(path)
    with pytest.raises((ValueError, OSError), match=message) as caught:
        read_plan(path)
    assert "plan.json" in the_line(caught.value)
    if make is not huge:
        with pytest.raises((ValueError, OSError), match=message) as caught:
            load_reference(path, Means())
        assert "plan.json" in the_line(caught.value)


def test_a_good_plan_is_read(tmp_path: Path) -> None:
    plan = StepPlan.uniform(4, 2)
    (tmp_path / "plan.json").write_text(plan.to_json())
    assert read_plan(tmp_path / "plan.json") == plan
