"""Things that no source may contain, whatever it computes: unsafe loading, method names in the trainer, local paths."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pytest
from reading import names_used, nodes_of, tree_of

ROOT = Path(__file__).resolve().parent.parent
SRC = ROOT / "src" / "dualrate"
FILES = {str(path.relative_to(SRC)): path for path in sorted(SRC.rglob("*.py"))}
BESIDE = {
    str(path.relative_to(ROOT)): path
    for folder in ("src", "studies", "tools", "benchmarks")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if SRC not in path.parents
}

UNSAFE_MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "code", "runpy"}
UNSAFE = {
    "builtins.eval", "builtins.exec", "builtins.compile", "os.system", "os.popen", "subprocess.getoutput",
    "subprocess.getstatusoutput", "asyncio.create_subprocess_shell", "torch.load", "torch.serialization.load",
    "torch.jit.load", "torch.hub.load", "torch.hub.load_state_dict_from_url", "torch.package", "torch.utils.model_zoo",
    "yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load", "pandas.read_pickle",
}  # fmt: skip
UNSAFE_KEYWORDS = {"allow_pickle", "trust_remote_code", "shell"}
METHOD_WORDS = {
    "dual", "tau", "τ", "teacher", "student", "encoder", "light", "heavy", "distill", "distilled", "distillation",
    "rollout", "auxiliary",
}  # fmt: skip

# Classes of a kind of model, method or sampler, which only the room that has them may tell apart
KINDS_OF = ("experiment", "networks", "denoisers", "methods", "sampling")
# What is left, by file: each refuses what a user passed, and says why
BRANCHES = {
    "denoisers/feature_cache.py": 1,
    "drawing/drawer.py": 1,
    "drawing/likelihood.py": 1,
    "recipes/students.py": 2,
}

# Roots of one machine's folders, not preceded by what would make them part of a relative path or an address
FOLDERS = r"work|workspace|root|tmp|mnt|scratch|private|Volumes|content|kaggle|(?:home|Users)/\w+|(?:var|opt|data)/\w+"
LOCAL_PATH = re.compile(
    rf"(?:(?<![\w.~*/$}})-])|(?<=file://))/(?:{FOLDERS})\b(?!-)|\b[A-Z]:\\+(?:Users|home|work|tmp)\b"
)
PARTS_OF_ONE = re.compile(rf"/(?:{FOLDERS})\b"), re.compile(r":\\+(?:Users|home|work|tmp)\b")  # fifty times as fast
IF_DUAL_RATE = re.compile(r"^(?:is_)?dual$|dual_rate|single_rate|^is_(?:student|teacher)$")


@pytest.fixture(scope="module")
def trees() -> dict[str, ast.Module]:
    """Parse all files; test_layers.py, which comes next, looks at them too."""
    return {name: tree_of(path) for name, path in (FILES | BESIDE).items()}


def unsafe(tree: ast.Module) -> list[str]:
    """List what in this source can run code from data."""
    found = [
        name
        for name in sorted(names_used(tree))
        if name.split(".")[0] in UNSAFE_MODULES or any(f"{name}.".startswith(f"{bad}.") for bad in UNSAFE)
    ]
    for node in nodes_of(tree):
        if isinstance(node, ast.keyword) and node.arg in UNSAFE_KEYWORDS and not _false(node.value):
            found.append(f"{node.arg}={ast.unparse(node.value)}")
        elif isinstance(node, ast.Dict):
            keys = [key.value for key in node.keys if isinstance(key, ast.Constant)]
            found += [f"{key!r} in a dict" for key in keys if key in UNSAFE_KEYWORDS]
        elif isinstance(node, ast.Call):
            found += _unsafe_call(node)
    return found


def _false(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and value.value is False


def _unsafe_call(node: ast.Call) -> Iterator[str]:
    called = getattr(node.func, "attr", getattr(node.func, "id", ""))
    words = {keyword.arg: keyword.value for keyword in node.keywords}
    if len(node.args) > {"load": 2, "read_array": 1}.get(called, 99):  # numpy's next argument is allow_pickle
        yield ast.unparse(node)
    if called == "from_pretrained" and "state_dict" not in words:  # reads pickles, unless told otherwise
        safe = words.get("use_safetensors")
        if not (isinstance(safe, ast.Constant) and safe.value is True):
            yield ast.unparse(node)


def method_words(text: str, methods: Iterable[str] = ()) -> set[str]:
    """The words of training methods in a text, and names of methods, however written and in the plural.

    Camel case, underscores and digits separate words; `dualrate` is one word. methods: as modules are named.
    """
    words = {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|τ", text)}
    named = {name for name in methods if re.search(name.replace("_", r"[\s_-]*"), text, re.IGNORECASE)}
    return {word for word in METHOD_WORDS if {word, f"{word}s"} & words} | named


def kinds(files: Mapping[str, ast.Module]) -> dict[str, str]:
    """Class names and the rooms that have them; a protocol is no kind of anything, nor is what is not public."""
    found = {}
    for name, tree in files.items():
        if name.split("/")[0] not in KINDS_OF:
            continue
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and "Protocol" not in {ast.unparse(base) for base in node.bases}:
                found[node.name] = name.split("/")[0]
    return found


ASKING = (
    *(ast.Call, ast.MatchClass, ast.Compare, ast.Subscript, ast.If, ast.IfExp, ast.While),
    *(ast.match_case, ast.comprehension),
)


def branches(tree: ast.Module, classes: Iterable[str]) -> list[str]:
    """Where this source asks of what kind a thing is, or whether it is dual-rate. An assertion is no branch."""
    classes, nodes = set(classes), nodes_of(tree)
    asserted = {id(part) for node in nodes if isinstance(node, ast.Assert) for part in ast.walk(node.test)}
    nodes = [node for node in nodes if id(node) not in asserted]
    aliases = {
        alias.asname: alias.name
        for node in nodes
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname
    }
    aliases |= {  # Kind = One | Two
        node.targets[0].id: ast.unparse(node.value)
        for node in nodes
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }

    def of_a_kind(node: ast.AST, depth: int = 2) -> bool:
        words = {part for inner in ast.walk(node) for part in _words(inner)}
        far = (ast.parse(aliases[word]) for word in words & aliases.keys())
        return bool(words & classes) or (depth > 0 and any(of_a_kind(tree, depth - 1) for tree in far))

    def asks(node: ast.AST) -> bool:
        match node:
            case ast.Call(func=ast.Name(id="isinstance" | "issubclass"), args=[_, of]):
                return of_a_kind(of)
            case ast.Call(func=ast.Name(id="hasattr"), args=[_, ast.Constant()]):
                return True
            case ast.Call(func=ast.Attribute(attr="register")):
                return any(map(of_a_kind, node.args))
            case ast.MatchClass(cls=of):
                return of_a_kind(of)
            case ast.Compare(left=left, comparators=[right, *_]):
                return any(map(_type_of, (left, right))) and (of_a_kind(left) or of_a_kind(right))
            case (
                ast.Subscript(value=ast.Dict(keys=keys), slice=of)
                | ast.Call(func=ast.Attribute(value=ast.Dict(keys=keys), attr="get"), args=[of, *_])
            ):
                return _type_of(of) and any(of_a_kind(key) for key in keys if key)
            case ast.If(test=test) | ast.IfExp(test=test) | ast.While(test=test) | ast.match_case(guard=test):
                return test is not None and any(
                    IF_DUAL_RATE.search(name) for sub in ast.walk(test) for name in _words(sub)
                )
            case ast.comprehension(ifs=tests):
                return any(
                    IF_DUAL_RATE.search(name) for test in tests for sub in ast.walk(test) for name in _words(sub)
                )
        return False

    found = (node for node in nodes if isinstance(node, ASKING) and asks(node))
    return [ast.unparse(getattr(node, "test", node)).strip()[:90] for node in found]


def _type_of(node: ast.expr) -> bool:
    """type(x), x.__class__, or the name of either."""
    text = ast.unparse(node)
    return bool(re.match(r"type\(.*\)(\.__(qual)?name__)?$|.*\.__class__(\.__(qual)?name__)?$", text))


def _words(node: ast.AST) -> list[str]:
    """The name of a node, if it has one, or its text."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name) | ast.Constant(value=str(name)):
            return [name]
    return []


def tracked() -> list[Path]:
    """The files that git tracks, or would if they were added."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"needs a git checkout: {error}")
    return [
        path for path in (ROOT / name for name in listed.split("\0") if name) if path.is_file() or path.is_symlink()
    ]


def text_of(path: Path) -> str:
    """The first MiB of a file's text, of a binary file too, whose header may tell paths; of a link, where it leads."""
    if path.is_symlink():
        return os.readlink(path)
    with path.open("rb") as stream:
        return stream.read(1 << 20).decode("utf-8", "replace")


def local_paths(text: str) -> list[str]:
    """Lines that name a folder of one machine."""
    if not any(part.search(text) for part in PARTS_OF_ONE):
        return []
    return [
        f"{number}: {line.strip()[:100]}" for number, line in enumerate(text.split("\n"), 1) if LOCAL_PATH.search(line)
    ]


BESIDE_METHODS = {"__init__", "__pycache__", "student_states", "times", "watch"}
METHODS = {path.stem for path in (SRC / "methods").iterdir()} - BESIDE_METHODS


PINNED = {
    # weights of one sha256, opened as tensors alone: tests/metrics/test_efficientnet.py holds it to both
    "metrics/pretrained.py": ["torch.load"],
    # a tokenizer has no weights: JSON and text, read by a class of transformers' own
    "pipelines/clip.py": ["CLIPTokenizer.from_pretrained(folder, local_files_only=True)"],
    "benchmarks/peers.py": ["torch.load"],  # of one sha256, as tensors alone
    # messages between processes that were launched together, none from a file that somebody gave
    "system/workers.py": ["pickle", "pickle.dumps", "pickle.loads"],
}


def test_nothing_runs_code_from_data(trees: dict[str, ast.Module]) -> None:
    found = {name: unsafe(tree) for name, tree in trees.items()}
    assert {name: lines for name, lines in found.items() if lines} == PINNED


def test_the_trainer_names_no_method() -> None:
    trainer = [name for name in FILES if name.startswith("training/") and name != "training/method.py"]
    assert trainer
    assert not {name: found for name in trainer if (found := method_words(name + FILES[name].read_text(), METHODS))}


def test_no_branch_on_the_kind_of_model(trees: dict[str, ast.Module]) -> None:
    """Beyond the room that a kind is of, and experiment and methods, which make all of it."""
    found, all_kinds = {}, kinds({name: trees[name] for name in FILES})
    for name in FILES:
        own = name.split("/")[0]
        others = {kind for kind, room in all_kinds.items() if room != own}
        here = [] if own in ("experiment", "methods") else branches(trees[name], others)
        if len(here) != BRANCHES.get(name, 0):
            found[name] = here
    assert not found, json.dumps(found, indent=1)


def test_modules_say_what_they_are(trees: dict[str, ast.Module]) -> None:
    assert not [name for name in FILES if not ast.get_docstring(trees[name])]


def test_no_paths_of_one_machine() -> None:
    found = {
        f"{path.relative_to(ROOT)}:{line}"
        for path in tracked()
        if path != Path(__file__).resolve()
        for line in local_paths(f"{text_of(path)}\n{path.relative_to(ROOT)}")
    }
    assert not found, "\n".join(sorted(found))


@pytest.mark.parametrize(
    "bad",
    [
        "import pickle", "from pickle import loads", "import pickle as p", "def f():\n    import dill",
        "import numpy as np\nnp.load('x', allow_pickle=True)", "import numpy as np\nnp.load('x', None, True)",
        "options = {'allow_pickle': True}", "options = dict(allow_pickle=True)", "np.load('x', allow_pickle=wanted)",
        "import torch\ntorch.load('x')", "from torch import load", "from torch import load as get",
        "import torch.jit as j\nj.load(x)",
        "import torch as t\nt.load('x')", "import torch\nload = torch.load", "import torch\ngetattr(torch, 'load')(x)",
        "import torch\nmap(torch.load, files)", "import torch\nt = torch\nt.load(x)",
        "from torch.serialization import load",
        "import torch\ntorch.hub.load_state_dict_from_url(x)", "from torch import hub\nhub.load(x)",
        "eval('1')", "exec(text)", "run = exec", "import builtins as b\nb.eval(x)", "from builtins import eval as e",
        "__builtins__['eval']", "import yaml\nyaml.load(text)", "from yaml import full_load",
        "compile(text, '', 'exec')",
        "import subprocess\nsubprocess.run('ls', shell=True)", "import subprocess as s\ns.getoutput('ls')",
        "from os import popen", "import os\nos.system(x)", "from transformers import M\nM.from_pretrained(x)",
        "M.from_pretrained(x, use_safetensors=False)",
        "M.from_pretrained(x, use_safetensors=True, trust_remote_code=True)",
    ],
)  # fmt: skip
def test_unsafe_code_is_found(bad: str) -> None:
    assert unsafe(ast.parse(bad))


@pytest.mark.parametrize(
    "good",
    [
        "model.eval()", "np.load('x', allow_pickle=False)", "safetensors.torch.load_file('x')",
        "import re\nre.compile(x)",
        "compile: bool = True", "code = 1\ncode",
        "from dualrate.runs.store import load\nload(path)", "import os\nos.path.join(a)",
        "import torch\ntorch.compile(f)",
        "import subprocess\nsubprocess.run(['ls'], shell=False)", "M.from_pretrained(None, state_dict=tensors)",
        "M.from_pretrained(x, use_safetensors=True)", "import json\njson.load(file)",
    ],
)  # fmt: skip
def test_safe_code_is_not_flagged(good: str) -> None:
    assert not unsafe(ast.parse(good))


def test_method_words_are_found_in_names_and_prose() -> None:
    assert method_words("DualRate light_net z_tau the dual-rate ContextEncoder") == {"dual", "light", "tau", "encoder"}
    assert method_words("TEACHER students tau2 heavyCalls at τ") == {"teacher", "student", "tau", "heavy", "τ"}
    assert method_words("MomentMatching, moment-matching", {"moment_matching", "denoising"}) == {"moment_matching"}
    assert method_words("training/denoising.py", {"denoising"})
    assert not method_words("from dualrate.diffusion.context import Batch  # highlights lightning total moments")


def test_local_paths_are_found() -> None:
    for bad in (
        "/work/project", "cd /root", '"/tmp/x"', "/home/jane/data", "file:/tmp/x", "(/Users/jane)", "file:///home/jane/x",
        "/mnt/data", "/scratch/x", "/workspace", "/content/drive", "/opt/thing", "/data/images", "/var/folders/x",
        "C:\\Users\\jane", "D:\\\\work", "/private/tmp", "PATH=/work/bin:$PATH", "x:/work",
    ):  # fmt: skip
        assert local_paths(f"first line\n{bad}\nlast"), bad
    for good in (
        "frame/work/project", "https://example.org/work/x", "~/tmp", "$HOME/tmp/x", "/workers", "src/tmp", "/tmp-like",
        "/data",
        "https://example.org", "a/b", "images/sec", "file://x/tmp",
    ):  # fmt: skip
        assert not local_paths(good), good


def test_local_paths_are_found_in_binary_files_and_links(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b'\xff\x00{"from": "/home/jane/x"}\xff')
    (tmp_path / "link").symlink_to("/work/x")
    assert local_paths(text_of(tmp_path / "weights"))
    assert local_paths(text_of(tmp_path / "link"))


@pytest.mark.parametrize(
    "bad",
    [
        "if isinstance(x, Two): ...", "if isinstance(a.b, (One, Two)): ...", "x = isinstance(n, int | module.Two)",
        "from a import Two as T\nisinstance(x, T)", "Kind = One | Two\nisinstance(x, Kind)", "if type(x) is Two: ...",
        "if type(x).__name__ == 'Two': ...", "if x.__class__ == Two: ...", "match x:\n    case Two(): ...",
        "if issubclass(type(x), Two): ...", "@f.register(Two)\ndef g(x): ...", "{Two: 1}[type(x)]",
        "if hasattr(model, 'encoder'): ...", "if is_dual(model): ...", "if config.dual_rate and x: ...",
        "a if\\\n  x.dual_rate else b", "[x for x in y if is_dual(x)]", "match x:\n    case y if y.dual: ...",
        "while options['dual_rate']: ...",
    ],
)  # fmt: skip
def test_branches_on_the_kind_are_found(bad: str) -> None:
    assert branches(ast.parse(bad), {"One", "Two"})


@pytest.mark.parametrize(
    "good",
    [
        "assert isinstance(x, Two)", "if isinstance(x, int | Path): ...", "model = dual_rate(config)", "x: Two = Two()",
        "if individual: ...", "if x == Two(): ...", "match x:\n    case int(): ...", "{Two: 1}[x]",
    ],
)  # fmt: skip
def test_other_code_is_no_branch_on_the_kind(good: str) -> None:
    assert not branches(ast.parse(good), {"One", "Two"})


def test_kinds_are_the_classes_of_their_rooms() -> None:
    files = {"networks/a.py": "class One: ...\nclass Seen(Protocol): ...", "data/b.py": "class Other: ..."}
    assert kinds({name: ast.parse(source) for name, source in files.items()}) == {"One": "networks"}


def test_no_module_is_found_by_a_second_name() -> None:
    """pyproject.toml says where pytest looks: a folder more would hide folders of tests that are named like a module
    in it.
    """
    files = [path for folder in ("tests", "studies", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))]
    changed = {str(path.relative_to(ROOT)) for path in files if "sys.path" in names_used(tree_of(path))}
    scripts = {"tests/golden/golden.py", "tests/test_layers.py", "benchmarks/peers.py"}
    assert changed <= scripts
