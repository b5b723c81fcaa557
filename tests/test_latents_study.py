"""studies/unified_latents.py: what its lines are, and the page that it writes."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "studies"))
import unified_latents as study

from dualrate.recipes import latents as fashion_mnist_latents


def test_lines_are_the_recipe_but_for_what_they_are_called_after():
    recipe = fashion_mnist_latents.first(2.0)
    made = {name: line.experiment(name, 500) for name, line in study.LINES.items()}
    assert {name: one.method.loss_factor for name, one in made.items()} == {
        "c1": 1.0, "c1.5": 1.5, "c2": 2.0, "c3": 3.0, "no-gradient": 3.0, "log-snr-10": 3.0
    }  # fmt: skip
    assert made["c2"] == replace(recipe, name="unified-latents-c2", fit=replace(recipe.fit, iterations=500))
    assert {name: one.method.priced_from for name, one in made.items()} == dict.fromkeys(made, 400) | {
        "no-gradient": 500
    }
    ends = {name: (one.process.end, one.codec.log_snr) for name, one in made.items()}
    assert ends == dict.fromkeys(made, (5.0, 5.0)) | {"log-snr-10": (10.0, 10.0)}


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """Results of two lines, one of them of another number of iterations."""
    monkeypatch.setattr(study, "WHERE", tmp_path)
    one = {
        "count": 10,
        "bits": {"value": 0.1, "error": 0.01},
        "psnr": {"psnr": 20.0, "error": 0.1},
        "rfd": {"FD-one": [1.0, 0.9, 1.1], "FD-two": [4.0, 3.0, 5.0]},
        "gfd": {"FD-one": [2.0, 1.9, 2.1], "FD-two": [8.0, 7.0, 9.0]},
    }
    for name, iterations in (("c3", study.ITERATIONS), ("log-snr-10", study.ITERATIONS), ("c1", 7)):
        study.file_of(name, iterations).write_text(json.dumps(one))
    return tmp_path


def test_table_and_figure_are_of_what_was_measured(kept):
    found = study.results()
    assert list(found) == ["c3", "log-snr-10"]
    header, _, first, second = study.table(found).splitlines()
    assert header == "| c | bits a pixel | PSNR, dB | rFD-one | rFD-two | gFD-one | gFD-two |"
    assert first.startswith("| 3 | 0.1000 ± 0.0100 | 20.00 ± 0.10 | 1.00 [0.900, 1.10] | 4.00")
    assert second.startswith("| 3, log-SNR 10 |")
    assert [axes.get_title() for axes in study.figure(found).axes] == [
        "PSNR, dB", "rFD-one", "gFD-one, drawn from the prior"
    ]  # fmt: skip


def test_what_was_measured_is_not_trained_again(kept, monkeypatch):
    monkeypatch.setattr(study, "run_training", lambda *of: pytest.fail("trained"))
    study.run("c3", study.ITERATIONS, 10)
    with pytest.raises(ValueError, match="is of 10 images, not of 700: delete it"):
        study.run("c3", study.ITERATIONS, 700)
