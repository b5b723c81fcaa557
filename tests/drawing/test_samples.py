"""Samples in a folder: bounded memory, the same bits after a kill at any write, and nothing foreign beside them."""

import gc
import json
import signal
import tracemalloc
from contextlib import suppress
from dataclasses import replace
from functools import partial

import dying
import numpy as np
import pytest
import torch
from runs.made import saved_random
from trouble import forked

from dualrate.diffusion.plan import StepPlan
from dualrate.diffusion.random import Draws
from dualrate.drawing import record as record_module
from dualrate.drawing import samples as module
from dualrate.drawing.drawer import Drawer, Guidance
from dualrate.drawing.samples import write_samples
from dualrate.experiment.experiment import Experiment
from dualrate.experiment.model import Model
from dualrate.experiment.network_configs import TwoNetworks
from dualrate.methods.denoising import DenoisingConfig
from dualrate.methods.times import TimeSampler
from dualrate.networks import blocks
from dualrate.networks.uvit import Level, UViTConfig
from dualrate.report.image_grid import Pictures, read_png
from dualrate.runs.store import load
from dualrate.runs.train import check_out
from dualrate.sampling.ancestral import Ancestral
from dualrate.sampling.ddim import DDIM
from dualrate.system.progress import run_lock
from dualrate.training.config import FitConfig

NET = UViTConfig(8, 3, (Level("conv", 8, 1), Level("transformer", 16, 1)), 3, patch=2, embedding=16, head_dim=16)
EXPERIMENT = Experiment("two", TwoNetworks(NET, NET), DenoisingConfig(times=TimeSampler()), FitConfig(iterations=1))
PLAN = dying.PLAN
SEEDS = range(5, 15)


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Model:
    path = tmp_path_factory.mktemp("runs") / "two"
    return load(saved_random(EXPERIMENT, path))


OF_WRITING = ("npz", "progress", "command")


def written(model, out, seeds=SEEDS, *, step=None, plan=PLAN, **options):
    how = {"batch_size": 4, "precision": "float32", **options}
    writing = {name: how.pop(name) for name in OF_WRITING if name in how}
    return write_samples(Drawer(model, step or Ancestral(model.process), plan, **how), seeds, out, **writing)


class Artist:
    """Draws noise that depends on a seed and on its batch, counts seeds, and dies at the wish of a test."""

    def __init__(self, batches: int = 10**9) -> None:
        self.batches, self.drawn = batches, []

    def stands_in(self, monkeypatch) -> None:
        monkeypatch.setattr(Drawer, "batches", lambda drawer, seeds, progress=None: self(drawer, seeds))

    def __call__(self, drawer, seeds):
        if not self.batches:
            raise Killed
        self.batches -= 1
        self.drawn += seeds
        draws = Draws(1000 * seeds[0] + len(seeds), torch.tensor(list(seeds)))
        yield (256 * draws.uniform("pixels", *drawer.model.shape)).to(torch.uint8).numpy()


@pytest.fixture
def artist(monkeypatch) -> Artist:
    """In place of the networks."""
    artist = Artist()
    artist.stands_in(monkeypatch)
    return artist


def content(folder) -> dict[str, bytes]:
    """All files of a folder but those that say when and who."""
    assert not list(folder.glob("*.partial"))
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name not in ("sample.json", ".lock")}


def record(folder) -> dict:
    return json.loads((folder / "sample.json").read_text())


def images(folder, seeds) -> np.ndarray:
    return np.stack([read_png(folder / f"{seed:06d}.png") for seed in seeds])


# What is written


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_images_are_those_of_drawing_them_at_once(model, tmp_path, precision):
    told = []
    done = written(model, tmp_path, precision=precision, progress=lambda *counts: told.append(counts))
    drawer = Drawer(model, Ancestral(model.process), PLAN, batch_size=4, precision=precision)
    assert np.array_equal(images(tmp_path, SEEDS), drawer.draw(SEEDS).images)
    assert told == [(0, 10), (4, 10), (8, 10), (10, 10)]
    assert (done.drawn, done.cost, done.precision) == (10, drawer.cost, precision)
    assert done.seconds > 0


def test_the_npz_has_the_images_of_the_pngs_and_their_labels(model, tmp_path):
    written(model, tmp_path, npz=True)
    with np.load(tmp_path / "images.npz") as archive:
        assert archive["arr_0"].dtype == np.uint8
        assert np.array_equal(archive["arr_0"].transpose(0, 3, 1, 2), images(tmp_path, SEEDS))
        assert archive["arr_1"].tolist() == [seed % 3 for seed in SEEDS]
    written(model, tmp_path / "one", label=2, npz=True)
    with np.load(tmp_path / "one" / "images.npz") as archive:
        assert archive["arr_1"].tolist() == [2] * 10


def test_the_grid_is_there_as_soon_as_its_images_are(model, artist, tmp_path, monkeypatch):
    monkeypatch.setattr(Pictures, "shown", 4)
    artist.batches = 1
    with pytest.raises(Killed):
        written(model, tmp_path / "killed")
    Artist().stands_in(monkeypatch)
    written(model, tmp_path / "whole")
    assert (tmp_path / "killed" / "grid.png").read_bytes() == (tmp_path / "whole" / "grid.png").read_bytes()
    (tmp_path / "whole" / "grid.png").unlink()
    written(model, tmp_path / "whole")
    assert (tmp_path / "whole" / "grid.png").exists()


def test_the_record_says_what_the_images_are_of(model, tmp_path):
    done = written(model, tmp_path, step=Ancestral(model.process, 0.3), guidance=Guidance(2.0), label=1, command="mine")
    said = record(tmp_path)
    assert (said["model"], said["path"], said["iteration"]) == ("two", str(model.path), 1)
    assert said["sampler"] == "ancestral, gamma 0.3, guidance 2"
    assert (said["step"]["type"], said["step"]["gamma"], said["guidance"]["weight"]) == ("Ancestral", 0.3, 2.0)
    assert StepPlan.from_json(json.dumps(said["plan"])) == PLAN
    assert (said["first_seed"], said["images"]) == (5, 10)
    origin = said["origin"]
    assert (origin["weights"], origin["labels"], origin["precision"]) == (model.weights_hash, "class 1", "float32")
    assert said["cost"]["macs"] == done.cost.macs
    (call,) = said["calls"]
    assert (call["command"], call["batch_size"], call["device"]) == ("mine", 4, "cpu")
    assert {"torch", "Python", "date"} <= call.keys()


def test_calls_are_kept_once_each_and_only_if_they_draw(model, artist, tmp_path):
    written(model, tmp_path, range(5, 9), command="a")
    written(model, tmp_path, range(5, 12), command="a")
    written(model, tmp_path, range(5, 13), command="b")
    written(model, tmp_path, range(5, 8), command="c")
    assert [call["command"] for call in record(tmp_path)["calls"]] == ["a", "b"]
    assert record(tmp_path)["images"] == 8


@pytest.mark.parametrize(
    ("first", "names"),
    [
        (0, ["000000.png", "000001.png"]),
        (-2, ["-00001.png", "-00002.png"]),
        (899_999, ["899999.png", "900000.png"]),
        (999_999, ["0999999.png", "1000000.png"]),
        (2**40 - 1, ["1099511627775.png", "1099511627776.png"]),
    ],
)
def test_names_sort_as_seeds_do_but_for_those_below_zero(model, artist, tmp_path, first, names):
    written(model, tmp_path, range(first, first + 2))
    assert sorted(path.name for path in tmp_path.glob("*[0-9].png")) == names
    assert written(model, tmp_path, range(first, first + 2)).drawn == 0


# Memory


def test_no_more_than_a_batch_is_held(model, tmp_path, monkeypatch):
    """The peak of what Python and numpy hold, of 350 images of 3 KiB in batches of 50, with their npz."""
    net = replace(NET, image_size=32)
    large = replace(model, experiment=replace(EXPERIMENT, networks=TwoNetworks(net, net)))
    cost = Drawer(model, Ancestral(model.process), PLAN).cost

    def noise(drawer, seeds, progress=None):
        yield np.random.default_rng(seeds[0]).integers(0, 256, (len(seeds), *drawer.model.shape), dtype=np.uint8)

    monkeypatch.setattr(Drawer, "cost", cost)
    monkeypatch.setattr(Drawer, "batches", noise)
    monkeypatch.setattr(Pictures, "shown", 4)
    written(large, tmp_path / "first", range(50), batch_size=50, npz=True)  # what is loaded once
    peaks, batch = [], 50 * 3 * 32 * 32
    for name in ("out", "again"):  # a table of Python's own may double during one: 8 MB late in a run of all tests
        gc.collect()
        tracemalloc.start()
        written(large, tmp_path / name, range(350), batch_size=50, npz=True)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert batch < min(peaks) < 5 * batch


# Going on


def test_killed_at_every_write_the_same_call_ends_with_the_same_bits(model, tmp_path):
    """Real processes, really killed, right before each file appears, and right after the last."""
    assert forked(partial(dying.write, model.path, tmp_path / "whole", 4)) == 0
    whole = content(tmp_path / "whole")
    assert len(whole) == 6
    writes = len(whole) + 1
    for moment in (*range(1, 2 * writes, 2), 2 * writes):
        out = tmp_path / f"{moment}"
        assert forked(partial(dying.write, model.path, out, 4, kill_at=moment)) == -signal.SIGKILL
        assert {name for name in whole if (out / name).exists() and (out / name).read_bytes() != whole[name]} == set()
        dying.write(model.path, out, 4)
        assert content(out) == whole


@pytest.mark.parametrize("missing", [[5], [14], [6, 7, 12], [5, 6, 7, 8], list(SEEDS)])
def test_only_batches_that_lack_an_image_are_drawn(model, artist, tmp_path, missing):
    written(model, tmp_path)
    whole = content(tmp_path)
    artist.drawn.clear()
    for seed in missing:
        (tmp_path / f"{seed:06d}.png").unlink()
    done = written(model, tmp_path)
    batches = [range(5, 9), range(9, 13), range(13, 15)]
    assert artist.drawn == [seed for batch in batches if set(batch) & set(missing) for seed in batch]
    assert done.drawn == len(artist.drawn)
    assert content(tmp_path) == whole


def test_a_finished_call_draws_nothing_again(model, artist, tmp_path):
    written(model, tmp_path, npz=True)
    whole, said, told = content(tmp_path), record(tmp_path), []
    artist.drawn.clear()
    done = written(model, tmp_path, npz=True, progress=lambda *counts: told.append(counts))
    assert (done.drawn, done.seconds, artist.drawn, told) == (0, 0, [], [(10, 10)])
    assert (content(tmp_path), record(tmp_path)) == (whole, said)


def test_more_images_go_on_and_fewer_take_none_away(model, artist, tmp_path):
    written(model, tmp_path / "whole", range(5, 25), npz=True)
    written(model, tmp_path / "grown", range(5, 13))
    artist.drawn.clear()
    written(model, tmp_path / "grown", range(5, 25), npz=True)
    assert artist.drawn == [*range(13, 25)]
    assert content(tmp_path / "grown") == content(tmp_path / "whole")
    written(model, tmp_path / "grown", range(5, 8))
    assert len(list((tmp_path / "grown").glob("0*.png"))) == 20


@pytest.mark.parametrize(
    ("before", "lost", "then"),
    [
        ((range(5, 8), 8), 6, (range(5, 13), 8)),  # the last batch was cut short, and grows
        ((range(5, 13), 8), 6, (range(5, 13), 4)),  # another batch size
        ((range(5, 13), 8), 6, (range(5, 9), 8)),  # fewer images
    ],
)
def test_a_batch_cut_otherwise_is_redrawn_as_a_whole_whenever_it_is_killed(
    model, artist, tmp_path, monkeypatch, before, lost, then
):
    def prepared(out):
        written(model, out, before[0], batch_size=before[1])
        (out / f"{lost:06d}.png").unlink()
        return out

    written(model, prepared(tmp_path / "whole"), then[0], batch_size=then[1])
    whole = content(tmp_path / "whole")
    for writes in range(then[1] + 1):
        out, left = prepared(tmp_path / f"{writes}"), writes

        def dies(path, data, write):
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            write(path, data)

        with monkeypatch.context() as patch, suppress(Killed):
            for place, name in ((module, "write_unsynced"), (record_module, "write_whole")):
                patch.setattr(place, name, partial(dies, write=getattr(place, name)))
            written(model, out, then[0], batch_size=then[1])
        written(model, out, then[0], batch_size=then[1])
        assert content(out) == whole


@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b[:-1], lambda b: bytes(len(b)), lambda b: b"mine"])
def test_a_png_that_is_not_whole_is_drawn_again(model, artist, tmp_path, damage):
    written(model, tmp_path)
    whole = content(tmp_path)
    (tmp_path / "000007.png").write_bytes(damage(whole["000007.png"]))
    written(model, tmp_path)
    assert content(tmp_path) == whole


def test_what_a_killed_process_left_is_removed(model, artist, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "sample.json.0123abcd.partial").write_text("{")
    written(model, tmp_path / "out")
    for name in ("000006.png", "images.npz", "grid.png", "sample.json"):
        (tmp_path / "out" / f"{name}.0123abcd.partial").write_text("half")
    another = tmp_path / "out" / "my-sample.json.0123abcd.partial"  # of a writer that may be at work
    another.write_text("{")
    written(model, tmp_path / "out")
    assert another.exists()
    another.unlink()
    assert "000005.png" in content(tmp_path / "out")


def test_precision_auto_is_that_of_the_images_that_are_there(model, tmp_path, monkeypatch):
    """Milliseconds decide what pays, and may come out otherwise the next time."""
    monkeypatch.setattr("dualrate.networks.blocks.pays", lambda device: True)
    assert written(model, tmp_path, range(5, 9), precision="auto").precision == "bfloat16"
    monkeypatch.setattr("dualrate.networks.blocks.pays", lambda device: False)
    assert written(model, tmp_path, precision="auto").precision == "bfloat16"
    with pytest.raises(ValueError, match=r"differ in precision \(bfloat16; now float32\)"):
        written(model, tmp_path, precision="float32")


def test_an_interruption_says_how_many_images_are_there(model, artist, tmp_path):
    def stops(done, total):
        if done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match=r"8 of 10 images are in .*out; the same command goes on"):
        written(model, tmp_path / "out", progress=stops)
    assert len(list((tmp_path / "out").glob("0*.png"))) == 8


def test_a_full_disk_is_an_error_that_names_the_file_and_harms_nothing(model, artist, tmp_path, monkeypatch):
    written(model, tmp_path / "whole")

    def fills(done, total):
        if done == 4:
            (tmp_path / "out" / "000011.png.00000000.partial").symlink_to("/dev/full")

    monkeypatch.setattr("secrets.token_hex", lambda count: "0" * 2 * count)

    with pytest.raises(OSError, match=r"No space left on device: '.*000011\.png'\. 6 of 10 images are in .* goes on"):
        written(model, tmp_path / "out", progress=fills)
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [".lock", *(f"{seed:06d}.png" for seed in range(5, 11)), "sample.json"]
    written(model, tmp_path / "out")
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_a_damaged_png_is_found_when_it_is_read(model, artist, tmp_path):
    written(model, tmp_path)
    file = tmp_path / "000007.png"
    damaged = bytearray(file.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    file.write_bytes(damaged)
    with pytest.raises(OSError, match=r"000007\.png is damaged .*: delete it"):
        written(model, tmp_path, npz=True)
    assert not (tmp_path / "images.npz").exists()
    file.unlink()
    written(model, tmp_path, npz=True)


# What is refused


def other(what, model):
    """Arguments of a call for images that are not those of `written`."""
    match what:
        case "weights":
            return {"model": replace(model, weights_hash="f" * 64, iteration=2)}
        case "experiment":
            return {"model": replace(model, experiment=replace(EXPERIMENT, name="other"))}
        case "plan":
            return {"plan": StepPlan.uniform(3, 1)}
        case "sampler":
            return {"step": Ancestral(model.process, 0.3)}
        case "guidance":
            return {"guidance": Guidance(2.0, (0.1, 1.0))}
        case "labels":
            return {"label": 0}
        case "precision":
            return {"precision": "bfloat16"}
        case _:
            return {"seeds": range(6, 12)}


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("weights", r"differ in weights \(two at iteration 1, \w{12}; now two at iteration 2, f{12}\)"),
        ("experiment", r"differ in experiment \(\w{12}; now \w{12}\)"),
        ("plan", r"differ in plan \(2 steps, 1 heavy, \w+; now 3 steps, 1 heavy, \w+\)"),
        ("sampler", r"differ in sampler \(ancestral; now ancestral, gamma 0.3\)"),
        ("guidance", r"differ in sampler \(ancestral; now ancestral, guidance 2 in \(0.1, 1\]\)"),
        ("labels", r"differ in labels \(seed mod classes; now class 0\)"),
        ("precision", r"differ in precision \(float32; now bfloat16\)"),
        ("first seed", r"differ in first seed \(5; now 6\)"),
    ],
)
def test_a_folder_of_other_samples_is_refused_and_what_differs_is_named(model, artist, tmp_path, what, message):
    written(model, tmp_path, range(5, 9))
    before = content(tmp_path) | {"sample.json": (tmp_path / "sample.json").read_bytes()}
    artist.drawn.clear()
    with pytest.raises(ValueError, match=f"{message}: choose another --out"):
        written(**{"model": model, "out": tmp_path, **other(what, model)})
    assert content(tmp_path) | {"sample.json": (tmp_path / "sample.json").read_bytes()} == before
    assert not artist.drawn


def test_samplers_that_differ_in_a_table_alone_are_told_apart(model, artist, tmp_path):
    class Same(DDIM):
        def __str__(self) -> str:
            return "ancestral"

    written(model, tmp_path)
    with pytest.raises(ValueError, match=r"differ in sampler \(.*Ancestral.*; now .*Same.*\)"):
        written(model, tmp_path, step=Same(model.process), plan=StepPlan.uniform(2), guidance=Guidance())


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["000001.png"], r"holds 000001\.png but no sample\.json"),
        (["photo.jpg", "a", "b", "c"], r"holds a, b, c, \.\.\. but no sample\.json"),
        (["experiment.json", "checkpoints"], r"holds checkpoints, experiment\.json but no"),
        (["origin.json"], r"holds origin\.json but no sample\.json"),
    ],
)
def test_a_folder_of_anything_else_is_refused_and_left_as_it_is(model, artist, tmp_path, names, message):
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=f"{message}.*--out"):
        written(model, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)


@pytest.mark.parametrize(
    "name",
    ["photo.png", "000004.png", "000015.png", "0000007.png", "7.png"],
)
def test_other_images_beside_samples_are_refused(model, artist, tmp_path, name):
    written(model, tmp_path)
    (tmp_path / name).touch()
    with pytest.raises(ValueError, match=f"holds {name} beside its samples: take that away"):
        written(model, tmp_path)
    assert (tmp_path / name).exists()


def test_logs_and_hidden_files_may_be_there(model, artist, tmp_path):
    for name in ("sampling.log", "job.out", ".DS_Store", ".hidden.0123abcd.partial"):
        (tmp_path / name).touch()
    written(model, tmp_path)
    written(model, tmp_path, range(5, 25))
    assert (tmp_path / ".hidden.0123abcd.partial").exists()


def test_a_place_that_is_no_directory_is_refused(model, artist, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="is a file; samples are kept in a directory"):
        written(model, tmp_path / "file")
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(ValueError, match="leads nowhere"):
        written(model, tmp_path / "link")
    (tmp_path / "way").symlink_to("there")
    (tmp_path / "there").mkdir()
    written(model, tmp_path / "way")
    assert (tmp_path / "there" / "000005.png").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"model": "two"}', "\xff"])
def test_a_damaged_record_is_refused(model, artist, tmp_path, text):
    written(model, tmp_path)
    (tmp_path / "sample.json").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=r"sample\.json"):
        written(model, tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": range(0)}, "seeds"),
        ({"seeds": range(0, 9, 2)}, "seeds"),
        ({"batch_size": 0}, "batch_size is a whole number from 1"),
        ({"label": 3}, "classes 0 to 2"),
        ({"step": "ddim"}, "Use Ancestral"),
        ({"plan": StepPlan.at([0.9, 0.4, 0], [0])}, "from t = 1 to 0"),
    ],
)
def test_what_cannot_be_drawn_leaves_no_trace(model, tmp_path, options, message):
    if "step" in options:
        options = {"step": DDIM(model.process)}
    with pytest.raises(ValueError, match=message):
        written(model, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_two_processes_cannot_fill_one_folder(model, artist, tmp_path):
    written(model, tmp_path, range(5, 9))
    with (
        run_lock(tmp_path, "filled with samples"),
        pytest.raises(OSError, match="is being filled with samples by another process"),
    ):
        written(model, tmp_path)
    assert written(model, tmp_path).drawn == 6


def test_a_process_that_came_between_is_noticed_once_the_lock_is_held(model, artist, tmp_path, monkeypatch):
    looked = []

    def look(directory, read=module.SampleRecord.read):
        looked.append(directory)
        return None if len(looked) <= 2 else read(directory)

    written(model, tmp_path, range(5, 9))
    monkeypatch.setattr(module.SampleRecord, "read", staticmethod(look))
    with pytest.raises(ValueError, match="differ in plan"):
        written(model, tmp_path, plan=StepPlan.uniform(3, 1))


def test_no_run_is_trained_among_samples(model, artist, tmp_path):
    written(model, tmp_path)
    with pytest.raises(ValueError, match="holds samples"):
        check_out("tiny", tmp_path)


@pytest.mark.parametrize(("seeds", "expected"), [(1, "float32"), (3, "float32"), (4, "bfloat16"), (8, "bfloat16")])
def test_precision_auto_is_what_pays_for_so_many_images(model, tmp_path, monkeypatch, seeds, expected):
    """Where bfloat16 pays at all: the casts of few small images take longer than it saves."""
    monkeypatch.setattr(blocks, "pays", lambda device: True)
    auto = Drawer(model, Ancestral(model.process), PLAN)
    assert auto.for_seeds(seeds).arithmetic == expected
    assert written(model, tmp_path, range(seeds), batch_size=125, precision="auto").precision == expected
    assert np.array_equal(auto.draw(range(seeds)).images, replace(auto, precision=expected).draw(range(seeds)).images)


def test_a_large_image_alone_is_in_bfloat16_where_that_pays(monkeypatch):
    monkeypatch.setattr(blocks, "pays", lambda device: device.type != "meta")
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert blocks.in_bfloat16("auto", cpu, (1, 3, 64, 64))
    assert not blocks.in_bfloat16("auto", cpu, (1, 3, 63, 64))
    assert blocks.in_bfloat16("auto", gpu, (1, 3, 8, 8))
    assert blocks.in_bfloat16("bfloat16", cpu, (1, 3, 8, 8))
    assert not blocks.in_bfloat16("auto", torch.device("meta"), (64, 3, 64, 64))


def test_a_folder_whose_record_had_another_name_is_gone_on_with(model, tmp_path):
    written(model, tmp_path, range(5, 8))
    file = tmp_path / "sample.json"
    file.write_text(file.read_text().replace('"type": "SampleRecord"', '"type": "Record"'))
    assert (written(model, tmp_path, range(5, 10)).drawn, record(tmp_path)["images"]) == (5, 5)
