"""The page: well nested, self-contained, and whatever is put into it stays text."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
from PIL import Image

from dualrate.report.figures import pareto_figure, svg
from dualrate.report.html import ENVIRONMENT
from dualrate.report.table import table
from report.made import DUAL, HEAVY, LIGHT, row

EVIL = '<script>alert("&")</script>'
PIXELS = np.arange(12, dtype=np.uint8).reshape(3, 4)
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Reader(HTMLParser):
    """Collects elements and text; fails on tags that do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


PAGE = """{% extends "base.html" %}
{% from "macros.html" import table, drawing, picture, passage, facts %}
{% block body %}<p>{{ title }}</p>
{{ facts({title: title}) }}{{ table(rows) }}{{ picture(pixels, title) }}{{ passage(title, title) }}
{{ drawing(figure, title) }}{% endblock %}
"""


def everything(word: str) -> str:
    rows = [row(word), HEAVY, LIGHT, DUAL]
    figure = svg(pareto_figure(rows, "flops"))
    return ENVIRONMENT.from_string(PAGE).render(title=word, rows=table(rows), pixels=PIXELS, figure=figure)


def test_every_string_is_escaped():
    reader = Reader(everything(EVIL))
    assert "script" not in {tag for tag, _ in reader.elements}
    assert reader.text.count(EVIL) == 10  # title, h1, p, dt, dd, td, a passage, three captions
    assert sum(attributes.get("alt") == EVIL for _, attributes in reader.elements) == 1


def test_nothing_is_fetched():
    text = everything("word")
    elements = Reader(text).elements
    for tag, attributes in elements:
        assert tag not in {"script", "link", "iframe", "object", "embed", "base"}
        for name, value in attributes.items():
            if name.rpartition(":")[2] in {"src", "href", "srcset", "data", "poster", "action"}:
                assert value is not None
                assert value.startswith(("data:", "#")), f"<{tag} {name}={value[:60]}>"
    assert not re.search(r"url\((?!#)|@import", text)


def test_pictures_come_back_pixel_for_pixel():
    (source,) = (attributes["src"] for tag, attributes in Reader(everything("word")).elements if tag == "img")
    assert source is not None
    decoded = Image.open(io.BytesIO(base64.b64decode(source.removeprefix("data:image/png;base64,"))))
    np.testing.assert_array_equal(np.asarray(decoded), PIXELS)


def test_it_is_made_for_phones_and_for_dark_rooms():
    text = everything("word")
    assert 'name="viewport"' in text
    assert "prefers-color-scheme: dark" in text
    assert "image-rendering: pixelated" in text
