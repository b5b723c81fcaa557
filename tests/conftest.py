"""Settings of the whole suite: one thread, the same examples of hypothesis every time, no deadline on a busy machine.

Threads that wait awake for one another can take most of the processor time where other programs run beside them.
"""

import functools
import gc
import os
import shutil
import signal
import time
from dataclasses import asdict, is_dataclass
from types import SimpleNamespace

os.environ.setdefault("OMP_NUM_THREADS", "1")  # OpenMP reads it when torch is loaded, which is later
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
from hypothesis import settings
from tyro import _docstrings, _parsers, _resolver, _unsafe_cache

settings.register_profile("repeatable", deadline=None, derandomize=True, max_examples=25)
settings.load_profile("repeatable")

# tyro reads a class of options anew at every command line, which takes longer than the rest of it; where it sees pytest
# it makes a tenth of what it has kept once more, to compare
if hasattr(_docstrings, "_ClassTokenization"):
    _docstrings._ClassTokenization.make = staticmethod(functools.cache(_docstrings._ClassTokenization.make))
if hasattr(_resolver, "_get_type_hints_backported_syntax"):
    _resolver._get_type_hints_backported_syntax = functools.cache(_resolver._get_type_hints_backported_syntax)
_unsafe_cache.sys = SimpleNamespace(modules={})


def read_once(read):
    """In place of tyro's reader of options: those of a command that begins with equal values are read once."""
    known = {}

    def options_of(kind, **how):
        if how["parent_classes"]:  # a part of a command
            return read(kind, **how)
        default = how["default_instance"]
        key = kind, default, repr(asdict(default) if is_dataclass(default) else default)  # 1 is not 1.0
        if key not in known:
            known[key] = read(kind, **how)
        return known[key]

    return staticmethod(options_of)


_parsers.ParserSpecification.from_callable_or_type = read_once(_parsers.ParserSpecification.from_callable_or_type)

# a job that a script started in the background ignores Ctrl-C, and so would every process that the tests start
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# folders of tests in memory, where there is plenty: a file that takes the place of another waits for a disk
SHARED = "/dev/shm"
if os.path.isdir(SHARED) and shutil.disk_usage(SHARED).free > 4 << 30:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", SHARED)

gc.disable()  # until all is collected: visiting what is imported again and again takes a third of that time


def pytest_collection_finish():
    """The objects of what was imported and collected stay: the garbage collector need not visit them. Others, as those
    of libraries that tests load, it visits less often: that takes a twentieth of the time of the tests.
    """
    gc.freeze()
    gc.set_threshold(2000, 20, 50)
    gc.enable()


def pytest_sessionfinish():
    """The process ends: pytest's own five collections then find nothing to visit."""
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def unsynced():
    """Nobody waits for the disk: what a process wrote before it was killed is in the system's memory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="module")
def tmp_path_factory(tmp_path_factory, request):
    """Folders of a file of tests go with it, unless one failed: of many files that have come to a disk, each takes
    milliseconds to remove.
    """
    base, failed = tmp_path_factory.getbasetemp(), request.session.testsfailed
    before = set(base.iterdir())
    yield tmp_path_factory
    if request.session.testsfailed == failed:
        for folder in set(base.iterdir()) - before:
            shutil.rmtree(folder, ignore_errors=True)


def once(call, *, seconds, device) -> float:
    """In place of `cost.seconds_per_call`, which makes several calls."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def remembering(count):
    """In place of `cost.call_cost`: a denoiser with fields that are printed alike costs as much."""
    known = {}

    def call_cost(denoiser, *of, **how):
        key = f"{type(denoiser)} {getattr(denoiser, '__dict__', '')} {of} {how}"
        if " at 0x" in key or key not in known:
            known[key] = count(denoiser, *of, **how)
        return known[key]

    return call_cost


@pytest.fixture(scope="session", autouse=True)
def few_samples():
    """Most tests look at others: trainings draw a small grid of samples, in few steps; a call is timed and counted
    once, and an image timed once; an interval is of few resamples; figures are not laid out (tests/report looks at
    them), nor drawn in a page (one page of each kind is looked at with them). Bfloat16 pays nowhere: where it is
    measured a test would draw other bits on another processor.
    """
    from matplotlib.figure import Figure

    from dualrate.comparison import compare as comparison
    from dualrate.comparison import results
    from dualrate.drawing import cost
    from dualrate.experiment import model
    from dualrate.forecasts import page as forecast_page
    from dualrate.forecasts import pictures as field_pictures
    from dualrate.metrics import evaluate
    from dualrate.networks import blocks
    from dualrate.report import figures
    from dualrate.runs import train

    timed, resampled = comparison.seconds_each, evaluate.resampled_distances
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost, "seconds_per_call", once)
        patch.setattr(blocks, "pays", lambda device: False)
        patch.setattr(model, "call_cost", remembering(model.call_cost))
        patch.setattr(comparison, "seconds_each", lambda draw, drawer, size, repeats: timed(draw, drawer, size, 1))
        patch.setattr(
            evaluate,
            "resampled_distances",
            lambda *of, resamples, **how: resampled(*of, resamples=min(resamples, 50), **how),
        )
        for module in (figures, field_pictures):
            patch.setattr(module, "Figure", lambda *of, layout, **how: Figure(*of, **how))
        for module in (figures, results, forecast_page):
            patch.setattr(module, "svg", lambda figure: "<svg></svg>")
        patch.setattr(train, "SHOWN", 2)
        patch.setattr(train, "SHOWN_STEPS", 2)
        yield
