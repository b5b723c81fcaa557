"""Texts from one end to the other: trained by the recipe, drawn on the terminal, scored, distilled; what is refused."""

import html
import json
import sys

import numpy as np
import pytest
from cli.command import call

import dualrate as dr
from dualrate.cli import distill as cli_distill
from dualrate.comparison import compare as comparing
from dualrate.data.images import to_float
from dualrate.diffusion.random import Draws
from dualrate.runs.store import load
from dualrate.serving.offer import Offer
from dualrate.texts import language_model as language_model
from dualrate.texts import recipe as token_models
from dualrate.texts.codec import BETWEEN, Characters, texts
from dualrate.texts.pieces import PYTHON_DOCS, is_text, read_text
from dualrate.texts.scores import entropy

TEXT = "the quick brown fox\njumps über the lazy dog. " * 40
FIT = ("--fit.iterations", 2, "--fit.batch-size", 4, "--fit.sample-every", 2, "--device", "cpu")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("text")
    (root / "own.txt").write_text(TEXT, "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_models, "HEAVY_TEXT", (32, 1))
        patch.setattr(token_models, "LIGHT_TEXT", (32, 1))
        of = ("--data.source", root / "own.txt", "--data.size", 16)
        assert call(patch, "train", "text-tokens", *of, "--out", root / "run", *FIT) == 0
        other = ("--rate", "dual", "--noise", "uniform", "--out", root / "dual")
        assert call(patch, "train", "text-tokens", *of, *other, *FIT) == 0
    return root


def test_a_text_is_drawn_on_the_terminal_and_into_a_file(root, tmp_path, monkeypatch, capsys):
    shown = (root / "run" / "samples" / "0000002.txt").read_text("utf-8")
    assert len(shown.split(BETWEEN)) == 2  # few_samples of conftest.py
    sample = ("sample", root / "run", "--out", tmp_path / "made", "--num", 3, "--steps", 4, "--device", "cpu")
    assert call(monkeypatch, *sample) == 0
    written = (tmp_path / "made" / "samples.txt").read_text("utf-8")
    pieces = written[:-1].split(BETWEEN)
    assert [len(piece) for piece in pieces] == [16] * 3
    assert set(written) <= set(TEXT) | set(BETWEEN)
    assert BETWEEN.join(pieces) in capsys.readouterr().out
    files = sorted((tmp_path / "made").glob("0*.txt"))
    assert [file.read_bytes().decode() for file in files] == pieces
    assert call(monkeypatch, *sample, "--npz") == 2
    assert "--npz: only for runs that make images" in capsys.readouterr().err


def test_drawing_goes_on_after_a_kill(root, tmp_path, monkeypatch, capsys):
    out = tmp_path / "made"
    sample = ("sample", root / "run", "--out", out, "--num", 4, "--batch-size", 2, "--steps", 2, "--device", "cpu")
    assert call(monkeypatch, *sample) == 0
    whole = {file.name: file.read_bytes() for file in out.glob("*.txt")}
    assert set(whole) == {"000000.txt", "000001.txt", "000002.txt", "000003.txt", "samples.txt"}
    (out / "000003.txt").write_bytes(whole["000003.txt"][:5])  # as a loss of power may cut it
    (out / "000000.txt").unlink()
    (out / "samples.txt").unlink()
    capsys.readouterr()
    assert call(monkeypatch, *sample, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["texts"], report["drawn"]) == (4, 4)
    assert report["pieces"] == [whole[f"{seed:06d}.txt"].decode() for seed in range(4)]
    assert {file.name: file.read_bytes() for file in out.glob("*.txt")} == whole
    assert call(monkeypatch, *sample, "--json") == 0
    assert json.loads(capsys.readouterr().out)["drawn"] == 0
    assert call(monkeypatch, "sample", root / "dual", "--out", out, "--steps", 2, "--device", "cpu") == 2
    assert "holds other samples" in capsys.readouterr().err


def test_it_is_scored_in_bits_a_character(root, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DUALRATE_CACHE", str(tmp_path))
    monkeypatch.setattr(language_model, "HIDDEN", 32)
    evaluate = ("evaluate", root / "dual", "--num", 6, "--steps", 4, "--device", "cpu")
    assert call(monkeypatch, *evaluate, "--json") == 0
    shown = capsys.readouterr()
    assert "training a language model on own.txt, once" in shown.err
    report = json.loads(shown.out)
    symbols = len(set(TEXT))
    assert 0.5 * np.log2(symbols) < report["bound"]["total"]["value"] < 2 * np.log2(symbols)  # it is hardly trained
    assert 2 < report["held_out"]["entropy"]["value"] < 4
    assert report["held_out"]["bits"]["value"] < 2 < report["drawn"]["bits"]["value"]  # one sentence, learned by heart
    moment, floor = report["gradient_moment"], report["floor"]
    assert moment["value"] - 2 * moment["error"] > floor["value"] + 2 * floor["error"]
    assert call(monkeypatch, *evaluate) == 0  # with the language model that was kept
    shown = capsys.readouterr()
    assert "training" not in shown.err
    assert f"gradient moment  {moment['value']:.4g}" in shown.out
    assert call(monkeypatch, "evaluate", root / "dual", "--features", "inception", "--device", "cpu") == 2
    assert "--features: only for runs that make images" in capsys.readouterr().err
    assert call(monkeypatch, "evaluate", root / "dual", "--num", 2, "--device", "cpu") == 2
    assert "at least 3 pieces" in capsys.readouterr().err
    assert call(monkeypatch, "evaluate", root / "run", "--bound", "--num", 2, "--steps", 4, "--device", "cpu") == 0
    assert "bits a token" in capsys.readouterr().out


def test_texts_are_compared(root, tmp_path, monkeypatch, capsys):
    """Their judge is a language model, and their samples are passages on the page."""
    monkeypatch.setenv("DUALRATE_CACHE", str(tmp_path))
    monkeypatch.setattr(language_model, "HIDDEN", 16)
    monkeypatch.setattr(comparing, "BATCH", 2)
    entries, page = (f"{root / 'run'}:2", f"{root / 'dual'}:2/1"), tmp_path / "report.html"
    compare = ("compare", *entries, "--screen", 192, "--count", 200, "--out", page, "--device", "cpu")
    assert call(monkeypatch, *compare) == 0, capsys.readouterr().err
    front = json.loads(page.with_suffix(".json").read_text())["front"]
    assert [(one["run"], one["metric"]) for one in front] == [("run", "FD-own"), ("dual", "FD-own")]
    written, alphabet = page.read_text("utf-8"), "".join(sorted(set(TEXT)))
    drawn = dr.Choice(2, sampler="ancestral").drawer(load(root / "run")).draw([0])
    assert html.escape(next(iter(texts(alphabet, drawn.images)))) in written
    assert call(monkeypatch, *compare, "--features", "fashion-mnist") == 2
    assert "--features: only for runs that make images" in capsys.readouterr().err


def test_it_is_distilled(root, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cli_distill.students, "PRETRAINING", 1)
    student = ("distill", "text-tokens", "--teacher", root / "run", "--steps", 4, "--out", tmp_path / "s", *FIT)
    assert call(monkeypatch, *student) == 0, capsys.readouterr().err
    model = load(tmp_path / "s")
    assert model.experiment.networks.noise == 4
    assert dr.Choice().drawer(model).draw([0]).images.shape == (1, 1, 1, 16)


def test_characters_are_kept():
    codec = Characters("abc ü")
    images = np.array([[[[0, 4, 3, 2]]]], np.uint8)
    built = codec.build(None, "cpu")
    tokens = built.encode(to_float(images)).mean
    assert tokens.argmax(1).flatten().tolist() == [0, 4, 3, 2]
    assert list(texts(codec.alphabet, images)) == ["aü c"]
    decoded = built.decode(tokens, Draws(0, None))
    assert (decoded * 127.5 + 127.5).round().flatten().tolist() == [0, 4, 3, 2]
    with pytest.raises(ValueError, match="different characters, got 3"):
        Characters("aab")


def test_pieces_are_of_a_text_s_two_parts(root):
    train, test = (read_text(root / "own.txt", split, 16) for split in ("train", "test"))
    assert train.alphabet == "".join(sorted(set(TEXT)))
    edge = len(TEXT) - len(TEXT) // 10
    assert len(train) == edge - 15
    (first, second), (held,) = texts(train.alphabet, train.images[:2]), texts(train.alphabet, test.images[1:2])
    assert (first, second, held) == (TEXT[:16], TEXT[1:17], TEXT[edge + 16 : edge + 32])
    assert train.fingerprint != test.fingerprint


def test_entropy_is_of_the_characters_of_a_piece():
    pieces = np.array([[0, 0, 1, 1], [0, 1, 2, 3]], np.uint8)[:, None, None]
    assert entropy(pieces).value == pytest.approx(1.5)


def test_python_s_own_reference_is_a_text(monkeypatch):
    pytest.importorskip("pydoc_data.topics")
    assert is_text(PYTHON_DOCS)
    assert len(read_text(PYTHON_DOCS, "test")) > 100
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(FileNotFoundError, match="without its language reference"):
        read_text(PYTHON_DOCS, "test")


@pytest.mark.parametrize(
    ("content", "size", "message"),
    [
        (b"short", 16, "has 5 characters; pieces of 16 want 480 or more"),
        (b"\xff\xfe" * 400, 16, "cannot be read as text in UTF-8"),
        ("".join(map(chr, range(200, 700))).encode(), 16, "500 different characters, expected 2 to 255"),
        (b"a" * 500, 16, "1 different characters"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path, content, size, message):
    (tmp_path / "bad.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_text(tmp_path / "bad.txt", "train", size)
    with pytest.raises(FileNotFoundError, match="there is no text"):
        read_text(tmp_path / "none.txt", "train")


def test_what_texts_cannot_have_is_refused(root, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for command, message in (
        (("train", "text-tokens", "--data.source", "fashion-mnist"), "text-tokens is of texts"),
        (("train", "fashion-mnist-tokens", "--data.source", root / "own.txt", "--data.size", 14), "is a text of"),
        (
            ("compare", root / "run", "--features", "fashion-mnist", "--out", tmp_path / "c.html"),
            "--features: only for runs that make images",
        ),
        (("plan", root / "dual", "--budget", "0.25x"), "no Gaussian noise"),
    ):
        assert call(monkeypatch, *command, "--device", "cpu") == 2, command
        assert message in capsys.readouterr().err
    with pytest.raises(ValueError, match="text model"):
        Offer(load(root / "run"))
