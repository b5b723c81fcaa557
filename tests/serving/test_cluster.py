"""The deployment for many machines: a replica by itself, and two of Ray's that are killed under load."""

import asyncio
import base64
import io
import os
import random
import re
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import get_args

import launched
import numpy as np
import pytest
from PIL import Image
from runs.made import TWO, saved_random
from trouble import wait_until

from dualrate.config.serial import from_plain
from dualrate.drawing.choice import Choice
from dualrate.runs.store import load
from dualrate.serving.cluster import Replica, Served, app
from dualrate.serving.jobs import Status
from dualrate.serving.offer import Limits

PAGE = Path(__file__).resolve().parents[2] / "docs" / "serving.md"
MANY = re.split(r"^## ", PAGE.read_text(), flags=re.M)
MANY = next(section for section in MANY if section.startswith("Many machines"))
LIMITS = {"steps": 128, "images": 4, "at_once": 4, "waiting": 8}
CLIENTS, KILLS = 6, 4


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return saved_random(TWO, tmp_path_factory.mktemp("cluster") / "run")


def block(language: str) -> str:
    (text,) = re.findall(rf"```{language}\n(.*?)```", MANY, flags=re.S)
    return text


def test_a_replica_is_alive_until_its_engine_ends(run):
    replica = Replica(Served(str(run), device="cpu", limits=from_plain(Limits, LIMITS)))
    replica.check_health()
    replica.jobs.engine.__exit__()
    with pytest.raises(OSError, match="the engine of this replica has ended"):
        replica.check_health()


def test_a_replica_answers_whatever_its_cluster_calls_it_and_ends_with_its_engine(run):
    replica, said = Replica(Served(str(run), device="cpu", limits=from_plain(Limits, LIMITS))), []

    async def receive() -> dict:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict) -> None:
        said.append(message)

    scope = {"type": "http", "method": "GET", "path": "/api/health", "query_string": b"", "headers": []}
    scope["headers"].append((b"host", b"dualrate.example.org"))
    asyncio.run(replica.__serve_build_asgi_app__()(scope, receive, send))
    assert (said[0]["status"], said[1]["body"]) == (200, b'{"drawing":true}')
    engine = replica.jobs.engine
    del replica
    wait_until(lambda: not engine.alive)


class Deployed:
    """Stands for Ray: what is deployed, with which settings."""

    def __init__(self, **settings: object) -> None:
        self.settings = settings

    def __call__(self, replica: type) -> SimpleNamespace:
        return SimpleNamespace(bind=lambda served: (replica, served, self.settings))


@pytest.fixture
def ray(monkeypatch) -> None:
    ray = ModuleType("ray")
    ray.serve = SimpleNamespace(deployment=Deployed, ingress=lambda: lambda replica: replica)  # type: ignore
    monkeypatch.setitem(sys.modules, "ray", ray)


def test_a_replica_is_sent_what_it_has_room_for_and_another_begins_before(ray):
    limits = {"at_once": 8, "waiting": 3, "seconds": 60}
    replica, served, settings = app({"run": "a/run", "limits": limits})
    assert (replica, served) == (Replica, Served("a/run", limits=Limits(at_once=8, waiting=3, seconds=60)))
    assert (settings["max_ongoing_requests"], settings["graceful_shutdown_timeout_s"]) == (11, 60)
    assert settings["autoscaling_config"]["target_ongoing_requests"] == 6


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({}, "run"),
        ({"run": 3}, "args.run: expected .*, got 3"),
        ({"run": "a", "limits": {"imges": 3}}, "no field .imges.; did you mean images"),
        ({"run": "a", "limits": {"seconds": "60"}}, "args.limits.seconds: expected a number, got '60'"),
    ],
)
def test_arguments_of_a_configuration_are_checked_before_any_replica_begins(ray, arguments, why):
    with pytest.raises(ValueError, match=why):
        app(arguments)


def configured() -> dict:
    return pytest.importorskip("yaml").safe_load(block("yaml"))["applications"][0]


def test_the_configuration_of_the_page_is_one_of_this_deployment(ray):
    application = configured()
    assert application["import_path"] == f"{app.__module__}:{app.__name__}"
    replica, _, settings = app(application["args"])
    (deployment,) = application["deployments"]
    assert deployment["name"] == replica.__name__
    assert set(deployment["autoscaling_config"]) <= set(settings["autoscaling_config"])


@pytest.mark.parametrize("status", get_args(Status))
def test_the_client_of_the_page_asks_until_a_state_that_its_table_calls_an_end(status, monkeypatch):
    """And not for ever."""
    table = re.search(r"### States of a job\n(.*?)\n#", PAGE.read_text(), flags=re.S)
    assert table is not None
    assert f"`{status}`" in table[1]
    names: dict = {}
    exec(block("py"), names)
    waits: list[float] = []
    answer = SimpleNamespace(read=lambda: f'data: {{"status": "{status}"}}\n\n'.encode())
    monkeypatch.setattr("urllib.request.urlopen", lambda request, timeout: answer)
    monkeypatch.setattr("time.sleep", waits.append)
    if status in ("waiting", "running"):
        with pytest.raises(TimeoutError, match="no last report in 3 tries"):
            names["draw"]("http://server/", tries=3, steps=4)
    else:
        assert names["draw"]("http://server/", steps=4) == {"status": status}
    assert len(waits) == 3 * (status in ("waiting", "running"))


def replicas(folder: str) -> list[int]:
    """Processes of replicas that have begun, of the Ray that keeps its files in a folder."""
    titles, parents = {}, {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            titles[int(place.name)] = (place / "cmdline").read_bytes().decode(errors="replace")
            parents[int(place.name)] = int((place / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended
            continue
    ours = {number for number, title in titles.items() if "/raylet" in title and folder in title}
    begun = (number for number, title in titles.items() if "Replica" in title and "init" not in title)
    return sorted(number for number in begun if parents.get(number) in ours)


@pytest.fixture
def cluster(run, monkeypatch) -> Iterator[tuple[str, str, Callable[[], int]]]:
    """Its address, its folder, and how many replicas run.

    Ray's processes have 15 less of the system's priority than others, and few seconds to begin in: on a busy machine
    they would be ended before, again and again.
    """
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_worker_niceness", "0")
    for name in ("READY_CHECK", "HEALTH_CHECK"):
        monkeypatch.setenv(f"RAY_SERVE_PROXY_{name}_TIMEOUT_S", "120")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    from ray import serve

    with tempfile.TemporaryDirectory(prefix="ray-") as folder:
        monkeypatch.setenv("HOME", folder)
        few = {"num_cpus": 2, "object_store_memory": 100 * 2**20, "include_dashboard": False, "log_to_driver": False}
        ray.init(address="local", _temp_dir=folder, **few)
        port = launched.free_port()
        try:
            for _ in range(5):  # each waits a minute
                try:
                    serve.start(http_options={"host": "127.0.0.1", "port": port})
                    break
                except TimeoutError:
                    continue
            bound = app({"run": str(run), "device": "cpu", "limits": LIMITS})
            scaling = {"min_replicas": 1, "max_replicas": 2, "target_ongoing_requests": 2, "upscale_delay_s": 1}
            bound._bound_deployment = bound._bound_deployment.options(
                autoscaling_config=scaling, ray_actor_options={"num_cpus": 0.1}, health_check_timeout_s=120
            )
            serve.run(bound, name="dualrate")

            def running() -> int:
                return serve.status().applications["dualrate"].deployments["Replica"].replica_states.get("RUNNING", 0)

            yield f"http://127.0.0.1:{port}/", folder, running
        finally:
            serve.shutdown()
            ray.shutdown()


def pixels(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))), np.float32)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_replicas_that_are_killed_under_load_lose_no_request(run, cluster):
    """One becomes two by the queue; then one after the other is killed, while clients ask as the page says."""
    url, folder, running = cluster
    names: dict = {}
    exec(block("py"), names)
    waits, over = Counter(), threading.Event()
    names["time"] = SimpleNamespace(sleep=lambda seconds: (waits.update(["again"]), time.sleep(seconds)))

    def client(number: int) -> dict[int, np.ndarray]:
        images, seed = {}, number
        while not over.is_set():
            report = names["draw"](url, steps=96, heavy=96, seed=seed, images=1, beside="nothing")
            assert (report["status"], report["seeds"]) == ("done", [seed])
            images[seed] = pixels(report["sides"][0]["images"][0])
            seed += CLIENTS
        return images

    with ThreadPoolExecutor(CLIENTS) as pool:
        clients = [pool.submit(client, number) for number in range(CLIENTS)]
        try:
            for _ in range(KILLS):
                wait_until(lambda: running() == 2 and len(replicas(folder)) == 2, 400)
                time.sleep(random.uniform(2, 5))
                victim = random.choice(replicas(folder))
                os.kill(victim, signal.SIGKILL)
                wait_until(lambda victim=victim: victim not in replicas(folder))
        finally:
            over.set()
        images = {seed: image for one in clients for seed, image in one.result(300).items()}
    print(f"{len(images)} requests, {KILLS} replicas killed, {waits['again']} times asked again, none lost")
    assert waits["again"] >= 1
    drawn = Choice(96, 96).drawer(load(run, device="cpu"), batch_size=1)
    for seed in sorted(images)[:: max(1, len(images) // 24)]:
        alone = drawn.draw([seed]).images[0, 0].astype(np.float32)
        assert np.abs(images[seed] - alone).mean() < 8  # levels of 255, by bfloat16 in batches
