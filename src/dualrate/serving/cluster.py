"""The server of `dualrate serve` on many machines: a deployment of Ray Serve, each replica with an engine of its own.

A request is one exchange (POST /api/samples, accepting text/event-stream), so any replica may have it. What it draws
depends on its seeds and settings alone: a client whose replica died asks again, and gets what it would have got.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp

from dualrate.config.serial import from_plain
from dualrate.runs.store import load
from dualrate.serving.app import make_app
from dualrate.serving.jobs import Jobs
from dualrate.serving.offer import Limits, Offer


@dataclass(frozen=True)
class Served:
    """A run, and another one to compare with, on a device as of `load`. limits: of each replica"""

    run: str
    beside: str | None = None
    device: str | None = None
    limits: Limits = Limits()

    @property
    def room(self) -> int:
        """Requests that a replica draws, or lets wait."""
        return self.limits.at_once + self.limits.waiting


class Replica:
    """An application with a model and an engine of its own. Raises as `load` and `Offer`."""

    def __init__(self, served: Served) -> None:
        baseline = None if served.beside is None else load(served.beside, device=served.device)
        self.offer = Offer(load(served.run, device=served.device), baseline, served.limits)
        self.jobs, self.streams = Jobs(served.limits), served.room

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return make_app(self.offer, self.jobs, "", loopback=False, streams=self.streams)

    def check_health(self) -> None:
        """Raises OSError where its engine has ended: Ray then begins another replica."""
        if not self.jobs.engine.alive:
            raise OSError("the engine of this replica has ended")

    def __del__(self) -> None:
        with suppress(AttributeError):  # it never began
            self.jobs.__exit__()


def app(arguments: dict[str, Any]) -> Any:
    """The application that a configuration file names. arguments: of `Served`. Raises ValueError for others.

    What a replica has no room for waits in Ray's queue; replicas are as many as keep each at three quarters of what it
    draws at once.
    """
    from ray import serve  # pyright: ignore[reportMissingImports]

    served = from_plain(Served, arguments, "args")
    most = max(1, served.limits.at_once * 3 // 4)
    settings = serve.deployment(
        max_ongoing_requests=served.room,
        autoscaling_config={"min_replicas": 1, "max_replicas": 8, "target_ongoing_requests": most},
        graceful_shutdown_timeout_s=served.limits.seconds,  # requests at work end before a replica that is not needed
    )
    return settings(serve.ingress()(Replica)).bind(served)
