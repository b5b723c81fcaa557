"""What the tests make trouble with does no more harm than they ask for."""

import time
from concurrent.futures import ThreadPoolExecutor

from trouble import forked, somebody, wait_until


def test_two_processes_that_are_somebody_below_one_folder_do_not_shut_each_other_out(tmp_path):
    tmp_path.chmod(0o700)
    first, second = tmp_path / "first", tmp_path / "second"
    for tree in (first, second):
        tree.mkdir()

    def enters_first():
        with somebody(first):
            (first / "entered").touch()
            time.sleep(0.2)

    def leaves_last():
        wait_until((first / "entered").exists)
        with somebody(second):
            time.sleep(0.5)
            (second / "file").touch()

    with ThreadPoolExecutor() as pool:
        assert list(pool.map(forked, [enters_first, leaves_last])) == [0, 0]
