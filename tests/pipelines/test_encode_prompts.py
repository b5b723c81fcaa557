"""`dualrate data encode --prompts`: captions of each kind, resumed, verified; and what is refused."""

import json
import re
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from cli.command import call
from latents.autoencoders import photos
from PIL import Image
from pipelines.stub_texts import TOKENS, WIDTH, embedding, encoders, text_pipeline

from dualrate.data.cache import cache_dir
from dualrate.data.finding import find_source
from dualrate.data.loader import Augment
from dualrate.data.source import SPLITS, names_of, silent
from dualrate.diffusion.random import Draws
from dualrate.pipelines.captions import Captions, read_captions
from dualrate.pipelines.prompt_set import read_prompts

COUNT = 12
TEXTS = [f'picture {i}, "quoted"\tand ünlike' for i in range(COUNT)]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A pipeline, images in a folder and in a file, and their captions in every kind of place."""
    root, images = tmp_path_factory.mktemp("prompts"), photos(COUNT)
    text_pipeline(root / "model", images)
    np.savez(root / "images.npz", images=images.transpose(0, 2, 3, 1))
    (root / "photos").mkdir()
    (root / "beside").mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image.transpose(1, 2, 0)).save(root / "photos" / f"p{i:02}.png")
        (root / "beside" / f"p{i:02}.txt").write_text(TEXTS[i] + "\n")
    (root / "lines.txt").write_text("\n".join(TEXTS) + "\n")
    shuffled = np.random.default_rng(0).permutation(COUNT)
    quoted = [TEXTS[i].replace('"', '""') for i in range(COUNT)]
    rows = "\n".join(f'p{i:02}.png,"{quoted[i]}"' for i in shuffled)
    (root / "named.csv").write_text(f"file_name,text\n{rows}\n")
    table = {"number": list(range(COUNT)), "alt": TEXTS}
    pq.write_table(pa.table(table), root / "columns.parquet")
    pq.write_table(pa.table({"caption": TEXTS}), root / "captions.parquet")
    return root


def of_images(found: Captions, tmp_path) -> dict[str, list[str]]:
    """Return the texts of each split, in the order of its images."""
    found.write(tmp_path / "captions")
    content = (tmp_path / "captions").read_bytes()
    return {split: [json.loads(content[p:].split(b"\n")[0]) for p in found.places[split]] for split in SPLITS}


@pytest.mark.parametrize("source", ["images.npz", "photos"])
@pytest.mark.parametrize("place", ["lines.txt", "named.csv", "beside", "captions.parquet", "columns.parquet#alt"])
def test_each_image_has_its_own_caption_wherever_that_is(root, tmp_path, place, source):
    if source == "images.npz" and place in ("named.csv", "beside"):
        with pytest.raises(ValueError, match=r"none for 12 of them \(images.npz\[0\], .* a column file_name"):
            read_captions(root / place, root / source)
        return
    made = of_images(read_captions(root / place, root / source), tmp_path)
    assert [len(made[split]) for split in SPLITS] == [11, 1]
    for split in SPLITS:
        names = names_of(find_source(root / source, split, cache_dir(), silent).read().items)
        assert made[split] == [TEXTS[int(re.findall(r"\d+", name)[-1])] for name in names]


def test_lines_of_captions_are_in_the_order_of_the_numbers_in_names(tmp_path):
    (tmp_path / "photos").mkdir()
    for name in ("-1", "0", "1.5", *range(2, 12)):
        Image.new("RGB", (4, 4)).save(tmp_path / "photos" / f"{name}.png")
    (tmp_path / "lines.txt").write_text("-1\n0\n1.5\n" + "".join(f"{i}\n" for i in range(2, 12)))
    texts = of_images(read_captions(tmp_path / "lines.txt", tmp_path / "photos"), tmp_path)
    for split in SPLITS:
        names = names_of(find_source(tmp_path / "photos", split, cache_dir(), silent).read().items)
        assert [f"{text}.png" for text in texts[split]] == names


def encode(patch, root, out, captions="named.csv", source="photos", *more):
    how = ("--prompts", root / captions, root / "model", "--no-mirrored", "--device", "cpu", "--batch-size", "4")
    return call(patch, "data", "encode", root / source, out, *how, *more)


def test_prompts_lie_beside_latents_and_a_killed_call_goes_on(root, tmp_path, monkeypatch, capsys):
    read, out = encoders(monkeypatch), tmp_path / "latents"
    monkeypatch.setattr("dualrate.cli.data.MIB", 4 * TOKENS * WIDTH * 2)  # four prompts a shard
    assert encode(monkeypatch, root, out, "named.csv", "photos", "--shard-mib", "1") == 0
    assert f"prompts        {TOKENS * WIDTH}" in capsys.readouterr().out
    prompts, order = (
        read_prompts(out, "train"),
        of_images(read_captions(root / "named.csv", root / "photos"), tmp_path)["train"],
    )
    assert (len(prompts), prompts.shape, len(prompts.packed.part["shards"])) == (11, (1, 1, TOKENS * WIDTH), 3)
    rows = prompts.rows(np.arange(11), Draws(0, torch.arange(11)), Augment())
    expected = torch.stack([embedding(text).half().flatten() for text in order])
    assert torch.equal(rows[:, 0, 0], expected)
    torch.testing.assert_close(prompts.empty().flatten(), embedding("").flatten())
    before = prompts.fingerprint
    for file in ("train-00001.bin", "MANIFEST.json", "dataset.json"):
        (out / "prompts" / file).unlink()
    with pytest.raises(ValueError, match="is not finished"):
        read_prompts(out, "train")
    texts = read[0].texts
    assert encode(monkeypatch, root, out, "named.csv", "photos", "--shard-mib", "1") == 0
    assert sum(one.texts for one in read) - texts == 4  # of the shard alone; the empty prompt is kept
    assert read_prompts(out, "train").fingerprint == before
    assert call(monkeypatch, "data", "verify", out) == 0
    for name in ("captions", "empty.npy", "train-00000.bin"):
        file = out / "prompts" / name
        content = bytearray(before_flip := file.read_bytes())
        content[-20] ^= 1
        file.write_bytes(content)
        capsys.readouterr()
        assert call(monkeypatch, "data", "verify", out) == 2
        assert name in capsys.readouterr().err
        file.write_bytes(before_flip)
    assert call(monkeypatch, "data", "verify", out) == 0
    (out / "prompts" / "captions").unlink()
    assert call(monkeypatch, "data", "verify", out) == 2


def test_what_cannot_be_encoded_is_refused_with_the_way_out(root, tmp_path, monkeypatch, capsys):
    encoders(monkeypatch)

    def refused(why, captions, source="photos", *more):
        assert encode(monkeypatch, root, tmp_path / "out", captions, source, *more) == 2
        assert why in " ".join(capsys.readouterr().err.split())
        assert not (tmp_path / "out").exists()

    refused("has the columns number, alt, and none of captions (caption, text, prompt): name it", "columns.parquet")
    refused("column number of", "columns.parquet#number")
    (root / "few.txt").write_text("\n".join(TEXTS[:10]))
    refused("has captions (10) for the images (12) of", "few.txt")
    (root / "many.txt").write_text("\n".join([*TEXTS, "more"]))
    refused("has captions (13) for the images (12)", "many.txt")
    refused("no captions at", "nowhere.csv")
    (root / "latin.csv").write_bytes("file_name,caption\np00.png,caf\u00e9\n".encode("latin-1"))
    refused("latin.csv cannot be read as CSV in UTF-8", "latin.csv")
    pq.write_table(pa.table({"caption": [[text] for text in TEXTS]}), root / "lists.parquet")
    refused("one string a row; it has the columns caption: name another, lists.parquet#COLUMN", "lists.parquet")
    rows = [f"{i},p{i:02}.png" for i in range(COUNT - 1)]
    (root / "short.csv").write_text("\n".join(["caption,file_name", *rows, "alone"]))
    refused("none for 1 of them (p11)", "short.csv")
    refused("name the codec by --codec FOLDER, or with --prompts", "lines.txt", "photos", "--codec", root / "model/vae")
    refused("drop --on-bad", "lines.txt", "photos", "--on-bad", "skip")
    mute = shutil.copytree(root / "model", root / "mute")
    for part in ("text_encoder", "tokenizer"):
        shutil.rmtree(mute / part)
    assert (
        call(monkeypatch, "data", "encode", root / "photos", tmp_path / "out", "--prompts", root / "lines.txt", mute)
        == 2
    )
    assert "has no text_encoder" in capsys.readouterr().err
    assert encode(monkeypatch, root, tmp_path / "done", "lines.txt") == 0
    assert encode(monkeypatch, root, tmp_path / "done", "named.csv") == 2
    assert "was made with captions" in capsys.readouterr().err
    other = shutil.copytree(root / "model", root / "other")
    (other / "tokenizer" / "config.json").write_text("{ }")
    capsys.readouterr()
    how = ("--prompts", root / "lines.txt", other, "--no-mirrored", "--device", "cpu")
    assert call(monkeypatch, "data", "encode", root / "photos", tmp_path / "done", *how) == 2
    assert "was made with encoder" in capsys.readouterr().err
