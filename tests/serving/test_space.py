"""A Space is complete: what its Dockerfile starts serves the page from the folder alone, and ends on a signal."""

import json
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from cli.command import call
from latents.folding import FoldingFolder
from runs.made import NET, ONE, TWO, saved
from serving.made import ask, finished, model

from dualrate.experiment.network_configs import OneNetwork
from dualrate.runs.release import export
from dualrate.runs.store import RELEASED
from dualrate.serving import space
from dualrate.serving.offer import Offer


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """Of a run beside released weights."""
    place = tmp_path_factory.mktemp("space")
    saved(TWO, place / "run")
    export(saved(ONE, place / "single"), place / "weights")
    with pytest.MonkeyPatch.context() as patch:
        arguments = ["serve", place / "run", "--beside", place / "weights", "--max-steps", 8, "--space", place / "made"]
        assert call(patch, *arguments) == 0
    return place / "made"


def test_it_is_a_docker_space(written):
    head, _, text = (written / "README.md").read_text().removeprefix("---\n").partition("\n---\n")
    facts = dict(line.split(": ", 1) for line in head.splitlines())
    assert (facts["sdk"], facts["app_port"], facts["title"]) == ("docker", "7860", '"run"')
    assert len(facts["short_description"]) <= 60  # the Hub refuses more
    assert "`run`" in text
    docker = (written / "Dockerfile").read_text()
    assert "USER user" in docker
    assert f"EXPOSE {facts['app_port']}" in docker
    assert {path.name for path in (written / "model").iterdir()} >= set(RELEASED)
    assert {path.name for path in (written / "beside").iterdir()} >= set(RELEASED)
    requirements = (written / "requirements.txt").read_text().splitlines()
    assert [line for line in requirements if re.fullmatch(r"torch==[\d.]+", line)]
    assert not [line for line in requirements if "pytest" in line or "diffusers" in line]
    assert not list(written.rglob("__pycache__"))


def test_the_hub_reads_its_header(written):
    hub = pytest.importorskip("huggingface_hub")
    card = hub.RepoCard.load(written / "README.md")
    assert (card.data.to_dict()["sdk"], card.data.to_dict()["title"]) == ("docker", "run")


def command(written) -> list[str]:
    """What its Dockerfile starts, after "python"."""
    (line,) = re.findall(r"^CMD (.*)$", (written / "Dockerfile").read_text(), re.MULTILINE)
    python, *words = json.loads(line)
    assert python == "python"
    return words


def test_its_command_serves_what_is_in_the_folder(written, monkeypatch):
    """As long as the package in the folder is this one whole; in a process of its own: the slow test below."""
    package, own = Path(space.__file__).parents[1], written / "dualrate"

    def files(root: Path) -> set[Path]:
        kept = (path.relative_to(root) for path in root.rglob("*") if path.is_file())
        return {path for path in kept if not {"__pycache__", "nets"} & set(path.parts)}

    assert Path("__main__.py") in files(own)
    assert files(own) == files(package)
    assert all((own / name).read_bytes() == (package / name).read_bytes() for name in files(own))
    assert (written / "dualrate_command.py").read_bytes() == (package.parent / "dualrate_command.py").read_bytes()
    served = []
    monkeypatch.chdir(written)
    monkeypatch.setattr("dualrate.serving.app.serve", lambda *given: served.append(given))
    words = command(written)
    assert words[:2] == ["-m", "dualrate"]
    assert call(monkeypatch, *words[2:]) == 0
    ((offer, host, port, _),) = served
    assert (offer.model.name, offer.baseline.name, offer.limits.steps) == ("model", "beside", 8)
    assert (host, port) == ("0.0.0.0", 7860)
    assert (offer.model.path, offer.baseline.path) == (Path("model"), Path("beside"))


@pytest.mark.slow
def test_its_command_serves_from_the_folder_alone_and_ends_on_a_signal(written):
    """In a process of its own, which takes six seconds to import torch: only so is a file missed that is not there."""
    words = command(written)
    port = words.index("--port") + 1
    words = [*words[:port], "0", *words[port + 1 :]]
    environment = {"PATH": "", "OMP_NUM_THREADS": "1", "DUALRATE_THREADS": "1"}
    how = {"cwd": written, "env": environment, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, *words], **how) as process:
        try:
            lines = iter(process.stderr.readline, "")
            url = next(found[0] for line in lines if (found := re.search(r"http://\S+", line)))
            url = url.replace("0.0.0.0", "127.0.0.1")
            assert ask(url, "GET", "/", Host="somebody.hf.space").status == 200
            told = ask(url, "GET", "/api/model").json
            assert (told["name"], told["baseline"], told["limits"]["steps"]) == ("model", "beside", 8)
            report = finished(url, ask(url, "POST", "/api/samples", {"steps": 2, "images": 1}).json["id"])
            assert (report["status"], len(report["sides"])) == ("done", 2)
        finally:
            process.send_signal(signal.SIGTERM)
        assert "stopped by SIGTERM" in process.stderr.read()
        assert process.wait(30) == 0


def test_a_folder_that_holds_something_is_left_alone(tmp_path, monkeypatch, capsys):
    run, out = saved(ONE, tmp_path / "run"), tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("kept")
    assert call(monkeypatch, "serve", run, "--space", out) == 2
    assert f"{out} is there already: choose a new or empty folder as --space" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["mine"]


def test_a_model_whose_codec_is_elsewhere_is_refused_before_anything_is_written(tmp_path):
    networks = OneNetwork(replace(NET, image_channels=12))
    offer = Offer(model(replace(ONE, networks=networks, codec=FoldingFolder("a folder", "f" * 64))))
    with pytest.raises(ValueError, match="one needs the folder of its codec, which a Space does not hold"):
        space.write_space(offer, tmp_path / "out", print)
    assert not list(tmp_path.iterdir())


def test_a_page_that_cannot_be_served_is_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys):
    run = saved(ONE, tmp_path / "run")
    assert call(monkeypatch, "serve", run, "--host", "192.0.2.1", "--port", 0) == 2
    assert re.search(r"dualrate: cannot listen on 192.0.2.1, port 0 \(.*\): choose", capsys.readouterr().err)
    assert call(monkeypatch, "serve", tmp_path / "nothing") == 2
    assert "is no run" in capsys.readouterr().err
    assert call(monkeypatch, "serve", run, "--port", 70000) == 2
    assert "port is a whole number from 0 to 65,535, got 70000" in capsys.readouterr().err


def test_without_the_server_s_packages_the_command_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "dualrate.serving.app", raising=False)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert call(monkeypatch, "serve", saved(ONE, tmp_path / "run")) == 2
    assert "the page needs uvicorn: pip install 'dualrate[serve]'" in capsys.readouterr().err
