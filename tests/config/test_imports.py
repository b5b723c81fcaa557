"""Names in other packages: a command line imports what it names, a file nothing."""

import ast
import copy
import json
import math
import pickle
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from latents.tiny_stage import first_stage, untrained
from metrics.untrained import untrained as untrained_net
from runs.made import ONE, saved

import dualrate as dr
from dualrate.cli.train import RECIPES
from dualrate.comparison.candidates import RunRequest
from dualrate.config.imports import imported, look_up
from dualrate.config.serial import from_json, to_plain
from dualrate.data.images import prepare
from dualrate.denoisers.catalogue import denoiser_named
from dualrate.drawing.choice import read_plan
from dualrate.drawing.samples import SampleRecord, write_samples
from dualrate.experiment.experiment import Experiment
from dualrate.metrics.features import Architecture, FeatureNet
from dualrate.runs.store import read_logged
from dualrate.runs.train import train
from dualrate.sampling.catalogue import sampler_named
from dualrate.system.folders import MANIFEST, Manifest


def test_a_name_in_any_package_is_found():
    assert imported("math:pi") == look_up("math:pi") == math.pi
    assert imported("os.path:join")("a", "b") == "a/b"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("math", "a name in another package is written package.module:name, got 'math'"),
        ("", "package.module:name"),
        ("math:", "package.module:name"),
        (":pi", "package.module:name| is not imported"),
        (".math:pi", "package.module:name|.math is not imported"),
        ("math:pi.real", "package.module:name"),
        ("math:pi:1", "package.module:name"),
        ("../math:pi", "package.module:name|../math is not imported"),
        ("no_such_package.x:y", "no_such_package.x (cannot be imported: No module .*PYTHONPATH|is not imported)"),
        ("math:tau_squared", "math .*has no 'tau_squared'"),
    ],
)
def test_what_names_nothing_is_refused(text, message):
    for find in (imported, look_up):
        with pytest.raises(ValueError, match=message):
            find(text)


EVIL = """
from pathlib import Path
import dualrate as dr

Path(__file__).with_name("was-imported").touch()

class Evil(dr.Ancestral): ...

def same(denoiser, process):
    return denoiser
"""


@pytest.fixture
def mark(tmp_path, monkeypatch) -> Iterator[Path]:
    """A file that is there once the module `evilmod`, which can be imported, was imported."""
    folder = tmp_path / "evil"
    folder.mkdir()
    (folder / "evilmod.py").write_text(EVIL)
    monkeypatch.syspath_prepend(folder)
    yield folder / "was-imported"
    sys.modules.pop("evilmod", None)


def test_a_name_is_looked_up_without_an_import_and_found_after_one(mark):
    for find in (look_up, sampler_named, denoiser_named, lambda name: dr.Choice(sampler=name)):
        with pytest.raises(ValueError, match=r"evilmod is not imported, .* dualrate --import evilmod COMMAND"):
            find("evilmod:Evil")
    assert not mark.exists()
    evil = imported("evilmod:Evil")
    assert mark.exists()
    assert look_up("evilmod:Evil") is sampler_named("evilmod:Evil").step is evil
    assert denoiser_named("evilmod:Evil") is evil


def test_a_command_line_imports_what_it_names(mark, tmp_path):
    assert RunRequest.parse(f"{saved(ONE, tmp_path / 'run')}:4@evilmod:Evil").choice.sampler == "evilmod:Evil"
    assert mark.exists()


def test_a_worker_imports_what_its_command_has_imported(mark, tmp_path):
    imported("evilmod:same")
    model = dr.load(saved(ONE, tmp_path / "run"), note=lambda text: None).with_denoiser("evilmod:same")
    sent = pickle.dumps(model)
    del sys.modules["evilmod"]  # as a process has it that begins
    assert pickle.loads(sent).called_by == "evilmod:same"


def test_nothing_but_command_lines_imports_by_name():
    """`imported` and `import_named` are of command lines; elsewhere they get a constant of the source."""
    source = Path(dr.__file__).parent
    for file in sorted(source.rglob("*.py")):
        name = file.relative_to(source).as_posix()
        if name.startswith(("cli/", "options/")) or name in ("config/imports.py", "comparison/candidates.py"):
            continue
        text = file.read_text()
        for node in ast.walk(ast.parse(text)) if "imported" in text or "import_named" in text else ():
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("imported", "import_named"):
                (argument,) = node.args
                assert getattr(argument, "id", "").isupper(), f"{name}, line {node.lineno}"


def strings(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places of all strings of some JSON."""
    if isinstance(value, str):
        yield path
    elif isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from strings(item, (*path, key))


def replaced(value: Any, path: tuple[Any, ...], text: str) -> Any:
    if not path:
        return text
    changed = copy.copy(value)
    changed[path[0]] = replaced(value[path[0]], path[1:], text)
    return changed


def images(path: Path, side: int, channels: int) -> Path:
    np.savez(path, images=np.zeros((8, side, side, channels), np.uint8), labels=np.arange(8) % 3)
    return path


def run(folder: Path) -> Callable[[], object]:
    """With a history, a log and checkpoints."""
    data = dr.DataConfig(str(images(folder.with_suffix(".npz"), 8, 1)))
    fit = dr.FitConfig(1, batch_size=2, precision="float32", sample_every=1, checkpoint_every=1)
    train(replace(ONE, fit=fit, data=data), folder)

    def read() -> None:
        with suppress(ValueError):
            read_logged(folder, "/loss")
        dr.load(folder).codec.latent_shape((1, 8, 8))

    return read


def run_with_a_codec(folder: Path) -> Callable[[], object]:
    untrained(first_stage(images(folder.with_suffix(".npz"), 16, 3)), folder)
    return lambda: dr.load(folder).codec


def released(folder: Path) -> Callable[[], object]:
    dr.export(saved(ONE, folder.with_name("of-release")), folder)
    return lambda: dr.load(folder)


def pipeline(folder: Path) -> Callable[[], object]:
    pytest.importorskip("diffusers")
    from dualrate.pipelines.export import DualRatePipeline

    model = dr.load(saved(ONE, folder.with_name("of-pipe")), note=lambda text: None)
    DualRatePipeline.of(model, dr.Choice(2, sampler="ancestral")).save_pretrained(folder)
    return lambda: DualRatePipeline.from_pretrained(folder)


def plan(folder: Path) -> Callable[[], object]:
    folder.mkdir()
    (folder / "plan.json").write_text(dr.StepPlan.uniform(4, 2).to_json())
    return lambda: read_plan(folder / "plan.json")


def prepared(folder: Path) -> Callable[[], object]:
    prepare(images(folder.with_suffix(".npz"), 8, 3), folder, size=8)
    return lambda: dr.load_images(folder, split="train")


def samples(folder: Path) -> Callable[[], object]:
    drawer = dr.Choice(2).drawer(dr.load(saved(ONE, folder.with_name("of-samples")), note=lambda text: None))
    write_samples(drawer, range(2), folder)
    return lambda: SampleRecord.read(folder)


def feature_net(folder: Path) -> Callable[[], object]:
    untrained_net(Architecture(1, 8, 2, features=4)).save(folder)
    return lambda: FeatureNet.load(folder)


KINDS = [run, run_with_a_codec, released, pipeline, plan, prepared, samples, feature_net]


@pytest.mark.parametrize("made", KINDS, ids=lambda made: made.__name__)
@pytest.mark.filterwarnings("ignore")
def test_no_file_that_is_read_imports_what_it_names(made, tmp_path, mark):
    """Every string of every file is replaced by the name of a module, and of a class in it; manifests fit."""
    read = made(tmp_path / "made")
    read()
    files = [file for file in sorted((tmp_path / "made").rglob("*.json*")) if file.name != MANIFEST]
    tried = 0
    for file in files:
        content = file.read_text()
        lines = content.splitlines() if file.suffix == ".jsonl" else [content]
        for at, line in enumerate(lines):
            plain = json.loads(line)
            for place in strings(plain):
                for text in ("evilmod:Evil", "evilmod") if file.name == "model_index.json" else ("evilmod:Evil",):
                    bad = json.dumps(replaced(plain, place, text))
                    file.write_text("\n".join([*lines[:at], bad, *lines[at + 1 :]]) + "\n")
                    sealed(file.parent)
                    with suppress(Exception):
                        read()
                    assert not mark.exists(), f"{file.name}: {place} = {text}"
                    assert "evilmod" not in sys.modules
                    tried += 1
        file.write_text(content)
        sealed(file.parent)
    assert tried > 1
    read()


def sealed(folder: Path) -> None:
    """The manifest fits what is there."""
    manifest = folder / MANIFEST
    if manifest.is_file():
        Manifest.write(folder, json.loads(manifest.read_text())["files"])


def test_no_experiment_of_a_recipe_imports_what_it_names(mark):
    """One of every method, codec and process."""
    made = []
    for make in RECIPES.values():
        with suppress(ValueError, ModuleNotFoundError):  # of images, of latents, or of an extra, that are not here
            made.append(make())
    kinds = {tuple(type(part) for part in (one.method, one.codec, one.process, one.networks)): one for one in made}
    for experiment in kinds.values():
        plain = json.loads(json.dumps(to_plain(experiment)))
        for place in strings(plain):
            with suppress(ValueError):
                from_json(Experiment, json.dumps(replaced(plain, place, "evilmod:Evil")).encode(), "here")
            assert not mark.exists(), f"{experiment.name}: {place}"
