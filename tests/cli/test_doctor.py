"""`dualrate doctor`: every finding can be provoked."""

import json
import os
import re
import shutil
import sys
import tomllib
from collections import namedtuple
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch
from cli.command import call

from dualrate.cli import doctor
from dualrate.cli.doctor import Finding, ok, problem, warning

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
Usage = namedtuple("Usage", "total used free")


def levels(findings) -> list[str]:
    return [finding.level for finding in findings]


def only(findings, level: str) -> Finding:
    """The one finding that is not ok; it says what to do."""
    (found,) = [finding for finding in findings if finding.level != "ok"]
    assert found.level == level, found
    assert found.remedy
    return found


# The machine


@pytest.mark.parametrize(("driver", "level"), [(None, "ok"), ("/usr/bin/nvidia-smi", "problem")])
def test_a_gpu_that_torch_does_not_see_is_a_problem(driver, level, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda name: driver)
    monkeypatch.setattr(Path, "exists", lambda path: False)
    assert levels(doctor.check_installation())[-1] == level


def test_every_module_of_the_wings_is_imported(monkeypatch):
    assert levels(doctor.check_wings()) == ["ok"] * 3
    monkeypatch.setitem(sys.modules, "dualrate.texts.scores", None)
    (found,) = [finding for finding in doctor.check_wings() if finding.level != "ok"]
    assert found.level == "problem"
    assert "dualrate.texts.scores cannot be imported" in found.what


def test_what_an_extra_lacks_is_no_problem(monkeypatch):
    for name in ("hub", "export", "parts"):
        monkeypatch.delitem(sys.modules, f"dualrate.pipelines.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "diffusers.configuration_utils", None)
    findings = list(doctor.check_wings())
    assert levels(findings) == ["ok"] * 3
    assert "pipelines: what needs diffusers is left out" in [finding.what for finding in findings]


def test_the_extras_are_those_that_users_can_install():
    """`dev` is of those who change the package: `make env-dev` installs it."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    names = {extra: tuple(re.match(r"[\w-]+", line)[0] for line in lines) for extra, lines in extras.items()}
    assert {extra: packages for extra, (_, packages) in doctor.EXTRAS.items()} | {"dev": names["dev"]} == names


def test_every_extra_that_is_not_installed_is_told_with_what_it_is_for(monkeypatch):
    monkeypatch.setattr(doctor, "version", lambda name: "1")
    (finding,) = doctor.check_extras()
    assert finding == ok("extras: " + ", ".join(doctor.EXTRAS))

    def none(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(doctor, "version", lambda name: none(name) if name in ("transformers", "wandb") else "1")
    first, *absent = doctor.check_extras()
    assert not {"clip", "wandb"} & set(re.findall(r"\w+", first.what))
    assert [finding.what.partition(":")[2] for finding in absent] == [" without wandb", " without transformers"]
    assert "CLIP" in absent[1].what
    assert absent[1].remedy.endswith("pip install 'dualrate[clip]'")
    assert levels(absent) == ["ok", "ok"]
    monkeypatch.setattr(doctor, "version", none)
    assert next(doctor.check_extras()).what == "extras: none"


def test_a_package_that_breaks_on_import_is_a_problem(monkeypatch):
    def broken(name):
        if name == "dualrate.forecasts.page":
            raise ValueError(f"{name} cannot be imported: OSError: libz.so") from OSError("libz.so")

    monkeypatch.setattr(doctor, "import_module", broken)
    assert "libz.so" in only(doctor.check_wings(), "problem").what


def test_more_threads_than_processors_are_a_warning(monkeypatch):
    assert levels(doctor.check_device(CPU)) == ["ok", "ok"]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 10**6)
    only(doctor.check_device(CPU), "warning")


@pytest.mark.parametrize(("gib", "level"), [(100, "ok"), (1, "warning")])
def test_a_disk_with_room_and_with_little(gib, level, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, gib * 2**30))
    assert levels(doctor.check_disk({"runs": tmp_path / "to" / "come"})) == [level]
    assert not list(tmp_path.iterdir())


def test_a_disk_that_cannot_sync_is_a_problem_and_nothing_is_left(tmp_path, monkeypatch):
    def fail(descriptor):
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "fsync", fail)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, 2**40))
    assert "Invalid argument" in only(doctor.check_disk({"runs": tmp_path}), "problem").what
    assert not list(tmp_path.iterdir())


# The command


@pytest.mark.parametrize(
    ("findings", "code"), [([ok("a"), warning("b", "do")], 0), ([problem("c", "mend"), ok("a")], 1)]
)
def test_exit_codes_and_lines(findings, code, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "examine", lambda checks: iter(findings))
    assert call(monkeypatch, "doctor") == code
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == levels(findings)
    assert [line.partition(" -> ")[2] for line in lines] == [finding.remedy for finding in findings]
    assert call(monkeypatch, "doctor", "--json") == code
    told = json.loads(capsys.readouterr().out)
    assert told["problems"] == code
    assert [Finding(**finding) for finding in told["findings"]] == findings


def test_a_check_that_fails_is_a_problem_and_the_others_go_on(monkeypatch):
    def fail():
        raise RuntimeError("the driver is gone\nand more")

    found = list(doctor.examine([fail, lambda: iter([ok("fine")])]))
    assert levels(found) == ["problem", "ok"]
    assert found[0].what == "RuntimeError: the driver is gone"
