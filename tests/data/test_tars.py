"""Tar archives: the images of the same files in folders, in any layout; nothing that an archive says is trusted."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from data.pickled import by_pickle
from PIL import Image

from dualrate.data import tars as tar_members
from dualrate.data.finding import find_source
from dualrate.data.images import load_images, look_at, prepare
from dualrate.data.source import Member, Raw, Split

Content = bytes | tarfile.TarInfo
SPLITS: tuple[Split, ...] = ("train", "test")


def png(seed: int, side: int = 8) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def archive(files: Sequence[tuple[str, Content]], form: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar of these files; in place of content a header is put in as it is."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form) as tar:
        for name, content in files:
            if isinstance(content, tarfile.TarInfo):
                content.name = name
                tar.addfile(content)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def special(kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo()
    info.type, info.linkname = kind, target
    return info


def put(path: Path, files: Sequence[tuple[str, Content]] | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(files if isinstance(files, bytes) else archive(files))
    return path


def silent(done: int, total: int, message: str) -> None:
    pass


def raw_of(source: Path, split: Split = "train") -> Raw:
    return find_source(source, split, Path("none"), silent).read()


def contents(raw: Raw) -> list[bytes]:
    return [item.read() for _, item in raw.items if isinstance(item, Member)]


def classes(source: Path) -> dict[str, str]:
    """Return the class of every image that can be used, by its name."""
    found = {}
    for split in SPLITS:
        raw = raw_of(source, split)
        numbers = [-1] * raw.count if raw.labels is None else raw.labels.tolist()
        for (name, item), number in zip(raw.items, numbers, strict=True):
            if not getattr(item, "fault", ""):
                found[name] = raw.class_names[number] if raw.class_names else ""
    return found


def faults(source: Path) -> dict[str, str]:
    items = [item for split in SPLITS for _, item in raw_of(source, split).items]
    return {item.name: item.fault for item in items if isinstance(item, Member) and item.fault}


PETS = [(f"{kind}/{i}.png", png(10 * i + ord(kind[0]))) for i in range(8) for kind in ("cat", "dog", "eel")]
BY_CLASS = {
    kind: [(name.split("/")[1], data) for name, data in PETS if name.startswith(kind)] for kind in ("cat", "dog", "eel")
}


PETS_FLAT = [(name.replace("/", "-"), data) for name, data in PETS]


def layouts() -> dict[str, Mapping[str, Sequence[tuple[str, Content]] | bytes]]:
    inner = [(f"{kind}.tar", archive(files)) for kind, files in BY_CLASS.items()]
    return {
        "folders in a tar": {"pets.tar": PETS},
        "below others": {"pets.tar": [(f"./data/all/{name}", data) for name, data in PETS]},
        "a tar for each class": {f"{kind}.tar": files for kind, files in BY_CLASS.items()},
        "a tar of tars": {"all.tar": inner},
        "wordnet's numbers": {f"n0{1440764 + 7 * i}.tar": files for i, files in enumerate(BY_CLASS.values())},
        "webdataset, names": {
            f"pets-{i:06}.tar": [
                one for name, data in PETS[12 * i : 12 * i + 12]
                for one in ((name.replace("/", "_"), data), (name.replace("/", "_")[:-3] + "cls", name[:3].encode()))
            ]
            for i in range(2)
        },
        "webdataset, JSON": {
            f"{i}.tar": [
                one for name, data in PETS[12 * i : 12 * i + 12]
                for one in ((name, data), (name[:-3] + "json", json.dumps({"label": name[:3], "at": 3}).encode()))
            ]
            for i in range(2)
        },
    }  # fmt: skip


def made(folder: Path, layout: str) -> Path:
    for name, files in layouts()[layout].items():
        put(folder / name, files)
    return folder


@pytest.mark.parametrize("layout", layouts())
def test_every_layout_has_the_images_and_classes_of_the_folder(layout: str, tmp_path: Path) -> None:
    for name, data in PETS:
        (tmp_path / "plain" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "plain" / name).write_bytes(data)

    def content(source: Path) -> list[tuple[int, bytes]]:
        found = []
        for split in SPLITS:
            images = load_images(source, split=split, cache=tmp_path / "cache")
            assert images.labels is not None
            found += zip(images.labels.tolist(), [image.tobytes() for image in images.images[:]], strict=True)
        return sorted(found)

    source = made(tmp_path / "tars", layout)
    assert content(source) == content(tmp_path / "plain")
    if len(list(source.iterdir())) == 1:
        assert content(next(source.iterdir())) == content(source)
    names = load_images(source, split="train", cache=tmp_path / "cache").class_names
    numbers = [f"n0{1440764 + 7 * i}" for i in range(3)]
    assert list(names) == (numbers if layout == "wordnet's numbers" else ["cat", "dog", "eel"])


def test_numbers_of_classes_are_kept_and_those_of_json_come_second(tmp_path: Path) -> None:
    files: list[tuple[str, Content]] = []
    for i in range(6):
        files += [(f"{i}.png", png(i)), (f"{i}.cls", b"%d\n" % (i % 3)), (f"{i}.json", b'{"label": 7}')]
    assert set(classes(put(tmp_path / "a.tar", files)).values()) == {"0", "1", "2"}
    files = [file for i in range(6) for file in ((f"{i}.json", b'{"label": %d}' % (i % 3 + 1)), (f"{i}.png", png(i)))]
    assert classes(put(tmp_path / "b.tar", files)) == {f"b.tar/{i}.png": str(i % 3 + 1) for i in range(6)}


def said_of(source: Path) -> set[str]:
    return {raw_of(source, split).note for split in SPLITS}


def test_a_label_is_that_of_the_name_up_to_the_first_dot(tmp_path: Path) -> None:
    files: list[tuple[str, Content]] = []
    for i in range(6):
        files += [(f"a/{i}.image.png", png(i)), (f"a/{i}.cls", b"%d" % (i % 3))]
        files += [
            (f"b/v1.{i}.png", png(i + 6)),
            (f"b/v1.{i}.cls", b"%d" % (i % 3)),
        ]  # or to the last, where there is one
    source = put(tmp_path / "x.tar", files)
    expected = {f"x.tar/a/{i}.image.png": str(i % 3) for i in range(6)}
    assert classes(source) == expected | {f"x.tar/b/v1.{i}.png": str(i % 3) for i in range(6)}
    assert said_of(source) == {""}


def test_what_is_hidden_in_an_archive_is_not_read(tmp_path: Path) -> None:
    places = ("cat/.ipynb_checkpoints/", "__MACOSX/cat/._", "@eaDir/")
    files = [
        *PETS,
        *((f"{place}{i}.png", png(i)) for place in places for i in range(3)),
        ("__MACOSX/._x.tar", b"no tar"),
    ]
    assert classes(put(tmp_path / "x.tar", files)) == {f"x.tar/{name}": name[:3] for name, _ in PETS}
    (tmp_path / "._x.tar").write_bytes(b"no tar")
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "self").symlink_to("self")
    assert len(classes(tmp_path)) == len(PETS)


def test_splits_of_archives_in_any_case(tmp_path: Path) -> None:
    files = [(f"{split}/{name}", data) for split in ("Train", "DEV", "unlabeled") for name, data in PETS[:6]]
    source = put(tmp_path / "x.tar", files)
    for split, name in zip(SPLITS, ("Train", "DEV"), strict=True):
        assert [item[0] for item in raw_of(source, split).items] == [f"x.tar/{name}/{file}" for file, _ in PETS[:6]]
        assert raw_of(source, split).class_names == ("cat", "dog", "eel")
    (said,) = said_of(source)
    assert said.startswith("skipped 6 images of other splits (x.tar/unlabeled/cat/0.png, ")


def test_without_folders_and_labels_there_are_no_classes(tmp_path: Path) -> None:
    captions = [file for i in range(3) for file in ((f"{i}.png", png(i)), (f"{i}.json", b'{"caption": "a cat"}'))]
    for number in range(2):
        put(tmp_path / f"shard-{number:04}.tar", captions)
    assert classes(tmp_path) == {f"shard-{s:04}.tar/{i}.png": "" for s in range(2) for i in range(3)}
    assert set(classes(tmp_path / "shard-0000.tar").values()) == {""}
    for name in ("train", "val"):
        put(tmp_path / "split" / name / "photos.tar", PETS_FLAT)
    assert set(classes(tmp_path / "split").values()) == {""}
    assert set(classes(put(tmp_path / "photos.tar", PETS_FLAT)).values()) == {""}


def test_the_training_images_say_which_numbers_there_are(tmp_path: Path) -> None:
    for split, count in (("train", 5), ("test", 2)):
        files = [file for i in range(count) for file in ((f"{i}.png", png(i)), (f"{i}.cls", b"%d" % i))]
        put(tmp_path / split / "0.tar", files)
    assert raw_of(tmp_path, "test").class_names == ("0", "1", "2", "3", "4")


@pytest.mark.parametrize("how", ["folders of tars", "names of tars", "folders in a tar", "numbered shards"])
def test_splits_are_those_of_names(how: str, tmp_path: Path) -> None:
    train, val = PETS[:18], PETS[18:]
    if how == "folders of tars":
        put(tmp_path / "train" / "x.tar", train)
        put(tmp_path / "val" / "x.tar", val)
    elif how == "names of tars":
        put(tmp_path / "pets_train_v2.tar", train)
        put(tmp_path / "pets-validation.tar", val)
    elif how == "folders in a tar":
        put(tmp_path / "x.tar", [(f"train/{name}", data) for name, data in train] + [(f"test/{n}", d) for n, d in val])
    else:
        for i in range(3):
            put(tmp_path / f"x-train-{i:03}.tar", train[6 * i : 6 * i + 6])
        put(tmp_path / "x-validation-000.tar", val)
    for split, files in zip(SPLITS, (train, val), strict=True):
        raw = raw_of(tmp_path, split)
        assert contents(raw) == [data for _, data in files]
        assert raw.labels is not None
        assert [raw.class_names[i] for i in raw.labels] == [name[:3] for name, _ in files]


def test_tars_of_classes_and_splits_are_both(tmp_path: Path) -> None:
    for split, chosen in (("train", PETS[:18]), ("test", PETS[18:])):
        for kind in ("Café", "dog", "eel"):
            files = [(f"{name[4:]}", data) for name, data in chosen if name[0] == kind[0].lower()]
            put(tmp_path / f"{kind}s_{split}.tar", files or [("0.png", png(0))])
    for split in SPLITS:
        raw = raw_of(tmp_path, split)
        assert raw.class_names == ("Cafés", "dogs", "eels")
        assert raw.labels is not None
        for (name, _), label in zip(raw.items, raw.labels, strict=True):
            assert name.startswith(raw.class_names[label])


def test_a_class_named_train_is_no_split(tmp_path: Path) -> None:
    files = [(f"{kind}/{i}.png", png(i)) for i in range(3) for kind in ("train", "boat")]
    assert set(classes(put(tmp_path / "cifar.tar", files)).values()) == {"train", "boat"}


def test_training_images_with_classes_and_others_without_are_refused_with_the_way_out(tmp_path: Path) -> None:
    put(tmp_path / "ILSVRC2012_img_train.tar", layouts()["a tar of tars"]["all.tar"])
    put(tmp_path / "ILSVRC2012_img_val.tar", [(f"{i}.png", png(i)) for i in range(3)])
    with pytest.raises(ValueError, match="give the training images alone"):
        raw_of(tmp_path, "test")
    assert set(classes(tmp_path / "ILSVRC2012_img_train.tar").values()) == {"cat", "dog", "eel"}


def test_a_folder_of_images_with_archives_beside_them_is_a_folder_of_images(tmp_path: Path) -> None:
    put(tmp_path / "all.tar", PETS)
    for name, data in PETS[:4]:
        put(tmp_path / name, data)
    assert len(classes(tmp_path)) == 4
    put(tmp_path / "flat" / "all.tar", PETS)
    for name, data in PETS_FLAT[:3]:
        put(tmp_path / "flat" / name, data)
    assert len(classes(tmp_path / "flat")) == 3


HOSTILE: dict[str, tuple[str, Content, str]] = {
    "leads up": ("../../evil.png", png(1), "leads out of the archive"),
    "leads up within": ("cat/../../../evil.png", png(1), "leads out of the archive"),
    "absolute": ("/dualrate-evil.png", png(1), "leads out of the archive"),
    "symbolic link": ("cat/evil.png", special(tarfile.SYMTYPE, "/etc/passwd"), "it is a link, a device"),
    "hard link": ("cat/evil.png", special(tarfile.LNKTYPE, "cat/0.png"), "it is a link, a device"),
    "device": ("cat/evil.png", special(tarfile.CHRTYPE), "it is a link, a device"),
    "pipe": ("cat/evil.png", special(tarfile.FIFOTYPE), "it is a link, a device"),
    "again": ("cat/0.png", png(1), "another file of this name"),
    "again, otherwise written": ("./cat/0.png", png(1), "another file of this name"),
    "three deep": ("in.tar", archive([("in.tar", archive([("0.png", png(1))]))]), "a tar within a tar"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_should_not_be_there_is_an_image_that_cannot_be_used(case: str, tmp_path: Path) -> None:
    name, content, reason = HOSTILE[case]
    source = put(tmp_path / "data" / "pets.tar", [*PETS[:5], (name, content), *PETS[5:]])
    before = sorted(tmp_path.rglob("*"))
    (fault,) = faults(source).values()
    assert reason in fault
    assert classes(source) == {f"pets.tar/{name}": name[:3] for name, _ in PETS}
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(ValueError, match=f"{reason}.*on-bad skip"):
        prepare(source, tmp_path / "strict", size=8)
    parts = prepare(source, tmp_path / "out", size=8, on_bad="skip")["splits"].values()
    assert sum(part["images"] for part in parts) == len(PETS)
    assert [reason in line for part in parts for shard in part["shards"] for line in shard["rejects"]] == [True]
    assert not Path("/dualrate-evil.png").exists()


def test_one_without_a_label_among_others_cannot_be_used(tmp_path: Path) -> None:
    files = [file for i in range(5) for file in ((f"{i}.png", png(i)), (f"{i}.cls", b"1"))]
    source = put(
        tmp_path / "a.tar", [*files, ("9.png", png(9)), ("8.png", png(8)), ("8.json", b'{"label": %d}' % 10**30)]
    )
    assert set(faults(source)) == {"a.tar/9.png", "a.tar/8.png"}
    assert set(classes(source).values()) == {"1"}


def header(tar: bytes, at: int, start: int, text: bytes) -> bytes:
    """The archive with bytes of the header at `at` replaced, and its sum made right."""
    block = bytearray(tar[at : at + 512])
    block[start : start + len(text)] = text
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return tar[:at] + bytes(block) + tar[at + 512 :]


def damaged() -> dict[str, bytes]:
    good = archive(PETS[:4], tarfile.GNU_FORMAT)
    second = 512 + -(-len(PETS[0][1]) // 512) * 512
    last = good.rstrip(b"\0")
    inner = archive([("cat.tar", archive(PETS[:2])[:-10240]), ("dog.tar", archive(PETS[2:4]))])
    pax = archive([("x" * 200 + ".png", png(1))])
    return {
        "cut off in an image": good[: second + 700],
        "cut off between two": good[:second],
        "without an end": last + bytes(-len(last) % 512),
        "a damaged header": good[:second] + b"\xff" * 512 + good[second + 512 :],
        "a flipped bit": good[: second + 1] + bytes([good[second + 1] ^ 1]) + good[second + 2 :],
        "garbage": bytes(range(256)) * 40,
        "empty": b"",
        "compressed": b"\x1f\x8b" + bytes(600),
        "larger than it is": header(good, 0, 124, b"77777777777\0"),
        "going back": header(good, 0, 124, b"\xff" * 8 + (-1024).to_bytes(4, signed=True)),
        "a header without end": header(pax, 0, 124, b"77777777777\0"),
        "an inner one without an end": inner,
        "an inner one that is none": archive([("cat.tar", b"no tar" * 200)]),
    }


@pytest.mark.parametrize("case", damaged())
@pytest.mark.timeout(20)
def test_a_damaged_archive_is_one_line_that_names_it(case: str, tmp_path: Path) -> None:
    source = put(tmp_path / "pets.tar", damaged()[case])
    with pytest.raises(ValueError, match=rf"pets\.tar.*{'compressed' if case == 'compressed' else ''}") as caught:
        raw_of(source)
    said = str(caught.value)
    assert "\n" not in said
    assert len(said) < 800
    assert "cannot be divided" not in said  # as of an archive that ends after its first image


def test_no_more_of_a_header_is_read_than_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar_members, "_MAX_HEADER", 512)
    with pytest.raises(ValueError, match="header of 1024 bytes, more than the 512"):
        raw_of(put(tmp_path / "a.tar", archive([("x" * 600 + ".png", png(1))], tarfile.GNU_FORMAT)))


def test_an_archive_that_shrinks_meanwhile_names_the_image(tmp_path: Path) -> None:
    source = put(tmp_path / "a.tar", PETS)
    raw = raw_of(source)
    source.write_bytes(source.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"a\.tar ends within it"):
        contents(raw)


def test_an_archive_that_has_changed_is_listed_again(tmp_path: Path) -> None:
    source = put(tmp_path / "a.tar", PETS)
    assert len(classes(source)) == len(PETS)
    put(source, PETS[:5])
    assert len(classes(source)) == 5


def test_an_archive_without_images_says_what_it_looked_for(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no images in the tar archives of .*a\.tar: looked for \.jpg"):
        raw_of(put(tmp_path / "a.tar", [("readme.txt", b"x"), ("._cat.png", b"x")]))


def test_names_that_are_no_utf8_are_shown(tmp_path: Path) -> None:
    files = [(f"caf\udce9/{i}.png", png(i)) for i in range(2)] + [("the/2.png", png(2))]
    assert set(classes(put(tmp_path / "a.tar", archive(files, tarfile.GNU_FORMAT))).values()) == {r"caf\xe9", "the"}


def test_two_processes_prepare_the_same_and_a_look_reads_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = made(tmp_path / "tars", "a tar of tars")
    made_by = [prepare(source, tmp_path / "one", size=8, shard_bytes=600)]
    made_by.append(prepare(source, tmp_path / "two", size=8, shard_bytes=600, mapper=by_pickle))
    assert made_by[0] == made_by[1]
    prints = [load_images(folder, split="train").fingerprint for folder in (tmp_path / "one", tmp_path / "two")]
    assert prints == [load_images(source, split="train", cache=tmp_path / "cache").fingerprint] * 2
    monkeypatch.setattr("dualrate.data.images.MOST", 2)
    read = []
    monkeypatch.setattr(Member, "read", lambda member: read.append(member) or png(0))
    assert look_at(source).shapes == ((3, 8, 8),) * 2
    assert len(read) == 2


def test_what_else_lies_beside_images_is_counted_and_values_that_are_no_labels_are_named(tmp_path: Path) -> None:
    files: list[tuple[str, Content]] = []
    for i in range(6):
        files += [(f"{i}.png", png(i)), (f"{i}.json", b'{"url": "x", "category": 3}'), (f"{i}.txt", b"a caption")]
    source = put(tmp_path / "x.tar", files)
    said = "skipped the files 6 x .json without label (category, url), 6 x .txt, which are no images"
    assert said_of(source) == {said}


def test_wide_digits_are_a_name(tmp_path: Path) -> None:
    files = [file for i in range(4) for file in ((f"{i}.png", png(i)), (f"{i}.cls", "\uff11".encode()))]
    assert set(classes(put(tmp_path / "x.tar", files)).values()) == {"\uff11"}
