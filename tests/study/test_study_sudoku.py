"""Boards of Sudoku as images: what is a right sample, and what a condition tells."""

import json

import pytest
import torch

from dualrate.diffusion.random import Draws
from studies import sudoku, where
from studies.sudoku import SCORED, boards, clues, drawn, is_solved, read_off, table


def test_all_288_boards_are_there_and_no_other_is_right() -> None:
    board = boards()
    assert len(torch.unique(board, dim=0)) == len(board) == 288
    swapped = board.clone()
    swapped[:, :, [0, 2]] = board[:, :, [2, 0]]  # rows and columns stay right, boxes may not
    rotated = board.clone()
    rotated[:, 0] = board[:, 0].roll(1, 1)  # rows stay right, no column does
    assert is_solved(board).all()
    assert is_solved(swapped).sum() == 96  # those whose first and third column have the same digits in each half
    assert not is_solved(rotated).any()


def test_a_board_is_read_off_its_image_also_where_noise_lies_on_it() -> None:
    x = drawn(boards())
    noise = 0.3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    assert x.shape == (288, 1, 32, 32)
    assert (read_off(x + noise) == boards()).all()


def test_a_condition_has_four_to_eight_of_the_boards_cells() -> None:
    x = drawn(boards()[torch.arange(5000) % 288])
    y = clues(x, Draws(0, torch.arange(5000)))
    mask = y[:, 1:]
    count = mask[:, 0, ::8, ::8].flatten(1).sum(1)
    assert torch.equal(y[:, :1], x * mask)
    assert torch.bincount(count.long()).tolist()[:4] == [0] * 4
    assert torch.bincount(count.long())[4:] / 5000 == pytest.approx([0.2] * 5, abs=0.03)
    assert mask[:, 0, ::8, ::8].mean(0).flatten().tolist() == pytest.approx([6 / 16] * 16, abs=0.03)  # any cell alike


def row(size: str, lr: float, right: int, steps: int = 1) -> dict:
    cost = {"macs": {"1": 2.0, "16": 1.0}, "cells": 0.5, "seconds": 240.1}
    return {"size": size, "trained_by": "energy", "lr": lr, "steps": steps, "right": right, **cost}


def test_the_table_has_the_best_learning_rate_of_each_and_steps_that_help() -> None:
    half, most = SCORED // 2, SCORED * 3 // 4
    rows = [row("large", 0.1, 10), row("light", 0.1, 0), row("large", 0.2, half)]
    rows += [row("large", 0.2, half, 2), row("large", 0.1, most, 4)]
    assert table(rows).splitlines()[2:] == [
        "| large | energy | 240 | 4 | 0.75 [0.71, 0.79] | 0.50 | 2.0 | 1.0 |",
        "| large | energy | 240 | 1 | 0.50 [0.46, 0.54] | 0.50 | 2.0 | 1.0 |",
    ]


def test_a_first_plan_that_is_better_bounds_the_ratio() -> None:
    alone = where.of_sudoku()[1][0]
    assert alone.at_most
    assert alone.low == 0 < alone.value == alone.high


def test_what_has_a_row_is_not_trained_again(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(sudoku, "MODELS", (("two rates", "energy"), ("light", "diffusion")))
    for _ in range(2):
        sudoku.train(tmp_path, 0.1, [0], [1e-3])
        rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
        assert [(row["size"], row["steps"]) for row in rows] == [
            ("two rates", 1),
            *(("light", steps) for steps in (1, 2, 4, 8, 16)),
        ]
    one, four, sixteen = rows[0], rows[3], rows[5]
    assert sixteen["macs"]["1"] == 4 * four["macs"]["1"] == sixteen["macs"]["16"]
    assert one["macs"]["1"] > one["macs"]["16"] > one["macs"]["1"] / 16
