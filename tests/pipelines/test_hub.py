"""`dualrate export --to diffusers`: the folder, its card, where it may be written, and that only a push is a push."""

import base64
import json
import os
import re
import sys
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from unittest.mock import create_autospec

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # read when the library is imported
pytest.importorskip("diffusers")

from cli.command import call
from huggingface_hub import HfApi, ModelCard, constants
from runs.made import TWO, saved

import dualrate as dr
from dualrate.pipelines import hub
from dualrate.pipelines.export import DualRatePipeline
from dualrate.system.files import append_record

SCORE = {
    "network": "two", "sampler": "ancestral", "num_steps": 8, "num_heavy": 2, "macs": 1000, "seconds_per_image": 0.0123,
    "batch_size": 125, "precision": "float32", "command": "dualrate evaluate runs/two --json",
    "environment": {"processor": "a processor", "threads": "1", "torch": "2.13.0", "date": "2026-11-21 12:00 UTC"},
    "score": {
        "metric": "FD-fashion-mnist", "value": 1.25, "low": 1.125, "high": 1.5, "level": 0.95, "floor": 0.5,
        "floor_count": 1000,
        "fingerprint": {"features": "fashion-mnist:35f6356d56c1", "reference": "fashion-mnist train:0123456789ab",
                        "reference_count": 60000, "count": 5000, "seeds": "0-4999", "labels": "seed mod classes"},
    },
}  # fmt: skip
COMMAND = "dualrate train fashion-mnist-dual-45 --out runs/two"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Not to be changed."""
    path = saved(TWO, tmp_path_factory.mktemp("runs") / "two")
    append_record(path / "history.jsonl", {"command": COMMAND, "date": "2026-11-20 12:00 UTC", "commit": "0123abc"})
    return path


@pytest.fixture(scope="module")
def scored(run, tmp_path_factory):
    file = tmp_path_factory.mktemp("scores") / "score.json"
    file.write_text(json.dumps(SCORE | {"weights": dr.load(run, note=lambda text: None).weights_hash}))
    return file


@pytest.fixture(scope="module")
def exported(run, scored, tmp_path_factory):
    """Not to be changed."""
    out = tmp_path_factory.mktemp("pipes") / "pipe"
    hub.export_pipeline(run, out, dr.Choice(steps=4, heavy=2), license="apache-2.0", score=scored)
    return out


def test_an_export_is_the_runs_pipeline(run, exported):
    pipe = DualRatePipeline.from_pretrained(exported)
    assert (pipe.scheduler.choice.plan.num_steps, pipe.scheduler.choice.plan.num_heavy) == (4, 2)
    weights = pipe.as_model().networks.state_dict()
    for name, weight in dr.load(run, note=lambda text: None).networks.state_dict().items():
        assert (weights[name.replace(".", ".network.", 1)] == weight).all()
    assert [path.name for path in exported.parent.iterdir()] == ["pipe"]


def test_the_card_is_one_that_the_hub_reads(exported):
    data = ModelCard.load(exported / "README.md").data
    assert (data.license, data.library_name, data.model_name) == ("apache-2.0", "dualrate", "pipe")
    assert data.pipeline_tag == "unconditional-image-generation"
    (result,) = data.eval_results
    assert (result.metric_type, result.metric_value) == ("FD-fashion-mnist", 1.25)
    assert result.dataset_name == "fashion-mnist train:0123456789ab"


def test_the_cards_figures_are_the_records(run, scored, exported):
    """Every one is in a file of the run, or measured of its networks: licence, command, cost, distance, fingerprint."""
    card, model = (exported / "README.md").read_text(), dr.load(run, note=lambda text: None)
    cost = dr.Choice(steps=4, heavy=2).drawer(model).cost
    fingerprint = hub.Fingerprint(**SCORE["score"]["fingerprint"])
    for text in (
        "| licence | apache-2.0 |",
        f"- `{COMMAND}` (date 2026-11-20 12:00 UTC, commit 0123abc)",
        f"{cost.macs / 1e9:.4g} GMACs, {cost.flops / 1e9:.4g} GFLOPs",
        "| FD-fashion-mnist | 1.25 [1.125, 1.5] at 95% |",
        "| of | 5000 images, 8 steps, 2 heavy calls, ancestral |",
        f"| fingerprint | {fingerprint.short()}: ",
        "| command | `dualrate evaluate runs/two --json` |",
        model.weights_hash,
        "4 steps, 2 heavy calls",
    ):
        assert text in card, text


def test_the_card_may_be_edited(exported):
    card = exported / "README.md"
    card.write_text(card.read_text() + "\nMore about it.\n")
    DualRatePipeline.from_pretrained(exported)


def test_the_card_names_no_address_that_cannot_work(exported):
    """Until a repository is named."""
    card = (exported / "README.md").read_text()
    assert re.findall(r'(?:from_pretrained|snapshot_download)\("(.*?)"', card) == ["FOLDER", "OWNER/NAME"]


@pytest.mark.parametrize(("card", "first"), [(True, (4, 2)), (True, (1, 1)), (True, (1200, 8)), (False, (4, 2))])
def test_a_replaced_export_says_what_changed(card, first, run, tmp_path, monkeypatch, capsys):
    line = ["export", run, "--to", "diffusers", tmp_path / "pipe", "--steps"]
    assert call(monkeypatch, *line, first[0], "--heavy", first[1], "--license", "mit") == 0
    assert "replaced" not in capsys.readouterr().err
    if not card:
        (tmp_path / "pipe" / "README.md").unlink()
    assert call(monkeypatch, *line, 4, "--heavy", 1) == 0
    was = ("{}/{}".format(*first), "mit") if card else ("unknown", "unknown")
    message = f"replaced {tmp_path / 'pipe'}: 4/1 steps (was {was[0]}), licence unknown (was {was[1]})"
    assert message in capsys.readouterr().err


def test_what_is_not_known_is_said(run, tmp_path):
    bare = saved(TWO, tmp_path / "bare")
    hub.export_pipeline(bare, tmp_path / "pipe", dr.Choice(steps=2))
    card = (tmp_path / "pipe" / "README.md").read_text()
    assert ModelCard(card).data.license == "unknown"
    assert "licence | unknown: ask who made it" in card
    assert "Not measured" in card
    assert "unknown: this run kept no history" in card


def test_released_weights_become_a_pipeline_with_the_history_of_their_card(run, tmp_path):
    dr.export(run, tmp_path / "weights")
    hub.export_pipeline(tmp_path / "weights", tmp_path / "pipe", dr.Choice(steps=2))
    assert COMMAND in (tmp_path / "pipe" / "README.md").read_text()


def test_a_score_of_other_weights_or_none_is_refused(run, scored, tmp_path):
    file = tmp_path / "score.json"
    for content, message in (
        (SCORE | {"weights": "0" * 64}, "score of other weights"),
        ({"value": 3}, "is no score: make it by"),
        ([], "is no score: make it by"),
    ):
        file.write_text(json.dumps(content))
        with pytest.raises(ValueError, match=message):
            hub.export_pipeline(run, tmp_path / "pipe", score=file)
        assert not (tmp_path / "pipe").exists()


def test_a_pipeline_is_replaced_and_nothing_else_is(run, exported, tmp_path):
    out = tmp_path / "pipe"
    for steps in (4, 2):
        hub.export_pipeline(run, out, dr.Choice(steps=steps))
    assert DualRatePipeline.from_pretrained(out).scheduler.choice.plan.num_steps == 2
    (out / "cat.jpg").write_text("mine")
    for place in (out, run, run / "inside"):
        with pytest.raises(ValueError, match="choose a"):
            hub.export_pipeline(run, place)
    assert (out / "cat.jpg").read_text() == "mine"


# The command


def test_the_command_writes_and_pushes_to_a_stand_in(run, scored, tmp_path, monkeypatch, capsys):
    api = create_autospec(HfApi, instance=True)
    api.upload_folder.return_value = "https://hub/commit"
    monkeypatch.setattr(hub, "HfApi", lambda: api)
    options = ["--steps", 4, "--heavy", 2, "--license", "mit", "--score", scored]
    assert call(monkeypatch, "export", run, "--to", "diffusers", tmp_path / "pipe", *options) == 0
    assert not api.mock_calls
    assert capsys.readouterr().out == f"{tmp_path / 'pipe'}\n"
    pushed = ["--push-to-hub", "somebody/two"]
    assert call(monkeypatch, "export", run, "--to", "diffusers", tmp_path / "pipe", *options, *pushed) == 0
    api.create_repo.assert_called_once_with("somebody/two", private=True, exist_ok=True)
    assert api.upload_folder.call_args.kwargs["repo_id"] == "somebody/two"
    assert api.upload_folder.call_args.kwargs["folder_path"] == tmp_path / "pipe"
    assert 'from_pretrained("somebody/two")' in (tmp_path / "pipe" / "README.md").read_text()
    assert "pushed: https://hub/commit" in capsys.readouterr().err


class StandIn(BaseHTTPRequestHandler):
    """A Hub that has what a push asks for, and no more. Files come with the commit, and are written to `folder`."""

    folder: Path
    calls: list[tuple[str, object]]

    def do_POST(self) -> None:
        lines = self.rfile.read(int(self.headers["Content-Length"])).decode().splitlines()
        asked, *operations = map(json.loads, lines)
        self.calls.append((self.path, asked))
        address = f"http://{self.headers['Host']}/somebody/two"
        if self.headers["Authorization"] != "Bearer stand-in":
            self.send_error(401)
        elif self.path == "/api/repos/create":
            self.answer({"url": address})
        elif self.path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif self.path == "/api/models/somebody/two/preupload/main":
            how = {"uploadMode": "regular", "shouldIgnore": False}
            self.answer({"files": [{"path": file["path"], **how} for file in asked["files"]]})
        elif self.path == "/api/models/somebody/two/commit/main":
            for operation in operations:
                file = self.folder / operation["value"]["path"]
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(base64.b64decode(operation["value"]["content"]))
            self.answer({"commitUrl": f"{address}/commit/{'0' * 40}", "commitOid": "0" * 40})
        else:
            self.send_error(404)

    def answer(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


def test_the_library_of_the_hub_pushes_to_a_server_what_loads_again(run, tmp_path, monkeypatch, capsys):
    """By the library's own requests, to this machine."""
    handler = type("Handler", (StandIn,), {"folder": tmp_path / "hub", "calls": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(hub, "HfApi", partial(HfApi, endpoint=address, token="stand-in"))
    options = ["--steps", 4, "--heavy", 2, "--license", "mit", "--push-to-hub", "somebody/two"]
    try:
        assert call(monkeypatch, "export", run, "--to", "diffusers", tmp_path / "pipe", *options) == 0
    finally:
        server.shutdown()
        server.server_close()
    assert f"pushed: {address}/somebody/two" in capsys.readouterr().err
    asked = dict(handler.calls)
    repository = asked["/api/repos/create"].items()
    assert ("visibility", "private") in repository or ("private", True) in repository
    assert asked["/api/models/somebody/two/commit/main"]["value"]["summary"] == "pipe, by dualrate export"
    sent, kept = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (tmp_path / "hub", tmp_path / "pipe")
    )
    assert sent == kept
    assert DualRatePipeline.from_pretrained(tmp_path / "hub").scheduler.choice.plan.num_steps == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "name one place: --out DIR"),
        (["--out", "a", "--to", "diffusers", "b"], "name one place: --out DIR"),
        (["--out", "a", "--steps", "4"], "released weights do not hold --steps"),
        (["--out", "a", "--license", "mit"], "do not hold --license"),
        (["--to", "diffusers", "a", "--denoiser", "shared-encoder"], "does not hold --denoiser"),
        (["--to", "diffusers", "a", "--codec-steps", "4"], "--codec-steps: only for runs of latents"),
        (["--to", "diffusers", "a", "--push-to-hub", "me/it"], "need a licence: name one"),
    ],
)
def test_what_makes_no_sense_is_refused(run, tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, "export", run, *options) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_without_diffusers_the_command_says_what_to_install(run, tmp_path, monkeypatch, capsys):
    for module in ("hub", "export", "parts"):
        monkeypatch.delitem(sys.modules, f"dualrate.pipelines.{module}", raising=False)
    monkeypatch.setitem(sys.modules, "diffusers.configuration_utils", None)
    assert call(monkeypatch, "export", run, "--to", "diffusers", tmp_path / "pipe") == 2
    assert "pip install 'dualrate[diffusers]'" in capsys.readouterr().err
