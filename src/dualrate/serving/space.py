"""A Hugging Face Space of the page: a folder with the server, the weights and the Dockerfile that starts it.

    README.md                       what the Hub reads: a Docker Space, and its port
    Dockerfile, requirements.txt    Python, CPU builds of the dependencies in the versions of here, `dualrate serve`
    dualrate/, dualrate_command.py  this very package, so that the Space serves what was tried
    model/, beside/                 released weights

Nothing is uploaded.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import requires, version
from pathlib import Path

from dualrate.codecs.codec import CodecFolder
from dualrate.runs.release import export
from dualrate.runs.store import WEIGHTS
from dualrate.serving.offer import Offer
from dualrate.system.folders import new_folder

PORT = 7860
PACKAGE = Path(__file__).resolve().parents[1]
PARTS = Path(__file__).with_name("parts")


def write_space(offer: Offer, out: Path, note: Callable[[str], None]) -> None:
    """Write a Space that serves this offer. out: a new or empty folder; note: gets the command that uploads it.

    Raises ValueError for any other `out`, and for a model that needs a codec's folder or another package; OSError if it
    cannot be written. Then nothing is left behind.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is there already: choose a new or empty folder as --space")
    models = {"model": offer.model}
    if offer.baseline is not offer.model:
        models["beside"] = offer.baseline
    packages = [re.split(r"[^\w.-]", text)[0] for text in requires("dualrate") or [] if ";" not in text]
    packages += ["starlette", "uvicorn"]
    for model in models.values():
        identity = json.dumps(model.experiment.identity)
        if isinstance(model.experiment.codec, CodecFolder) or isinstance(model.experiment.condition.codec, CodecFolder):
            raise ValueError(f"{model.name} needs the folder of its codec, which a Space does not hold: serve it here")
        if elsewhere := re.search(r'"type": "([\w.]+):', identity):
            raise ValueError(f"{model.name} needs the package {elsewhere[1]}, which a Space does not hold")
        if '"ForeignConfig"' in identity and "diffusers" not in packages:
            packages.append("diffusers")
    command = ["python", "-m", "dualrate", "serve", "model", "--host", "0.0.0.0", "--port", str(PORT)]
    command += ["--beside", "beside"] if "beside" in models else []
    for name, most in asdict(offer.limits).items():
        command += [f"--max-{name}", str(most)]
    texts = {
        "{title}": json.dumps(offer.model.name),
        "{name}": offer.model.name,
        "{port}": str(PORT),
        "{python}": f"{sys.version_info.major}.{sys.version_info.minor}",
        "{command}": json.dumps(command),
    }
    with new_folder(out) as folder:
        for name, model in models.items():
            assert model.path is not None  # for the type checker: the command line loads all that it serves
            if (model.path / WEIGHTS).is_file():
                shutil.copytree(model.path, folder / name)
            else:
                export(model.path, folder / name, note)
        for name, part in {"README.md": "space_readme.txt", "Dockerfile": "space_dockerfile.txt"}.items():
            text = (PARTS / part).read_text(encoding="utf-8")
            filled = re.sub("|".join(texts), lambda mark: texts[mark[0]], text)
            (folder / name).write_text(filled, encoding="utf-8")
        pinned = [f"{name}=={version(name).split('+')[0]}\n" for name in packages]  # without +cpu
        (folder / "requirements.txt").write_text("".join(pinned))
        shutil.copytree(PACKAGE, folder / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__", "nets"))
        shutil.copy(PACKAGE.parent / "dualrate_command.py", folder)
    note(f"to upload it: hf upload USER/NAME {out} . --repo-type space")
