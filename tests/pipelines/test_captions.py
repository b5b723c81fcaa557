"""Captions find their images by what stands in a file, whatever its columns are called; what is left out is said."""

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dualrate.data.finding import named_splits
from dualrate.data.source import NOTED, names_of
from dualrate.pipelines.captions import Captions, read_captions

COUNT = 12
ROWS = [(f"{i}.png", f"picture {i}") for i in reversed(range(COUNT))]
Write = Callable[[Path, list[str], list[list[object]]], Path]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Pictures 0.png to 11.png: by text the order is 0, 1, 10, 11, 2, ..."""
    for i in range(COUNT):
        picture(tmp_path / "photos" / f"{i}.png", i)
    return tmp_path / "photos"


def picture(file: Path, level: int = 0) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 4), level).save(file)


def by_image(captions: Captions, source: Path) -> dict[str, str]:
    """The caption of each image, by its name."""
    texts, start = {}, 0
    for _, text in captions.rows():
        texts[start] = text
        start += len(json.dumps(text).encode()) + 1
    splits = named_splits(source, "captions")
    return {
        name: texts[int(place)]
        for split, places in captions.places.items()
        for name, place in zip(names_of(splits[split].read().items), places, strict=True)
    }


def expected() -> dict[str, str]:
    return dict(ROWS)


def said_of(place: Path, source: Path) -> list[str]:
    said: list[str] = []
    read_captions(place, source, None, lambda done, total, message: said.append(message))
    return [message for message in said if message.startswith(NOTED)]


def separated(file: Path, columns: list[str], rows: list[list[object]]) -> Path:
    sign = "\t" if file.suffix == ".tsv" else ","
    lines = [columns, *rows]
    file.write_text("\n".join(sign.join("" if cell is None else str(cell) for cell in line) for line in lines) + "\n")
    return file


def lines_of_json(file: Path, columns: list[str], rows: list[list[object]]) -> Path:
    file.write_text("\n".join(json.dumps(dict(zip(columns, row, strict=True))) for row in rows) + "\n")
    return file


def parquet(file: Path, columns: list[str], rows: list[list[object]]) -> Path:
    pq.write_table(pa.table({name: [row[i] for row in rows] for i, name in enumerate(columns)}), file)
    return file


TABLES: dict[str, Write] = {".csv": separated, ".tsv": separated, ".jsonl": lines_of_json, ".parquet": parquet}


@pytest.mark.parametrize("ending", TABLES)
@pytest.mark.parametrize("named", ["image_file", "img", "key", "Datei"])
@pytest.mark.parametrize("path", ["{}.png", "{}", "photos/{}.png", "./{}.jpg", "{root}/{}.png"])
def test_the_column_of_names_is_seen_by_its_values(ending: str, named: str, path: str, photos: Path) -> None:
    rows: list[list[object]] = [
        [path.format(name.removesuffix(".png"), root=photos), text, i] for i, (name, text) in enumerate(ROWS)
    ]
    file = TABLES[ending](photos.parent / f"captions{ending}", [named, "caption", "score"], rows)
    assert by_image(read_captions(file, photos), photos) == expected()
    assert said_of(file, photos) == [f"skipped 1 column of {file.name} (score)"]


@pytest.mark.parametrize("ending", TABLES)
def test_the_case_of_an_ending_does_not_count(ending: str, photos: Path) -> None:
    rows: list[list[object]] = [[name, text, i] for i, (name, text) in enumerate(ROWS)]
    file = TABLES[ending](photos.parent / f"captions{ending}", ["image", "caption", "score"], rows)
    file = file.rename(file.with_suffix(ending.upper()))
    assert by_image(read_captions(file, photos), photos) == expected()


@pytest.mark.parametrize("ending", TABLES)
@pytest.mark.parametrize("value", ["IMG-{}", "elsewhere/{}.png", "https://x.org/{}.png", "{}.5"])
def test_columns_that_name_no_image_are_refused_by_name(ending: str, value: str, photos: Path) -> None:
    rows: list[list[object]] = [[value.format(i), f"picture {i}"] for i in range(COUNT)]
    file = TABLES[ending](photos.parent / f"captions{ending}", ["which", "caption"], rows)
    with pytest.raises(ValueError, match=r"has the columns which, and none of them holds names of the images .*\.txt"):
        read_captions(file, photos)


@pytest.mark.parametrize("ending", TABLES)
def test_some_names_are_not_enough(ending: str, photos: Path) -> None:
    rows: list[list[object]] = [[name if i else "away.png", text] for i, (name, text) in enumerate(ROWS)]
    file = TABLES[ending](photos.parent / f"captions{ending}", ["which", "caption"], rows)
    with pytest.raises(ValueError, match=r"has captions \(12\) for the images \(12\) .* none for 1 of them \(11\)"):
        read_captions(file, photos)


@pytest.mark.parametrize("ending", TABLES)
def test_two_columns_of_names_must_agree(ending: str, photos: Path) -> None:
    rows: list[list[object]] = [[name, f"{i}.png", text] for i, (name, text) in enumerate(ROWS)]
    file = TABLES[ending](photos.parent / f"captions{ending}", ["a", "b", "caption"], rows)
    with pytest.raises(ValueError, match="names the images in a, b, each column in another way"):
        read_captions(file, photos)
    usual = TABLES[ending](photos.parent / f"usual{ending}", ["a", "file_name", "caption"], rows)
    assert by_image(read_captions(usual, photos), photos)["0.png"] == ROWS[0][1]


@pytest.mark.parametrize("ending", TABLES)
@pytest.mark.parametrize("first", [0, 1])
def test_rows_that_are_only_counted_are_in_the_order_of_the_images_and_that_is_said(
    ending: str, first: int, tmp_path: Path
) -> None:
    for i in range(COUNT):
        picture(tmp_path / "photos" / f"p{i}.png", i)
    rows: list[list[object]] = [[i + first, f"picture {i}"] for i in range(COUNT)]
    file = TABLES[ending](tmp_path / f"captions{ending}", ["", "caption"], rows)
    found = by_image(read_captions(file, tmp_path / "photos"), tmp_path / "photos")
    assert found == {f"p{i}.png": f"picture {i}" for i in range(COUNT)}
    assert said_of(file, tmp_path / "photos")[0] == "paired by order: the first caption is of p0, the last of p11"


def test_lines_and_their_images_are_in_the_order_of_numbers(photos: Path) -> None:
    file = photos.parent / "captions.txt"
    file.write_text("".join(f"picture {i}\n" for i in range(COUNT)))
    assert by_image(read_captions(file, photos), photos) == expected()
    assert said_of(file, photos) == ["paired by order: the first caption is of 0, the last of 11"]


@pytest.mark.parametrize("line", ["{}.png\t{}", "{}\t{}", "{}.png,{}", "{}.png: {}", "{}.png | {}", '"{}.png" {}'])
@pytest.mark.parametrize("header", [False, True])
def test_lines_that_begin_with_a_name_are_found_by_it(line: str, header: bool, photos: Path) -> None:
    file = photos.parent / "captions.txt"
    lines = [line.format(name.removesuffix(".png"), text) for name, text in ROWS]
    file.write_text("\n".join(["name\tcaption"] * header + lines) + "\n")
    assert by_image(read_captions(file, photos), photos) == expected()
    assert said_of(file, photos) == ["skipped 1 caption of no image (name)"] * header


@pytest.mark.parametrize("line", ["IMG-{}\tpicture", "away-{}.png\tpicture", "my photo {}.png, picture"])
def test_lines_that_begin_with_names_of_other_images_are_refused(line: str, photos: Path) -> None:
    file = photos.parent / "captions.txt"
    file.write_text("".join(line.format(i) + "\n" for i in range(COUNT)))
    with pytest.raises(ValueError, match=r"has captions \(12\) for the images \(12\) of .* none for 12 of them"):
        read_captions(file, photos)


@pytest.mark.parametrize("ending", [*TABLES, ".txt"])
def test_of_several_captions_the_first_is_taken_and_the_others_are_counted(ending: str, photos: Path) -> None:
    rows: list[list[object]] = [[name, text] for name, text in [*ROWS, *((name, "second") for name, _ in ROWS)]]
    rows.append(["away.png", "of none"])
    file = photos.parent / f"captions{ending}"
    if ending == ".txt":
        file.write_text("".join(f"{name}#0\t{text}\n" for name, text in rows))
    else:
        TABLES[ending](file, ["name", "caption"], rows)
    assert by_image(read_captions(file, photos), photos) == expected()
    assert said_of(file, photos) == [
        "skipped 12 more captions of images whose first one is taken (11, 10, 9, 8, 7, ...)",
        "skipped 1 caption of no image (away.png)",
    ]


@pytest.mark.parametrize("ending", TABLES)
def test_empty_captions_are_counted(ending: str, photos: Path) -> None:
    rows: list[list[object]] = [[name, {0: None, 1: ""}.get(i, text)] for i, (name, text) in enumerate(ROWS)]
    file = TABLES[ending](photos.parent / f"captions{ending}", ["name", "caption"], rows)
    assert by_image(read_captions(file, photos), photos) == expected() | {"11.png": "", "10.png": ""}
    assert said_of(file, photos) == ["without text: 11, 10 (2 in all), read as the empty prompt"]


def test_text_files_beside_images(photos: Path) -> None:
    for name, text in ROWS:
        (photos / name).with_suffix(".txt").write_text(text + "\n")
    assert by_image(read_captions(photos, photos), photos) == expected()
    (photos / "README.txt").write_text("about")
    assert said_of(photos, photos) == ["skipped 1 text file of no image in photos (README.txt)"]
    (photos / "3.txt").unlink()
    with pytest.raises(ValueError, match=r"none for 1 of them \(3\)"):
        read_captions(photos, photos)


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("ending", [*TABLES, "beside"])
def test_letters_compare_however_they_are_composed(form: Literal["NFC", "NFD"], ending: str, tmp_path: Path) -> None:
    other: Literal["NFC", "NFD"] = "NFD" if form == "NFC" else "NFC"
    names = [f"caf\u00e9 {i}" for i in range(3)]
    for name in names:
        picture(tmp_path / "photos" / f"{unicodedata.normalize(form, name)}.png")
    rows: list[list[object]] = [[f"{unicodedata.normalize(other, name)}.png", name] for name in reversed(names)]
    file = tmp_path / f"captions{ending}"
    if ending == "beside":
        file.mkdir()
        for name, text in rows:
            (file / str(name)).with_suffix(".txt").write_text(str(text))
    else:
        TABLES[ending](file, ["which", "caption"], rows)
    found = by_image(read_captions(file, tmp_path / "photos"), tmp_path / "photos")
    assert found == {f"{unicodedata.normalize(form, name)}.png": name for name in names}


def test_names_in_folders_are_told_apart_by_these(tmp_path: Path) -> None:
    for kind in ("cat", "dog"):
        for i in range(3):
            picture(tmp_path / "pets" / kind / f"{i}.png")
    rows: list[list[object]] = [[f"{kind}/{i}.png", f"{kind} {i}"] for kind in ("dog", "cat") for i in range(3)]
    file = separated(tmp_path / "captions.csv", ["which", "caption"], rows)
    assert by_image(read_captions(file, tmp_path / "pets"), tmp_path / "pets") == {
        str(name): text for name, text in rows
    }
    short = separated(tmp_path / "short.csv", ["which", "caption"], [[str(row[0])[4:], row[1]] for row in rows])
    with pytest.raises(ValueError, match="none of them holds names"):
        read_captions(short, tmp_path / "pets")


def test_tables_that_say_less_or_more_than_it_seems_are_refused(photos: Path) -> None:
    file = photos.parent / "captions.csv"
    for content, why in (
        ("caption,caption\na,b\n", "several columns called 'caption'"),
        ("file_name,caption\n0.png,red, green\n", "captions.csv cannot be read as CSV .* line 2 has more values"),
        ("file_name;caption\n0.png;red\n", "none of captions"),
    ):
        file.write_text(content)
        with pytest.raises(ValueError, match=why):
            read_captions(file, photos)
    (photos.parent / "lines.txt").write_text("a\n" * COUNT)
    for place in (photos.parent / "lines.txt", photos):
        with pytest.raises(ValueError, match=r"#which names a column of a table, and .* has none"):
            read_captions(f"{place}#which", photos)
    file = lines_of_json(photos.parent / "captions.jsonl", ["name", "caption"], [["0.png", ["red", "green"]]])
    with pytest.raises(ValueError, match=r"column caption of .* holds no texts, one string a row"):
        read_captions(file, photos)
    file.write_text('{"name": "0.png", "caption": "red"}\n[1]\n')
    with pytest.raises(ValueError, match="JSONL in UTF-8: line 2 is no object"):
        read_captions(file, photos)
