"""Folders that another library writes and reads, with a manifest of ours in each: what is damaged is told by name.

FOLDER/MANIFEST.json            of the files beside it
FOLDER/encoder/MANIFEST.json    of those below it, and so on
"""

from __future__ import annotations

import os
import shutil
import warnings
from pathlib import Path
from typing import Any

from dualrate.machine.files import check_files
from dualrate.machine.folders import MANIFEST, Damaged, Manifest


def seal(folder: Path, names: list[str] | None = None) -> None:
    """Write the manifest of a folder's files. names: of those that there are; None: all of them."""
    files = {path.name for path in folder.iterdir() if path.is_file()} - {MANIFEST}
    Manifest.write(folder, sorted(files if names is None else files & set(names)))


def check_sealed(folder: Path, required: str) -> None:
    """Raises OSError, naming the file, unless all that the manifest lists is what it says; warns where there is none.

    required: a file that it lists in any case
    Raises ValueError for a pipe, a socket or a device among the folder's files.
    """
    check_files(folder)
    try:
        manifest = Manifest.read(folder, [required])
        if manifest is not None:
            for name in manifest.entries:
                with manifest.opened(name):  # which reads it to its end, for its hash alone
                    pass
    except Damaged as error:
        raise OSError(
            f"{folder} is damaged ({error}): fetch it again, or export it again from its run. If it was changed on "
            f"purpose, remove its {MANIFEST}"
        ) from error
    if manifest is None:
        warnings.warn(
            f"{folder} has no {MANIFEST}, so nothing tells whether it is what was saved: save or export it again",
            stacklevel=2,
        )


def seal_weights(folder: Path, config: str) -> None:
    """The manifest of a network's folder, whose weights its library writes for their owner alone."""
    for file in folder.glob("*.safetensors"):
        shutil.copymode(folder / config, file)
    seal(folder)


class Checked:
    """Before another library reads a folder of ours, what it holds is compared with its manifest."""

    @classmethod
    def load_config(cls, pretrained_model_name_or_path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:
        """Raises OSError for a damaged folder, naming the file."""
        folder = Path(pretrained_model_name_or_path, kwargs.get("subfolder") or "")
        if folder.is_dir():
            check_sealed(folder, cls.config_name)  # pyright: ignore[reportAttributeAccessIssue]
        return super().load_config(pretrained_model_name_or_path, *args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
