"""Files of earlier versions, read as today's: fields that are gone are dropped where they hold what now always applies.

A field with another value stays, so that reading refuses it by name.
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
    "TimeSampler": {"few": 1.0},
    "ContextConfig": {"residual": False},
}


def upgraded(plain: Any) -> Any:
    """What `serial.to_plain` wrote, without retired fields, at every depth."""
    if isinstance(plain, list):
        return [upgraded(item) for item in plain]
    if not isinstance(plain, dict):
        return plain
    gone = RETIRED.get(str(plain.get("type")), {})
    return {name: upgraded(value) for name, value in plain.items() if name not in gone or value != gone[name]}
