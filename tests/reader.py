"""A reader who types the commands of a page, block after block: with the numbers of `TINY`, and else as they stand."""

import re
import shlex
import subprocess
from itertools import pairwise
from pathlib import Path

from cli.command import call

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```bash\n(.*?)^```", re.DOTALL | re.MULTILINE)
TINY = {  # of a command: options that take the place of those on the page, or are added
    "train": {"--fit.iterations": 2, "--fit.batch-size": 4},
    "distill": {"--fit.iterations": 2, "--fit.batch-size": 4},
    "retrofit": {"--fit.iterations": 2, "--fit.batch-size": 4},
    "adapt": {"--fit.iterations": 2},
    "sample": {"--num": 2},
    "sample --given": {},
    "forecast": {"--frames": 2},
    "evaluate": {"--num": 12},
    "evaluate --bound": {"--num": 2},
    "plan": {"--grid": 8, "--images": 2},
    "compare": {"--minutes": 2, "--screen": 12, "--count": 12},
    "demo": {"--minutes": 0.01, "--count": 192},
    "cost": {},
    "export": {},
    "serve": {},
    "doctor": {},
    "data prepare": {"--nproc": 1},
    "data encode": {"--nproc": 1},
    "data simulate": {"--trajectories": 2, "--frames": 4},
    "data verify": {"--nproc": 1},
    "data": {},
    "--help": {},
}
# in place of those on the page
FEWER = {"--steps": "4", "--heavy": "2", "--codec-steps": "2", "--members": "2", "--starts": "2"}
BUDGETS = {"0.25x": "0.5x"}  # which pays for the steps of a grid that is smaller
TWO_STAGES = (["train", "fashion-mnist-latents"], ["train", "clip-latents"])


def commands(page: Path) -> list[list[str]]:
    """The words of every command in a page's bash blocks, in order."""
    return words_of("".join(BLOCK.findall(page.read_text())))


def words_of(text: str) -> list[list[str]]:
    """List the words of every line; one that ends in a backslash goes on."""
    lines = text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def follow_page(page: Path, monkeypatch) -> None:
    """All of its blocks in turn: commands, and Python as one session."""
    session: dict[str, object] = {}
    for kind, text in re.findall(r"^```(bash|python)\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
        if kind == "python":
            exec(compile(text, page.name, "exec"), session)
            continue
        for words in words_of(text):
            follow(words, monkeypatch)


def tiny(words: list[str]) -> list[str]:
    """The words of a `dualrate` command with its numbers replaced; a plea for help needs none."""
    if words[-1] in ("--help", "--help-all"):
        return words
    stages = {f"--{stage}.{name[2:]}": value for stage in ("first", "base") for name, value in TINY["train"].items()}
    key = next((key for key in (" ".join(words[:2]), words[0]) if key in TINY), words[0])
    key = "evaluate --bound" if "--bound" in words else "sample --given" if "--given" in words else key
    for option, value in (stages if words[:2] in TWO_STAGES else TINY[key]).items():
        if option in words:
            at = words.index(option)
            words = words[:at] + words[at + 2 :]
        words = [*words, option, str(value)]
    if words[0] in ("sample", "evaluate", "cost", "compare", "forecast", "plan"):
        words = [words[0], *(FEWER.get(option, word) for option, word in pairwise(words))]
    return [BUDGETS.get(word, word) for word in words]


def follow(words: list[str], monkeypatch) -> None:
    """Do what a command says, in the current directory. Of `make`, the `dualrate` commands that it would run."""
    match words:
        case ["dualrate", *rest]:
            assert call(monkeypatch, *tiny(rest)) == 0, shlex.join(words)
        case ["make", *targets]:
            for line in would_run(targets):
                follow(line, monkeypatch)
        case [".", ".venv/bin/activate"] | ["echo", *_]:
            pass  # the environment is this one
        case [".venv/bin/python" | "python3", "-m", "pytest", *_]:
            pass  # these tests
        case [".venv/bin/python" | "python3", "-m", module, *_]:
            assert (ROOT / module.replace(".", "/")).with_suffix(".py").is_file(), shlex.join(words)
        case [".venv/bin/python" | "python3", script, *_]:
            assert (ROOT / script).is_file(), shlex.join(words)
        case _:
            raise AssertionError(f"nobody knows how to follow {shlex.join(words)!r}")


def would_run(targets: list[str]) -> list[list[str]]:
    """The commands that `make` would run, without the environment and its own variables."""
    made = subprocess.run(["make", "-n", "--no-print-directory", *targets], cwd=ROOT, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    lines = [shlex.split(re.sub(r"^(\w+=\S+ )+", "", line)) for line in made.stdout.splitlines()]
    return [["dualrate", *words[1:]] if words[0] == ".venv/bin/dualrate" else words for words in lines if words]
