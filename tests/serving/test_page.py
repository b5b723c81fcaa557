"""The page in a browser, where there is one: by keyboard, wide and narrow, with its errors."""

import re
from collections.abc import Iterator

import numpy as np
import pytest
from forecasts.made_forecasts import CHANNELS, WIDTH, model_of
from serving.browser import CHROMIUM, Page, browser
from serving.made import model

from dualrate.serving.app import listening
from dualrate.serving.offer import Limits, Offer

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
READY = "document.readyState === 'complete' && typeof at === 'function' && !at('draw').disabled"
DRAWN = f"{READY} && document.querySelectorAll('.grid img[alt^=seed]').length > 0"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with listening(Offer(model(), limits=Limits(steps=12, images=4, waiting=1))) as place:
        yield place


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def test_forecasts_are_named_below_their_pictures_and_scored_by_lead_time(page, tmp_path):
    walk = np.random.default_rng(0).normal(size=(20, 12, CHANNELS, WIDTH)).cumsum(1)
    np.savez(tmp_path / "fields.npz", fields=walk.astype(np.float32))
    ahead = model_of(tmp_path / "fields.npz", tmp_path / "ahead", past=2, frames=2, lead=2)
    with listening(Offer(ahead, limits=Limits(steps=12, images=4))) as place:
        page.size(1200, 900)
        page.open(f"{place}#members=2&beside=nothing")
        page.until(f"{READY} && document.querySelectorAll('.grid img').length > 0")
        below = page.value("[...document.querySelectorAll('.grid li')].map((item) => item.textContent)")
        assert below == ["member 0", "member 1", "truth"]
        assert re.search(r"^Drawn: 2 forecasts in .* CRPS of .* at lead 2, 4: [\d.]+, [\d.]+\.$", text(page, "status"))
        assert "MACs a forecast" in page.value("document.querySelector('.plan').textContent")


def text(page: Page, name: str) -> str:
    return page.value(f"at('{name}').textContent")


@pytest.mark.parametrize("width", [1200, 400])
def test_it_draws_by_keyboard_and_fits_its_window(page, url, width):
    page.size(width, 900)
    page.open(url)
    page.until(DRAWN)  # by itself
    assert page.value("document.querySelectorAll('.plan svg').length") == 2
    assert "of the time of two, all heavy" in text(page, "status")
    page.value("at('steps').focus()")
    page.key("ArrowDown", 40)
    assert page.value("at('steps').value") == "11"
    page.until("at('status').textContent.includes('of the MACs of two, all heavy')")
    page.key("Enter", 13)
    page.until(DRAWN)
    assert "of the time of two, all heavy" in text(page, "status")
    alts = page.value("[...document.querySelectorAll('.grid img')].map((image) => image.alt)")
    assert alts == ["seed 0, class 0", "seed 1, class 1", "seed 2, class 2", "seed 3, class 0"] * 2
    assert page.value("document.documentElement.scrollWidth") == width
    assert page.value("document.querySelectorAll('.mark.ahead').length") == 0
    assert "steps=11" in page.value("location.hash")
    title = page.value("document.querySelector('.plan svg title').textContent")
    assert title.startswith("11 steps, ")
    sides = page.value("[...document.querySelectorAll('.pictures')].map((one) => one.getBoundingClientRect().top)")
    assert sides[0] == sides[1]  # side by side


def test_an_error_is_named_at_its_field(page, url):
    page.size(400, 900)
    page.open(f"{url}#steps=13")
    page.until("typeof at === 'function' && !at('error').hidden")
    assert text(page, "error") == "steps is from 1 to 12 on this page, got 13"
    assert page.value("at('error').getAttribute('role')") == "alert"
    assert page.value("at('steps').getAttribute('aria-invalid')") == "true"
    page.value("at('steps').value = 3; at('steps').dispatchEvent(new Event('input', { bubbles: true }))")
    page.until("at('error').hidden && !at('steps').hasAttribute('aria-invalid')")


def test_every_control_can_be_reached_and_has_a_name(page, url):
    page.open(url)
    page.until(READY)
    page.call("Accessibility.enable")
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    roles = {"spinbutton", "combobox", "button", "slider"}
    found = [(node["role"]["value"], node["name"]["value"]) for node in nodes if node["role"]["value"] in roles]
    assert ("spinbutton", "Heavy calls") in found
    assert ("button", "Draw") in found
    assert all(name for _, name in found)
    assert not [role for role, _ in found if role == "slider"]  # each is beside a number that says the same
