"""A pickle that acts when it is opened: it makes a file."""

import pickle
from pathlib import Path


class Armed:
    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self):
        return Path.touch, (self.sentinel,)


def armed_pickle(sentinel: Path) -> bytes:
    """A pickle, shown to be armed: opened once here, and the file removed."""
    content = pickle.dumps({"mu": Armed(sentinel), "sigma": 0})
    pickle.loads(content)
    sentinel.unlink()
    return content
