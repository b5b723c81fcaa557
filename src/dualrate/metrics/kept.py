"""A trained network in a directory: its weights (safetensors), and a card (JSON) that says what it is."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

from safetensors import SafetensorError
from safetensors.torch import save as bytes_of_tensors
from torch import nn

from dualrate.config.serial import from_json, to_plain
from dualrate.system.files import read_bytes, tensors_of, write_whole


class Card(Protocol):
    """What a network is; a frozen dataclass, stored as JSON.

    name:         of its data; distances in its features are called FD-<name>
    identity:     sha256 of the weights file
    architecture: its `build()` makes the network
    """

    @property
    def name(self) -> str: ...

    @property
    def identity(self) -> str: ...

    @property
    def architecture(self) -> Any: ...


CardType = TypeVar("CardType", bound=Card)
Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class KeptNetwork(Generic[CardType, Module]):
    """A trained network, in eval mode and without gradients, and its card; a subclass is a `FeatureExtractor`.

    file:      of weights and card in a directory, without an ending
    card_type: of the card
    """

    card: CardType
    module: Module

    file: ClassVar[str]
    card_type: ClassVar[type]

    @property
    def metric(self) -> str:
        return f"FD-{self.card.name}"

    @property
    def identity(self) -> str:
        return f"{self.card.name}:{self.card.identity[:12]}"

    @property
    def usual_count(self) -> int:
        return 5000

    def save(self, directory: Path | str) -> None:
        """Write weights (safetensors) and card (JSON) into `directory`, made if it is missing."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        write_whole(directory / f"{self.file}.safetensors", weight_bytes(self.module))
        write_whole(directory / f"{self.file}.json", json.dumps(to_plain(self.card), indent=1) + "\n")

    @classmethod
    def load(cls, directory: Path | str) -> Self:
        """Read what `save` wrote; OSError if a file cannot be read, ValueError if it is not what its card says."""
        weights_path, card_path = (Path(directory) / f"{cls.file}.{ending}" for ending in ("safetensors", "json"))
        weights, card = read_bytes(weights_path), read_card(card_path, cls.card_type)
        found = hashlib.sha256(weights).hexdigest()
        if found != card.identity:
            raise ValueError(
                f"{weights_path} has sha256 {found[:12]}..., its card says {card.identity[:12]}...: the file is "
                "damaged or belongs to another net; fetch it again, or delete both files and train the net again"
            )
        try:
            module = card.architecture.build()
            module.load_state_dict(tensors_of(weights))
        except (ValueError, ArithmeticError, IndexError, RuntimeError, SafetensorError) as error:
            what = " ".join(str(error).split())[:200]
            raise ValueError(f"{card_path} is not of the weights beside it: {what} ...; fetch both again") from error
        return cls(card, module.eval().requires_grad_(False))


def read_card(file: Path, kind: type[Any]) -> Any:
    """The card in a file. Raises ValueError for any other content."""
    try:
        return from_json(kind, read_bytes(file), str(file))
    except ValueError as error:
        raise ValueError(f"{error}: it is no card of a trained net; fetch it again, or train the net again") from error


def weight_bytes(module: nn.Module) -> bytes:
    """The weights as the bytes of a safetensors file, the same for the same weights."""
    return bytes_of_tensors({name: tensor.contiguous() for name, tensor in module.state_dict().items()})
