"""A transformer of another library in two: what its row of blocks adds to the tokens, and the rest.

A call is one of a copy of the network that shares all its parts but one: in the place of the blocks stands what runs
them and notes what they add, or what adds that without running them. The network itself is left as it is.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from dualrate.config.ranges import OuterLevels, Ranged
from dualrate.networks.uvit import require_shape


@dataclass(frozen=True)
class CutNetwork(Ranged):
    """A network around another library's, `network.net`, whose blocks stand in `network.net.<row>`.

    outer: 0, since such a network has one level: what makes tokens of the image and an image of the last ones is
           outside
    """

    network: Any
    row: str
    outer: OuterLevels = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        name = type(self.network.net).__name__
        if not self.row:
            raise ValueError(f"the blocks of {name} do not stand in a row that tokens alone go through: leave it whole")
        if self.outer:
            raise ValueError(f"{name} has one level, all inside (outer 0), got outer {self.outer}")

    def whole(self, z: Tensor, log_snr: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor]:
        """What the blocks add, (B, n, C), and v, as the network's. Arguments: the network's."""
        row = _Row(getattr(self.network.net, self.row))
        v = self._with(row)(z, log_snr, label)
        assert row.added is not None
        return row.added, v

    def rest(self, z: Tensor, log_snr: Tensor, label: Tensor | None, added: Tensor) -> Tensor:
        """v without the blocks, given what they add. Raises ValueError where that has another shape."""
        return self._with(_Row(getattr(self.network.net, self.row), added))(z, log_snr, label)

    def _with(self, row: _Row) -> nn.Module:
        return _replaced(self.network, "net", _replaced(self.network.net, self.row, nn.ModuleList([row])))


class _Row(nn.Module):
    """Blocks as one, for one call; other attributes are the first block's, as a head may ask for them.

    added: what they add; None: they run, and it is noted
    """

    def __init__(self, blocks: Sequence[nn.Module], added: Tensor | None = None) -> None:
        super().__init__()
        self.blocks, self.added = list(blocks), added

    def forward(self, h: Tensor, *given: Any, **named: Any) -> Tensor:
        if self.added is not None:
            require_shape(self.added, h)
            return h + self.added
        out = h
        for block in self.blocks:
            out = block(out, *given, **named)
        self.added = out - h
        return out

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["blocks"][0], name)


def _replaced(module: nn.Module, name: str, part: nn.Module) -> nn.Module:
    """A copy that shares all parts but one, and is called as its class is: what was compiled holds the old part."""
    copied = copy.copy(module)
    copied.__dict__["_modules"] = {**module._modules, name: part}
    copied.__dict__.pop("forward", None)
    return copied
