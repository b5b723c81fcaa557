"""Files of earlier versions, read as today's.

Fields that are gone are dropped where they hold what now always applies. A field with another value stays, so that
reading refuses it by name.
"""

from __future__ import annotations

from typing import Any

RETIRED: dict[str, dict[str, Any]] = {  # class -> field -> the value that now always applies
    "DenoisingConfig": {
        "forecast": False,
        "release_encoder_at": 0,
        "encoder_rate": 1.0,
        "targets_from": None,
        "targets_share": 1.0,
    },
    "TimeSampler": {"few": 1.0, "draws": 1},
    "UViTConfig": {"resample_kernel": 1},
    "ContextConfig": {"levels": None, "width": None, "residual": False},
    "TwoNetworks": {"context": {"type": "ContextConfig"}},  # without its own retired fields
    "EarlyExitConfig": {"reference": "data"},
}
LATER: dict[str, dict[str, Any]] = {  # class -> field -> the value at which an identity is as before there was one
    "DataConfig": {"variables": [], "levels": [], "fps": None},
    "UViTConfig": {"across": False, "poles": False},
    "OneConditional": {"causal": False},
    "TwoConditional": {"causal": False},
}
OF_THE_METHOD = "weighting", "times", "label_dropout", "encoder_weight", "encoder_from", "freeze_encoder", "light_from"


def upgraded(plain: dict[str, Any]) -> dict[str, Any]:
    """An experiment as `serial.to_plain` writes it today. The first ones had their method's fields themselves."""
    if "schedule" in plain:
        method = {name: plain[name] for name in OF_THE_METHOD if name in plain}
        process = {"type": "GaussianProcess", "schedule": plain["schedule"]}
        rest = {name: value for name, value in plain.items() if name not in (*OF_THE_METHOD, "schedule")}
        plain = {**rest, "method": {"type": "DenoisingConfig", **method}, "process": process}
    method = plain.get("method")
    if isinstance(method, dict) and method.get("latents") == {"type": "NoCodec"}:
        plain = {**plain, "method": {name: value for name, value in method.items() if name != "latents"}}
    return _current(plain)


def identified(plain: Any) -> Any:
    """Plain values without the fields that came later, where these change nothing."""
    if isinstance(plain, list):
        return [identified(item) for item in plain]
    if not isinstance(plain, dict):
        return plain
    later = LATER.get(str(plain.get("type")), {})
    return {name: identified(value) for name, value in plain.items() if name not in later or value != later[name]}


def _current(plain: Any) -> Any:
    """Plain values as written today, at every depth."""
    if isinstance(plain, list):
        return [_current(item) for item in plain]
    if not isinstance(plain, dict):
        return plain
    kind = str(plain.get("type"))
    retired, current = RETIRED.get(kind, {}), {name: _current(value) for name, value in plain.items()}
    current = {name: value for name, value in current.items() if name not in retired or value != retired[name]}
    return {"linear": current.get("frames", 1) == 1} | current if kind == "Rolling" else current  # its clock of before
