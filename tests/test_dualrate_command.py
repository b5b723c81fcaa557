"""Threads of the `dualrate` command: as many as asked for, or as processors are idle; settled before torch loads."""

import contextlib
import inspect
import io
import json
import os
import re
import resource
import runpy
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import tyro

import dualrate_command
from dualrate.cli import distill as cli_distill
from dualrate.cli import main as cli_main
from dualrate.cli import train as cli_train
from dualrate.cli.distill import Distill
from dualrate.cli.train import Adapt, Train
from dualrate.codecs.codec import CodecFolder
from dualrate.options import acting
from dualrate.options import parsing as cli_options
from dualrate.pipelines.command import Retrofit
from dualrate_command import answer, idle_processors, settings, ticks

CLASSES = {name: cli_main.command_named(name) for name in cli_main.COMMANDS}  # of commands that take no recipe first
CLASSES = {name: kind for name, kind in CLASSES.items() if isinstance(kind, type)}

SINGLE = Path(__file__).parent / "golden" / "single"  # a run
STAT = """cpu  100 0 0 100 0 0 0 0 0 0
cpu0 {} 0 {} {} 10 0 0 0 7 7
cpu1 50 0 0 50 0 0 0 0 0 0
intr 1 2 3
"""


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, {"DUALRATE_THREADS": "auto", "OMP_NUM_THREADS": "3", "OMP_WAIT_POLICY": "PASSIVE"}),
        ({"OMP_NUM_THREADS": "2"}, {"OMP_WAIT_POLICY": "PASSIVE"}),
        ({"OMP_WAIT_POLICY": "ACTIVE", "OMP_NUM_THREADS": "2"}, {"OMP_WAIT_POLICY": "ACTIVE"}),
        (
            {"DUALRATE_THREADS": "5", "OMP_NUM_THREADS": "2"},
            {"OMP_NUM_THREADS": "5", "OMP_WAIT_POLICY": "PASSIVE", "MKL_DYNAMIC": "FALSE"},
        ),
        (
            {"DUALRATE_THREADS": "auto", "OMP_NUM_THREADS": "2"},
            {"DUALRATE_THREADS": "auto", "OMP_NUM_THREADS": "3", "OMP_WAIT_POLICY": "PASSIVE"},
        ),
    ],
)
def test_what_is_asked_for_goes_before_what_is_idle(environment, expected):
    assert settings(environment, idle=3) == expected


@pytest.mark.parametrize("asked", ["0", "many", "-1", "", "1.5"])
def test_a_number_of_threads_that_is_none_is_refused(asked):
    with pytest.raises(ValueError, match="DUALRATE_THREADS"):
        settings({"DUALRATE_THREADS": asked}, idle=3)


def test_ticks_of_a_processor_count_waiting_for_disks_as_idle_and_guests_once():
    assert ticks(STAT.format(30, 20, 40)) == {0: (50, 100), 1: (50, 100)}


def idle(monkeypatch, tmp_path, shares: list[float], quota: str = "max 100000") -> int:
    """Count processors where each is idle for such a share of the time, in a container of this quota."""

    class Stat:
        reads = 0

        def exists(self):
            return True

        def read_text(self):
            self.reads += 1
            now = [(round(100 * self.reads * share), 100 * self.reads) for share in shares]
            return "".join(f"cpu{i} {total - free} 0 0 {free} 0 0 0 0\n" for i, (free, total) in enumerate(now))

    (tmp_path / "cpu.max").write_text(quota)
    monkeypatch.setattr(dualrate_command, "STAT", Stat())
    monkeypatch.setattr(dualrate_command, "QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2}, raising=False)
    return idle_processors(0)


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ([1, 1, 1], 3),
        ([1, 0.1, 0.9], 2),
        ([0, 0, 0], 1),
        ([0.3, 0.3, 0.3], 1),
        ([1, 1, 0, 1, 1], 2),  # processors that others may use are of no help
    ],
)
def test_the_idle_processors_that_may_be_used_are_counted(shares, expected, monkeypatch, tmp_path):
    assert idle(monkeypatch, tmp_path, shares) == expected


@pytest.mark.parametrize(("quota", "expected"), [("200000 100000", 2), ("150000 100000", 2), ("20000 100000", 1)])
def test_a_container_has_no_more_than_its_quota(quota, expected, monkeypatch, tmp_path):
    assert idle(monkeypatch, tmp_path, [1, 1, 1], quota) == expected


def test_the_settings_are_there_before_openmp_reads_them():
    """OpenMP is asked to tell what it has read, at the moment it is loaded: torch's own, where torch has one."""
    openmp = next((Path(torch.__file__).parent / "lib").glob("libgomp*"), None)
    load = f"__import__('ctypes').CDLL({str(openmp)!r})" if openmp else "__import__('torch')"
    own = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "DUALRATE_"))}
    code = (  # of the command itself only what it begins with
        "import sys, types; began = sys.modules['dualrate.cli.main'] = types.ModuleType('main'); "
        f"began.main = lambda: {load}; import dualrate_command; dualrate_command.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "--version"],
        env={**own, "DUALRATE_THREADS": "3", "OMP_DISPLAY_ENV": "TRUE"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
    told = done.stderr
    if "OMP_NUM_THREADS" not in told:
        pytest.skip("this torch's OpenMP does not tell its settings")
    assert "OMP_NUM_THREADS = '3'" in told
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in told


def test_the_module_begins_anew_as_the_command(monkeypatch):
    """Before torch is loaded anew, so that its threads are settled."""
    begun = []
    monkeypatch.setattr(os, "execv", lambda *words: begun.append(words))
    monkeypatch.setattr(sys, "argv", ["dualrate", "sample", "x"])
    runpy.run_module("dualrate", run_name="__main__")
    assert begun == [(sys.executable, [sys.executable, "-m", "dualrate_command", "sample", "x"])]


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"]])
def test_what_it_can_do_is_told_without_loading_anything(arguments):
    code = (
        f"import sys, dualrate_command; sys.argv[1:] = {arguments}; dualrate_command.main(); "
        "assert not {'torch', 'numpy', 'dualrate'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == dualrate_command.USAGE.read_text()


def test_the_usage_has_every_command_with_its_first_line():
    kinds = {"train": Train, "distill": Distill, "retrofit": Retrofit, "adapt": Adapt}
    kinds |= {name: kind for name, kind in CLASSES.items() if " " not in name}
    kinds["data"] = SimpleNamespace(
        __doc__="Prepare, encode and verify images for training; check a codec; simulate fields."
    )
    lines = {f"  {name:9} {(kind.__doc__ or '').splitlines()[0]}" for name, kind in kinds.items()}
    told = [line for line in dualrate_command.USAGE.read_text().splitlines() if line.startswith("  ")]
    assert {line for line in told if not line.startswith("   ")} == lines


def test_the_help_of_a_command_needs_nothing_loaded():
    for name in CLASSES:
        code, text = answer([*name.split(), "--help"])
        assert code == 0
        assert text.startswith(f"usage: dualrate {name} ")
    assert "\n  --num INT\n      Number of images in OUT, " in answer(["sample", "--help-all"])[1]
    assert "\n  [RUN]\n      A run, released weights" in answer(["evaluate", "--help-all"])[1]
    assert "\n  [NAME=]RUN[+DENOISER]" in answer(["compare", "--help"])[1]


def test_a_wrong_number_is_one_line_and_exit_code_2():
    done = subprocess.run(
        [sys.executable, "-m", "dualrate_command", "--version"],
        env={**os.environ, "DUALRATE_THREADS": "none"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("dualrate: DUALRATE_THREADS is")


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_take_what_is_said(closed, tmp_path):
    """A file that is opened then has another number than a stream, here and in a process that is started."""
    code = (
        "import os, sys, dualrate_command; dualrate_command.settle_streams(); print('said', flush=True); "
        "print('said', file=sys.stderr, flush=True); sys.stderr.isatty(); "
        "number = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY); assert number > 2; "
        "raise SystemExit(os.waitstatus_to_exitcode(os.system('echo said && echo said >&2')))"
    )
    done = subprocess.run(["sh", "-c", f'"$0" -c "$1" "$2" {closed}', sys.executable, code, str(tmp_path / "file")])
    assert (done.returncode, (tmp_path / "file").read_text()) == (0, "")


def test_a_letter_that_the_encoding_lacks_is_escaped():
    code = "import dualrate_command; dualrate_command.settle_streams(); print('\\u65e5 \\udce6')"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONIOENCODING": "latin-1"}, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "\\u65e5 \\udce6\n", "")


UNLISTED = (
    "clip-decoder",
    "clip-latents-base",
    "fashion-mnist-decoder",
    "imagenet-decoder",
    *cli_train.STAGES,
)  # options of a codec's; of two stages
FEWEST = {"*": 0, "?": 0, "+": 1}


def listed(folder: Path) -> dict[str, dict]:
    """Return what options.json holds, of the parser itself. folder: an empty one."""
    images = folder / "images.npz"
    np.savez(images, images=np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), np.uint8))
    auto = ("auto", "--data.source", str(images))
    (folder / "text.txt").write_text(Path(__file__).read_text())
    text = ("text-tokens", "--data.source", str(folder / "text.txt"))
    of_auto = [(*auto, "--rate", rate) for rate in ("dual", "single")]
    of_text = [
        (*text, "--rate", rate, "--noise", noise) for rate in ("dual", "single") for noise in ("mask", "uniform")
    ]
    np.savez(folder / "fields.npz", fields=np.random.default_rng(0).normal(size=(10, 20, 1, 64)).astype(np.float32))
    ahead = [
        (name, "--data.source", str(folder / "fields.npz"), "--rate", rate, "--trained-by", method, "--frames", "3")
        for name in ("forecast", "ks-forecast", "sphere-forecast")
        for rate, method in (("dual", "diffusion"), ("single", "crps"), ("dual", "residual"), ("dual", "rolling"))
    ]
    looking = ("auto", "text-tokens", "forecast", "ks-forecast", "sphere-forecast")  # at their data
    own = [name for name in cli_train.RECIPES if name not in (*UNLISTED, *looking)]
    shapes = {name: repr(shape_of(cli_train.RECIPES[name]())) for name in own}
    alike = {shape: name for name, shape in shapes.items()}  # these have the same options
    trained = [*((name,) for name in alike.values()), *of_auto, *of_text, *ahead]
    other = [(recipe, "--method", "consistency") for recipe in ("cifar10-heavy", "cifar10-dual")]
    other += [(recipe, "--as", "sid2") for recipe in ("cifar10-heavy", "cifar10-dual")]
    found: dict[str, dict] = {}
    for name, kind in CLASSES.items():
        found[name] = about(kind) | options([tuple(name.split())], defaults=True)
    forms = [("train", *one) for one in (*trained, *other)]
    groups = [[name for name in own if shapes[name] == shape] for shape in alike] + [[name] for name in looking]
    found["train"] = recipes("train", [*own, *looking], forms, groups)
    found["train"]["list"] = told("train --list")["usage"]
    found["distill"] = recipes(
        "distill",
        list(cli_distill.RECIPES),
        [("distill", name) for name in cli_distill.RECIPES],
        [[name] for name in cli_distill.RECIPES],
    )
    found["retrofit"] = told("retrofit")
    found["adapt"] = told("adapt")
    return found


def about(kind: type) -> dict:
    return {"about": inspect.cleandoc(kind.__doc__ or "")}


def recipes(name: str, names: list[str], forms: list[tuple[str, ...]], groups: list[list[str]]) -> dict:
    """Return all that is listed of a command of recipes. groups: of recipes that have the same options."""
    unlisted = UNLISTED if name == "train" else ()
    found = options(forms)
    having = {option: set[int]() for option in found["options"]}
    for number, group in enumerate(groups):
        run = cli_train.NO_IMAGES.get(group[0], {}) if name == "train" else {}
        mine = options([form for form in forms if form[1] in group])["options"]
        for option in mine:
            if name != "train" or acting.acts(name, option, run):
                having[option].add(number)
    some = {option: " ".join(map(str, sorted(of))) for option, of in having.items() if len(of) < len(groups)}
    return (
        {"recipes": [*names, *unlisted], "unlisted": list(unlisted)}
        | told(name)
        | found
        | {
            "groups": [" ".join(group) for group in groups],
            "of": some,
        }
    )


def told(name: str) -> dict:
    """Return what a command that wants another word says without it, and its exit code."""
    with contextlib.redirect_stdout(io.StringIO()) as text, pytest.raises(SystemExit) as stop:
        cli_main.parsed(name.split())
    return {"usage": text.getvalue(), "bare": stop.value.code}


def options(forms: list[tuple[str, ...]], defaults: bool = False) -> dict[str, dict[str, str]]:
    """All options of a command with these words, and what all of these require. defaults: with these, but None."""
    left_out = r"\s*\((default: (None|False)?|required)\)$" if defaults else r"\s*\((default: .*|required)\)$"
    known: dict[str, str] = {}
    places: dict[str, str] = {}  # that may be left out
    required: list[dict[str, str]] = []
    seen = set()
    for arguments in forms:
        needed: dict[str, str] = {}
        for kind, default in parsers(arguments):
            shape = repr((kind, shape_of(default)))
            if shape in seen:
                continue
            seen.add(shape)
            for action in actions(kind, default):
                names = [re.sub(r"\.\d+\.", ".N.", name) for name in action.option_strings]
                if "--help" in names:
                    continue
                says = re.sub(left_out, "", str(action.help), flags=re.DOTALL)
                called = action.metavar or "" if names else ""
                called = called.replace("{None}|", "").replace("{None,", "{")
                line = f"{FEWEST.get(action.nargs, action.nargs)}  {called}  {' '.join(says.split())}"
                known |= {name: line for name in names if name not in known}
                places |= {} if names or action.required else {str(action.metavar): line}
                needed |= {names[0] if names else str(action.metavar): line} if action.required else {}
            required.append(needed)
    common = set.intersection(*map(set, required))
    found = {"options": known, "required": {name: line for name, line in required[0].items() if name in common}}
    return found | ({"places": places} if places else {})


def parsers(arguments: tuple[str, ...]) -> Iterator[tuple[object, object]]:
    """The class and the defaults of every parser that these words of a command line lead to."""
    real, seen = tyro.cli, []

    def cli(kind, *, default, return_unknown_args=False, **how):
        seen.append((kind, default))
        if isinstance(default, cli_train.Train) and arguments[1] == "auto":  # of latents
            seen.append((kind, replace(default, experiment=replace(default.experiment, codec=CodecFolder("", "")))))
        if return_unknown_args:
            return real(kind, default=default, return_unknown_args=True, **how)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(io.StringIO()):
        patch.setattr(tyro, "cli", cli)
        with contextlib.suppress(KeyboardInterrupt, ValueError):  # ValueError: not by this method
            cli_main.parsed(list(arguments))
    return iter(seen)


def actions(kind, default) -> list:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        how = {"registry": cli_options.PRIMITIVES, "config": (tyro.conf.AvoidSubcommands,)}
        return tyro.extras.get_parser(kind, default=default, **how)._actions


def shape_of(value: object) -> object:
    """Return what options depend on: the classes of a configuration, not its numbers."""
    if is_dataclass(value):
        return type(value), [(field.name, shape_of(getattr(value, field.name))) for field in fields(value)]
    return [shape_of(one) for one in value] if isinstance(value, (tuple, list)) else None


@pytest.mark.parametrize(
    ("line", "code", "says"),
    [
        ("nope", 2, "there is no command 'nope'"),
        (
            "sample x --out y --numb 3",
            2,
            "there is no option --numb; perhaps you meant:\n  --num INT  Number of images",
        ),
        ("sample --num=3 x", 2, "dualrate sample: missing:\n  --out PATH  Directory for the images"),
        ("sample --num 3 --npz --out y", 2, "dualrate sample: missing:\n  RUN  A run, released weights"),
        ("train", 2, "  auto  "),
        ("train --help", 0, "  auto  "),
        ("train --list", 0, "  imagenet64-heavy  "),
        ("train fashion-mnist-smal", 2, "(did you mean fashion-mnist-small?): `dualrate train` lists them"),
        ("evalute RUN", 2, "there is no command 'evalute' (did you mean evaluate?)"),
        ("data encod IMAGES", 2, "there is no 'encod' (did you mean encode?)"),
        (
            "train cifar10-dual --lr 1",
            2,
            "train cifar10-dual: there is no option --lr; perhaps you meant:\n  --fit.optim.lr",
        ),
        ("train auto --data.sources x", 2, "--data.source STR  Images: fashion-mnist, a folder"),
        ("distill cifar10", 2, "dualrate distill cifar10: missing:\n  --teacher PATH"),
        ("distill nope", 2, "there is no recipe 'nope': `dualrate distill` lists them"),
        ("cost weights/x --jason", 2, "--json"),
        ("data", 0, "dualrate data verify: "),
        ("data nope", 2, "dualrate data: there is no 'nope'\ndualrate data prepare: "),
        ("retrofit", 2, "usage: dualrate retrofit FOLDER"),
    ],
)
def test_a_wrong_name_is_told_without_loading_anything(line, code, says, monkeypatch):
    """As the parser tells it: with the same exit code."""
    found = answer(line.split())
    assert found is not None
    assert (found[0], says in found[1]) == (code, True)
    if line.startswith("data"):  # the parser sees none of these
        return
    monkeypatch.setattr(sys, "argv", ["dualrate", *line.split()])
    with pytest.raises(SystemExit) as stop:
        cli_main.main()
    assert stop.value.code == code


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("train forecast --windw 3", ["--window"]),
        ("train fashion-mnist-light --windw 3", []),
        ("train clips --fps 3", ["--data.fps"]),
        ("train auto --fps 3", []),
        ("train text-tokens --fps 3", []),
        ("train cifar10-dual --head-dim 3", ["--networks.encoder.head-dim", "--networks.light.head-dim"]),
        ("train fashion-mnist-light --head-dim 3", ["--networks.model.head-dim"]),
        ("distill cifar10 --teacher x --vocabulary 3", []),
        ("distill fashion-mnist-tokens --teacher x --vocabulary 3", ["--light.vocabulary"]),
        (f"sample {SINGLE} --out x --codec-stps 3", []),
        ("sample RUN --out x --codec-stps 3", ["--codec-steps", "--codec-sampler", "--codec"]),
        (f"evaluate {SINGLE} --guidnce 3", ["--guidance"]),
        (f"evaluate {SINGLE.parent / 'channels'} --guidnce 3", []),
    ],
)  # fmt: skip
def test_options_that_may_be_meant_are_the_recipe_s_or_act_on_the_run(line, meant):
    code, text = answer(line.split())
    listed = [words.split()[0] for words in text.splitlines() if words.startswith("  ")]
    assert (code, listed) == (2, meant)


def test_the_package_costs_next_to_nothing_beside_torch():
    """Its names are imported as they are used."""
    code = "import time, torch; start = time.perf_counter(); import dualrate; print(time.perf_counter() - start)"
    seconds = [float(subprocess.check_output([sys.executable, "-c", code])) for _ in range(2)]
    assert min(seconds) < 0.1  # of 0.2


@pytest.mark.parametrize(
    ("line", "code", "seconds"),
    [
        ("train cifar10-dual --fit.optim.rate 1", 2, 0.3),
        ("sample --help", 0, 0.15),
        (f"evaluate {SINGLE} --help", 0, 0.15),
        (f"sample {SINGLE} --out x --members 2", 2, 0.3),
    ],
)
def test_help_and_refusals_take_a_fraction_of_a_second(line, code, seconds):
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    command = [sys.executable, "-m", "dualrate_command", *line.split()]
    assert subprocess.run(command, capture_output=True).returncode == code
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < seconds


@pytest.mark.parametrize(
    "line",
    [
        "--version",
        "--import nope sample x --numb 3",
        "sample x --out y --num -- --numb",
        "train package.module:recipe --mine 3",
        "train fashion-mnist-decoder --mine 3",
        "train cifar10-dual --networks.encoder.levels.0.blocks 3 --fit.batch_size=3 --method consistency",
        "train auto --data.source x --rate single --codec.folder y",
        "cost RUN --steps 3",
        "retrofit FOLDER --mine 3",
        "compare a b c --out x",
    ],
)
def test_what_may_be_right_is_left_to_the_parser(line):
    assert answer(line.split()) is None


def test_the_list_of_options_is_the_parser_s(tmp_path):
    """Where it is not, `python tests/test_dualrate_command.py` writes it anew."""
    assert json.loads(acting.OPTIONS.read_text()) == listed(tmp_path)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        acting.OPTIONS.write_text(json.dumps(listed(Path(name)), indent=1) + "\n")


@pytest.mark.parametrize(("name", "said"), [("serve", True), ("sample", False)])
def test_a_server_says_that_it_reads_before_torch_is_imported(name, said, monkeypatch, capsys):
    errors = []
    stand_in = SimpleNamespace(main=lambda: errors.append(capsys.readouterr().err))
    monkeypatch.setitem(sys.modules, "dualrate.cli.main", stand_in)
    monkeypatch.setattr(sys, "argv", ["dualrate", name, "a-run", "--port" if said else "--num", "1"])
    monkeypatch.setattr(dualrate_command, "answer", lambda arguments: None)
    monkeypatch.setattr(dualrate_command, "settings", lambda *given: {})
    monkeypatch.setattr(dualrate_command, "settle_streams", lambda: None)
    dualrate_command.main()
    assert [error.startswith("reading torch and the model") for error in errors] == [said]
