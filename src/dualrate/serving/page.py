"""The page to play with: one document, nothing fetched but the server's answers."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from dualrate.report.html import STYLE

PARTS = Path(__file__).with_name("parts")


def play_page(described: Mapping[str, Any]) -> str:
    """described: an offer, for the page (`Offer.described`)."""
    html, style, script = ((PARTS / name).read_text() for name in ("play.html", "play.css", "play.js"))
    model = json.dumps(described).replace("<", "\\u003c")  # so that no name ends the element that it stands in
    filled = {"name": escape(described["name"]), "style": STYLE + style, "script": script, "model": model}
    return re.sub(r"\{\{(\w+)\}\}", lambda mark: filled[mark[1]], html)
