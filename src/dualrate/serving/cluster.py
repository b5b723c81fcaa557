"""The server of `dualrate serve` on many machines: a deployment of Ray Serve, each replica with an engine of its own.

A request is one exchange (POST /api/samples as text/event-stream), so any replica may have it. What it draws depends on
its seeds and settings alone: a client whose replica died asks again and gets what it would have got.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ray import serve
from ray.serve import Application
from starlette.types import ASGIApp

from dualrate.runs.store import load
from dualrate.serving.app import make_app
from dualrate.serving.offer import Jobs, Limits, Offer

AT_ONCE = Limits().at_once


@serve.deployment(
    max_ongoing_requests=AT_ONCE + Limits().waiting,  # further ones wait in Ray's queue
    autoscaling_config={"min_replicas": 1, "max_replicas": 8, "target_ongoing_requests": AT_ONCE * 3 // 4},
)
@serve.ingress()
class Replica:
    """An application of its own model and engine. Raises as `load` and `Offer`."""

    def __init__(self, run: str, beside: str | None = None, device: str | None = None, **limits: Any) -> None:
        baseline = None if beside is None else load(Path(beside), device=device)
        self.offer = Offer(load(Path(run), device=device), baseline, Limits(**limits))
        self.jobs = Jobs(self.offer.limits)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        limits = self.offer.limits
        return make_app(self.offer, self.jobs, "", loopback=False, streams=limits.at_once + limits.waiting)

    def check_health(self) -> None:
        """Raises OSError where its engine has ended: Ray then begins another replica."""
        if not self.jobs.engine.alive:
            raise OSError("the engine of this replica has ended")

    def __del__(self) -> None:
        if hasattr(self, "jobs"):
            self.jobs.__exit__()


def app(arguments: dict[str, Any]) -> Application:
    """The application that a configuration file names. arguments: of `Replica`."""
    return Replica.bind(**arguments)  # pyright: ignore[reportAttributeAccessIssue]
