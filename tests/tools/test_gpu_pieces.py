"""The pieces of GPU work and their runner: each runs whole on a CPU, on networks of a few channels."""

from __future__ import annotations

import argparse
import io
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import dualrate as dr
from benchmarks import workloads
from dualrate.data.condition_rows import Given
from dualrate.recipes.tasks import task_named
from tools.gpu import __main__ as runner
from tools.gpu import cifar10, conditions, paper_curve, right_and_fast
from tools.gpu.piece import Job, read

ROOT = Path(__file__).resolve().parents[2]

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
    for name in (paper_curve.NAME, conditions.NAME, right_and_fast.NAME):
        assert runner.following(tmp_path).name == name
        left(tmp_path, name, done=False)
        assert runner.following(tmp_path).name == name
        left(tmp_path, name)
    assert runner.following(tmp_path) is None


def test_the_commands_name_all_that_a_call_needs(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    names = [f"{name}, training 0" for name in ("heavy", "light")]
    left(tmp_path, paper_curve.NAME, done=False, **{name: {} for name in names})
    for name in ("pair", "heavy"):
        (tmp_path / f"paper_curve-{name}-0.state").mkdir()
    runner.show(tmp_path)
    printed = capsys.readouterr().out
    needed = f"cp -r {tmp_path / 'paper_curve-pair-0.state'} {tmp_path / 'paper_curve.json'} build/gpu/found"
    for part in (
        "tools.gpu pack",
        "sparse-checkout",
        "efficientnet_lite_pytorch",
        "--data build/gpu/cifar10.npz",
        needed,
    ):
        assert part in printed
    assert "judges" not in printed  # there is nothing to score yet
    left(tmp_path, paper_curve.NAME)
    runner.show(tmp_path)
    assert "run conditions" in capsys.readouterr().out


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

    process = paper_curve.experiment(job, "light", 1e-3).gaussian
    held_out = cifar10.Images(torch.full((400, 3, 32, 32), 127, dtype=torch.uint8), torch.zeros(400).long())
    for age in (0.0, 0.1):
        for row in cifar10.validation(Noisy(), process, held_out, bins=3, age=age):
            variance = 1 / (1 + np.exp(row["log_snr"]))
            assert row["error"] == pytest.approx(variance, rel=0.02)


# The pieces


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
    assert Image.open(job.out / "conditions-inpainting.png").width >= 2 * 32 * 5  # condition, members, mean, truth
    left(job.out, "conditions-inpainting", done=False, **{name: row for name, row in rows.items() if name != "dual"})
    assert call("conditions", replace(job, work=job.work / "elsewhere"))
    assert set(read(job.out, "conditions-inpainting")["rows"]) == set(models)


@pytest.mark.parametrize("name", ["dual", "large", "one call, dual", "corrdiff", "residual"])
def test_models_of_conditions_fit_what_travels(job: Job, name: str) -> None:
    made = conditions.experiment(replace(job, smoke=False), "inpainting", name)
    with torch.device("meta"):
        built = made.networks.build(made.process)[0]
    assert 2 * sum(parameter.numel() for parameter in built.parameters()) < 16 * 2**20


def test_known_pixels_are_put_back(job: Job) -> None:
    held_out = cifar10.images(job, "test").first(3)
    asked = conditions.Cases.of(task_named("inpainting:16"), held_out)
    made = conditions.experiment(job, "inpainting", "one call, large")
    model = dr.Model(made.name, made, *made.build(), 0, "", conditions=Given(asked.y))
    drawn = conditions.scores(dr.Choice().drawer(model, batch_size=4), asked, conditions.Sizes(3, 2, 4))[1]
    known = np.broadcast_to(asked.y[:, None, 3:].numpy() > 0, drawn.shape)
    truth = np.broadcast_to(asked.truth[:, None], drawn.shape)
    assert np.array_equal(drawn[known], truth[known])
    assert (drawn[~known] != truth[~known]).mean() > 0.9


def test_agreement_runs_on_a_cpu_which_agrees_with_itself(job: Job) -> None:
    assert call("right_and_fast", job)
    rows = read(job.out, "right_and_fast")["rows"]
    assert rows["what disagrees"]["rows"] == []
    assert {name.split()[0] for name in rows} >= {"sampler", "cache", "method", "calls", "training"}
    assert {"training of tiny, eager", "training of tiny, graphs"} <= set(rows)
    assert all(row["error"] < 1e-6 for name, row in rows.items() if "float32" in name and "error" in row)


def test_a_recorded_iteration_learns_as_one_that_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    weights, optimizer = [], torch.optim.AdamW

    def noted(parameters, **how) -> torch.optim.Optimizer:
        weights.append(list(parameters))
        return optimizer(weights[-1], **how)

    monkeypatch.setattr(torch.optim, "AdamW", noted)
    for record in (None, right_and_fast.called_again):
        torch.manual_seed(0)
        work = workloads.training(right_and_fast.PAIR, CPU, False, record=record)
        for _ in range(2 if record is None else 1):  # a recording is a call, too
            work()
    assert all(map(torch.equal, *weights))


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
