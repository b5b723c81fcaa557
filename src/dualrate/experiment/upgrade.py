"""Experiments as earlier versions wrote them, read as today's. Before there were methods' configurations an experiment
had their fields itself, and what was distilled stood in a file of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dualrate.config.imports import import_module

OF_THE_METHOD = (
    "weighting",
    "times",
    "label_dropout",
    "encoder_weight",
    "encoder_from",
    "freeze_encoder",
    "light_from",
)
OF_A_DISTILLATION = (
    "teacher",
    "version",
    "rollout",
    "guidance",
    "dropout",
    "pretraining",
    "pairs",
    "student_rate",
    "student_from",
)
LATER: dict[
    str, dict[str, Any]
] = {  # fields that runs of before do not have, and what they then are; None needs no word
    "DenoisingConfig": {
        "targets_share": 1.0,
        "release_encoder_at": 0,
        "encoder_rate": 1.0,
        "latents": {"type": "NoCodec"},
        "multiscale": 0,
    },
    "MomentMatchingConfig": {"temperature": 1.0, "top_p": 1.0},
    "TimeSampler": {"few": 1.0},
}
RETIRED: dict[str, dict[str, Any]] = {  # fields that are no more, and what they must have been
    "DenoisingConfig": {"forecast": False},
    "UViTConfig": {"norm": "layer", "downsampling": "patch", "resample_kernel": 1},
    "ContextConfig": {"levels": None, "width": None, "residual": False, "join": "add"},
    "TwoNetworks": {"context": {"type": "ContextConfig"}},  # without its own retired fields
    "TwoDecoders": {"context": {"type": "ContextConfig"}},
}
CONTRIB = dict.fromkeys(("EarlyExitConfig", "EarlyExitNetwork"), "dualrate.contrib.early_exit")  # and its module
PLANS = {"Continuous": "AtLeast", "Grid": "OnePlan"}
UNKNOWN = "unknown"  # teacher of a student whose distillation was not kept


def upgraded(written: dict[str, Any], distillation: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """An experiment as `serial.to_plain` writes it today, from one that it wrote then; today's as it is.

    distillation: what was written beside a student
    """
    if "method" in written or "networks" not in written:
        return completed(written)
    kept = {name: value for name, value in written.items() if name not in (*OF_THE_METHOD, "schedule")}
    method: dict[str, Any] = {name: written[name] for name in OF_THE_METHOD if name in written}
    times = method.get("times") or {}
    if times.get("type") in PLANS:
        plans = {**times, "type": PLANS[times["type"]]}
        own = {"teacher": UNKNOWN, "rollout": "data" if plans["type"] == "AtLeast" else "full"}
        own |= {name: distillation[name] for name in OF_A_DISTILLATION if name in distillation} if distillation else {}
        shared = {name: method[name] for name in ("weighting", "light_from") if name in method}
        method = {"type": "MomentMatchingConfig", **own, "plans": plans, **shared}
    else:
        method = {"type": "DenoisingConfig", **method}
    process = {"process": {"type": "GaussianProcess", "schedule": written["schedule"]}} if "schedule" in written else {}
    return completed({**kept, "method": method, **process})


def completed(plain: Any) -> Any:
    """With the fields that came later, without those that went, all the way down."""
    if isinstance(plain, list):
        return [completed(item) for item in plain]
    if not isinstance(plain, dict):
        return plain
    kind = str(plain.get("type"))
    if kind in CONTRIB:  # our own, so it may be imported for a file
        import_module(CONTRIB[kind])
    went = RETIRED.get(kind, {})
    held = {name: completed(value) for name, value in plain.items()}
    return LATER.get(kind, {}) | {
        name: value for name, value in held.items() if name not in went or value != went[name]
    }


def upgraded_identity(written: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint says of its run, as it is written today."""
    if "student" not in written:
        return upgraded(written)
    return {**upgraded(written["student"], written), "images": written["images"], "fit": written["fit"]}
