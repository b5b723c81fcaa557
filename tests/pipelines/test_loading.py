"""Ways of loading a saved pipeline, each in a fresh process: what a class is found by depends on what was imported."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("diffusers")

from runs.made import TWO, saved

import dualrate as dr

pytestmark = pytest.mark.slow  # a process each, which imports torch and diffusers
GENERIC = "from diffusers import DiffusionPipeline as P; "
OWN = "from dualrate.pipelines.export import DualRatePipeline as P; "
DRAW = "; p(class_labels=[1]); print(type(p).__module__, type(p).__name__)"
TRUST = "trust_remote_code=True"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from dualrate.pipelines.export import DualRatePipeline

    place = tmp_path_factory.mktemp("made")
    model = dr.load(saved(TWO, place / "run"), note=lambda text: None)
    DualRatePipeline.of(model, dr.Choice(steps=2, heavy=1)).save_pretrained(place / "pipe")
    return place / "pipe"


def ran(code, cache):
    """(exit code, what was printed, the errors), with a cache of its own for code of folders."""
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(cache)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    return done.returncode, done.stdout.strip(), done.stderr


@pytest.mark.parametrize(
    ("code", "printed", "error"),
    [
        (f"{OWN}p = P.from_pretrained(F){DRAW}", "dualrate.pipelines.export DualRatePipeline", ""),
        (f"{GENERIC}p = P.from_pretrained(F, {TRUST}){DRAW}", "dualrate.pipelines.export DualRatePipeline", ""),
        (
            f"{GENERIC}p = P.from_pretrained(F, custom_pipeline='pipeline', {TRUST}){DRAW}",
            "dualrate.pipelines.export DualRatePipeline",
            "",
        ),
        (f"{GENERIC}p = P.from_pretrained(F)", "", "Pass `trust_remote_code=True`"),
        (f"{GENERIC}p = P.from_pretrained(F, custom_pipeline='pipeline')", "", "trust_remote_code"),
        (
            f"import sys; sys.modules['dualrate'] = None; {GENERIC}p = P.from_pretrained(F, {TRUST})",
            "",
            "dualrate",
        ),
    ],
    ids=["own", "generic-trusted", "generic-as-of-before", "generic", "generic-not-trusted", "without-dualrate"],
)
def test_ways_of_loading(folder, tmp_path, code, printed, error):
    exit_code, output, errors = ran(f"F = {str(folder)!r}; {code}", tmp_path)
    assert (exit_code == 0, output) == (bool(printed), printed), errors
    assert error in errors


def test_the_generic_way_finds_damage_too(folder, tmp_path):
    weights = folder / "light" / "diffusion_pytorch_model.safetensors"
    content = weights.read_bytes()
    try:
        weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        code, _, errors = ran(f"{GENERIC}P.from_pretrained({str(folder)!r}, {TRUST})", tmp_path)
    finally:
        weights.write_bytes(content)
    assert (code, "is damaged" in errors) == (1, True), errors


def test_the_core_is_imported_without_diffusers(tmp_path):
    missing = "import sys; sys.modules['diffusers'] = sys.modules['huggingface_hub'] = None"
    assert ran(f"{missing}; import dualrate, dualrate.cli.main", tmp_path)[0] == 0
