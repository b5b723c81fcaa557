"""Options that act on some runs alone: what help shows, and what is refused."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cli.command import call

from dualrate.cli import main as cli
from dualrate.experiment.modality import maker_of
from dualrate.options.acting import KINDS, OF_RUNS, OPTIONS, acts, named_runs, near_options, refusal
from dualrate.runs.store import read_experiment
from dualrate_command import answer

GOLDEN = Path(__file__).parent.parent / "golden"
COMMANDS = json.loads(OPTIONS.read_text())
RUNS = {path.parent.name: path.parent for path in sorted(GOLDEN.glob("*/experiment.json"))}


def stored(name: str) -> dict:
    """A run's experiment as the command line reads it."""
    ((_, run),) = named_runs("sample", [str(RUNS[name])])
    return run


@pytest.fixture
def folder(tmp_path):
    """A folder with the experiment of one of the golden files alone."""

    def made(name: str) -> Path:
        (tmp_path / name).mkdir()
        shutil.copy(GOLDEN / "experiments" / f"{name}.json", tmp_path / name / "experiment.json")
        return tmp_path / name

    return made


@pytest.mark.parametrize("name", RUNS)
def test_what_acts_on_a_run_is_what_its_experiment_takes(name):
    """By the experiment itself, which the command line does not build."""
    run, experiment = stored(name), read_experiment(RUNS[name])
    conditional, noun = experiment.networks.given is not None, maker_of(experiment).noun
    guided = experiment.num_classes > 0
    latent = bool(experiment.codec.fingerprint or experiment.condition.codec.fingerprint)
    expected = {
        "--members": conditional,
        "--bound": not conditional,
        "--npz": noun == "image",
        "--features": noun == "image",
        "--screen": noun != "forecast",
        "--label": guided,
        "--guidance": guided,
        "--codec": latent,
        "--stride": noun == "forecast" and bool(getattr(experiment.networks, "leads", ())),
        "--region": len(getattr(getattr(experiment.condition, "geometry", None), "axes", ())) == 2,
        "--prompt": type(experiment.condition).__name__ == "Prompts",
        "--gamma": not experiment.codec.instant,
        "--steps": True,
    }
    assert {option: acts("evaluate", option, run) for option in expected} == expected


def test_every_option_of_a_kind_is_one_of_a_command():
    options = {f"{name} {option}" for name in OF_RUNS for option in COMMANDS[name]["options"]}
    options |= {option for name in OF_RUNS for option in COMMANDS[name]["options"]}
    options |= {f"train {option}" for option in COMMANDS["train"]["options"]} | {"train --data.augment"}
    assert not {option for kind in KINDS for option in kind.options} - options


@pytest.mark.parametrize("name", OF_RUNS)
def test_help_without_a_run_is_a_screen_that_groups_what_acts_on_some_runs(name):
    code, text = answer([name, "--help"])
    assert code == 0
    lines = text.splitlines()
    assert len(lines) <= 52
    assert max(map(len, lines)) <= 120
    words = {line.split()[0] for line in lines if line.startswith("  ")}
    switches = {option for option in COMMANDS[name]["options"] if option.startswith("--no-")}
    idle = {option for option in COMMANDS[name]["options"] if not acts(name, option, stored("channels"))}
    assert words >= set(COMMANDS[name]["options"]) - switches - (idle if name == "forecast" else set())
    if name not in ("forecast", "plan"):
        assert "For all runs" in lines
        assert "For runs with a condition" in lines


@pytest.mark.parametrize("name", ["single", "text-to-image", "super-resolution", "tokens", "leads", "channels"])
@pytest.mark.parametrize("order", [["{}", "--help"], ["--help", "{}"], ["--json", "-h", "{}"]])
def test_help_for_a_run_shows_what_acts_on_it(name, order):
    _, text = answer(["evaluate", *(word.format(RUNS[name]) for word in order)])
    shown = {line.split()[0] for line in text.splitlines() if line.startswith("  -")}
    options = {option for option in COMMANDS["evaluate"]["options"] if not option.startswith("--no-")}
    assert shown == {option for option in options if acts("evaluate", option, stored(name))}
    assert "\n  --num INT\n      Number of images. Default: 5000" in text  # in full


def test_what_a_folder_of_diffusers_takes():
    _, text = answer(["sample", str(GOLDEN / "model"), "--help"])
    assert "\n  --prompt" in text
    assert "\n  --codec" in text
    assert "\n  --given" not in text


LINES = {
    "sample {single} --out OUT --prompt x": ("--prompt", "text-to-image runs", "single"),
    "sample --out OUT --given x.png {single}": ("--given", "runs whose condition is a picture", "single"),
    "sample --npz --members=3 {single} --out OUT": ("--members", "runs with a condition", "single"),
    "evaluate {channels} --keep x --details": ("--keep and --details", "runs that make images", "channels"),
    "evaluate {super-resolution} --bound": ("--bound", "runs without a condition", "super-resolution"),
    "forecast {channels} --out OUT --stride 2": ("--stride", "forecasts trained with --window leads", "channels"),
    "forecast {leads} --out OUT --region north": ("--region", "forecasts over latitudes and longitudes", "leads"),
    "cost {single} --codec_steps 3": ("--codec-steps", "runs of latents", "single"),
    "cost {tokens} --eta 0.5": ("--eta", "runs of Gaussian noise", "tokens"),
    "compare A={channels}:32/8@ddim --screen 10": ("--screen", "runs that make images or texts", "channels"),
    "compare {channels}+taylor:32/8 --no-mixed": ("--no-mixed", "runs that make images or texts", "channels"),
    "plan {single} --budget 1x --members 2": ("--members", "runs with a condition", "single"),
    "export {channels} --to diffusers OUT --guidance 2": ("--guidance", "runs with classes or prompts", "channels"),
}  # fmt: skip


@pytest.mark.parametrize("line", LINES)
def test_an_option_that_cannot_act_is_refused_in_a_line(line, tmp_path, monkeypatch, capsys):
    """Without torch, and by the parser."""
    idle, called, name = LINES[line]
    words = [word.format(**RUNS).replace("OUT", str(tmp_path / "out")) for word in line.split()]
    command = words[0]
    says = f"{idle}: only for {called}, and {RUNS[name]} is none of these: drop {idle}, or name such a run"
    assert answer(words) == (2, f"dualrate {command}: {says}\n")
    assert call(monkeypatch, *words) == 2
    assert capsys.readouterr().err == f"dualrate: {says}\n"
    assert not (tmp_path / "out").exists()


def test_a_text_has_no_images(folder):
    assert "runs that make images, and" in str(refusal("sample", [str(folder("text-tokens")), "--npz"]))


@pytest.mark.parametrize(
    "line",
    [
        "sample --out {channels} --prompt x weights",  # the value of another option is no run
        "sample {text-to-image} --out OUT --prompt x --members 2 --guidance 3",
        "evaluate {super-resolution} --members 3 --details",
        "evaluate --images {single} --features inception",
        "compare {single} {dual} --equal-classes --baselines",
        "forecast {leads} --out OUT --stride 2 --members 4",
        "sample nowhere --out OUT --prompt x",
        "data prepare {single} OUT --size 8 --label x",
    ],
)
def test_what_can_act_is_let_through(line):
    assert answer([word.format(**RUNS) for word in line.split()]) is None


@pytest.mark.parametrize(
    "content",
    [
        "", "[]", "{}", "[" * 100_000, '{"networks": null}', '{"networks": 3, "condition": [], "codec": "x"}',
        '{"condition": {"type": "Forecast"}, "networks": 3}',
    ],
)  # fmt: skip
def test_a_damaged_experiment_is_left_to_the_loader(content, tmp_path):
    (tmp_path / "experiment.json").write_text(content)
    assert answer(["sample", str(tmp_path), "--help"])[0] == 0
    answer(["forecast", str(tmp_path), "--out", "x", "--stride", "3", "--guidance", "2"])


def test_help_for_a_run_needs_no_torch():
    code = (
        "import sys, dualrate_command; sys.argv[1:] = ['sample', sys.argv[1], '--help']; dualrate_command.main(); "
        "assert not {'torch', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(RUNS["single"])], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(("line", "near"), [("smple x", "sample"), ("train cifar10-dul", "cifar10-dual")])
def test_the_parser_asks_for_the_nearest_name_too(line, near):
    with pytest.raises(ValueError, match=rf"\(did you mean {near}\?\)"):
        cli.parsed(line.split())


OF_DATA = {  # by recipe, of the data's options
    "fashion-mnist-small": {"source", "size", "channels", "on-bad", "label", "augment.flip", "augment.translate"},
    "fashion-mnist-tokens-dual": {"source", "size", "channels", "on-bad", "label", "augment.flip", "augment.translate"},
    "auto": {"source", "size", "channels", "on-bad", "label", "augment.flip", "augment.translate"},
    "text-tokens": {"source", "size"},
    "ks-forecast": {"source", "variables", "levels"},
    "forecast": {"source", "variables", "levels", "size", "channels", "on-bad", "fps"},
    "clips": {"source", "variables", "levels", "size", "channels", "on-bad", "fps"},
}


@pytest.mark.parametrize("recipe", OF_DATA)
def test_help_for_a_recipe_shows_the_options_of_its_data(recipe, monkeypatch, capsys):
    assert call(monkeypatch, "train", recipe, "--help-all") == 0
    shown = capsys.readouterr().out
    assert set(re.findall(r"^[│ ] --data\.([\w.-]+)", shown, re.MULTILINE)) == OF_DATA[recipe]
    assert ("data.augment options" in shown) == ("augment.flip" in OF_DATA[recipe])


@pytest.mark.parametrize(
    ("line", "idle", "called"),
    [
        ("train fashion-mnist-small --data.levels 500", "--data.levels", "forecasts"),
        ("train auto --data.source x --data.variables=t", "--data.variables", "forecasts"),
        ("train text-tokens --data.on_bad skip", "--data.on-bad", "images or clips"),
        ("train ks-forecast --data.augment.no-flip", "--data.augment.no-flip", "runs that make images"),
        ("train ks-forecast --data.source x --data.size 8", "--data.size", "images, texts or clips"),
        ("train auto --data.source x --data.fps 4", "--data.fps", "forecasts of clips"),
        ("retrofit folder --name x --data.levels 500", "--data.levels", "forecasts"),
    ],
)
def test_an_option_of_other_data_is_refused_before_they_are_read(line, idle, called, monkeypatch, capsys):
    assert call(monkeypatch, *line.split()) == 2
    says = f"{idle}: only for {called}, and {line.split()[1]} is none of these: drop {idle}"
    assert capsys.readouterr().err.endswith(f"dualrate: {says}\n")


def test_help_for_a_model_to_retrofit_is_of_images(monkeypatch, capsys):
    assert call(monkeypatch, "retrofit", "a folder", "--help") == 0
    shown = capsys.readouterr().out
    assert "--data.label" in shown
    assert "--data.variables" not in shown


def test_what_a_foreign_recipe_makes_says_what_acts(monkeypatch, capsys):
    """A recipe of another package is of an unknown kind until it has made its experiment."""
    words = ("train", "dualrate.recipes.fashion_mnist:dual", "--data.variables", "t")
    assert call(monkeypatch, *words) == 2
    assert "--data.variables: only for forecasts" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["--nfe", "--num-inference-steps", "--num_inference_steps", "--sampling-steps"])
def test_other_names_of_steps_are_understood(name, tmp_path):
    code, says = answer(["sample", str(RUNS["single"]), "--out", str(tmp_path / "out"), name, "8"])
    assert (code, "\n  --steps INT" in says) == (2, True), says


def test_steps_of_something_else_are_not_the_steps_of_a_sample():
    assert near_options("--codec-step", ["--steps", "--codec-steps"]) == ["--codec-steps"]
    assert near_options("--nfe", ["--out"]) == []
