"""A process without what macOS or Windows lacks: `python bare.py SYSTEM FOLDER` trains, draws and forecasts there.

On "windows" a folder cannot be opened either.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import shutil
import signal
import sys
import tempfile
from dataclasses import replace
from importlib.abc import MetaPathFinder
from pathlib import Path

MODULES = ("fcntl", "resource", "termios", "tty", "pty", "pwd", "grp", "syslog", "readline", "curses")
CALLS = (
    "posix_fallocate posix_fadvise posix_spawn sched_getaffinity sched_setaffinity fork forkpty getloadavg sysconf "
    "sysconf_names confstr pathconf fdatasync pread pwrite preadv pwritev readv writev sendfile "
    "getuid geteuid getgid getegid getpgid setsid killpg nice uname wait3 wait4 mkfifo mknod lockf lchown chown fchown "
    "fchdir chroot ttyname openpty copy_file_range memfd_create eventfd getrandom register_at_fork O_DIRECTORY "
    "O_NOFOLLOW O_CLOEXEC O_NONBLOCK O_SYNC O_DSYNC O_DIRECT O_TMPFILE O_PATH"
)
SIGNALS = "SIGHUP SIGUSR1 SIGUSR2 SIGKILL SIGALRM SIGQUIT SIGPIPE SIGCHLD SIGCONT SIGSTOP setitimer pthread_sigmask"


class Refuse(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in MODULES:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def without_proc(real):
    return lambda path, *more, **named: real("/nothing" if str(path).startswith("/proc/") else path, *more, **named)


def as_on_macos() -> None:
    del os.posix_fallocate, os.sched_getaffinity
    os.stat, os.listdir = without_proc(os.stat), without_proc(os.listdir)


def as_on_windows() -> None:
    for name in CALLS.split():
        if hasattr(os, name):
            delattr(os, name)
    for name in SIGNALS.split():
        delattr(signal, name)
    for name in MODULES:
        sys.modules.pop(name, None)
    sys.meta_path.insert(0, Refuse())
    tempfile.TemporaryFile, shutil._use_fd_functions = tempfile.NamedTemporaryFile, False  # as they are there
    os.stat, os.listdir = without_proc(os.stat), without_proc(os.listdir)
    opened = os.open

    def open_file(path, flags, *more, **named):
        if os.path.isdir(path):
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, flags, *more, **named)

    os.open = open_file


def main(system: str, folder: Path) -> None:
    import asyncio  # here it has another form than there
    import subprocess

    import torch  # so may its extensions

    del asyncio, subprocess
    {"macos": as_on_macos, "windows": as_on_windows}[system]()

    import numpy as np
    from forecasts.made_forecasts import drawer_of, experiment_of
    from runs.made import ONE

    import dualrate as dr
    import dualrate_command
    from dualrate.cli.doctor import check_device, check_disk, check_installation, examine
    from dualrate.cli.main import parsed
    from dualrate.forecasts.condition import Forecast
    from dualrate.forecasts.folder import write_forecast
    from dualrate.forecasts.starts import held_out_starts

    for module in pkgutil.walk_packages(dr.__path__, "dualrate."):
        if not module.name.endswith("__main__"):  # which runs the command
            importlib.import_module(module.name)

    rng = np.random.default_rng(0)
    np.savez(folder / "images.npz", images=rng.integers(0, 256, (8, 8, 8, 1), np.uint8), labels=np.arange(8) % 3)
    np.save(folder / "fields.npy", rng.normal(size=(10, 12, 2, 1, 16)).astype(np.float32))
    fit = dr.FitConfig(iterations=1, batch_size=2)

    dr.train(replace(ONE, data=dr.DataConfig(str(folder / "images.npz")), fit=fit), folder / "one")
    dr.train(replace(ONE, data=dr.DataConfig(str(folder / "images.npz")), fit=fit), folder / "one")
    dr.export(folder / "one", folder / "released")
    assert dr.sample(dr.load(folder / "released"), 2, steps=2).shape == (2, 1, 8, 8)
    parsed(["sample", str(folder / "one"), "--num", "2", "--steps", "2", "--out", str(folder / "images")]).run()

    dr.train(replace(experiment_of(folder / "fields.npy", Forecast()), fit=fit), folder / "ahead")
    model = dr.load(folder / "ahead")
    for drawn in (6, 0):
        written = write_forecast(drawer_of(model), held_out_starts(model, 2, 1), 2, folder / "out")
        assert written.drawn == drawn
    assert np.isfinite(np.load(folder / "out" / "forecast.npy")).all()

    findings = examine(
        (check_installation, lambda: check_device(torch.device("cpu")), lambda: check_disk({"": folder}))
    )
    assert not [finding for finding in findings if finding.level == "problem"]
    assert dualrate_command.idle_processors(0.01) >= 1
    sys.argv = ["dualrate", "--help"]
    dualrate_command.main()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
