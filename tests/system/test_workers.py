"""Blocks of work without a team: done here, and packed as they are sent."""

import pytest
import torch

from dualrate.system.workers import in_turn, mapper, packed, portable, share_of_time, unpacked


def test_without_a_team_the_blocks_are_done_here_one_after_the_other():
    device = torch.device("cuda:3")
    assert mapper(device) is in_turn
    assert share_of_time(device) == share_of_time(torch.device("cpu")) == 1
    assert [*mapper(device)(sum, [(1, 2), (3, 4)])] == [((1, 2), 3), ((3, 4), 7)]


def test_what_cannot_be_sent_is_refused():
    assert unpacked(packed(sum)) is sum
    with pytest.raises(ValueError, match=r"cannot be sent to another process .*drop --nproc"):
        packed(lambda block: block)


def test_an_error_keeps_its_kind_on_its_way():
    class Odd(Exception): ...

    assert repr(portable(FileNotFoundError(2, "none", "x"))) == "OSError(\"[Errno 2] none: 'x'\")"
    assert repr(portable(Odd("x"))) == "RuntimeError('Odd: x')"
