"""`dualrate` as the tests call it."""

import sys

from dualrate.cli import main as cli


def call(monkeypatch, *arguments) -> int:
    """Exit code of `dualrate <arguments>`, run in this process."""
    monkeypatch.setattr(sys, "argv", ["dualrate", *map(str, arguments)])
    try:
        cli.main()
    except SystemExit as stop:
        return stop.code or 0
    return 0
