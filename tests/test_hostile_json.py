"""Every JSON that is read, with one value changed: it loads, or is refused in one line that names the file."""

import json
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from mutations import mutations
from runs.made import ONE, TWO, saved

import dualrate as dr
from dualrate.data.images import load_images, prepare
from dualrate.runs.release import export
from dualrate.runs.store import read_stored, write_class_names
from dualrate.system.folders import MANIFEST, Manifest

os.environ["HF_HUB_OFFLINE"] = "1"  # read when the library is imported
pytestmark = pytest.mark.filterwarnings("ignore")


def changed(file: Path, most: int):
    """Each of some changes of a file in turn, and of its manifest, as a hostile writer would; then it is back."""
    before = {one: one.read_bytes() for one in (file, file.parent / MANIFEST) if one.exists()}
    every = list(mutations(file))
    few = every if len(every) <= most else [every[-1], *random.Random(0).sample(every, most)]
    for what, text in few:
        file.write_text(text)
        if file.name != MANIFEST and (file.parent / MANIFEST) in before:
            names = json.loads(before[file.parent / MANIFEST])["files"]
            Manifest.write(file.parent, names)
        try:
            yield what
        finally:
            for one, content in before.items():
                one.write_bytes(content)


def check(file: Path, load, place: Path, most: int = 60) -> None:
    """place: whose name is in every message"""
    load()
    refused = 0
    for what in changed(file, most):
        said = None
        try:
            load()
        except (ValueError, OSError) as error:
            said, refused = str(error), refused + 1
        except Exception as error:
            pytest.fail(f"{what}: {type(error).__name__} {error}")
        assert said is None or (str(place) in said and "\n" not in said and len(said) < 1200), (what, said)
    assert refused
    load()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = saved(ONE, tmp_path_factory.mktemp("json") / "run")
    write_class_names(path, ("a", "b", "c"))
    return path


def read(path):
    return read_stored(path, note=lambda text: None).model()


@pytest.mark.parametrize("name", ["experiment.json", "classes.json", "state.json", MANIFEST])
def test_a_run(run, name):
    (state,) = (run / "checkpoints").iterdir()
    check(next(file for file in (run / name, state / name) if file.exists()), lambda: read(run), run)


@pytest.mark.parametrize("name", ["experiment.json", "classes.json", MANIFEST])
def test_released_weights(run, tmp_path, name):
    export(run, tmp_path / "weights", note=lambda text: None)
    check(tmp_path / "weights" / name, lambda: read(tmp_path / "weights"), tmp_path / "weights")


def foreign(folder: Path, kind: str) -> Path:
    pytest.importorskip("diffusers")
    import diffusers
    from pipelines import models

    diffusers.utils.logging.set_verbosity_error()
    net = getattr(models, kind)()
    flow = kind in ("sd3", "sana", "flux", "qwen_image", "ovis_image")
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0) if flow else diffusers.DDIMScheduler()
    net.save_pretrained(folder / "transformer")
    scheduler.save_pretrained(folder / "scheduler")
    parts = {
        name: ["diffusers", type(part).__name__] for name, part in (("transformer", net), ("scheduler", scheduler))
    }
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "Pipeline", **parts, "id2label": {"0": "a"}}))
    return folder


KINDS = ("dit", "unet", "unet_text", "sd3", "pixart", "sana", "flux", "qwen_image", "ovis_image")
FILES = ("model_index.json", "scheduler/scheduler_config.json", "transformer/config.json")


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_of_diffusers(tmp_path, kind):
    folder = foreign(tmp_path / "folder", kind)
    shape = {"shape": (4, 8, 8)} if kind in ("flux", "qwen_image", "ovis_image") else {}

    def load():
        if kind in ("dit", "unet"):
            read(folder)
        else:
            dr.from_diffusers(folder, **shape)

    for file in FILES if kind == "dit" else FILES[1:]:
        check(folder / file, load, folder, most=40 if kind == "dit" else 20)


@pytest.mark.parametrize("value", [10**400, 10**9, [10**9], 10**5])
def test_layers_without_end_are_refused_before_any_is_made(tmp_path, value):
    """By all that reads such a file: a network, an autoencoder, and a run that was trained beside one."""
    folder = foreign(tmp_path / "folder", "dit")
    file = folder / "transformer" / "config.json"
    plain = json.loads(file.read_text())
    file.write_text(json.dumps(plain | {"num_layers": value}))
    for load in (read, dr.from_diffusers):
        with pytest.raises(ValueError, match=r"config.json: its num_layers is .*, expected at most 1,000"):
            load(folder)


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("name", ["model_index.json", "scheduler/scheduler_config.json", "model/config.json"])
def test_a_pipeline_of_ours(run, tmp_path, name, sealed):
    pytest.importorskip("diffusers")
    from dualrate.integrations.diffusers import DualRatePipeline

    folder = tmp_path / "pipe"
    DualRatePipeline.of(dr.load(run, note=lambda text: None), dr.Choice(steps=2)).save_pretrained(folder)
    if not sealed:
        (folder / name).with_name(MANIFEST).unlink()
    check(folder / name, lambda: DualRatePipeline.from_pretrained(folder), folder, most=15)


def test_a_codec(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    from dualrate.codecs.codec import read_codec

    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    net = diffusers.AutoencoderKL(**blocks, block_out_channels=(8, 16), norm_num_groups=4, latent_channels=4)
    net.save_pretrained(tmp_path / "vae")
    check(tmp_path / "vae" / "config.json", lambda: read_codec(tmp_path / "vae").latent_shape((3, 16, 16)), tmp_path)


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    monkeypatch.setenv("DUALRATE_CACHE", str(tmp_path / "cache"))
    np.savez(tmp_path / "images.npz", images=np.zeros((12, 4, 4, 3), np.uint8), labels=np.arange(12) % 2)
    prepare(tmp_path / "images.npz", tmp_path / "prepared", size=4)
    return tmp_path / "prepared"


@pytest.mark.parametrize("part", ["images", "class_names", "notes", "name", "fingerprint"])
@pytest.mark.parametrize("value", [None, -1, 2.5, 10**400, "x", {"a": 1}, [None]], ids=lambda value: str(value)[:9])
def test_the_record_of_prepared_images(prepared, part, value):
    file = prepared / "dataset.json"
    plain = json.loads(file.read_text())
    plain["splits"]["train"][part] = value
    file.write_text(json.dumps(plain))
    Manifest.write(prepared, json.loads((prepared / MANIFEST).read_text())["files"])
    if isinstance(value, str) and part in ("name", "fingerprint"):
        load_images(prepared, split="train")
    else:
        with pytest.raises(ValueError, match=str(file)):
            load_images(prepared, split="train")


@pytest.mark.parametrize("part", ["images", "labels", "blocks", "rejects"])
@pytest.mark.parametrize(
    "value", [None, -1, 2.5, 10**400, "x", {"a": 1}, [None], [10**400] * 11], ids=lambda v: str(v)[:9]
)
def test_a_shard_whose_record_is_odd_is_made_again(prepared, part, value):
    expected = (prepared / "dataset.json").read_bytes()
    (prepared / MANIFEST).unlink()
    file = prepared / "train-00000.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), part: value}))
    if (part, value) not in (("labels", None), ("blocks", "x")):  # the one has no labels, the other is no sum
        prepare(prepared.parent / "images.npz", prepared, size=4)
        assert (prepared / "dataset.json").read_bytes() == expected


@pytest.mark.parametrize("what", ["manifest", "checkpoint"])
def test_a_format_of_a_newer_version_is_refused_as_that(run, tmp_path, what):
    copied = tmp_path / "run"
    shutil.copytree(run, copied)
    if what == "manifest":
        export(run, tmp_path / "weights", note=lambda text: None)
        copied = tmp_path / "weights"
        file = copied / MANIFEST
        file.write_text(json.dumps({"format": 99, **json.loads(file.read_text())}))
    else:
        (folder,) = (copied / "checkpoints").iterdir()
        file = folder / "state.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "format": 99}))
        Manifest.write(folder, [one.name for one in folder.iterdir() if one.name != MANIFEST])
    message = rf"{file} was written by a newer version of dualrate \(format 99, this one reads 1\): update it"
    with pytest.raises(ValueError, match=message):
        read(copied)
    assert file.exists()


# Weights that are declared to be of another dtype


def redeclared(file: Path, dtype: str, at: int = 0) -> str:
    """One weight of a safetensors file under another dtype of the same size, its manifest's sum with it: its name."""
    content = file.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    names = [name for name in header if name != "__metadata__"]
    name = names[at % len(names)]
    assert header[name]["dtype"] != dtype
    header[name]["dtype"] = dtype
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])
    if (manifest := file.parent / MANIFEST).exists():
        Manifest.write(file.parent, json.loads(manifest.read_text())["files"])
    return name


@pytest.mark.parametrize(("dtype", "at"), [("I32", 0), ("U32", -1)])
def test_a_run_s_weights_are_not_cast(run, tmp_path, dtype, at):
    shutil.copytree(run, tmp_path / "run")
    (folder,) = (tmp_path / "run" / "checkpoints").iterdir()
    name = redeclared(folder / "model.safetensors", dtype, at)
    with pytest.raises(ValueError, match=rf"{tmp_path}/run.*{name} is of torch\.u?int32, expected torch.float32"):
        read(tmp_path / "run")


@pytest.mark.parametrize("dtype", ["I16", "U16", "F16"])
def test_released_weights_are_not_cast(run, tmp_path, dtype):
    export(run, tmp_path / "weights", note=lambda text: None)
    name = redeclared(tmp_path / "weights" / "model.safetensors", dtype)
    with pytest.raises(ValueError, match=rf"{tmp_path}/weights.*{name} is of torch\.\w+16, expected torch.float32"):
        read(tmp_path / "weights")


def test_weights_of_other_libraries_are_not_cast(run, tmp_path):
    diffusers = pytest.importorskip("diffusers")
    from dualrate.codecs.codec import read_codec
    from dualrate.integrations.diffusers import DualRatePipeline

    folder = foreign(tmp_path / "folder", "dit")
    DualRatePipeline.of(dr.load(run, note=lambda text: None), dr.Choice(steps=2)).save_pretrained(tmp_path / "pipe")
    blocks = {"down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",)}
    diffusers.AutoencoderKL(**blocks, block_out_channels=(8,), norm_num_groups=4).save_pretrained(tmp_path / "vae")
    for place, load in (
        ("folder/transformer", lambda: read(folder)),
        ("folder/transformer", lambda: dr.from_diffusers(folder)),
        ("pipe/model", lambda: DualRatePipeline.from_pretrained(tmp_path / "pipe")),
        ("vae", lambda: read_codec(tmp_path / "vae")),
    ):
        file = tmp_path / place / "diffusion_pytorch_model.safetensors"
        before = {one: one.read_bytes() for one in file.parent.iterdir()}
        load()
        name = redeclared(file, "I32", 1)
        with pytest.raises(ValueError, match=rf"{file} has {name} as I32, expected F32, F16 or BF16"):
            load()
        for one, content in before.items():
            one.write_bytes(content)


def test_a_training_does_not_go_on_from_weights_of_another_dtype(tmp_path):
    from dualrate.training.state import RunState

    networks, _ = TWO.build()
    state = RunState(networks, torch.nn.ModuleDict(), TWO.fit)
    weights = {name: tensor.to(torch.int32) for name, tensor in networks.state_dict().items()}
    from dualrate.training.checkpoint import Checkpoint

    with pytest.raises(ValueError, match=r"is of torch.int32, expected torch.float32"):
        state.restore(Checkpoint(tmp_path, {"model": weights}, {"phases": {}}))
