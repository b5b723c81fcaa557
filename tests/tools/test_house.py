"""tools/house.py: what it counts in a checkout that is made for it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tools.house import dialect, imports, page, rings, room, survey

ROOT = Path(__file__).resolve().parents[2]
FILES = {
    "src/dualrate/__init__.py": "from dualrate.top.use import run\n",
    "src/dualrate/low/__init__.py": "",
    "src/dualrate/low/values.py": "import math\n\nPI = math.pi\n",
    "src/dualrate/top/__init__.py": "",
    "src/dualrate/top/use.py": "from dualrate.low.values import PI\nfrom ..low import values\nfrom . import other",
    "src/dualrate/top/other.py": "def late():\n    import dualrate.low.values\n",
    "src/dualrate/flat.py": "from dualrate.top import use\n",
    "tools/one.py": "x = 1\n" * 7,
    "tests/low/test_values.py": "y = 1\n" * 3,
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_lines_files_packages_and_imports_are_counted(root: Path) -> None:
    found = survey(root)
    assert found["src"] == 1 + 3 + 3 + 2 + 1
    assert found["rooms"] == {
        "(root)": {"files": 1, "lines": 1},
        "__init__": {"files": 1, "lines": 1},
        "low": {"files": 2, "lines": 3},
        "top": {"files": 3, "lines": 5},
    }
    assert found["beside"] == {"tools": {"files": 1, "lines": 7}, "tests": {"files": 1, "lines": 3}}
    assert found["tests"] == {"low": 3}
    assert next(iter(found["largest"].items())) == ("tools/one.py", 7)
    assert found["packages"] == 3
    assert (found["code"], found["import_lines"]) == (1 + 2 + 3 + 2 + 1, 1 + 1 + 3 + 1 + 1)
    assert found["one_importer"] == 1  # top/other.py, by top/use.py
    assert found["imports"] == {"(root)": {"top": 1}, "__init__": {"top": 1}, "low": {}, "top": {"low": 2}}
    assert found["rings"] == []
    assert found["groups"] == {"front": found["code"]}
    assert "  top -> low 2\n" in page(found)


def test_words_that_say_nothing_are_counted(root: Path) -> None:
    source = (
        '''"""Of a thing."""\nfound = one = 1\n\n\ndef run(own):\n    """What runs."""\n    raise ValueError(own)\n'''
    )
    counts = dialect([source, "def run(value):\n    pass\n", *["def load():\n    pass\n"] * 2])
    assert counts["vague"] == {"own": 2, "found": 1, "one": 1}
    assert counts["vague_in_1000"] == pytest.approx(1000 * 4 / 10)  # run, own, ValueError, own; run, value; load, load
    assert counts["evasive_docstrings"] == {"Of": 1, "What": 1}
    assert counts["defined_twice"] == {"run": 2}
    assert counts["refusal_lines"] == 1
    assert "400.0 of 1,000 identifiers are vague: own 2, found 1, one 1" in page(survey(root) | counts)


def test_rooms_that_import_one_another_are_a_ring(root: Path) -> None:
    (root / "src/dualrate/low/values.py").write_text("def late():\n    from dualrate.flat import use\n")
    found = survey(root)
    assert found["rings"] == [["(root)", "low", "top"]]
    assert "a ring: (root), low, top" in page(found)
    assert rings({"a": ["b"], "b": ["c"], "c": ["b"], "d": ["a"]}) == [["b", "c"]]


def test_imports_of_a_wing_are_counted_but_those_of_the_front(root: Path) -> None:
    for name, text in {
        "forecasts/rolling": "from dualrate.texts import pieces\nfrom dualrate.forecasts import scores\n",
        "forecasts/scores": "x = 1\n",
        "texts/pieces": "import dualrate.low.values\n",
        "data/images": "from dualrate.forecasts import scores\n",
        "cli/forecast": "from dualrate.forecasts import scores\n",
        "cli/train": "from dualrate.forecasts import scores\nfrom dualrate.texts import pieces\n",
        "forecasts/__init__": '"""Fields over time."""\n',
    }.items():
        (root / f"src/dualrate/{name}.py").parent.mkdir(exist_ok=True)
        (root / f"src/dualrate/{name}.py").write_text(text)
    counts = survey(root)
    assert counts["arrows_into_wings"] == 2  # by another wing, by a carrier
    assert {name: counts["groups"][name] for name in ("forecasts", "texts", "carriers")} == {
        "forecasts": 3,
        "texts": 1,
        "carriers": 1,
    }
    assert counts["newcomer_reads"] == {  # without files that have no code, and what is not of the wing alone
        "forecasts": {
            "cli": ["dualrate.cli.forecast"],
            "forecasts": ["dualrate.forecasts.rolling", "dualrate.forecasts.scores"],
        },
        "texts": {"texts": ["dualrate.texts.pieces"]},
    }
    assert "a newcomer to forecasts reads 3 files in 2 rooms: cli 1, forecasts 2\n" in page(counts)


def test_modules_are_in_rooms() -> None:
    names = ("dualrate", "dualrate.__init__", "dualrate.flat", "dualrate.low.__init__", "dualrate.low.a.b", "other")
    assert [room(name) for name in names] == ["__init__", "__init__", "(root)", "low", "low", "other"]


def test_a_package_is_its_init() -> None:
    known = ["dualrate.low.__init__", "dualrate.low.values"]
    source = "import dualrate.low\nfrom dualrate.low import values, name\nimport torch.nn"
    assert imports(source, "dualrate.flat", known) == {"dualrate.low.__init__", "dualrate.low.values", "torch.nn"}


def test_it_runs_on_any_checkout_with_the_standard_library_alone(root: Path) -> None:
    command = [sys.executable, "-I", "-S", str(ROOT / "tools" / "house.py"), "--root"]
    done = subprocess.run([*command, str(root), "--json"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == survey(root)
    missing = subprocess.run([*command, str(root / "src")], capture_output=True, text=True, check=False)
    assert missing.returncode == 1
    assert "has no src/dualrate: give the root" in missing.stderr
