"""Signals that save first, and what a supervisor's copy of one is."""

import signal
import time

import pytest

from dualrate.system import progress as guards
from dualrate.system.progress import Interrupts


@pytest.fixture(autouse=True)
def seen():
    """Signals that nobody listened to, in place of an end of the tests."""
    found: list[int] = []
    before = {number: signal.signal(number, lambda number, frame: found.append(number)) for number in guards.STOPS}
    yield found
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", guards.STOPS)
def test_the_first_signal_is_kept_and_the_second_acts(seen, number):
    with Interrupts() as interrupts:
        signal.raise_signal(number)
        assert (interrupts.received, seen) == (number, [])
        signal.raise_signal(number)
        assert seen == [number]


def test_under_nohup_a_hangup_is_ignored(seen):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with Interrupts() as interrupts:
        signal.raise_signal(signal.SIGHUP)
        assert (interrupts.received, seen) == (None, [])
        signal.raise_signal(signal.SIGTERM)
        assert interrupts.received == signal.SIGTERM


def test_what_a_whole_group_is_sent_and_the_supervisor_s_copy_are_one(seen, monkeypatch):
    with Interrupts(echoes=True) as interrupts:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert (interrupts.received, seen) == (signal.SIGTERM, [])
        later = time.monotonic() + 1.1 * guards.ECHO
        monkeypatch.setattr(guards.time, "monotonic", lambda: later)
        signal.raise_signal(signal.SIGTERM)
        assert seen == [signal.SIGTERM]
    with Interrupts(echoes=True) as interrupts:
        assert interrupts.received is None
