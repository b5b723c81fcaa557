"""Diffusers' own tests of a pipeline, run on ours from a checkout of theirs: they are not in its wheel.

    git clone --depth 1 --branch v0.40.0 https://github.com/huggingface/diffusers checkout
    pip install diffusers==0.40.0 transformers accelerate requests_mock parameterized
    DIFFUSERS_CHECKOUT=checkout python -m pytest -m slow tests/pipelines/test_diffusers_own_tests.py

The checkout is of the release that is installed. Without transformers their tests do not import.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = os.environ.get("DIFFUSERS_CHECKOUT")
HERE = Path(__file__).parent


@pytest.mark.slow
@pytest.mark.skipif(CHECKOUT is None, reason="DIFFUSERS_CHECKOUT is not set to a checkout of the installed release")
def test_diffusers_own_tests_of_a_pipeline(tmp_path):
    places = [CHECKOUT, str(HERE.parent), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    options = ["-q", "-W", "ignore", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(HERE / "mixin_case.py"), "-k", "TestDualRate"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, places)), "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= 20, done.stdout[-3000:]
