"""The pieces of GPU work and their runner: each runs whole on a CPU, on networks of a few channels."""

from __future__ import annotations

import argparse
import io
import json
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import dualrate as dr
from dualrate.data.conditions import Given, task_named

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tools.gpu import __main__ as runner  # noqa: E402
from tools.gpu import (  # noqa: E402
    cifar10,
    conditions,
    natural_images,
    retrofit_dit,
    right_and_fast,
    training,
    unconditional,
)
from tools.gpu.piece import Job, read  # noqa: E402

CPU = torch.device("cpu")


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job("piece", tmp_path / "out", tmp_path / "work", time.time() + 300, smoke=True)


def left(out: Path, name: str, *, done: bool = True, **rows: dict) -> None:
    """As if a piece had run."""
    out.mkdir(exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps({"done": done, "smoke": True, "rows": rows}))


def call(name: str, job: Job) -> bool:
    how = {"out": job.out, "work": job.work, "device": "cpu", "commit": "abc", "smoke": True}
    options = argparse.Namespace(data=None, seconds=300, **how)
    return runner.run(runner.PIECES[name], options)


# The runner


def test_the_page_lists_the_same_pieces(tmp_path: Path) -> None:
    """States are those of what is kept in the repository."""
    assert runner.table(ROOT / "docs" / "results" / "gpu") in (ROOT / "dev" / "queue.md").read_text()


def test_the_next_piece_is_the_first_that_is_not_done(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert runner.following(out).name == right_and_fast.NAME
    left(out, right_and_fast.NAME)
    assert runner.following(out).name == conditions.NAME
    left(out, conditions.NAME)
    left(out, natural_images.NAME, done=False)
    assert runner.following(out).name == natural_images.NAME
    left(out, natural_images.NAME, gate={"open": False, "excess": 0.01})
    left(out, retrofit_dit.NAME)
    assert runner.following(out) is None
    assert "excess loss is 1.0%" in unconditional.PIECE.closed(out)
    left(out, natural_images.NAME, gate={"open": True, "excess": 0.1})
    assert runner.following(out).name == unconditional.NAME


def test_the_commands_name_all_that_a_piece_needs(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for name in (right_and_fast.NAME, conditions.NAME):
        left(tmp_path, name)
    left(tmp_path, natural_images.NAME, gate={"open": True})
    left(tmp_path, retrofit_dit.NAME, done=False)
    runner.show(tmp_path)
    printed = capsys.readouterr().out
    for part in ("tools.gpu pack", "pip download", "diffusers", "retrofit_dit.json build/gpu/found", "--no-index"):
        assert part in printed


def test_a_call_brings_the_state_of_its_own_network_alone(tmp_path: Path) -> None:
    """Those of all of them are more than a machine takes."""
    left(tmp_path, unconditional.NAME, **{"light 1": {}})
    for name in ("unconditional-light.00", "unconditional-medium.00", "unconditional-features.safetensors"):
        (tmp_path / name).touch()
    needed = {path.name for path in unconditional.PIECE.needed(tmp_path)}
    assert needed == {"unconditional.json", "unconditional-medium.00", "unconditional-features.safetensors"}


# Rows


def test_a_row_that_fails_is_listed_and_made_again_the_next_time(job: Job) -> None:
    def fails() -> dict:
        raise RuntimeError("no such kernel")

    job.row("one", fails)
    job.row("two", lambda: {"value": 2})
    rows = read(job.out, job.name)["rows"]
    assert rows["one"]["failed"] == "RuntimeError: no such kernel"
    assert rows["two"]["value"] == 2
    again = replace(job)
    again.row("one", lambda: {"value": 1})
    again.row("two", fails)  # is there
    assert {name: row["value"] for name, row in again.rows.items()} == {"one": 1, "two": 2}


def test_no_row_begins_when_the_time_is_over(job: Job) -> None:
    job.ends = time.time()
    job.row("late", dict)
    assert not job.rows


def test_a_smoke_test_does_not_overwrite_findings(job: Job) -> None:
    job.put("one", {})
    with pytest.raises(ValueError, match="another --out"):
        replace(job, smoke=False)


# Data


def test_images_are_packed_and_unpacked(job: Job, tmp_path: Path) -> None:
    parquet, pa = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    grey = {"train": 50, "test": 200}
    for split, value in grey.items():
        held = io.BytesIO()
        Image.new("RGB", (32, 32), (value,) * 3).save(held, "png")
        pictures = [{"bytes": held.getvalue(), "path": ""}] * 3
        parquet.write_table(pa.table({"image": pictures, "label": [4, 5, 6]}), tmp_path / f"{split}.parquet")
    cifar10.pack(tmp_path, tmp_path / "packed.npz")
    given = replace(job, smoke=False, data=tmp_path / "packed.npz")
    for split, value in grey.items():
        found = cifar10.images(given, split)
        assert found.pixels.shape == (3, 3, 32, 32)
        assert found.pixels.unique().tolist() == [value]
        assert found.labels.tolist() == [4, 5, 6]
    with pytest.raises(ValueError, match="--data"):
        cifar10.images(replace(job, smoke=False, work=tmp_path / "other"), "train")


def test_batches_are_functions_of_the_iteration(job: Job) -> None:
    batches = cifar10.Batches(cifar10.images(job, "train"), 4)
    first, again, other = batches.batch(0), batches.batch(0), batches.batch(1)
    assert torch.equal(first.x, again.x)
    assert not torch.equal(first.x, other.x)
    assert other.sample.tolist() == [4, 5, 6, 7]
    assert cifar10.Batches(batches.images, 4, labelled=False).batch(0).label is None


def test_a_validation_is_the_training_loss_of_what_is_predicted(job: Job) -> None:
    """A denoiser that returns z has the error of the noise."""

    class Noisy:
        reuse = dr.Reuse.FREE

        def encode(self, z, t, cond):
            return dr.Context()

        def denoise(self, z, t, context, cond):
            return z

    process = unconditional.contender(job, "light", 1).gaussian
    held_out = cifar10.Images(torch.full((400, 3, 32, 32), 127, dtype=torch.uint8), torch.zeros(400).long())
    for age in (0.0, 0.1):
        for row in cifar10.validation(Noisy(), process, held_out, bins=3, age=age):
            variance = 1 / (1 + np.exp(row["log_snr"]))
            assert row["error"] == pytest.approx(variance, rel=0.02)


# What travels


def test_a_training_goes_on_from_what_came_back(job: Job) -> None:
    made = unconditional.contender(job, "light", 1)
    train = cifar10.images(job, "train")
    job.out.mkdir()
    training.train(job, made, train)
    training.leave(job, made.name)
    elsewhere = replace(job, work=job.work / "elsewhere")
    training.unpack(job.out, made.name, elsewhere.work / made.name)
    whole, cut = training.newest(job.work / made.name), training.newest(elsewhere.work / made.name)
    for stem, tensors in whole.tensors.items():
        for name, tensor in tensors.items():
            exact = tensor.ndim == 0
            torch.testing.assert_close(cut.tensors[stem][name].float(), tensor, rtol=0 if exact else 2**-8, atol=0)
    second = unconditional.contender(job, "light", 2)
    assert training.train(elsewhere, second, train).begun == 1
    (part,) = training.parts(job.out, made.name)
    part.write_bytes(part.read_bytes()[:-100])
    with pytest.raises(zipfile.BadZipFile):
        training.unpack(job.out, made.name, job.work / "third")


def test_what_a_call_leaves_fits_through_the_door() -> None:
    """8 bytes a parameter, in files of at most 16 MiB, beside three others; 64 MiB with the checkout and CIFAR-10."""
    for networks, _ in unconditional.CONTENDERS.values():
        with torch.device("meta"):
            built = networks.build(right_and_fast.PROCESS)[0]
        size = 8 * sum(parameter.numel() for parameter in built.parameters())
        assert size < (64 - 10 - 18 - 1) * 2**20
        assert -(-size // training.PART) + 3 <= 8


# The pieces


def test_the_gate() -> None:
    def found(*small: float) -> dict:
        return {
            "1.8M": {100 * (i + 1): {"loss": loss} for i, loss in enumerate(small)},
            "25M": {100: {"loss": 1.0}, 200: {"loss": 1.0}},
        }

    assert natural_images.gate(found(1.1, 1.03, 1.0))["open"]
    assert natural_images.gate(found(1.0, 1.01))["open"]  # it grows
    assert not natural_images.gate(found(1.02, 1.01, 1.5))["open"]
    assert natural_images.gate(found(1.02, float("nan")))["open"]  # says nothing
    assert not natural_images.gate({"1.8M": {}, "25M": {}})["open"]


def test_natural_images_run_on_a_cpu(job: Job) -> None:
    assert call("natural_images", job)
    rows = read(job.out, "natural_images-25M")["rows"]
    assert list(rows) == ["2", "4"]
    assert len(rows["4"]["bins"]) == 12
    assert read(job.out, "natural_images")["rows"]["gate"]["seen"] == 4
    assert (job.out / "natural_images.png").stat().st_size > 1000
    assert read(job.out, "natural_images")["environment"]["commit"] == "abc"


def test_models_of_conditions_run_on_a_cpu_and_go_on(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    models = {name: conditions.MODELS[name] for name in ("dual", "one call, large", "corrdiff")}
    monkeypatch.setattr(conditions, "MODELS", models)  # a network, a method and a plan of every kind
    monkeypatch.setattr(conditions, "TASKS", {"inpainting": "inpainting:16"})
    assert call("conditions", job)
    rows = read(job.out, "conditions-inpainting")["rows"]
    assert list(rows) == list(models)
    plans = {name: row["plans"][0] for name, row in rows.items()}
    for name, plan in plans.items():
        one = name == "one call, large"
        assert (plan["steps"], plan["conditions"], plan["members"]) == (1 if one else 4, 2, 2)
        assert (plan["macs"]["2"] < plan["macs"]["1"]) == (not one)  # members share the heavy call
        assert min(plan["ms"].values()) > 0
    kept = load_file(job.out / "conditions-inpainting-dual.safetensors")
    conditions.experiment(job, "inpainting", "dual").build()[0].load_state_dict(kept)
    shown = job.out / "conditions-inpainting.png"
    height = Image.open(shown).height
    left(job.out, "conditions-inpainting", done=False, **{name: row for name, row in rows.items() if name != "dual"})
    assert call("conditions", replace(job, work=job.work / "elsewhere"))
    assert Image.open(shown).height == height * 4 // 3
    assert set(read(job.out, "conditions")["rows"]["inpainting"]) == set(models)


@pytest.mark.parametrize("name", ["dual", "large", "one call, dual", "corrdiff", "residual"])
def test_models_of_conditions_fit_what_travels(job: Job, name: str) -> None:
    made = conditions.experiment(replace(job, smoke=False), "inpainting", name)
    with torch.device("meta"):
        built = made.networks.build(made.process)[0]
    assert 2 * sum(parameter.numel() for parameter in built.parameters()) < 16 * 2**20


def test_known_pixels_are_put_back(job: Job) -> None:
    held_out = cifar10.images(job, "test").first(3)
    asked = conditions.Asked.of(task_named("inpainting:16"), held_out)
    made = conditions.experiment(job, "inpainting", "one call, large")
    model = dr.Model(made.name, made, *made.build(), 0, "", conditions=Given(asked.y))
    drawn = conditions.scores(dr.Choice().drawer(model, batch_size=4), asked, conditions.Sizes(3, 2, 4))[1]
    known = np.broadcast_to(asked.y[:, None, 3:].numpy() > 0, drawn.shape)
    truth = np.broadcast_to(asked.truth[:, None], drawn.shape)
    assert np.array_equal(drawn[known], truth[known])
    assert (drawn[~known] != truth[~known]).mean() > 0.9


def test_a_retrofit_runs_on_a_cpu_and_goes_on_elsewhere(job: Job) -> None:
    pytest.importorskip("diffusers")
    assert call("retrofit_dit", job)
    rows = read(job.out, "retrofit_dit")["rows"]
    assert {"base", "trained on", "retrofit", "trained on, loss", "retrofit, loss", "retrofit, 16/4"} <= set(rows)
    assert rows["retrofit, 16/4"]["fd"] > 0
    again = replace(job, name="retrofit_dit", work=job.work / "elsewhere")
    assert retrofit_dit.run(again)
    assert again.rows["base"] == rows["base"]  # which came back
    assert again.rows["retrofit"]["took"] != rows["retrofit"]["took"]


def test_unconditional_networks_take_two_calls_each(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("medium", "pair")
    monkeypatch.setattr(unconditional, "CALLS", [(share, name) for share in (1, 2) for name in names])
    left(job.out.parent, "x")
    left(job.out, "natural_images", gate={"open": False, "excess": 0.001})
    with pytest.raises(ValueError, match="the gate is closed"):
        call("unconditional", job)
    left(job.out, "natural_images", gate={"open": True, "excess": 0.1})
    done = [call("unconditional", replace(job, work=job.work / str(i))) for i in range(4)]
    assert done == [False] * 3 + [True]
    rows = read(job.out, "unconditional")["rows"]
    assert [rows[f"pair {share}"]["seen"] for share in (1, 2)] == [2, 4]  # it went on
    assert {"medium 8/8", "pair 8/1", "pair 8/2"} <= set(rows)
    assert rows["pair 8/1"]["macs"] < rows["medium 8/8"]["macs"]


def test_agreement_runs_on_a_cpu_which_agrees_with_itself(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(right_and_fast, "ITERATIONS", 4)
    assert call("right_and_fast", job)
    rows = read(job.out, "right_and_fast")["rows"]
    assert rows["what disagrees"]["rows"] == []
    assert {name.split()[0] for name in rows} >= {"sampler", "cache", "method", "training", "resume", "calls"}
    assert all(row["error"] < 1e-6 for name, row in rows.items() if "float32" in name and "error" in row)


def test_agreement_finds_a_device_that_computes_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    honest, made = right_and_fast.random_model, []

    def off(*of, **how) -> dr.Model:
        made.append(honest(*of, **how))
        with torch.no_grad():
            for parameter in made[-1].networks["encoder"].parameters():
                parameter.mul_(1.0 if len(made) == 1 else 1.01)
        return made[-1]

    monkeypatch.setattr(right_and_fast, "random_model", off)
    right, wrong = (right_and_fast.drawn("sampler", "ddim", CPU, "float32") for _ in range(2))
    error = right_and_fast.difference(wrong, right)
    assert error > 1e-5
    assert not right_and_fast.verdict("graphs", "float32", error)["fine"]
    assert not right_and_fast.verdict("sampler", "float32", float("nan"))["fine"]
