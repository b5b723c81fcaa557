"""The documentation is code too: names exist, examples and commands run, links lead somewhere."""

import gzip
import hashlib
import importlib
import re
import shlex
import struct
from dataclasses import replace
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray
from PIL import Image
from reader import commands, follow, follow_page

from dualrate.cli import main
from dualrate.comparison import candidates
from dualrate.comparison import compare as comparing
from dualrate.data import fashion_mnist as images_of_fashion
from dualrate.drawing import evaluators
from dualrate.experiment.experiment import Experiment
from dualrate.experiment.modality import WINGS
from dualrate.experiment.network_configs import OneNetwork, TwoNetworks
from dualrate.forecasts import clip_recipe
from dualrate.forecasts import recipe as forecast
from dualrate.methods.denoising import DenoisingConfig
from dualrate.methods.times import TimeSampler
from dualrate.metrics.features import Architecture, train_feature_net
from dualrate.networks.uvit import Level, UViTConfig
from dualrate.recipes import auto, fashion_mnist, fashion_mnist_latents, imagenet
from dualrate.runs.store import write_experiment
from dualrate.training import checkpoint
from dualrate.training.config import FitConfig

ROOT = Path(__file__).parent.parent
PAGES = [
    *(ROOT / name for name in ("README.md", "AGENTS.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "src" / "dualrate").glob("*/README.md")),
    ROOT / "src" / "dualrate" / "README.md",
]


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)


def test_every_function_of_the_equation_map_exists():
    for name in re.findall(r"`(dualrate\.[\w.]+)`", (ROOT / "docs/equations.md").read_text()):
        check_exists(name)


def check_exists(name):
    parts = name.split(".")
    for split in range(len(parts), 0, -1):
        try:
            place = importlib.import_module(".".join(parts[:split]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[split:]:
            place = getattr(place, attribute)
        assert place.__doc__ or attribute.islower()
        return
    pytest.fail(f"{name} does not exist")


def test_the_readme_example_runs(tmp_path, monkeypatch):
    """On the released weights, as a reader would run it."""
    monkeypatch.chdir(tmp_path)
    (block,) = python_blocks(ROOT / "README.md")
    exec(compile(block.replace("weights/", f"{ROOT}/weights/"), "README.md", "exec"), {})
    assert [path.name for path in tmp_path.iterdir()] == ["images.png"]


def test_links_lead_to_files():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]*[/.][^)#\s]*)", page.read_text()):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def test_a_wing_says_in_forty_lines_where_to_begin():
    rooms = ROOT / "src" / "dualrate"
    for wing in WINGS:
        page = (rooms / wing.split(".")[1] / "README.md").read_text()
        assert len(page.splitlines()) <= 40
        files = {path.name for path in (rooms / wing.split(".")[1]).glob("*.py")} - {"__init__.py", "modality.py"}
        assert files <= set(re.findall(r"`(\w+\.py)`", page)), wing
    named = set(re.findall(r"`(\w+)`", (rooms / "README.md").read_text()))
    assert {path.name for path in rooms.iterdir() if (path / "__init__.py").exists()} <= named


def test_links_into_a_page_lead_to_a_heading():
    for page in PAGES:
        for target, anchor in re.findall(r"\]\(([\w./-]*)#([\w-]+)\)", page.read_text()):
            other = page.parent / target if target else page
            headings = re.findall(r"^#+ (.*)$", other.read_text(), flags=re.MULTILINE)
            assert anchor in map(slug, headings), f"{page.name} links to {target}#{anchor}"


def test_lines_of_text_fit_a_screen():
    """Rows of tables, and code, are as long as they must be."""
    for page in PAGES:
        text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
        long = [line for line in text.splitlines() if len(line) >= 120 and not line.lstrip().startswith("|")]
        assert not long, page.name


# What runs the code of a page: here, or a test of its subject. Code that nothing runs is in ```sh or ```text.
RUN = {
    "README.md", "docs/accelerate.md", "docs/api.md", "docs/clips.md", "docs/commands.md", "docs/conditions.md",
    "docs/diffusers.md", "docs/distil.md", "docs/extending.md", "docs/forecasts.md", "docs/latents.md",
    "docs/own-images.md", "docs/pipeline.md", "docs/plan.md", "docs/retrofit.md", "docs/serving.md", "docs/start.md",
    "docs/unified-latents.md", "docs/worse.md", "src/dualrate/forecasts/README.md",
}  # fmt: skip
READ = {"AGENTS.md", "docs/design.md", "docs/scaling.md"}  # commands of other pages; signatures; many GPUs


def test_every_block_of_code_is_run_or_marked():
    for page in PAGES:
        languages = set(re.findall(r"^```([\w-]+)$", page.read_text(), flags=re.MULTILINE))
        assert str(page.relative_to(ROOT)) in RUN | READ or languages <= {"sh", "text", "yaml"}, page.name


# Commands


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """An empty working directory with a cache of its own, and 80 images in place of Fashion-MNIST's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DUALRATE_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "cache" / images_of_fashion.NAME
    folder.mkdir(parents=True)
    rng, content = np.random.default_rng(0), {}
    for name in images_of_fashion.CONTENT:
        count = 60 if name.startswith("train") else 20
        array = rng.integers(0, 256, (count, 28, 28), np.uint8) if "images" in name else np.arange(count) % 10
        data = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}i", *array.shape)
        data += array.astype(np.uint8).tobytes()
        (folder / name).write_bytes(gzip.compress(data))
        content[name] = (len(data), hashlib.sha256(data).hexdigest())
    monkeypatch.setattr(images_of_fashion, "CONTENT", content)
    return tmp_path


@pytest.fixture
def small_networks(place, monkeypatch) -> None:
    """Networks of a few channels, in the recipes and in place of released models; few plans to compare and to time."""
    heavy = UViTConfig(28, 1, (Level("conv", 8, 1), Level("transformer", 64, 2)), 10, patch=7, embedding=16)
    light = replace(heavy, levels=(Level("conv", 8, 1), Level("transformer", 16, 1)), head_dim=16)
    for name, network in {"HEAVY": heavy, "LIGHT": light}.items():
        monkeypatch.setattr(fashion_mnist, name, network)
    large = replace(heavy, image_size=64, image_channels=3, num_classes=1000, patch=16)
    monkeypatch.setattr(
        imagenet, "network", lambda size, kind: large
    )  # a pass of the real ones takes ten seconds to count
    monkeypatch.setattr(fashion_mnist, "NETWORKS", dict.fromkeys(fashion_mnist.NETWORKS, heavy) | {"light": light})
    monkeypatch.setattr(fashion_mnist, "network", lambda conv, transformer, depth: heavy if depth > 1 else light)
    latent = UViTConfig(7, 4, (Level("transformer", 16, 1),), 10, embedding=16, head_dim=16)
    decoder = UViTConfig(28, 1, (Level("conv", 8, 1),), patch=4, embedding=16)
    encoder = replace(fashion_mnist_latents.ENCODER, channels=(4, 4), blocks=1)
    for name, network in {"ENCODER": encoder, "PRIOR": latent, "DECODER": decoder, "BASE": latent}.items():
        monkeypatch.setattr(fashion_mnist_latents, name, network)
    tier = replace(auto.TIERS["tiny"], conv=8, transformers=(None, 64), blocks=(1, 1), embedding=16)
    monkeypatch.setitem(auto.TIERS, "tiny", tier)
    small = replace(forecast.TIERS["tiny"], channels=(8, 8), blocks=(1, 1), embedding=16)
    monkeypatch.setitem(forecast.TIERS, "tiny", small)
    monkeypatch.setitem(forecast.TIERS, "mini", replace(small, patch=8))
    of_latent = clip_recipe.of_latent
    monkeypatch.setattr(clip_recipe, "of_latent", lambda channels, *of: of_latent(channels, 48, 1, *of[2:]))
    monkeypatch.setattr(clip_recipe, "SIZES", dict.fromkeys(clip_recipe.SIZES, (8, 1, 48, 1)))
    for name, few in {"LADDER": (4,), "DUAL_PLANS": ((4, 2),), "LIGHT_FIRST_PLANS": ((4, 2),)}.items():
        monkeypatch.setattr(candidates, name, few)
    few_features = partial(train_feature_net, kind=lambda *of: Architecture(*of, features=4), epochs=1)
    monkeypatch.setattr(evaluators, "train_feature_net", lambda images, test, **how: few_features(images, None, **how))
    monkeypatch.setattr(Architecture, "features", 4)
    monkeypatch.setattr(comparing, "BATCH", 2)
    monkeypatch.setattr(comparing, "SHOWN", 2)
    monkeypatch.setattr("dualrate.serving.app.serve", lambda offer, host, port, note: None)  # it would not return
    alone, pair = OneNetwork(heavy), TwoNetworks(heavy, light)
    single = {"heavy-annealed": alone, "medium-45": alone, "light": OneNetwork(light)}
    released = single | {"dual-45": pair}
    for name, networks in released.items():
        experiment = Experiment(f"fashion-mnist-{name}", networks, DenoisingConfig(times=TimeSampler()), FitConfig(1))
        path = place / "weights" / experiment.name
        write_experiment(path, experiment)
        checkpoint.save(path / "checkpoints", 1, {"model": experiment.build()[0].state_dict()}, {"iteration": 1})


def months_of_era5(folder: Path, rng: np.random.Generator) -> None:
    """Two files in the layout of the Climate Data Store."""
    folder.mkdir()
    dims = "valid_time", "pressure_level", "latitude", "longitude"
    for i in range(2):
        times = np.datetime64("2020-01-01", "ns") + np.arange(12 * i, 12 * i + 12) * np.timedelta64(6, "h")
        axes = {"pressure_level": [500.0, 850.0], "latitude": [60.0, 20.0, -20.0, -60.0]}
        axes |= {"longitude": 45.0 * np.arange(8), "valid_time": times}
        fields = {name: (dims, rng.normal(size=(12, 2, 4, 8))) for name in "tz"}
        fields["msl"] = dims[:1] + dims[2:], rng.normal(size=(12, 4, 8))
        xarray.Dataset(fields, axes).to_netcdf(folder / f"{i}.nc", engine="h5netcdf")


def store_of_weatherbench(path: Path, rng: np.random.Generator) -> None:
    """A store in the layout of WeatherBench 2."""
    space = "longitude", "latitude"
    times = np.datetime64("2020-01-01", "ns") + np.arange(120) * np.timedelta64(6, "h")
    axes = {"level": [500, 850], "latitude": np.linspace(-78.75, 78.75, 8), "longitude": np.arange(0, 360, 22.5)}
    fields = {
        "geopotential": (("time", "level", *space), rng.normal(size=(120, 2, 16, 8)).astype(np.float32)),
        "2m_temperature": (("time", *space), rng.normal(280, 9, (120, 16, 8)).astype(np.float32)),
        "geopotential_at_surface": (space, rng.normal(size=(16, 8)).astype(np.float32)),
        "land_sea_mask": (space, rng.integers(0, 2, (16, 8)).astype(np.float32)),
    }
    full = {name: {"write_empty_chunks": True} for name in fields}
    xarray.Dataset(fields, {**axes, "time": times}).to_zarr(path, zarr_format=2, encoding=full)


def folder_of_the_well(folder: Path, rng: np.random.Generator) -> None:
    """Splits in the layout of The Well: a scalar and a vector, in files of (trajectory, time, x, y)."""
    for split in ("train", "valid", "test"):
        (folder / split).mkdir(parents=True)
        with h5py.File(folder / split / "flow.hdf5", "w") as file:
            file.create_group("dimensions").attrs["spatial_dims"] = ["x", "y"]
            file["dimensions/time"] = np.arange(12.0)
            for group, name, tail in (("t0_fields", "density", ()), ("t1_fields", "velocity", (2,))):
                file[f"{group}/{name}"] = rng.normal(size=(2, 12, 8, 16, *tail)).astype(np.float32)
                file[group].attrs["field_names"] = [name]


def own_images(folder: Path) -> None:
    """photos/: 24 of several sizes; pets/: 12 in each of two classes; small/: 2 of 8 x 8; fields.npz; era5/;
    weatherbench.zarr; flow/; mine.gif, other.gif; my-clips/: 2 in each of two classes."""
    rng = np.random.default_rng(0)
    np.savez(folder / "fields.npz", fields=rng.normal(size=(12, 40, 1, 32)))
    np.save(folder / "today.npy", rng.normal(size=(3, 1, 32)))
    months_of_era5(folder / "era5", rng)
    store_of_weatherbench(folder / "weatherbench.zarr", rng)
    folder_of_the_well(folder / "flow", rng)
    for clip, frames in {"mine": 24, "other": 3}.items():
        first, *rest = (Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8)) for _ in range(frames))
        first.save(folder / f"{clip}.gif", save_all=True, append_images=rest, duration=100)
    for i in range(4):
        (folder / "my-clips" / "cd"[i // 2]).mkdir(parents=True, exist_ok=True)
        first, *rest = (Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8)) for _ in range(16))
        first.save(folder / f"my-clips/{'cd'[i // 2]}/{i}.gif", save_all=True, append_images=rest, duration=100)
    (folder / "small").mkdir()
    for i in range(2):
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)).save(folder / f"small/{i}.png")
    for i in range(48):
        name, width = (f"photos/{i}.jpg", 40 + i) if i < 24 else (f"pets/{'cat' if i % 2 else 'dog'}/{i}.png", 48)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (36, width, 3), np.uint8)).save(folder / name)


@pytest.mark.usefixtures("small_networks")
@pytest.mark.parametrize("page", ["README.md", "docs/commands.md", "docs/unified-latents.md"])
def test_every_command_of_a_page_runs(page, place, monkeypatch):
    own_images(place)
    for words in commands(ROOT / page):
        follow(words, monkeypatch)


@pytest.mark.usefixtures("small_networks")
@pytest.mark.parametrize(
    "page",
    ["api", "clips", "conditions", "diffusers", "distil", "forecasts", "own-images", "plan", "retrofit", "start"],
)
def test_every_block_of_a_page_runs_in_turn(page, place, monkeypatch):
    if page in ("api", "diffusers", "retrofit"):
        pytest.importorskip("diffusers")
    own_images(place)
    follow_page(ROOT / f"docs/{page}.md", monkeypatch)


@pytest.mark.parametrize(("page", "least"), [("AGENTS.md", 10), ("docs/scaling.md", 11), ("docs/worse.md", 6)])
def test_every_command_of_a_long_page_is_one(page, least, tmp_path, monkeypatch):
    """Read, and not run: those of other pages; for many GPUs; for half a minute (the slow tests run them)."""
    monkeypatch.chdir(tmp_path)
    own_images(tmp_path)
    found = [words[words.index("dualrate") + 1 :] for words in commands(ROOT / page) if "dualrate" in words]
    assert len(found) >= least
    trained: set[str] = set()
    for words in found:
        command = main.parsed(words)
        assert command
        if experiment := getattr(command, "experiment", None):
            trained.add(str(command.out or f"runs/{experiment.name}"))
        runs = {word for word in words[1:2] if word.startswith("runs/")}
        assert runs <= trained, f"{page} does not train {runs}"


def test_a_command_in_a_sentence_is_whole(tmp_path, monkeypatch):
    """With all that it needs but a place for what it writes; one without a word of its own is a name, no command."""
    monkeypatch.chdir(tmp_path)
    for page in (page for page in PAGES if page.parent.name != "results"):  # where rows of tables shorten them
        text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
        for words in map(shlex.split, re.findall(r"`dualrate ([^`]+)`", text)):
            if re.search("--|/", " ".join(words)) and not {"...", "--help"} & {*words}:
                try:
                    main.parsed(words)
                except (ValueError, OSError, SystemExit) as error:  # of names that stand for the reader's
                    why = re.sub(r"^Missing from [\w ]+: --out PATH", "", str(error))
                    assert not re.match(r"Missing from|there is no recipe '-", why), (page.name, words, why)


@pytest.mark.slow
@pytest.mark.usefixtures("small_networks")
def test_every_command_about_a_bad_distance_runs(monkeypatch):
    for words in commands(ROOT / "docs/worse.md"):
        follow(words, monkeypatch)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("page", ["README.md", "docs/commands.md", "docs/own-images.md"])
def test_every_command_runs_on_networks_of_full_size(page, place, monkeypatch):
    own_images(place)
    (place / "weights").symlink_to(ROOT / "weights")
    for words in commands(ROOT / page):
        follow(words, monkeypatch)


@pytest.mark.parametrize("page", ["settled", "captions"])
def test_what_an_answer_quotes_stands_in_a_table(page: str) -> None:
    """Values with intervals: a table that is measured anew leaves none of them behind in a sentence."""
    pages = [ROOT / "README.md", ROOT / "docs/results.md", *(ROOT / "docs/results").glob("*.md")]
    lines = [line for each in pages for line in each.read_text().splitlines() if line.startswith("|")]
    tables = "\n".join(lines).replace(" | [", " [")
    answer = (ROOT / f"docs/results/{page}.md").read_text().splitlines()
    prose = " ".join(line.strip() for line in answer if not line.startswith("|"))
    quoted = re.findall(r"(?:[\d.]+|never) \[[\d.]+, (?:[\d.]+|never)\]", prose)
    assert quoted
    assert [value for value in quoted if f" {value}" not in tables] == []


def test_no_two_pages_write_different_things_into_one_place():
    """For whoever follows one after the other: a place that is taken is refused, or written over."""
    writers: dict[str, dict[str, str]] = {}
    for page in ["README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md"))]:
        for words in commands(ROOT / page):
            if "--out" in words and page != "docs/scaling.md":  # where one run is trained in several ways
                place = words.pop(words.index("--out") + 1)
                writers.setdefault(place, {})[" ".join(words)] = page
    assert len(writers) > 60
    for place, lines in writers.items():
        assert len(lines) == 1, (place, lines)
