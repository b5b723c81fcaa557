import builtins
import io
import json
import sys
from types import ModuleType, SimpleNamespace

import pytest
from trouble import unreadable

from dualrate.system.progress import PlainReporter, duration, reporter_here
from dualrate.training.log import MetricsFile, RunningMeans, logged


def lines(path):
    return [json.loads(line)["iteration"] for line in path.read_text().splitlines()]


def test_lines_after_the_resumed_iteration_are_dropped(tmp_path):
    path, notes = tmp_path / "metrics.jsonl", []
    first = MetricsFile(path, 0, notes.append)
    for iteration in (10, 20, 30):
        first.write({"iteration": iteration})
    MetricsFile(path, 20, notes.append).write({"iteration": 30})
    assert lines(path) == [10, 20, 30]
    assert notes == []


@pytest.mark.parametrize("torn", ['{"iteration": 2', '{"iteration": 20}', "garbage\n", "[]\n", "\n"])
def test_a_torn_last_line_is_dropped(tmp_path, torn):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"iteration": 10}\n' + torn)
    MetricsFile(path, 20, lambda text: None).write({"iteration": 20})
    assert lines(path) == [10, 20]


def test_a_full_disk_is_noted_once_and_training_is_not_disturbed(tmp_path):
    path, notes = tmp_path / "metrics.jsonl", []
    path.symlink_to("/dev/full")
    metrics = MetricsFile(path, 0, notes.append)
    for iteration in range(3):
        metrics.write({"iteration": iteration})
    assert len(notes) == 1
    assert "metrics.jsonl" in notes[0]
    assert "No space left" in notes[0]


def test_a_meter_split_by_a_resume_has_the_same_means():
    whole, before = RunningMeans(), RunningMeans()
    for value in (0.1, 0.7):
        whole.add({"loss": value})
        before.add({"loss": value})
    after = RunningMeans(json.loads(json.dumps(before.sums)))
    for meter in (whole, after):
        meter.add({"loss": 0.3, "other": 2.0})
    assert whole.means() == after.means() == {"loss": pytest.approx(1.1 / 3), "other": 2.0}


def test_plain_lines_come_now_and_then_with_rate_and_time_to_go(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("dualrate.system.progress.time.monotonic", lambda: clock[0])
    stream = io.StringIO()
    reporter = PlainReporter(seconds=10.0, stream=stream)
    for iteration in range(1, 42):
        reporter.update(iteration, 100, {"images": 8.0 * iteration, "a/loss": float(iteration % 2)})
        clock[0] += 0.5
    first, second = stream.getvalue().splitlines()
    assert first == "21/100  a/loss 0.5238  16 images/s  0:00:40 to go"
    assert second.startswith("41/100")
    for iteration in (10, 20, 30):  # of something else, from its start
        reporter.update(iteration, 30, {"images": float(iteration)})
        clock[0] += 2.0
    assert stream.getvalue().splitlines()[2:] == ["30/30    5 images/s  0:00:00 to go"]


def test_durations_read_like_a_clock():
    assert [duration(s) for s in (0, 59.6, 3600 + 61)] == ["0:00:00", "0:01:00", "1:01:01"]


def test_a_stream_that_cannot_be_written_does_not_end_the_training():
    stream = open("/dev/full", "w")  # noqa: SIM115 (closing it fails, which is the point)
    PlainReporter(stream=stream).note("hello")
    with pytest.raises(OSError, match="No space left"):
        stream.close()


@pytest.mark.parametrize("odd", [b"garbage\n", b"\x80\0\n", b"[]\n", b'{"images": 3}\n', b"[" * 100_000 + b"\n"])
def test_a_line_in_the_middle_that_is_none_stays(tmp_path, odd):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"iteration": 10}\n' + odd + b'{"iteration": 20}\n{"iteration": 30}\n')
    MetricsFile(path, 20, lambda text: None).write({"iteration": 30})
    assert path.read_bytes() == b'{"iteration": 10}\n' + odd + b'{"iteration": 20}\n{"iteration": 30}\n'


def test_a_log_of_somebody_else_is_noted_once(tmp_path):
    path, notes = tmp_path / "metrics.jsonl", []
    path.write_text('{"iteration": 10}\n')
    with unreadable(path, tmp_path):
        MetricsFile(path, 20, notes.append).write({"iteration": 20})
    assert notes == [f"cannot write {path} (Permission denied): training goes on without its log"]


class Shown:
    """Counts what a reporter is called with."""

    def __init__(self) -> None:
        self.updates, self.notes, self.closed = 0, [], False

    def update(self, iteration, total, logs) -> None:
        self.updates += 1

    def note(self, text) -> None:
        self.notes.append(text)

    def close(self) -> None:
        self.closed = True


def report(reporter) -> None:
    reporter.begin(0)
    for i in range(1, 6):
        reporter.update(i, 5, {"model/loss": float(i), "images": 8.0 * i, "seconds": 0.1 * i})
    reporter.note("a note")
    reporter.close()


def test_tensorboard_s_event_file_holds_mean_losses_of_an_interval(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shown = Shown()
    report(logged("tensorboard", shown, tmp_path, {}, every=2))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("model/loss")] == [(2, 1.5), (4, 3.5), (5, 5.0)]
    assert [event.value for event in events.Scalars("images")] == [16, 32, 40]
    assert (shown.updates, shown.notes, shown.closed) == (5, ["a note"], True)


def test_tensorboard_forgets_what_a_lost_continuation_logged(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    report(logged("tensorboard", Shown(), tmp_path, {}, every=1))
    again = logged("tensorboard", Shown(), tmp_path, {}, every=1)
    again.begin(3)
    again.update(4, 5, {"model/loss": 40.0, "images": 32.0, "seconds": 0.4})
    again.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("model/loss")] == [1, 2, 3, 4]
    assert events.Scalars("model/loss")[-1].value == 40


def test_a_logger_is_opened_when_the_run_begins_and_not_where_it_is_refused_before(tmp_path):
    pytest.importorskip("tensorboard")
    logged("tensorboard", Shown(), tmp_path, {}, every=2).close()
    assert not (tmp_path / "tensorboard").exists()


def test_wandb_gets_the_experiment_and_the_losses(tmp_path, monkeypatch):
    calls = []
    run = SimpleNamespace(
        log=lambda values, step: calls.append((step, values["model/loss"])), finish=lambda: calls.append("finished")
    )
    module = ModuleType("wandb")
    monkeypatch.setattr(module, "init", lambda **settings: calls.append(settings) or run, raising=False)
    monkeypatch.setitem(sys.modules, "wandb", module)
    report(logged("wandb", Shown(), tmp_path / "mine", {"name": "x"}, every=5))
    begun, *rest = calls
    assert (begun["project"], begun["name"], begun["config"]) == ("dualrate", "mine", {"name": "x"})
    assert rest == [(5, 3.0), "finished"]


def test_a_logger_that_is_not_installed_names_its_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=r"wandb is not installed .*: pip install 'dualrate\[wandb\]'"):
        logged("wandb", Shown(), tmp_path, {}, every=5)


def test_a_bar_shows_what_is_done_in_a_notebook(monkeypatch):
    bars = []

    class Shown:
        def __init__(self, initial: int, total: int) -> None:
            self.n, self.total, self.said, self.open = initial, total, {}, True
            bars.append(self)

        def set_postfix(self, said: dict[str, str], refresh: bool) -> None:
            self.said = said

        def update(self, more: int) -> None:
            self.n += more

        def close(self) -> None:
            self.open = False

    monkeypatch.setitem(sys.modules, "tqdm.auto", SimpleNamespace(tqdm=Shown))
    monkeypatch.setitem(sys.modules, "tqdm", SimpleNamespace(auto=sys.modules["tqdm.auto"]))
    assert type(reporter_here()) is PlainReporter
    monkeypatch.setattr(builtins, "get_ipython", lambda: SimpleNamespace(kernel=1), raising=False)
    bar = reporter_here()
    for iteration in (5, 6, 9):
        bar.update(iteration, 12, {"images": 8.0 * iteration, "model/loss": 1 / iteration})
    (shown,) = bars
    assert (shown.n, shown.total, shown.said) == (9, 12, {"model/loss": "0.1111"})
    bar.close()
    bar.update(1, 3, {"images": 1})
    assert [each.open for each in bars] == [False, True]
    monkeypatch.delitem(sys.modules, "tqdm.auto")
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert type(reporter_here()) is PlainReporter
