"""A Hugging Face Space of the page: a folder with the server, the weights and the Dockerfile that starts it.

    README.md                       what the Hub reads: a Docker Space, and its port
    Dockerfile, requirements.txt    Python, CPU builds of the dependencies in the versions of here, `dualrate serve`
    dualrate/, dualrate_command.py  this very package, so that the Space serves what was tried
    model/, beside/                 released weights

Nothing is uploaded.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from dualrate.codecs.codec import CodecFolder
from dualrate.experiment.experiment import Model
from dualrate.runs.release import CARD, CURVE, export
from dualrate.runs.store import CLASSES, COVARIANCE, RELEASED, WEIGHTS, load
from dualrate.serving.offer import Offer
from dualrate.system.files import naming, write_whole
from dualrate.system.folders import MANIFEST, check_link, new_folder, some_of

PORT = 7860
PACKAGE = Path(__file__).resolve().parents[1]
LEFT_OUT = ("__pycache__", "nets")  # nets of features score images, which a page does not
EMOJI = "\N{ARTIST PALETTE}"
README = """---
title: {title}
emoji: {emoji}
colorFrom: blue
colorTo: yellow
sdk: docker
app_port: {port}
pinned: false
short_description: Diffusion sampling at two rates, side by side
---

# {name}

Images of `{name}` (iteration {iteration}, weights {weights}), drawn as you ask: steps, heavy calls,
sampler, guidance, seeds{beside}. MACs are counted, times
are measured here.

The folder is complete: `docker build -t page . && docker run -p {port}:{port} page` shows the same page at
http://localhost:{port}/. Say in this file's header under which `license` the weights are.
"""
DOCKERFILE = """FROM python:{python}-slim
RUN useradd --create-home --uid 1000 user
WORKDIR /app
COPY requirements.txt .
RUN pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu -r requirements.txt
COPY --chown=user . .
USER user
EXPOSE {port}
CMD {command}
"""


def write_space(offer: Offer, out: Path, note: Callable[[str], None]) -> None:
    """Write a Space that serves this offer. out: a new or empty folder; note: told how to upload it.

    Raises ValueError for any other `out`, and where the dependencies' versions are not known; OSError if it cannot be
    written. Then nothing is left behind.
    """
    check_link(out)
    target, needed = Path(os.path.realpath(out)), requirements()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        what = f"holds {some_of(sorted(path.name for path in target.iterdir()))}" if target.is_dir() else "is a file"
        raise ValueError(f"{out} {what}: choose a new or empty folder as --space")
    model, other = offer.model, None if offer.rival is offer.model else offer.rival
    for one in filter(None, (model, other)):
        if isinstance(one.experiment.codec, CodecFolder) or isinstance(one.experiment.method.latents, CodecFolder):
            raise ValueError(
                f"{one.name} draws by a codec in a folder of its own, which a Space does not hold: serve it here"
            )
        if elsewhere := re.search(r'"type": "([\w.]+):', json.dumps(one.experiment.identity)):
            raise ValueError(f"{one.name} needs the package {elsewhere[1]}, which a Space does not hold: serve it here")
        if '"ForeignConfig"' in json.dumps(one.experiment.identity):  # networks of diffusers, an extra
            needed = [*dict.fromkeys([*needed, _pinned("diffusers")])]
    command = ["python", "-m", "dualrate", "serve", "model", "--host", "0.0.0.0", "--port", str(PORT)]
    command += [] if other is None else ["--beside", "beside"]
    limits = {"steps": offer.limits.steps, "images": offer.limits.images, "waiting": offer.limits.waiting}
    command += [word for name, most in limits.items() for word in (f"--max-{name}", str(most))]
    said = {"title": json.dumps(model.name), "name": model.name, "emoji": EMOJI, "port": PORT}
    beside = "a heavy call at every step" if other is None else f"`{other.name}`"
    said["beside"] = "" if offer.rivals == ("nothing",) else f"; beside {beside} from the same seeds"
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    with new_folder(target) as folder:
        _put(model, folder / "model", note)
        held = load(folder / "model", note=lambda text: None)  # of a run its averages in bfloat16
        said |= {"iteration": held.iteration, "weights": held.weights_hash[:12]}
        write_whole(folder / "README.md", README.format(**said))
        write_whole(folder / "Dockerfile", DOCKERFILE.format(python=python, port=PORT, command=json.dumps(command)))
        write_whole(folder / "requirements.txt", "".join(f"{line}\n" for line in needed))
        shutil.copytree(PACKAGE, folder / PACKAGE.name, ignore=shutil.ignore_patterns(*LEFT_OUT))
        shutil.copy(PACKAGE.parent / "dualrate_command.py", folder)
        if other is not None:
            _put(other, folder / "beside", note)
    note(f"to upload it: hf upload USER/NAME {out} . --repo-type space")


def requirements() -> list[str]:
    """The dependencies in the versions that are installed here, without what says for which device they were built.

    Raises ValueError where `dualrate` itself is not installed, which lists them.
    """
    try:
        listed = [text for text in requires("dualrate") or [] if ";" not in text]  # those are of extras
    except PackageNotFoundError as error:
        raise ValueError("dualrate is not installed here, which would tell its dependencies: pip install it") from error
    names = [re.split(r"[^\w.-]", text)[0] for text in listed]
    return [*map(_pinned, names)]


def _pinned(name: str) -> str:
    return f"{name}=={version(name).split('+')[0]}"


def _put(model: Model, place: Path, note: Callable[[str], None]) -> None:
    """The weights of a model that was loaded from a directory."""
    assert model.path is not None  # for the type checker: the command line loads all that it serves
    if not (model.path / WEIGHTS).is_file():
        export(model.path, place, note)
        return
    place.mkdir()
    for name in (*RELEASED, MANIFEST, CLASSES, CARD, CURVE, COVARIANCE):
        if (model.path / name).is_file():
            with naming(place / name):
                shutil.copyfile(model.path / name, place / name)
