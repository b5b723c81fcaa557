"""A watchdog over small things that hang for a moment; one that ends its process does so in a process of its own."""

import os
import signal
import time

import pytest
from trouble import forked

from dualrate.training.distributed import LOST
from dualrate.training.launch import Watchdog


def stuck(seconds: float) -> None:
    time.sleep(seconds)


def test_what_does_not_end_in_time_is_named_once_and_where_it_stands(capfd):
    with Watchdog(0.2, ends=False) as watchdog, watchdog.over("making the batch of iteration 7"):
        stuck(0.9)
    said = capfd.readouterr().err
    assert (
        said.count("dualrate: making the batch of iteration 7 has not ended after 0.2 seconds, it is waited for.") == 1
    )
    assert "in stuck" in said
    assert said.count("most recent call first") >= 2  # every thread


def test_what_may_take_longer_is_named_later(capfd):
    with Watchdog(0.2, ends=False) as watchdog:
        for seconds in (0.5, 2.5):
            with watchdog.over(f"a checkpoint of {seconds} seconds", 4):
                stuck(seconds)
    said = capfd.readouterr().err
    assert "0.5" not in said
    assert said.count("a checkpoint of 2.5 seconds has not ended after 0.8 seconds") == 1


def test_the_next_thing_is_watched_as_well(capfd):
    with Watchdog(0.2, ends=False) as watchdog:
        for i in range(2):
            with watchdog.over(f"iteration {i}"):
                stuck(0.5)
    said = capfd.readouterr().err
    assert "iteration 0 has not" in said
    assert "iteration 1 has not" in said


def test_many_short_things_are_none_that_hangs_and_nothing_is_watched_between_them(capfd):
    with Watchdog(0.3, ends=False) as watchdog:
        for i in range(60):
            with watchdog.over(f"iteration {i}"):
                time.sleep(0.01)
        time.sleep(0.7)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("hangs", [True, False])
def test_where_there_is_a_supervisor_the_process_ends(hangs):
    def work() -> None:
        with Watchdog(0.2, ends=True) as watchdog, watchdog.over("iteration 3"):
            stuck(20 if hangs else 0)
        time.sleep(0.5)

    assert forked(work) == (LOST if hangs else 0)


def test_a_process_that_was_stopped_has_not_hung():
    child = os.fork()
    if not child:
        with Watchdog(1, ends=True) as watchdog, watchdog.over("iteration 3"):
            os.kill(os.getpid(), signal.SIGSTOP)
            began = time.process_time()
            while time.process_time() < began + 0.05:
                pass
        os._exit(0)
    os.waitpid(child, os.WUNTRACED)
    time.sleep(1.2)
    os.kill(child, signal.SIGCONT)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
