"""Mistakes of users around a training run: places, names, changed options, odd data, planted files."""

import os
import pickle
import re
import shlex
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from training.toy import Recorder
from trouble import somebody, unreadable

import dualrate as dr
from dualrate.cli import main as cli
from dualrate.cli import train as cli_train
from dualrate.codecs.codec import CodecFolder
from dualrate.comparison.candidates import RunRequest
from dualrate.data.images import ImageSet
from dualrate.diffusion.plan import StepPlan
from dualrate.drawing.drawer import Drawer
from dualrate.experiment import data_config as data_module
from dualrate.experiment.data_config import DataConfig
from dualrate.experiment.experiment import Experiment
from dualrate.experiment.network_configs import OneNetwork, TwoNetworks
from dualrate.methods.denoising import DenoisingConfig
from dualrate.methods.times import TimeSampler
from dualrate.networks.uvit import Level, UViTConfig
from dualrate.runs.release import export
from dualrate.runs.store import load
from dualrate.runs.train import check_out, train
from dualrate.sampling.ddim import DDIM
from dualrate.system.files import read_records
from dualrate.system.folders import MANIFEST, Manifest
from dualrate.training import checkpoint
from dualrate.training.config import FitConfig

NET = UViTConfig(8, 1, (Level("conv", 8, 1), Level("transformer", 16, 1)), 3, patch=2, embedding=16, head_dim=16)
FIT = FitConfig(iterations=2, batch_size=4, precision="float32", checkpoint_every=1)
TINY = Experiment("tiny", OneNetwork(NET), DenoisingConfig(), FIT)
IMAGES = np.random.default_rng(0).integers(0, 256, (30, 8, 8)).astype(np.uint8)


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch):
    """A working directory and a cache of the test's own, and a recipe `tiny` on 30 images in three classes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DUALRATE_CACHE", str(tmp_path / "cache"))
    np.savez(tmp_path / "tiny.npz", images=IMAGES, labels=np.arange(30) % 3)
    monkeypatch.setitem(cli_train.RECIPES, "tiny", lambda: replace(TINY, data=DataConfig(str(tmp_path / "tiny.npz"))))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of two checkpoints; not to be changed."""
    place = tmp_path_factory.mktemp("finished")
    np.savez(place / "tiny.npz", images=IMAGES, labels=np.arange(30) % 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DUALRATE_CACHE", str(place / "cache"))
        data = DataConfig(str(place / "tiny.npz"))
        train(replace(TINY, data=data), place / "run", progress=Recorder())
    return place / "run"


def call(monkeypatch, *arguments) -> int:
    """Exit code of `dualrate <arguments>`, run in this process."""
    monkeypatch.setattr(sys, "argv", ["dualrate", *map(str, arguments)])
    try:
        cli.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Where a run may be


def a_file(out: Path) -> None:
    out.write_text("mine")


def below_a_file(out: Path) -> None:
    a_file(out.parent)


def photos(out: Path) -> None:
    out.mkdir(parents=True)
    (out / "cat.jpg").write_text("mine")


def released_weights(out: Path) -> None:
    photos(out)
    (out / "experiment.json").write_text("{}")
    (out / "model.safetensors").write_text("")


def link_to_nowhere(out: Path) -> None:
    out.parent.mkdir()
    out.symlink_to("nowhere")


def read_only(out: Path) -> None:
    out.parent.mkdir()
    out.parent.chmod(0o500)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (a_file, "place/out is a file"),
        (below_a_file, "place is a file"),
        (photos, "place/out holds cat.jpg but no run"),
        (released_weights, "place/out holds released weights"),
        (link_to_nowhere, "leads nowhere"),
        (read_only, "nothing can be written to"),
    ],
)
def test_a_place_that_is_no_place_for_a_run_is_refused_before_any_work(make, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(data_module, "load_images", lambda *args, **options: pytest.fail("work has started"))
    out = tmp_path / "place" / "out"
    out.parent.parent.mkdir(exist_ok=True)
    if make in (a_file, photos, released_weights):
        out.parent.mkdir()
    make(out)
    before = content(tmp_path)
    with somebody(tmp_path):
        assert call(monkeypatch, "train", "tiny", "--out", out) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert content(tmp_path) == before


def test_a_place_among_the_images_is_refused_before_any_work(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(data_module, "load_images", lambda *args, **options: pytest.fail("work has started"))
    for name in "abc":
        (tmp_path / "photos" / name).mkdir(parents=True)
        Image.fromarray(IMAGES[0]).save(tmp_path / "photos" / name / "one.png")
    before = content(tmp_path)
    assert call(monkeypatch, "train", "tiny", "--data.source", "photos", "--out", "photos/run") == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error == "dualrate: photos/run is in photos, whose images are read: give a folder elsewhere"
    with pytest.raises(ValueError, match="photos/run is in photos, whose images are read"):
        train(replace(TINY, data=DataConfig("photos")), "photos/run")
    assert content(tmp_path) == before
    assert not (tmp_path / "photos" / "run").exists()


def test_a_place_that_cannot_be_written_to_is_refused(tmp_path, monkeypatch):
    """As root everything is writable: let the system say no."""

    def refuse(**options):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("dualrate.runs.train.tempfile.TemporaryFile", refuse)
    with pytest.raises(OSError, match=r"nothing can be written to .* \(Read-only file system\): choose another --out"):
        check_out("tiny", tmp_path / "new" / "run")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "/etc/x", ".hidden", "a b", "x\n", "x" * 81])
def test_a_name_that_is_a_path_is_refused(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(data_module, "load_images", lambda *args, **options: pytest.fail("work has started"))
    before = content(tmp_path)
    assert call(monkeypatch, "train", "tiny", "--name", name) == 2
    assert "a run's name is 1 to 80 letters" in capsys.readouterr().err
    assert content(tmp_path) == before


def test_a_new_place_an_empty_one_one_with_logs_and_a_link_will_do(tmp_path):
    check_out("tiny", tmp_path / "new" / "run")
    check_out("tiny", Path("relative"))
    assert not (tmp_path / "new").exists()
    place = tmp_path / "place"
    place.mkdir()
    check_out("tiny", place)
    (place / "train.log").write_text("from the scheduler")
    check_out("tiny", place)
    (tmp_path / "link").symlink_to(place)
    check_out("tiny", tmp_path / "link")
    (place / "notes.md").write_text("mine")
    with pytest.raises(ValueError, match=r"holds notes.md but no run"):
        check_out("tiny", tmp_path / "link")


def test_a_run_is_one_run_however_it_is_reached(tmp_path, monkeypatch, capsys):
    (tmp_path / "disk").mkdir()
    (tmp_path / "runs").symlink_to("disk")
    assert call(monkeypatch, "train", "tiny", "--fit.iterations", 1) == 0
    assert call(monkeypatch, "train", "tiny", "--out", "disk/../disk/tiny") == 0
    assert "resuming at iteration 1" in capsys.readouterr().err
    assert len(checkpoint.saved_paths(tmp_path / "disk" / "tiny" / "checkpoints")) == 2


# How a path is written


EMPTY = {
    "train tiny --out ''": "the path is empty",
    "train tiny --data.source ''": "tiny names no images to train on: give --data.source FOLDER",
    "export RUN --to diffusers ''": "the path is empty",
    "export RUN --out ''": "the path is empty",
    "sample RUN --out images --plan ''": "the path is empty",
    "evaluate RUN --reference ''": "the path is empty",
    "data prepare '' out --size 8": "the data source is empty",
    "distill fashion-mnist --teacher ''": "the path is empty",
}


@pytest.mark.parametrize(("line", "said"), EMPTY.items())
def test_an_empty_path_is_refused_by_every_command(run, tmp_path, monkeypatch, capsys, line, said):
    before = content(tmp_path)
    assert call(monkeypatch, *shlex.split(line.replace("RUN", str(run)))) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"dualrate: {said}")
    assert content(tmp_path) == before


def test_every_path_of_a_command_line_expands_the_home_directory(run, tmp_path, monkeypatch):
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    shutil.copytree(run, tmp_path / "home/run")
    os.rename("tiny.npz", "home/tiny.npz")
    assert call(monkeypatch, "train", "tiny", "--data.source=~/tiny.npz", "--out=~/trained") == 0
    assert call(monkeypatch, "sample", "~/run", "--out=~/images", "--num", 1, "--steps", 1) == 0
    monkeypatch.setattr("dualrate.pipelines.command.Export._pipeline", lambda self, folder: folder.mkdir())
    assert call(monkeypatch, "export", "~/run", "--to", "diffusers", "~/pipeline") == 0
    asked = RunRequest.parse("NAME=~/run+~/run:2/1")
    assert (asked.run, asked.denoiser) == (tmp_path / "home/run", str(tmp_path / "home/run"))
    assert {path.name for path in Path("home").iterdir()} == {"run", "tiny.npz", "trained", "images", "pipeline"}
    assert not Path("~").exists()


def test_python_takes_paths_as_text_and_text_as_paths(tmp_path):
    data = DataConfig(tmp_path / "tiny.npz")  # pyright: ignore[reportArgumentType]
    assert data == DataConfig(str(tmp_path / "tiny.npz"))
    dr.train(replace(TINY, data=data), "runs/x", progress=Recorder())
    dr.export("runs/x", "released")
    assert dr.load("released").iteration == dr.load(Path("released")).iteration == 2
    images = dr.load_images("tiny.npz", split="train", cache="kept").images
    dr.save_grid(images[:4], "grid.png")
    assert Path("grid.png").is_file()
    assert Path("kept/images").is_dir()
    for refused in (
        lambda: dr.train(TINY, ""),
        lambda: dr.load(""),
        lambda: dr.export("runs/x", ""),
        lambda: dr.load_images("", split="train"),
        lambda: dr.save_grid(images[:4], ""),
        lambda: dr.from_diffusers(""),
        lambda: dr.from_diffusers("no\0path"),
    ):
        with pytest.raises(ValueError, match=r"is empty|is no path"):
            refused()


def test_a_cache_that_cannot_be_written_is_named_with_the_way_out(monkeypatch, capsys):
    Path("file").touch()
    monkeypatch.setenv("DUALRATE_CACHE", "file/cache")
    assert call(monkeypatch, "train", "tiny") == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.endswith("; the cache is there: set DUALRATE_CACHE to a folder that can be written")
    assert call(monkeypatch, "evaluate", "elsewhere") == 2
    assert "DUALRATE_CACHE" not in capsys.readouterr().err


def test_commands_on_data_name_options_that_they_have(tmp_path, monkeypatch, capsys):
    for side in (8, 12):
        Image.fromarray(np.zeros((side, side), np.uint8)).save(tmp_path / f"{side}.png")
    monkeypatch.setattr(CodecFolder, "at", lambda folder, device: None)
    (images := tmp_path / "images").mkdir()
    for side in (8, 12):
        for number in range(20):
            shutil.copy(f"{side}.png", images / f"{side}-{number}.png")
    assert call(monkeypatch, "data", "encode", images, "latents", "--codec", "vae") == 2
    assert "pass --size (and --channels 1 or 3) for one shape" in capsys.readouterr().err
    assert call(monkeypatch, "data", "codec", "vae", "--data", images) == 2
    assert "pass --size (and --channels 1 or 3) for one shape" in capsys.readouterr().err
    assert call(monkeypatch, "data", "prepare", images, "packed", "--size", 8) == 0
    assert call(monkeypatch, "data", "encode", "packed", "latents", "--codec", "vae", "--label", "kind") == 2
    assert "leave out --label kind" in capsys.readouterr().err
    (images / "bad.png").write_bytes(b"no image")
    assert call(monkeypatch, "data", "encode", images, "latents", "--codec", "vae", "--size", 8) == 2
    assert "pass --on-bad skip to leave them out" in capsys.readouterr().err


@pytest.mark.parametrize(("module", "name"), [("__main__", "MyNets"), ("mine", "f.<locals>.MyNets")])
def test_networks_of_a_notebook_are_refused_before_they_are_trained(tmp_path, module, name):
    """In a process of its own no command could load them."""
    kind = dataclass(frozen=True)(type("MyNets", (OneNetwork,), {"__module__": module, "__qualname__": name}))
    experiment = replace(TINY, networks=kind(NET), data=DataConfig(str(tmp_path / "tiny.npz")))
    with pytest.raises(ValueError, match=r"MyNets is defined .* a file of its own.*--import my_parts COMMAND"):
        train(experiment, tmp_path / "run")
    assert not (tmp_path / "run").exists()


# Options that do not go together


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--networks.encoder.num-classes", 4], "must have the same .*, got num_classes 4 and 3"),
        (["--networks.light.num-classes", 0], "must have the same .*, got num_classes 3 and 0"),
        (["--networks.light.image-size", 16], r"got shape \(1, 8, 8\) and \(1, 16, 16\)"),
        (["--networks.encoder.image-channels", 3], r"got shape \(3, 8, 8\) and \(1, 8, 8\)"),
        (["--data.augment.translate", 8], "images of side 8 are shifted by at most 7 pixels, got translate 8"),
        (["--method.times.heavy", 8, 4], r"heavy is the least number of heavy calls, then the largest, got \(8, 4\)"),
        (["--process.schedule.log-snr-min", 15], "log_snr_min must be below log_snr_max, got 15.0 and 15.0"),
        (["--device", "meta"], "there is no device 'meta' here, only cpu"),
    ],
)
def test_options_that_do_not_go_together_are_one_line_before_any_work(options, message, tmp_path, monkeypatch, capsys):
    two = replace(TINY, networks=TwoNetworks(NET, NET), method=DenoisingConfig(TimeSampler()))
    monkeypatch.setitem(cli_train.RECIPES, "two", lambda: two)
    monkeypatch.setattr(data_module, "load_images", lambda *args, **options: pytest.fail("work has started"))
    before = content(tmp_path)
    assert call(monkeypatch, "train", "two", *options) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1
    assert re.fullmatch(f"dualrate: .*{message}.*", told[0])
    assert content(tmp_path) == before


def test_scores_between_the_samples_are_refused_before_a_judge_is_trained(monkeypatch, capsys):
    monkeypatch.setattr("dualrate.drawing.measure.scorer", lambda *given: pytest.fail("a judge is trained"))
    assert call(monkeypatch, "train", "tiny", "--fit.sample-every", 2, "--eval-every", 3) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error == "dualrate: --eval-every is a multiple of --fit.sample-every (2), got 3"


def test_more_classes_than_the_data_has_train_and_fewer_do_not(tmp_path, monkeypatch, capsys):
    data = DataConfig(str(tmp_path / "tiny.npz"))
    two = replace(TINY, networks=TwoNetworks(NET, NET), method=DenoisingConfig(TimeSampler()), data=data)
    monkeypatch.setitem(cli_train.RECIPES, "two", lambda: two)

    def classes(count: int) -> list[object]:
        return ["--networks.encoder.num-classes", count, "--networks.light.num-classes", count, "--out", f"run{count}"]

    assert call(monkeypatch, "train", "two", *classes(4)) == 0
    assert call(monkeypatch, "train", "two", *classes(2)) == 2
    assert "tiny/train has 3 classes, the networks of tiny know only 2" in capsys.readouterr().err


# Resuming


def test_changed_options_are_refused_with_the_difference(monkeypatch, capsys):
    assert call(monkeypatch, "train", "tiny") == 0
    before = content(Path("runs"))
    changed = ["--fit.optim.lr", 0.5, "--networks.model.embedding", 32, "--data.augment.flip"]
    assert call(monkeypatch, "train", "tiny", *changed, "--fit.keep", 7) == 2
    *_, line = capsys.readouterr().err.splitlines()
    undone = "give --networks.model.embedding 16 --fit.optim.lr 0.001 --data.augment.no-flip"
    assert line.endswith(f"was trained with another configuration: to go on with it, {undone}; or choose another --out")
    assert content(Path("runs")) == before
    free = ["--fit.keep", 7, "--fit.log-every", 1, "--fit.checkpoint-every", 9, "--fit.micro-batch", 2]
    assert call(monkeypatch, "train", "tiny", *free, "--fit.iterations", 3) == 0


def test_a_learning_rate_that_falls_is_not_sent_in_a_circle(monkeypatch, capsys):
    """Undoing the decay alone would be refused for the limit that comes back with it."""

    def refusal(*options: object) -> str:
        assert call(monkeypatch, "train", "tiny", *options) == 2
        return capsys.readouterr().err

    assert call(monkeypatch, "train", "tiny", "--fit.max-seconds", 0.001, "--fit.iterations", "None") == 0
    steady = ["--fit.optim.decay", "none"]
    assert "for a longer one take a new run" in refusal("--fit.max-seconds", 9, "--fit.iterations", "None", *steady)
    cosine = ["--fit.optim.decay", "cosine", "--out", "cosine"]
    assert call(monkeypatch, "train", "tiny", *cosine) == 0
    way = "give --fit.optim.decay cosine --fit.iterations 2; or"
    assert way in refusal("--out", "cosine", "--fit.iterations", 3, *steady)
    assert call(monkeypatch, "train", "tiny", *cosine, "--fit.iterations", 2) == 0


def test_a_run_that_the_same_command_made_otherwise_before_says_so(monkeypatch, capsys):
    """Its recipe has other networks since."""
    before = cli_train.RECIPES["tiny"]()
    assert call(monkeypatch, "train", "tiny") == 0
    levels = tuple(replace(level, blocks=level.blocks + 1) for level in NET.levels)
    networks = {name: replace(config, levels=levels) for name, config in before.networks.configs.items()}
    now = replace(before, networks=replace(before.networks, **networks))
    monkeypatch.setitem(cli_train.RECIPES, "tiny", lambda: now)
    assert call(monkeypatch, "train", "tiny") == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "made by this very command in an earlier version: networks." in said
    assert said.endswith("were others then. Finish it with that version, or choose another --out")


def test_a_run_without_an_intact_checkpoint_is_not_started_over(monkeypatch, capsys):
    assert call(monkeypatch, "train", "tiny") == 0
    for path in checkpoint.saved_paths(Path("runs/tiny/checkpoints")):
        (path / "model.safetensors").write_bytes(b"")
    for _ in range(2):
        assert call(monkeypatch, "train", "tiny") == 2
        assert "holds checkpoints but none is intact; restore one, or remove them" in capsys.readouterr().err
        assert {path.suffix for path in Path("runs/tiny/checkpoints").iterdir()} == {".corrupt"}
    assert len(Path("runs/tiny/history.jsonl").read_text().splitlines()) == 1


def test_the_same_command_says_why_nothing_is_left_to_do(monkeypatch, capsys):
    limited = ["train", "tiny", "--fit.iterations", 10**6, "--fit.checkpoint-every", 10**6, "--fit.sample-every", 10**6]
    cosine = ["--fit.optim.decay", "cosine", "--fit.optim.warmup", 0]
    over = "; its learning rate is spent: name another --out"
    for command, why in (
        (["train", "tiny", "--out", "a"], "; to go on, raise --fit.iterations"),
        (["train", "tiny", "--out", "b", *cosine], over),
        (["train", "tiny", "--out", "e", *cosine[:-1], 9], over),
        (
            [*limited, "--out", "c", "--fit.max-seconds", 0.1, "--fit.optim.decay", "none"],
            "; to go on, raise --fit.max-seconds",
        ),
        ([*limited, "--out", "d", "--fit.max-seconds", 0.1], over),
    ):
        assert call(monkeypatch, *command) == 0
        told = capsys.readouterr().err
        assert "nothing is left" not in told
        assert ("or as many as 0.1 s of training allow" in told) == (command[:8] == limited)
        assert call(monkeypatch, *command) == 0
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.startswith("nothing is left to do: ")
        assert why in last


def test_a_training_that_ends_early_says_the_command_by_which_it_goes_on(monkeypatch, capsys):
    by_clock = ["--fit.max_seconds=0.1", "--fit.iterations", 10**6, "--fit.checkpoint-every", 10**6]
    cases = (
        ([], [], "on"),
        (["--import", "math", "--import", "json"], [], "on"),
        ([], [*by_clock, "--fit.sample-every", 10**6], "anew"),
        ([], ["--fit.optim.decay", "cosine", "--fit.optim.warmup", 9], "anew"),  # of which nothing fell
        ([], ["--fit.max-seconds", 1000, "--fit.iterations", 4], "anew"),  # over which the rate would have fallen
    )
    for number, (before, more, ends) in enumerate(cases):
        assert call(monkeypatch, *before, "train", "tiny", "--out", f"{ends}{number}", *more) == 0
        (line,) = [line for line in capsys.readouterr().err.splitlines() if "too early to judge" in line]
        way, command = line.partition(f"; to train {ends}: dualrate ")[1:]
        assert way
        words = shlex.split(command)
        assert words[: len(before)] == before
        at = words.index("--fit.iterations") + 1
        assert int(words[at]) > 10_000
        assert call(monkeypatch, *words[:at], "3", *words[at + 1 :]) == 0
        assert "finished at iteration 3" in capsys.readouterr().err
    assert Path("anew2-longer").is_dir()


# Odd data


def image_set(labels: list[int], classes: int, pixels: np.ndarray | None = None) -> ImageSet:
    images = IMAGES[: len(labels), None] if pixels is None else pixels
    return ImageSet(images, np.array(labels, np.int64), tuple(map(str, range(classes))), "odd")


def test_labels_beyond_the_networks_classes_are_refused():
    TINY.check_data(image_set([0, 1, 2], 3))
    with pytest.raises(ValueError, match="odd has 4 classes, the networks of tiny know only 3"):
        TINY.check_data(image_set([0, 1, 2], 4))


def test_images_without_labels_are_refused_by_networks_with_classes():
    with pytest.raises(ValueError, match="has no labels, but the networks of tiny are conditioned on 3 classes"):
        TINY.check_data(ImageSet(IMAGES[:, None], None, (), "odd"))


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([0, 1, 2, 0], []),
        ([0, 2, 0, 2], ["odd has no image of 1 of the networks' 3 classes: 1"]),
        ([1, 1, 1, 1], ["odd has no image of 2 of the networks' 3 classes: 0, 2"]),
        ([0, 1, 2], ["odd has 3 images, fewer than a batch of 4: they repeat in it"]),
    ],
)
def test_what_is_odd_about_the_data_is_told(labels, expected):
    assert TINY.check_data(image_set(labels, 3)) == expected


def test_one_image_and_equal_images_train(tmp_path):
    """One image, of one class: told, and no error. The others are its copies, which is not looked for."""
    for count, notes in ((2, 2), (20, 1)):
        np.savez(tmp_path / f"{count}.npz", images=np.repeat(IMAGES[:1], count, 0), labels=np.zeros(count, int))
        experiment, progress = replace(TINY, data=DataConfig(str(tmp_path / f"{count}.npz"))), Recorder()
        result = train(experiment, tmp_path / f"run {count}", progress=progress)
        assert (result.stopped, result.iteration) == ("done", 2)
        assert len(progress.notes) == 3 + notes  # first what starts and what a call costs, last the memory
        assert "no image of 2 of the networks' 3 classes" in progress.notes[2]


# Numbers of images


@pytest.mark.parametrize(("count", "batch_size"), [(1, 1), (1, 8), (5, 2), (7, 3), (4, 4), (3, 125)])
def test_exactly_the_images_asked_for_are_drawn(run, count, batch_size):
    model, plan = load(run), StepPlan.uniform(2)
    drawer = Drawer(model, DDIM(model.process), plan, batch_size=batch_size, precision="float32")
    drawn = drawer.draw(range(count)).images
    assert drawn.shape == (count, 1, 8, 8)
    alone = replace(drawer, batch_size=1).draw([count - 1]).images
    assert np.abs(drawn[-1].astype(int) - alone[0]).max() <= 1


def test_no_images_is_an_error(run):
    with pytest.raises(ValueError, match="list of seeds is empty"):
        Drawer(load(run), DDIM(TINY.process), StepPlan.uniform(2)).draw(range(0))


# Planted files


class Touch:
    """Unpickling this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def planted(sentinel: Path, kind: str) -> bytes:
    """A file that makes `sentinel` when a careless program loads it."""
    if kind == "pickle":
        return pickle.dumps(Touch(sentinel))
    torch.save({"weight": Touch(sentinel)}, sentinel.with_suffix(".pt"))
    return sentinel.with_suffix(".pt").read_bytes()


@pytest.mark.parametrize("kind", ["pickle", "torch.save"])
def test_pickles_among_a_run_s_files_are_never_executed(run, tmp_path, kind):
    sentinel = tmp_path / "executed"
    data = planted(sentinel, kind)
    if kind == "pickle":  # it does work on who trusts it
        pickle.loads(data)
        sentinel.unlink()
    saved = checkpoint.latest(run / "checkpoints")
    assert saved is not None
    for name in ("model.safetensors", "optim-model.safetensors", "ema-model.safetensors", "state.json", "extra.pt"):
        bad = tmp_path / kind / name / "checkpoints"
        path = checkpoint.save(bad, 1, saved.tensors, {"iteration": 1})
        (path / name).write_bytes(data)
        names = [file.name for file in path.iterdir() if file.name != MANIFEST]
        Manifest.write(path, names)  # the attacker's, and consistent
        (bad.parent / "experiment.json").write_bytes((run / "experiment.json").read_bytes())
        with pytest.raises(OSError, match="none is intact"):
            checkpoint.recover(bad, lambda text: None)
        with pytest.raises(OSError, match="none is intact"):
            load(bad.parent)
        assert not sentinel.exists()


@pytest.mark.parametrize("kind", ["pickle", "torch.save"])
@pytest.mark.parametrize("name", ["model.safetensors", "experiment.json", "model.pt"])
def test_pickles_among_released_weights_are_never_executed(run, tmp_path, kind, name):
    sentinel, weights = tmp_path / "executed", tmp_path / "weights"
    export(run, weights)
    (weights / name).write_bytes(planted(sentinel, kind))
    if name == "model.pt":  # not looked at
        assert load(weights).iteration == 2
    else:
        with pytest.raises((OSError, ValueError), match=name):
            load(weights)
    assert not sentinel.exists()


# Files that a run reads again


@pytest.fixture
def started(monkeypatch) -> Path:
    """A run of two iterations, that may be changed."""
    assert call(monkeypatch, "train", "tiny", "--fit.log-every", 1) == 0
    return Path("runs/tiny")


def test_a_line_of_the_log_that_a_kill_cut_off_is_nothing_to_any_command(started, monkeypatch, capsys):
    for name in ("metrics.jsonl", "history.jsonl"):
        with (started / name).open("a") as file:
            file.write('{"iteration": 2, "comm')
    assert call(monkeypatch, "export", started, "--out", "before") == 0
    assert call(monkeypatch, "train", "tiny", "--fit.log-every", 1, "--fit.iterations", 3) == 0
    assert call(monkeypatch, "export", started, "--out", "after") == 0
    assert [line["iteration"] for _, line in read_records(started / "metrics.jsonl")] == [1, 2, 3]
    assert Path("after/README.md").read_text().count("- `dualrate train tiny") == 2
    assert "line" not in capsys.readouterr().err.replace(".jsonl", "")


@pytest.mark.parametrize("line", [b"garbage", b"{}"])  # others are told from objects: tests/system/test_files.py
@pytest.mark.parametrize("name", ["metrics.jsonl", "history.jsonl"])
def test_any_other_line_that_is_none_is_named_and_training_goes_on(started, monkeypatch, capsys, name, line):
    file = started / name
    first, *rest = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(first + line + b"\n" + b"".join(rest or [first]))
    assert call(monkeypatch, "train", "tiny", "--fit.log-every", 1, "--fit.iterations", 3) == 0
    capsys.readouterr()
    assert call(monkeypatch, "export", started, "--out", "weights") == 2
    *_, error = capsys.readouterr().err.splitlines()
    assert error.startswith(f"dualrate: {file}, line 2 ")
    assert error.endswith("; remove that line")
    assert not Path("weights").exists()
    file.write_bytes(b"".join(one for one in file.read_bytes().splitlines(keepends=True) if one != line + b"\n"))
    assert call(monkeypatch, "export", started, "--out", "weights") == 0


@pytest.mark.parametrize(
    "text", [b"", b"{", b"\x80", b"[" * 100_000, b'{"t": [1, 0]}', b'{"t": [1, 1e400], "refresh": []}']
)
def test_a_plan_that_is_none_is_named(run, monkeypatch, capsys, text):
    Path("plan.json").write_bytes(text)
    assert call(monkeypatch, "sample", run, "--out", "images", "--plan", "plan.json") == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("dualrate: plan.json cannot be read as ")


def test_a_checkpoint_of_somebody_else_ends_the_command_and_stays(started, monkeypatch, capsys):
    before = content(started)
    file = started / "checkpoints" / "step-00000002" / "optim-model.safetensors"  # which only training reads
    with unreadable(file, Path.cwd()):
        assert call(monkeypatch, "train", "tiny", "--fit.iterations", 3) == 2
        assert capsys.readouterr().err.splitlines()[-1] == f"dualrate: [Errno 13] Permission denied: '{file}'"
        assert call(monkeypatch, "sample", started, "--out", "images", "--num", 1, "--steps", 1) == 0
    assert content(started) == before


def test_a_run_on_a_source_whose_name_is_no_utf8_has_a_card(tmp_path, monkeypatch, capsys):
    source = Path(os.fsdecode(b"\xff.npz"))
    (tmp_path / "tiny.npz").rename(source)
    assert call(monkeypatch, "train", "tiny", "--data.source", source) == 0
    assert call(monkeypatch, "export", "runs/tiny", "--out", "weights") == 0
    assert r"--data.source '\xff.npz'" in Path("weights/README.md").read_text()
