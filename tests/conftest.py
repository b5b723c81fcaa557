"""Settings of the whole suite: one thread, the same examples of hypothesis every time, no deadline on a busy machine.

Threads that wait awake for one another can take most of the processor time where other programs run beside them.
"""

import functools
import gc
import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")  # OpenMP reads it when torch is loaded, which is later
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
from hypothesis import settings
from tyro import _docstrings

settings.register_profile("repeatable", deadline=None, derandomize=True, max_examples=25)
settings.load_profile("repeatable")

# tyro reads a class of options anew at every command line, which takes longer than the rest of it
if hasattr(_docstrings, "_ClassTokenization"):
    _docstrings._ClassTokenization.make = staticmethod(functools.cache(_docstrings._ClassTokenization.make))

# a job that a script started in the background ignores Ctrl-C, and so would every process that the tests start
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


gc.disable()  # until all is collected: visiting what is imported again and again takes a third of that time


def pytest_collection_finish():
    """The objects of what was imported and collected stay: the garbage collector need not visit them."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def unsynced():
    """Nobody waits for the disk: what a process wrote before it was killed is in the system's memory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def few_samples():
    """Trainings draw a small grid of samples, in few steps, and calls are timed briefly: most tests look at others."""
    from dualrate.drawing import measure
    from dualrate.runs import train

    timed = measure.seconds_per_call
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            measure, "seconds_per_call", lambda call, *, seconds, device: timed(call, seconds=0, device=device)
        )
        patch.setattr(train, "SHOWN", 4)
        patch.setattr(train, "SHOWN_STEPS", 4)
        yield
