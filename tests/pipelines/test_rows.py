"""Messages to whoever adds a network class where its rows of blocks are not described."""

import pytest

from dualrate.pipelines.classes.catalogue import KINDS
from dualrate.pipelines.classes.kind import Rows

DIT = KINDS["DiTTransformer2DModel"]


@pytest.mark.parametrize("rows", [{"names": ()}, {"streams": ()}, {"streams": ("encoder_hidden_states",)}])
def test_rows_without_names_or_without_the_image_are_refused(rows):
    with pytest.raises(ValueError, match="name the network's lists of blocks, and what a block takes"):
        Rows(**rows)
