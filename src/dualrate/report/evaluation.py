"""Scores of a model, as a value that prints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dualrate.report.html import page
from dualrate.report.table import Table, as_text


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Scores of samples: of images, forecasts or texts.

    scores: as the modality has them: a `Row` of images, a `ForecastReport`, a `TextScore`, ...
    plain:  all numbers, for JSON; tables, text: for people, one after the other
    """

    scores: Any
    plain: Mapping[str, Any]
    tables: tuple[Table, ...] = ()
    text: str = ""

    def __repr__(self) -> str:
        return "\n\n".join(filter(None, (*map(as_text, self.tables), self.text)))

    def _repr_html_(self) -> str:
        return page("tables.html", says=[], tables=self.tables, figures=[], text=self.text)
