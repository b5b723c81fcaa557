import itertools
import json
import math
import os
import re
import shutil
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import dualrate.training
from dualrate.diffusion.context import Batch
from dualrate.diffusion.random import Draws
from dualrate.system.device import compiles
from dualrate.training import checkpoint, loop, resume
from dualrate.training.config import FitResult, OptimConfig, lr_at
from dualrate.training.distributed import World
from dualrate.training.loop import PATIENCE, NonFiniteError, fit
from dualrate.training.method import Loss, Phase
from training.toy import CONFIG, Points, Recorder, Toy, final, same_bits

TIMES = ("seconds", "images_per_second")
PATTERNS = [("a",), ("a", "b", "a"), ("ab", "b")]


def train(run_dir: Path, method: Toy | None = None, config=CONFIG, batches=None, **options):
    options = {"identity": {"data": "points"}, "progress": Recorder()} | options
    return fit(method or Toy(), batches or Points(), config, run_dir, **options)


class Failing(Points):
    """Points up to an iteration at which the program dies."""

    at: int = 0

    def batch(self, iteration: int) -> Batch:
        if iteration == self.at:
            raise InterruptedError
        return super().batch(iteration)


def failing(at: int) -> Failing:
    points = Failing()
    object.__setattr__(points, "at", at)
    return points


def metrics(run_dir: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


class Poisoned(Toy):
    """A toy whose loss is not finite at some iterations."""

    def __init__(self, at: Sequence[int], value: float = math.nan, pattern: Sequence[str] = ("a",)) -> None:
        super().__init__(pattern)
        self.at, self.value = at, value

    def loss(self, name: str, batch: Batch, iteration: int, draws: Draws) -> Loss:
        loss = super().loss(name, batch, iteration, draws)
        return replace(loss, total=loss.total * self.value) if name == "a" and iteration in self.at else loss


def test_training_lowers_the_loss_and_reports(tmp_path):
    progress = Recorder()
    optim = OptimConfig(lr=3e-2, warmup=5)
    config = replace(CONFIG, iterations=150, optim=optim, log_every=25, checkpoint_every=150)
    result = train(tmp_path, config=config, progress=progress)
    assert (result.iteration, result.stopped) == (150, "done")
    lines = metrics(tmp_path)
    assert [line["iteration"] for line in lines] == list(range(25, 151, 25))
    assert lines[-1]["a/loss"] < 0.3 * lines[0]["a/loss"]
    assert lines[-1]["images"] == 1200
    assert [update[:2] for update in progress.updates] == [(i, 150) for i in range(1, 151)]
    assert progress.closed


@pytest.mark.parametrize("micro_batch", [1, 3, 8, 100])
def test_accumulation_changes_nothing(tmp_path, micro_batch):
    def run(name: str, rows: int | None):
        method = Toy(("a", "b"), dropout=0.0)
        method.networks.double()
        train(tmp_path / name, method, replace(CONFIG, micro_batch=rows))
        return final(tmp_path / name)

    whole, parts = run("whole", None), run("parts", micro_batch)
    for file in whole:
        for name, value in whole[file].items():
            torch.testing.assert_close(parts[file][name], value, rtol=1e-7, atol=1e-10)
    for first, second in zip(metrics(tmp_path / "whole"), metrics(tmp_path / "parts"), strict=True):
        assert first == pytest.approx(second, rel=1e-5)


@pytest.fixture(scope="module", params=PATTERNS, ids="/".join)
def straight(request, tmp_path_factory):
    """A pattern of phases, and the directory of an uninterrupted run of it."""
    run_dir = tmp_path_factory.mktemp("straight")
    train(run_dir, Toy(request.param))
    return request.param, run_dir


@pytest.mark.parametrize("died_at", [3, 4, 15])  # before, at and after checkpoints
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path, straight, died_at):
    (pattern, straight), resumed = straight, tmp_path
    with pytest.raises(InterruptedError):
        train(resumed, Toy(pattern), batches=failing(died_at))
    progress = Recorder()
    train(resumed, Toy(pattern), progress=progress)
    assert same_bits(final(straight), final(resumed))
    assert metrics(straight) == metrics(resumed)
    assert progress.notes == ([f"resuming at iteration {died_at // 4 * 4}"] if died_at >= 4 else [])


@pytest.mark.parametrize("died_at", [3, 6, 13])
def test_a_run_with_an_auxiliary_resumes_bit_for_bit(tmp_path, died_at):
    def method() -> Toy:
        return Toy(("b", "a"), auxiliary="b")

    train(tmp_path / "straight", method())
    with pytest.raises(InterruptedError):
        train(tmp_path / "resumed", method(), batches=failing(died_at))
    train(tmp_path / "resumed", method())
    saved = final(tmp_path / "straight")
    assert same_bits(saved, final(tmp_path / "resumed"))
    assert metrics(tmp_path / "straight") == metrics(tmp_path / "resumed")
    assert set(saved) == {"model", "auxiliaries", "optim-a", "optim-b", "ema-a"}
    assert any(not torch.equal(saved["auxiliaries"][name], w) for name, w in method().auxiliaries.state_dict().items())


def test_sampling_reads_nothing_of_an_auxiliary(tmp_path):
    train(tmp_path, Toy(("b", "a"), auxiliary="b"))
    saved = checkpoint.latest(tmp_path / "checkpoints")
    assert saved is not None
    assert set(saved.tensors) == {"model", "ema-a"}
    assert all(name.startswith("a.") for name in saved.weights())


def test_the_average_is_that_of_the_phase_that_began_last(tmp_path):
    class Twice(Toy):
        """First phase "then", and later phase "now", on the same network; by name the first sorts last."""

        def phases(self, iteration):
            (phase,) = super().phases(iteration)
            return [replace(phase, name="then" if iteration < 4 else "now")]

    shown = {}
    method = Twice()

    def show(iteration: int) -> None:
        shown.update({name: weight.clone() for name, weight in method.networks.state_dict().items()})

    train(tmp_path, method, on_sample=show)
    saved = checkpoint.latest(tmp_path / "checkpoints")
    assert saved is not None
    for name, average in saved.tensors["ema-now"].items():
        assert torch.equal(saved.weights()[name], average)
        assert torch.equal(shown[name], average)
        assert not torch.equal(average, saved.tensors["ema-then"][name])


def test_networks_and_auxiliaries_of_one_name_are_refused(tmp_path):
    method = Toy()
    method.auxiliaries = nn.ModuleDict({"a": nn.Linear(2, 2)})
    with pytest.raises(ValueError, match=r"both have \['a'\]"):
        train(tmp_path, method)


def test_the_surrounding_random_state_neither_matters_nor_changes(tmp_path):
    for name, seed in (("one", 1), ("two", 2)):
        torch.manual_seed(seed)
        method, before = Toy(), torch.get_rng_state()
        train(tmp_path / name, method)
        assert torch.equal(torch.get_rng_state(), before)
    assert same_bits(final(tmp_path / "one"), final(tmp_path / "two"))
    train(tmp_path / "seed", config=replace(CONFIG, seed=1))
    assert not same_bits(final(tmp_path / "one"), final(tmp_path / "seed"))


def test_a_finished_run_is_left_as_it_is(tmp_path):
    train(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "checkpoints").rglob("*")}
    again = []
    assert train(tmp_path, on_sample=again.append).stopped == "done"
    assert again == [16]  # a kill may have come before they were drawn
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "checkpoints").rglob("*")}
    assert len(before) == 2 * 6


def test_a_longer_run_continues_a_shorter_one(tmp_path):
    train(tmp_path / "short", config=replace(CONFIG, iterations=10))
    train(tmp_path / "short")
    train(tmp_path / "long")
    assert same_bits(final(tmp_path / "short"), final(tmp_path / "long"))


def test_a_phase_touches_only_its_parameters(tmp_path):
    method = Toy(("a",))
    seen = []
    loss = method.loss

    def spy(name: str, batch: Batch, iteration: int, draws: Draws) -> Loss:
        seen.append({key for key, value in method.networks.named_parameters() if value.requires_grad})
        return loss(name, batch, iteration, draws)

    method.loss = spy  # type: ignore[method-assign]
    before = {name: value.clone() for name, value in method.networks.state_dict().items()}
    train(tmp_path, method, replace(CONFIG, iterations=4))
    after = method.networks.state_dict()
    assert {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])} == {"a"}
    assert all(names == {name for name in before if name.startswith("a.")} for names in seen)
    method.pattern = ("ab",)
    train(tmp_path / "both", method, replace(CONFIG, iterations=1, micro_batch=None))
    assert [next(iter(names))[0] for names in seen[-2:]] == ["a", "b"]


def test_a_phase_may_learn_slower_than_another(tmp_path):
    """The first step of Adam is as long as its rate, for all but the smallest gradients."""

    class Slow(Toy):
        def phases(self, iteration: int) -> Sequence[Phase]:
            (phase,) = super().phases(iteration)
            return [replace(phase, rate=0.25)]

    moved = []
    for kind in (Toy, Slow):
        method = kind()
        before = method.each["a"].get_parameter("0.weight").detach().clone()
        train(tmp_path / kind.__name__, method, replace(CONFIG, iterations=1))
        moved.append((method.each["a"].get_parameter("0.weight").detach() - before).abs().median().item())
    assert moved[1] == pytest.approx(moved[0] / 4, rel=1e-3)


def test_a_phase_must_have_its_parameters_in_networks_and_keep_them(tmp_path):
    class Stray(Toy):
        def phases(self, iteration: int) -> Sequence[Phase]:
            (phase,) = super().phases(iteration)
            return [replace(phase, parameters=(*phase.parameters, torch.nn.Parameter(torch.ones(1))))]

    class Shrinking(Toy):
        def phases(self, iteration: int) -> Sequence[Phase]:
            (phase,) = super().phases(iteration)
            return [phase if iteration < 3 else replace(phase, parameters=phase.parameters[:-1])]

    with pytest.raises(ValueError, match="outside of `networks`"):
        train(tmp_path / "stray", Stray())
    with pytest.raises(ValueError, match="other parameters than before"):
        train(tmp_path / "shrinking", Shrinking())


def test_samples_are_drawn_with_averages_in_evaluation_mode(tmp_path):
    method, seen = Toy(("a", "b")), []

    def on_sample(iteration: int) -> None:
        assert not any(module.training for module in method.networks.modules())
        seen.append((iteration, {name: value.clone() for name, value in method.networks.state_dict().items()}))

    method.networks["b"][1].eval()
    train(tmp_path, method, replace(CONFIG, iterations=12, sample_every=8), on_sample=on_sample)
    assert [iteration for iteration, _ in seen] == [8, 12]
    saved = checkpoint.latest(tmp_path / "checkpoints")
    assert saved is not None
    assert same_bits({"": seen[-1][1]}, {"": saved.weights()})
    assert same_bits({"": dict(method.networks.state_dict())}, {"": saved.tensors["model"]})
    assert method.networks["a"][1].training
    assert not method.networks["b"][1].training


def test_samples_that_a_kill_prevented_are_drawn_when_the_run_goes_on(tmp_path):
    config, seen = replace(CONFIG, checkpoint_every=4, sample_every=4), []

    def killed(iteration: int) -> None:
        if iteration == 8:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        train(tmp_path, config=config, on_sample=killed)
    train(tmp_path, config=config, on_sample=seen.append)
    assert seen == [8, 12, 16]


@pytest.mark.parametrize("error", [OSError("no space"), torch.OutOfMemoryError("no memory")])
def test_samples_without_disk_or_memory_do_not_end_a_run(tmp_path, error):
    def fails(iteration: int) -> None:
        raise error

    assert train(tmp_path, config=replace(CONFIG, sample_every=4), on_sample=fails).stopped == "done"


def test_a_run_that_the_clock_ends_logs_its_last_interval(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=itertools.count().__next__))
    config = replace(CONFIG, iterations=None, max_seconds=10.0, log_every=4)
    train(tmp_path, config=config)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [4, 8, 10]
    assert lines[-1]["images_per_second"] == CONFIG.batch_size
    assert lines[-1]["lr"] == lr_at(config.resolved(), 9, 9.0)


def test_what_is_measured_in_between_does_not_settle_how_iterations_compute(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(loop, "settle_products", lambda device, **how: done.append("settled"))
    train(tmp_path, on_sample=lambda iteration: done.append("sampled"))
    assert done == ["settled", "sampled", "settled"]


def test_a_checkpoint_that_the_leader_found_is_waited_for(tmp_path, monkeypatch):
    train(tmp_path, config=replace(CONFIG, iterations=8))
    waited = []
    monkeypatch.setenv("DUALRATE_TIMEOUT", "7")
    monkeypatch.setattr(checkpoint, "recover", lambda *of: None)
    monkeypatch.setattr(World, "of_leader", lambda self, value: 8 if value == -1 else value)
    monkeypatch.setattr(resume, "when_seen", lambda path, most: waited.append(most) or path)
    progress = Recorder()
    train(tmp_path, progress=progress)
    assert waited == [7]
    assert progress.notes[-1] == "resuming at iteration 8"


def test_training_time_is_bounded_over_resumes(tmp_path):
    optim = replace(CONFIG.optim, decay="none")
    config = replace(CONFIG, iterations=None, optim=optim, max_seconds=0.2, checkpoint_every=10**6)
    first = train(tmp_path, config=config)
    assert first.stopped == "seconds"
    assert 0.2 <= first.seconds < 30
    assert train(tmp_path, config=config) == replace(first, begun=first.iteration)
    second = train(tmp_path, config=replace(config, max_seconds=0.4))
    assert second.iteration > first.iteration
    assert second.seconds >= 0.4


@pytest.mark.parametrize("iterations", [None, 10**6])
def test_the_iterations_that_are_told_are_those_that_the_time_allows(tmp_path, iterations):
    progress = Recorder()
    config = replace(CONFIG, iterations=iterations, max_seconds=0.2, checkpoint_every=10**6)
    result = train(tmp_path, config=config, progress=progress)
    assert result.stopped == "done"
    done = result.iteration
    for iteration, total, logs in progress.updates:
        assert total == max(iteration, math.ceil(iteration * 0.2 / logs["seconds"]))
    assert progress.updates[-1][:2] == (done, done)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_one_bad_loss_skips_one_update_visibly(tmp_path, value):
    progress = Recorder()
    method = Poisoned([7], value, ("ab",))
    train(tmp_path, method, progress=progress)
    assert all(torch.isfinite(parameter).all() for parameter in method.networks.parameters())
    (note,) = progress.notes
    assert "iteration 7" in note
    assert 'phase "a"' in note
    assert "samples 56 to 63" in note
    assert [line["skipped"] for line in metrics(tmp_path)] == [0, 1, 1, 1]
    steps = final(tmp_path)
    assert steps["optim-a"]["a.0.weight.step"] == CONFIG.iterations - 1
    assert steps["optim-b"]["b.0.weight.step"] == CONFIG.iterations


@pytest.mark.parametrize("at", [[7], [2, 3, 9, 15]])
def test_what_is_read_late_is_the_same(tmp_path, monkeypatch, at):
    """As on a GPU, whose losses are read where they are logged: weights, log, notes, and what watches of a training."""
    found = []
    for queues in (False, True):
        monkeypatch.setattr(loop, "_queues", lambda device, queues=queues: queues)
        run_dir, progress = tmp_path / str(queues), Recorder()
        train(run_dir, Poisoned(at, math.nan, ("ab",)), progress=progress)
        logs = [{name: value for name, value in told.items() if "/" in name} for _, _, told in progress.updates]
        done = sorted({iteration for iteration, _, _ in progress.updates})
        found.append((metrics(run_dir), progress.notes, list(filter(None, logs)), done, final(run_dir)))
    assert found[0][:-1] == found[1][:-1]
    assert len(found[0][2]) == CONFIG.iterations
    assert len(found[0][1]) == len(at)
    assert same_bits(found[0][-1], found[1][-1])


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_data_that_is_not_finite_is_named_by_sample(tmp_path, value):
    class Dirty(Points):
        def batch(self, iteration: int) -> Batch:
            batch = super().batch(iteration)
            batch.x[[2, 5], 1] = value if iteration == 3 else 0.0
            return batch

    progress, method = Recorder(), Toy()
    train(tmp_path, method, batches=Dirty(), progress=progress)
    (note,) = progress.notes
    assert "the data itself is not finite in samples [26, 29]: update skipped" in note
    assert all(torch.isfinite(parameter).all() for parameter in method.networks.parameters())


def test_bad_losses_without_end_stop_with_the_last_good_checkpoint(tmp_path):
    method = Poisoned(range(6, 100), math.nan, ("ab",))
    with pytest.raises(NonFiniteError, match=rf"iteration {5 + PATIENCE}.*samples {8 * (5 + PATIENCE)} to"):
        train(tmp_path, method)
    good = final(tmp_path)
    assert all(torch.isfinite(value).all() for value in good["model"].values())
    with pytest.raises(NonFiniteError, match=f"iteration {5 + PATIENCE}"):  # the count survives a resume
        train(tmp_path, method)


def test_another_configuration_is_refused_with_the_difference(tmp_path):
    train(tmp_path, identity={"data": {"name": "points", "size": [2, 3]}})
    before = final(tmp_path)
    config = replace(CONFIG, optim=replace(CONFIG.optim, lr=0.5), keep=7, log_every=3)
    identity = {"data": {"name": "circles", "size": (2, 3)}, "new": 1, "method": {"keep": 7}}  # not the one of `fit`
    with pytest.raises(ValueError) as error:
        train(tmp_path, config=config, identity=identity)
    changes = str(error.value).splitlines()[1:]
    assert [line.strip() for line in changes] == [
        "data.name: points -> circles",
        "fit.optim.lr: 0.001 -> 0.5",
        "new: None -> 1",
        "method.keep: None -> 7",
    ]
    assert same_bits(before, final(tmp_path))


def test_with_a_cosine_the_number_of_iterations_is_part_of_the_configuration(tmp_path):
    config = replace(CONFIG, optim=replace(CONFIG.optim, decay="cosine"))
    train(tmp_path, config=config)
    with pytest.raises(ValueError, match=r"fit\.iterations: 16 -> 48"):
        train(tmp_path, config=replace(config, iterations=48))


def test_a_rate_that_falls_with_time_goes_on_falling_over_resumes(tmp_path):
    optim = replace(CONFIG.optim, warmup=0, decay="cosine", decay_seconds=0.4)
    config = replace(CONFIG, iterations=10**6, optim=optim, log_every=1, checkpoint_every=10**6)
    for seconds, iterations in ((0.2, 10**6), (0.4, 10**7)):  # these are not what it falls with
        train(tmp_path, config=replace(config, max_seconds=seconds, iterations=iterations))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    rates = [line["lr"] for line in lines]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == optim.lr
    for before, line in itertools.pairwise(lines):
        share = before["seconds"] / 0.4
        assert line["lr"] == pytest.approx(optim.lr * (1 + math.cos(math.pi * share)) / 2, abs=0.01 * optim.lr)


def test_over_max_seconds_a_run_goes_down_one_curve_though_it_is_interrupted(tmp_path, monkeypatch):
    """By a clock that a second passes on at each look: iteration i begins after i seconds, whoever trains it."""
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=itertools.count().__next__))
    config = replace(CONFIG, iterations=None, max_seconds=10.0, log_every=1, optim=replace(CONFIG.optim, warmup=0))
    with pytest.raises(InterruptedError):
        train(tmp_path, batches=failing(6), config=replace(config, checkpoint_every=4))
    assert train(tmp_path, config=config) == FitResult(10, "done", 10.0, begun=4)
    rates = [json.loads(line)["lr"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rates == pytest.approx([config.optim.lr * (1 + math.cos(math.pi * i / 10)) / 2 for i in range(10)])
    for other, refused in ((20.0, r"max_seconds: 10\.0 -> 20\.0"), (None, r"optim\.decay: cosine -> none")):
        with pytest.raises(ValueError, match=refused):
            train(tmp_path, config=replace(config, iterations=16, max_seconds=other))


def test_a_rate_falls_by_the_leader_s_clock():
    """Processes count their own seconds, and must not drift apart."""
    optim = replace(CONFIG.optim, warmup=0, decay="cosine", decay_seconds=60)
    one = SimpleNamespace(
        config=replace(CONFIG, optim=optim),
        state=SimpleNamespace(seconds=12.0, iteration=5),
        world=SimpleNamespace(of_leader=lambda milliseconds: 30_000 if milliseconds == 12_000 else None),
    )
    assert loop._Trainer.rate(one) == pytest.approx(optim.lr / 2)  # type: ignore[arg-type]


def test_another_number_of_threads_is_told(tmp_path):
    train(tmp_path, config=replace(CONFIG, iterations=4))
    progress, threads = Recorder(), torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        train(tmp_path, progress=progress)
    finally:
        torch.set_num_threads(threads)
    assert f"resuming, but not bit for bit: threads was {threads}, is {threads + 1}" in progress.notes


class Watching(Toy):
    """A toy without dropout that notes which samples its losses saw."""

    def __init__(self) -> None:
        super().__init__(dropout=0.0)
        self.seen: list[int] = []

    def loss(self, name: str, batch: Batch, iteration: int, draws: Draws) -> Loss:
        self.seen += batch.sample.tolist()
        return super().loss(name, batch, iteration, draws)


def test_resuming_with_other_micro_batches_and_threads_sees_the_same_samples(tmp_path):
    """There and back again: every part of the run has another way to go through a batch of 8."""
    straight, method, expected, parts = Watching(), Watching(), Recorder(), Recorder()
    train(tmp_path / "straight", straight, replace(CONFIG, micro_batch=None), progress=expected)
    threads = torch.get_num_threads()
    try:
        for until, rows, count in ((4, None, 1), (8, 3, 2), (12, 1, 1), (16, None, 1)):
            torch.set_num_threads(count)
            train(tmp_path / "run", method, replace(CONFIG, iterations=until, micro_batch=rows), progress=parts)
    finally:
        torch.set_num_threads(threads)
    assert method.seen == straight.seen == list(range(16 * 8))
    for file, tensors in final(tmp_path / "straight").items():
        for name, value in tensors.items():
            torch.testing.assert_close(final(tmp_path / "run")[file][name], value, rtol=1e-3, atol=1e-5)
    losses = [[logs["a/loss"] for _, _, logs in progress.updates] for progress in (parts, expected)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    changes = [note for note in parts.notes if "bit for bit" in note]
    assert "micro_batch was None, is 3" in changes[0]
    assert "threads was 1, is 2" in changes[0]
    assert len(changes) == 3


def test_a_checkpoint_of_format_1_can_always_be_continued(tmp_path):
    """frozen/ was written by the first version with this format, after 4 iterations of the toy without dropout.

    If this fails, the format has changed: raise checkpoint.FORMAT (old runs are then refused with the reason) or
    read the old one too; do not write frozen/ anew.
    """
    shutil.copytree(Path(__file__).parent / "frozen", tmp_path / "old" / "checkpoints")
    progress = Recorder()
    train(tmp_path / "old", Toy(dropout=0.0), progress=progress)
    assert "resuming at iteration 4" in progress.notes
    train(tmp_path / "new", Toy(dropout=0.0))
    for file, tensors in final(tmp_path / "new").items():
        for name, value in tensors.items():
            torch.testing.assert_close(final(tmp_path / "old")[file][name], value, rtol=1e-3, atol=1e-5)


def test_the_choice_of_precision_is_made_once_per_run(tmp_path, monkeypatch):
    config = replace(CONFIG, precision="auto")
    monkeypatch.setattr("dualrate.training.loop.pays", lambda device: True)
    train(tmp_path, config=replace(config, iterations=4))
    monkeypatch.setattr("dualrate.training.loop.pays", lambda device: pytest.fail("decided again"))
    train(tmp_path, config=config)
    train(tmp_path / "same", config=replace(config, precision="bfloat16"))
    assert same_bits(final(tmp_path), final(tmp_path / "same"))
    train(tmp_path / "other", config=replace(config, precision="float32"))
    assert not same_bits(final(tmp_path), final(tmp_path / "other"))


def test_a_batch_of_another_size_is_refused(tmp_path):
    with pytest.raises(ValueError, match="batch of 5 rows"):
        train(tmp_path, batches=Points(5))


@pytest.mark.parametrize("wrong", [{"iterations": 0}, {"micro_batch": 0}, {"keep": 0}, {"ema_halflife": -1}])
def test_a_senseless_configuration_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        replace(CONFIG, **wrong)


def test_without_a_compiler_training_is_eager_with_one_notice(tmp_path, monkeypatch):
    monkeypatch.setattr("dualrate.training.loop.compiles", lambda device: "no compiler")
    progress = Recorder()
    train(tmp_path / "compiled", config=replace(CONFIG, compile=True), progress=progress)
    train(tmp_path / "eager")
    assert [note for note in progress.notes if "no compiler" in note] == progress.notes != []
    assert same_bits(final(tmp_path / "compiled"), final(tmp_path / "eager"))


def test_networks_without_blocks_are_told_to_keep_their_activations(tmp_path):
    progress = Recorder()
    train(tmp_path, config=replace(CONFIG, iterations=1, recompute_from=1), progress=progress)
    assert sum("networks have no blocks, on which recompute_from acts" in note for note in progress.notes) == 1


def test_no_word_of_a_method_is_in_the_trainer():
    words = r"dual|tau|teacher|student|auxiliary|heavy|light|encoder|context\b|distil|moment|consistency|denois"
    allowed = r"(?i:dualrate)|diffusion\.context|contextlib|contextmanager|enter_context"
    for path in Path(next(iter(dualrate.training.__path__))).glob("*.py"):
        if path.name == "method.py":  # the protocol says what methods there are
            continue
        found = re.findall(words, re.sub(allowed, "", path.read_text()), flags=re.IGNORECASE)
        assert not found, f"{path.name}: {found}"


class Network(nn.Module):
    """Torch does not compile its own containers, only what users define."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)

    def get_parameter(self, target: str) -> nn.Parameter:
        return self.inner.get_parameter(target)


def test_networks_of_every_kind_are_compiled_where_it_is_asked_for(tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(loop, "compiles", lambda device: None)
    monkeypatch.setattr(loop, "compile_blocks", compiled.extend)
    method = Toy(("b", "a"), auxiliary="b")
    train(tmp_path, method, replace(CONFIG, compile=True))
    assert compiled == [method.each["a"], method.each["b"]]


def test_compiling_is_no_time_of_training(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "compiles", lambda device: None)
    monkeypatch.setattr(loop, "compile_blocks", lambda networks: None)
    first = replace(CONFIG, iterations=1, compile=True)
    assert train(tmp_path, config=first).seconds == 0
    assert train(tmp_path, config=replace(first, iterations=3)).seconds > 0
    method = Toy(("a", "b"))
    assert train(tmp_path / "phases", method, replace(first, iterations=2)).seconds == 0  # each compiles its own


def test_a_run_goes_on_without_compiling_where_a_compiler_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "compiles", lambda device: "no compiler")
    train(tmp_path, config=replace(CONFIG, iterations=1, compile=True))
    progress = Recorder()
    train(tmp_path, config=replace(CONFIG, iterations=2), progress=progress)
    assert any("compile was True, is False" in note for note in progress.notes)


@pytest.mark.slow
def test_compiled_training_is_eager_training_up_to_rounding(tmp_path):
    if problem := compiles(torch.device("cpu")):
        pytest.skip(problem)

    def run(name: str, *, compiled: bool):
        method = Toy(dropout=0.0)
        for key in "ab":
            method.each[key] = method.networks[key] = Network(method.networks[key])
        train(tmp_path / name, method, replace(CONFIG, compile=compiled))
        return final(tmp_path / name)

    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    compiled = run("compiled", compiled=True)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > before
    for file, tensors in run("eager", compiled=False).items():
        for name, value in tensors.items():
            torch.testing.assert_close(compiled[file][name], value, rtol=1e-4, atol=1e-6)


def held() -> tuple[int, int, int]:
    """Bytes of memory, open files and threads of this process. Linux only."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(fields["VmRSS"].split()[0]), len(os.listdir("/proc/self/fd")), int(fields["Threads"])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_neither_memory_nor_open_files_nor_threads_grow_with_the_iterations_and_the_checkpoints(tmp_path):
    found: dict[int, tuple[int, int, int]] = {}

    class Measuring(Recorder):
        def update(self, iteration, total, logs) -> None:
            if iteration in (60, 180):
                while any(thread.name == "saving" for thread in threading.enumerate()):
                    time.sleep(0.001)
                time.sleep(0.2)  # a thread that has ended leaves the process a moment later
                found[iteration] = held()

    train(tmp_path, config=replace(CONFIG, iterations=180, checkpoint_every=6), progress=Measuring())
    (memory, *others), (later, *others_later) = found[60], found[180]
    assert later < 1.05 * memory
    assert others_later == others


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        ({}, {"max_seconds": 1e3}, "to stop this run by the clock, .* add --fit.optim.decay none"),
        (
            {"max_seconds": 1e3},
            {"max_seconds": 2e3},
            "rate of this run falls over its 1000 s of training .*, .* new run",
        ),
        ({"max_seconds": 1e3}, {"max_seconds": 1.0}, "interrupt it to stop earlier"),
        ({"max_seconds": 1e3}, {}, "falls over its 1000 s of training .--fit.max-seconds 1000.*, or none"),
        ({"decay": "cosine"}, {"max_seconds": 1e3, "decay": "cosine"}, "falls over its iterations, .* interrupt it"),
    ],
)
def test_another_limit_of_seconds_is_refused_with_what_it_would_change_and_what_works(tmp_path, before, now, said):
    def config(max_seconds: float | None = None, decay: str = "auto"):
        return replace(CONFIG, iterations=2, max_seconds=max_seconds, optim=OptimConfig(warmup=1, decay=decay))

    train(tmp_path, config=config(**before))
    with pytest.raises(ValueError, match=rf"(?s)fit\.(max_seconds|optim\.decay): .*{said}"):
        train(tmp_path, config=config(**now))
    train(tmp_path, config=config(**before))
    if "decay none" in said:
        assert train(tmp_path, config=config(**now, decay="none")).stopped == "done"


def test_other_differences_say_nothing_of_seconds(tmp_path):
    train(tmp_path, config=replace(CONFIG, iterations=2))
    with pytest.raises(ValueError, match=r"fit\.seed: 0 -> 1$"):
        train(tmp_path, config=replace(CONFIG, iterations=2, seed=1))
