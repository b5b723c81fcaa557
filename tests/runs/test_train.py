"""Training a run: a frozen encoder stays what it was."""

import gc
import shutil
import threading
import weakref
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dualrate.data.loader import AHEAD, Augment, Prefetched
from dualrate.experiment.data_config import DataConfig
from dualrate.experiment.experiment import Experiment
from dualrate.experiment.network_configs import OneNetwork, TwoNetworks
from dualrate.methods.denoising import DenoisingConfig
from dualrate.methods.times import TimeSampler
from dualrate.networks.uvit import Level, UViTConfig
from dualrate.runs.release import export
from dualrate.runs.store import CLASSES, load
from dualrate.runs.train import from_dataset, train
from dualrate.training import checkpoint
from dualrate.training.config import FitConfig

NET = UViTConfig(8, 1, (Level("conv", 8, 1), Level("transformer", 16, 1, 0.5)), patch=2, embedding=16, head_dim=16)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A heavy run, and a dual-rate experiment that retrofits it."""
    root = tmp_path_factory.mktemp("runs")
    np.savez(root / "images.npz", images=np.random.default_rng(0).integers(0, 256, (64, 8, 8, 1), dtype=np.uint8))
    fit = FitConfig(iterations=3, batch_size=8, precision="float32", sample_every=100)
    data = DataConfig(str(root / "images.npz"))
    train(Experiment("heavy", OneNetwork(NET), DenoisingConfig(), fit, data), root / "heavy")
    retrofit = Experiment(
        "retrofit",
        TwoNetworks(NET, NET),
        DenoisingConfig(times=TimeSampler(), encoder_from=str(root / "heavy"), freeze_encoder=True),
        fit,
        data,
    )
    return root, retrofit


def test_a_frozen_encoder_keeps_its_weights_and_the_rest_trains(runs):
    root, retrofit = runs
    train(retrofit, root / "frozen")
    heavy, after = load(root / "heavy").networks["model"], load(root / "frozen").networks
    for name, weight in heavy.state_dict().items():
        assert torch.equal(after.get_submodule("encoder.net").state_dict()[name], weight), name
    start = retrofit.build()[0].state_dict()
    moved = {name for name, weight in after.state_dict().items() if not torch.equal(weight, start[name])}
    assert any(name.startswith("light.") for name in moved)
    assert {"encoder.pixels.weight", "encoder.projections.0.weight", "encoder.projections.1.weight"} <= moved


def test_a_frozen_encoder_has_no_optimiser_state_and_no_average(runs):
    root, retrofit = runs
    train(retrofit, root / "state")
    saved = checkpoint.recover(root / "state" / "checkpoints", print)
    assert saved is not None
    for stem in ("optim-model", "ema-model"):
        assert saved.tensors[stem]
        assert not [name for name in saved.tensors[stem] if name.startswith("encoder.net.")], stem


def test_a_frozen_encoder_runs_without_dropout(runs):
    _, retrofit = runs
    networks = retrofit.method.build(retrofit).networks
    assert not networks.get_submodule("encoder.net").training
    assert networks["light"].training
    assert replace(retrofit.method, freeze_encoder=False).build(retrofit).networks.get_submodule("encoder.net").training


def newest(run) -> checkpoint.Checkpoint:
    return checkpoint.load(checkpoint.saved_paths(run / "checkpoints")[-1])


def test_a_run_that_an_earlier_version_wrote_goes_on(runs):
    """Its checkpoint names fields that are gone."""
    root, _ = runs
    experiment = replace(
        load(root / "heavy").experiment, fit=replace(load(root / "heavy").experiment.fit, iterations=4)
    )
    shutil.copytree(root / "heavy", root / "earlier")
    saved = checkpoint.recover(root / "earlier" / "checkpoints", print)
    assert saved is not None
    config = saved.state["config"]
    then = {**config["method"], "forecast": False, "release_encoder_at": 0, "encoder_rate": 1.0}
    state = {**saved.state, "config": {**config, "method": then}}
    shutil.rmtree(saved.path)
    checkpoint.save(root / "earlier" / "checkpoints", 3, saved.tensors, state)
    assert train(experiment, root / "earlier").iteration == 4
    with pytest.raises(ValueError, match="trained with another configuration"):
        train(replace(experiment, method=DenoisingConfig(label_dropout=0.2)), root / "earlier")


def test_other_images_are_another_run(runs):
    root, _ = runs
    shutil.copytree(root / "heavy", root / "moved")
    np.savez(root / "others.npz", images=np.random.default_rng(1).integers(0, 256, (64, 8, 8, 1), dtype=np.uint8))
    content = (root / "images.npz").read_bytes()
    try:
        shutil.copy(root / "others.npz", root / "images.npz")
        with pytest.raises(ValueError, match="images"):
            train(load(root / "heavy").experiment, root / "moved")
    finally:
        (root / "images.npz").write_bytes(content)


def longer(experiment: Experiment) -> Experiment:
    return replace(experiment, fit=replace(experiment.fit, iterations=experiment.fit.iterations + 1))


def test_the_same_images_at_another_place_are_the_same_run(runs, tmp_path):
    """Under another name too, which recipes make of the place."""
    root, _ = runs
    experiment, out = longer(load(root / "heavy").experiment), tmp_path / "run"
    shutil.copytree(root / "heavy", out)
    shutil.copy(root / "images.npz", tmp_path / "scratch.npz")
    moved = replace(experiment, name="scratch", data=DataConfig(str(tmp_path / "scratch.npz")))
    assert train(moved, out).iteration == 4
    assert load(out).experiment.data.source == str(tmp_path / "scratch.npz")
    np.savez(tmp_path / "others.npz", images=np.zeros((64, 8, 8, 1), np.uint8))
    others = replace(experiment, data=DataConfig(str(tmp_path / "others.npz")))
    with pytest.raises(ValueError, match=r"(?s)data.source: .*scratch.npz -> .*others.npz.*images: "):
        train(others, out)


def test_a_model_that_a_run_started_from_need_not_be_there_any_more(runs, tmp_path):
    root, retrofit = runs
    shutil.copytree(root / "heavy", tmp_path / "heavy")
    here = replace(retrofit, method=replace(retrofit.method, encoder_from=str(tmp_path / "heavy")))
    train(here, tmp_path / "run")
    shutil.rmtree(tmp_path / "heavy")
    assert train(longer(here), tmp_path / "run").iteration == 4
    with pytest.raises(ValueError, match=r"method.encoder_from: .*heavy -> .*heavy"):
        train(longer(retrofit), tmp_path / "run")


def test_freezing_nothing_trained_is_refused():
    with pytest.raises(ValueError, match="single network"):
        Experiment(
            "one", OneNetwork(NET), DenoisingConfig(encoder_from="x", freeze_encoder=True), FitConfig(iterations=1)
        )
    with pytest.raises(ValueError, match="encoder_from"):
        Experiment(
            "two",
            TwoNetworks(NET, NET),
            DenoisingConfig(times=TimeSampler(), freeze_encoder=True),
            FitConfig(iterations=1),
        )


def folders_of(root, names):
    for number, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for i in range(4):
            Image.fromarray(np.full((8, 8), 40 * number + i, np.uint8)).save(root / name / f"{i}.png")
    return str(root)


def test_a_run_keeps_the_names_of_its_classes_also_one_that_was_begun_without(tmp_path):
    net, names = replace(NET, num_classes=3), ("circle", "square", "über | alles")
    data, fit = DataConfig(folders_of(tmp_path / "shapes", names)), FitConfig(1, 4, precision="float32")
    experiment = Experiment("named", OneNetwork(net), DenoisingConfig(), fit, data)
    train(experiment, tmp_path / "run")
    model = load(tmp_path / "run")
    assert model.class_names == names
    assert [model.class_number(name) for name in names] == [0, 1, 2]
    (tmp_path / "run" / CLASSES).unlink()
    old = load(tmp_path / "run")
    assert (old.class_names, old.class_number(2)) == ((), 2)
    with pytest.raises(ValueError, match="has no class 'square': give 0 to 2"):
        old.class_number("square")
    train(experiment, tmp_path / "run")
    assert load(tmp_path / "run").class_names == names
    export(tmp_path / "run", tmp_path / "released")
    assert load(tmp_path / "released").class_names == names
    card = (tmp_path / "released" / "README.md").read_text()
    assert "| classes | 0 circle, 1 square, 2 über \\| alles |" in card


def test_names_of_fashion_mnist_are_known_without_a_file_of_them():
    weights = Path(__file__).parents[2] / "weights" / "fashion-mnist-light"
    assert not (weights / CLASSES).exists()
    assert load(weights).class_number("Dress") == 3


def test_classes_that_are_called_by_their_numbers_have_no_names(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 1), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images=images, labels=np.arange(8) % 2)
    data, fit = DataConfig(str(tmp_path / "images.npz")), FitConfig(1, 4, precision="float32")
    train(Experiment("n", OneNetwork(replace(NET, num_classes=2)), DenoisingConfig(), fit, data), tmp_path / "run")
    assert load(tmp_path / "run").class_names == ()


def test_prefetching_changes_no_bit_also_of_a_resumed_run(runs, monkeypatch):
    """Against batches that are made when they are asked for, by a run that was never interrupted."""
    root, retrofit = runs
    ahead = replace(retrofit, data=replace(retrofit.data, augment=Augment(flip=True, translate=2)))
    monkeypatch.setattr("dualrate.runs.train.Prefetched", partial(Prefetched, ahead=AHEAD))
    for iterations in (2, 5):
        train(replace(ahead, fit=replace(ahead.fit, iterations=iterations)), root / "ahead")
    monkeypatch.setattr("dualrate.runs.train.Prefetched", lambda batches, device: nullcontext(batches))
    train(replace(ahead, fit=replace(ahead.fit, iterations=5)), root / "asked")
    one, other = newest(root / "ahead"), newest(root / "asked")
    assert one.tensors.keys() == other.tensors.keys()
    for stem, tensors in one.tensors.items():
        assert all(torch.equal(tensor, other.tensors[stem][name]) for name, tensor in tensors.items()), stem
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("batches")]


class Own(torch.utils.data.Dataset):
    """Items that are made by a function of their number."""

    def __init__(self, make, count: int = 20) -> None:
        self.make, self.count = make, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int):
        return self.make(i)


def pixels(i: int) -> torch.Tensor:
    return torch.randint(0, 256, (1, 8, 8), generator=torch.Generator().manual_seed(i), dtype=torch.uint8)


def test_in_bfloat16_every_iteration_has_the_weights_of_the_one_before_and_a_resumed_run_the_same_bits(runs):
    """Autocast keeps 16-bit copies of weights until the outermost autocast ends, which is after the last iteration."""
    root, retrofit = runs
    fit = replace(retrofit.fit, iterations=6, precision="bfloat16", checkpoint_every=3, sample_every=6)
    experiment = Experiment("b", OneNetwork(NET), DenoisingConfig(), fit, retrofit.data)
    train(experiment, root / "straight")
    shutil.copytree(root / "straight", root / "halfway")
    shutil.rmtree(checkpoint.path_of(root / "halfway" / "checkpoints", 6))
    train(experiment, root / "halfway")
    straight, resumed = (
        checkpoint.load(checkpoint.path_of(root / name / "checkpoints", 6)).tensors for name in ("straight", "halfway")
    )
    for file, tensors in straight.items():
        for name, tensor in tensors.items():
            assert torch.equal(resumed[file][name], tensor), f"{file} {name}"


def test_a_data_set_of_one_s_own_trains_a_run_of_bytes_as_of_floats(tmp_path):
    net = replace(NET, num_classes=3)
    fit = FitConfig(iterations=2, batch_size=8, precision="float32", sample_every=100)
    experiment = Experiment("own", OneNetwork(net), DenoisingConfig(), fit)
    with_floats = Own(lambda i: (pixels(i).float() / 127.5 - 1, i % 3))
    train(experiment, tmp_path / "bytes", images=Own(lambda i: (pixels(i).numpy(), torch.tensor(i % 3))))
    train(experiment, tmp_path / "floats", images=with_floats)
    named = from_dataset(with_floats)
    assert (named.num_classes, named.shape) == (3, (1, 8, 8))
    assert_same = partial(torch.testing.assert_close, rtol=0, atol=0)
    assert_same(*(dict(load(tmp_path / name).networks.state_dict()) for name in ("bytes", "floats")))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda i: "x", r"item 0 of dataset is str; expected \(C, H, W\), C = 1 or 3 of uint8"),
        (lambda i: pixels(i)[0], r"torch.uint8 \(8, 8\); expected \(C, H, W\), C = 1 or 3 of uint8"),
        (lambda i: pixels(i).float(), r"torch.float32 \(1, 8, 8\); expected"),
        (lambda i: pixels(i).int(), r"torch.int32 \(1, 8, 8\)"),
        (lambda i: pixels(i)[:, : 8 - i], r"item 1 of dataset is torch.uint8 \(1, 7, 8\); expected \(1, 8, 8\)"),
        (lambda i: pixels(i).float() / 255, r"no value below 0, as images in .*give 2 \* x - 1"),
        (lambda i: (pixels(i), 0.7), r"item 0 of dataset has the label 0.7; expected a whole number"),
        (lambda i: (pixels(i), 1, 2), r"item 0 of dataset is tuple; expected"),
        (lambda i: (pixels(i), 1 if i else None), r"19 of the 20 images of dataset have labels"),
    ],
)
def test_what_is_no_image_in_a_data_set_of_one_s_own_is_refused_with_its_shape_and_type(make, said):
    with pytest.raises(ValueError, match=said):
        from_dataset(Own(make))


def test_a_data_set_of_nothing_is_refused():
    with pytest.raises(ValueError, match="dataset is empty"):
        from_dataset(Own(pixels, 0))


def test_trainings_in_turn_hold_the_data_of_one(runs, tmp_path, monkeypatch):
    """Without the collector's own rounds, which come after many objects, not after large ones."""
    _, retrofit = runs
    heavy, data = replace(retrofit, networks=OneNetwork(NET), method=DenoisingConfig()), []
    original = Experiment.load

    def load_and_note(*args):
        loaded = original(*args)
        data.append(weakref.ref(loaded))
        return loaded

    monkeypatch.setattr(Experiment, "load", load_and_note)
    gc.disable()
    try:
        for name in ("first", "second"):
            train(heavy, tmp_path / name)
    finally:
        gc.enable()
    assert data[0]() is None
