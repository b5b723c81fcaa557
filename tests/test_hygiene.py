"""What the source may not contain, whatever it computes: unsafe loading, method names in the trainer, local paths."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SRC = ROOT / "src" / "dualrate"
FILES = {str(path.relative_to(SRC)): path for path in sorted(SRC.rglob("*.py"))}
MAX_LINES = 400

UNSAFE_MODULES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
UNSAFE_CALLS = {"eval", "exec", "torch.load", "yaml.load", "yaml.unsafe_load", "os.system"}
UNSAFE_KEYWORDS = {"allow_pickle", "trust_remote_code", "shell"}
METHOD_WORDS = {"dual", "tau", "teacher", "student", "encoder", "light"}

# Roots of one machine's folders, not preceded by what would make them part of a relative path or an address
LOCAL_PATH = re.compile(r"(?<![\w.~*/$})-])/(?:work|root|tmp|(?:home|Users)/\w+)\b(?!-)")
IF_DUAL_RATE = re.compile(r"\b(?:if|elif|while)\b[^:\n]*\bdual_rate\b", re.IGNORECASE)


def unsafe(source: str) -> list[str]:
    """What in this source can run code from data."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in UNSAFE_MODULES]
        elif isinstance(node, ast.ImportFrom):
            names = {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
            found += [name for name in names if name.split(".")[0] in UNSAFE_MODULES or name in UNSAFE_CALLS]
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            found += [called] if called in UNSAFE_CALLS else []
            found += [
                f"{keyword.arg}={ast.unparse(keyword.value)}"
                for keyword in node.keywords
                if keyword.arg in UNSAFE_KEYWORDS
                and not (isinstance(keyword.value, ast.Constant) and keyword.value.value is False)
            ]
    return found


def method_words(text: str) -> set[str]:
    """The words of training methods in a text; camel case and underscores separate words, `dualrate` is one word."""
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", text)
    return {word.lower() for word in words} & METHOD_WORDS


def tracked() -> list[Path]:
    """The files that git tracks."""
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"needs a git checkout: {error}")
    return [path for path in (ROOT / name for name in listed.split("\0") if name) if path.is_file()]


def text_of(path: Path) -> str:
    """A file's text; a binary file has none."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ""


@pytest.mark.parametrize("name", FILES)
def test_nothing_runs_code_from_data(name: str) -> None:
    assert not unsafe(FILES[name].read_text())


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("training/")])
def test_the_trainer_names_no_method(name: str) -> None:
    assert not method_words(FILES[name].read_text())


@pytest.mark.parametrize("name", FILES)
def test_no_branch_on_the_method(name: str) -> None:
    assert not IF_DUAL_RATE.findall(FILES[name].read_text())


@pytest.mark.parametrize("name", FILES)
def test_modules_say_what_they_are(name: str) -> None:
    assert ast.get_docstring(ast.parse(FILES[name].read_text())), f"{name} has no docstring"


@pytest.mark.parametrize("name", FILES)
def test_files_are_short(name: str) -> None:
    lines = len(FILES[name].read_text().splitlines())
    assert lines <= MAX_LINES, f"{name} has {lines} lines, at most {MAX_LINES}: split it"


def test_no_paths_of_one_machine() -> None:
    found = {
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
        for path in tracked()
        if path != Path(__file__).resolve()
        for number, line in enumerate(text_of(path).splitlines(), 1)
        if LOCAL_PATH.search(line)
    }
    assert not found, "\n".join(sorted(found))


@pytest.mark.parametrize(
    "bad",
    [
        "import pickle",
        "from pickle import loads",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "import torch\ntorch.load('x')",
        "from torch import load",
        "eval('1')",
        "exec(text)",
        "import yaml\nyaml.load(text)",
        "import subprocess\nsubprocess.run('ls', shell=True)",
    ],
)
def test_unsafe_code_is_found(bad: str) -> None:
    assert unsafe(bad)


def test_safe_code_is_not_flagged() -> None:
    assert not unsafe("model.eval()\nnp.load('x', allow_pickle=False)\nsafetensors.torch.load_file('x')")


def test_method_words_are_found_in_names_and_prose() -> None:
    assert method_words("DualRate light_net z_tau the dual-rate ContextEncoder") == {"dual", "light", "tau", "encoder"}
    assert not method_words("from dualrate.diffusion.values import Batch  # highlights lightning total")


def test_local_paths_are_found() -> None:
    for bad in ("/work/main", "cd /root", '"/tmp/x"', "/home/jane/data", "file:/tmp/x", "(/Users/jane)"):
        assert LOCAL_PATH.search(bad), bad
    for good in (
        "frame/work/main",
        "https://example.org/work/x",
        "~/tmp",
        "$HOME/tmp/x",
        "/workers",
        "src/tmp",
        "/tmp-like",
    ):
        assert not LOCAL_PATH.search(good), good


def test_branches_on_the_method_are_found() -> None:
    assert IF_DUAL_RATE.search("    if config.dual_rate and x:")
    assert not IF_DUAL_RATE.search("model = dual_rate(config)")
