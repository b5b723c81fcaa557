"""A class is the same one wherever and however it is named; where a number could as well be a name, it is refused."""

from dataclasses import replace

import pytest
import torch
from runs.made import NET, ONE
from serving.made import model

import dualrate as dr
from dualrate.experiment.network_configs import OneNetwork
from dualrate.serving.offer import Offer, Request

NUMBERED = tuple(sorted(map(str, range(12))))  # folders 0 to 11, in the order of texts: 0, 1, 10, 11, 2, ...
FROM_ONE = ("1", "2", "3")


def called(names: tuple[str, ...]) -> dr.Model:
    network = OneNetwork(replace(NET, num_classes=len(names)))
    return replace(model(replace(ONE, networks=network)), class_names=names)


@pytest.mark.parametrize(
    ("names", "label", "number"),
    [
        (NUMBERED, "2", 4),
        (NUMBERED, "10", 2),
        (NUMBERED, "0", 0),
        (NUMBERED, 1, 1),
        (("0", "1", "2"), 2, 2),
        (("0", "1", "2"), "2", 2),
        (("cat", "dog"), "1", 1),
        (("cat", "dog"), torch.tensor(1), 1),
        (FROM_ONE, "3", 2),
        (("001", "002"), "002", 1),
        (("cat", "dog", "9 lives"), 2, 2),
        (("2023", "cat", "dog"), 1, 1),
        (("cafe\u0301", "the"), "caf\u00e9", 0),
    ],
)
def test_a_text_is_a_name_and_a_number_a_number(names: tuple[str, ...], label: object, number: int) -> None:
    assert called(names).class_number(label) == number  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("names", "label", "why"),
    [
        (NUMBERED, 2, "class number 2 is called '10', class number 4 is called '2'; give a name"),
        (NUMBERED, torch.tensor(11), "class number 11 is called '9', class number 3 is called '11'"),
        (FROM_ONE, 0, "label 0 is unclear: class number 0 is called '1'; give a name"),
        (FROM_ONE, "0", "label 0 is unclear"),
        (FROM_ONE, 3, "label 3 is unclear: class number 2 is called '3'"),
        (("001", "002"), "1", "class number 1 is called '002', class number 0 is called '001'"),
        (("2023", "cat", "dog"), 0, "class number 0 is called '2023'"),
        (("2023", "cat", "dog"), 2023, "class number 0 is called '2023'"),
        (("cat", "dog"), "\uff11", "has no class '\uff11': give cat, dog"),
        (("cat", "dog"), 2, "knows the classes 0 to 1, got label 2"),
        (("cat", "dog"), "-1", "knows the classes 0 to 1, got label -1"),
        (("cat", "cat"), "cat", "several classes called 'cat': give a number, 0, 1"),
    ],
)
def test_what_is_unclear_or_unknown_is_refused(names: tuple[str, ...], label: object, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        called(names).class_number(label)  # pyright: ignore[reportArgumentType]


def test_all_that_draw_take_the_same_class() -> None:
    net = called(NUMBERED)
    drawer = dr.Choice(steps=2).drawer(net, label="2")
    assert (drawer.labels(range(3)), drawer.labels_rule) == ([4, 4, 4], "class 4")
    again = replace(drawer, batch_size=2)  # is checked anew
    assert (again.labels(range(1)), again.resolved.labels(range(1))) == ([4], [4])
    asked = Offer(net).sides(Request(label="2"))[0]
    assert asked.drawer.labels(range(1)) == [4]
    for take in (lambda: dr.Choice(steps=2).drawer(net, label=2), lambda: Offer(net).sides(Request(label=2))):
        with pytest.raises(ValueError, match="label 2 is unclear"):
            take()
