"""Pictures of captions: their reader tells true ones from wrong ones, and all stages run at tiny size."""

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")
from scipy.stats import binomtest

from dualrate.pipelines import folder as diffusers_folder
from dualrate.pipelines import text_encoders as text_folder
from dualrate.pipelines.policies import Verified
from studies import captions as module
from studies.captions import Run, Size, Way, wilson
from studies.shapes import ASPECTS, COLOURS, PLACES, SHAPES, captions, drawn, judged, read

RNG = np.random.default_rng(0)
SOME = [part[i] for part in captions() for i in range(20)]


def right(caption, picture) -> list[str]:
    return [aspect for aspect, value in judged(caption, read(picture)).items() if value]


def test_captions_of_training_and_the_others_are_different_and_all_that_there_are():
    known, unseen = captions()
    both = {*map(str, known), *map(str, unseen)}
    assert len(both) == len(known) + len(unseen) == 3 * 4 * 3 * 4
    assert "two red circles left of a square" in both


def test_a_true_picture_is_right_in_all_it_says():
    for caption in SOME:
        assert right(caption, drawn(caption, RNG)) == list(ASPECTS), caption


def test_a_wrong_picture_is_told_by_what_is_wrong():
    def other(value, values):
        return values[(values.index(value) + 1) % len(values)]

    def opposite(place):
        return list(PLACES)[list(PLACES).index(place) ^ 1]

    for caption in SOME:
        wrong = {
            "count": caption._replace(many=other(caption.many, [1, 2, 3])),
            "colour": caption._replace(colour=other(caption.colour, list(COLOURS))),
            "place": caption._replace(place=opposite(caption.place)),
            "shape": caption._replace(shape=other(caption.shape, SHAPES)),
        }
        for aspect, shown in wrong.items():
            found = right(caption, drawn(shown, RNG))
            assert aspect not in found, (caption, shown)
            if aspect != "colour":  # without a colour nothing is in its place, nor counted
                assert found == [one for one in ASPECTS if one != aspect], (caption, shown)


def test_a_blank_picture_and_an_extra_shape_are_wrong():
    caption = SOME[0]
    picture = drawn(caption, RNG)
    assert right(caption, np.full_like(picture, 244)) == []
    picture[12:16, 12:16] = COLOURS[next(colour for colour in COLOURS if colour != caption.colour)]
    assert "colour" not in right(caption, picture)


def test_latents_are_distances_from_the_background_and_come_back():
    x, codec = torch.rand(2, 3, 28, 28) * 2 - 1, module.identity()
    latents, page = codec.encode(x).latents, torch.tensor(module.BACKGROUND)[:, None, None] / 127.5 - 1
    torch.testing.assert_close(latents * codec.config.scaling_factor, 3 * (x - page), rtol=0, atol=1e-5)
    torch.testing.assert_close(codec.decode(latents).sample, x, rtol=0, atol=4e-3)


def test_words_of_one_place_are_apart_and_unknown_ones_are_refused():
    text, mask = module.Words()(["two red circles left of a square", ""])
    assert mask.tolist() == [[1.0] * 7 + [0.0], [1.0] + [0.0] * 7]
    table = module.Words().table
    torch.testing.assert_close(table @ table.T, torch.eye(32) * 16)
    assert torch.equal(text[0, 0], table[module.WORDS.index("two")] + table[-8])
    with pytest.raises(ValueError, match="got 'purple'"):
        module.Words()(["a purple square"])


def test_the_interval_of_a_share_is_wilson_s():
    found = binomtest(37, 50).proportion_ci(method="wilson")
    assert wilson(37, 50) == pytest.approx((0.74, found.low, found.high), rel=1e-4)


def test_a_way_stands_beside_what_costs_as_much_of_the_model_and_of_the_smaller_one():
    def row(way, cost, flags):
        return {"way": way, "macs": cost, "ms": cost, **dict.fromkeys(ASPECTS[:3], flags)}

    rows = [row(f"model, {steps}, dpm++2m", float(steps), flags) for steps, flags in ((4, "0110"), (8, "1110"))]
    rows += [row(f"small, {steps}, dpm++2m", steps / 8, flags) for steps, flags in ((4, "1000"), (8, "1110"))]
    rows.append(row("retrofit, 4/2", 2.0, "1110"))
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in module.table(rows).splitlines()[2:]]
    shown = {way: ratios for way, _, _, *ratios in lines}
    assert [ratio.split(" ")[0] for ratio in shown.pop("retrofit, 4/2")] == ["4.00", "4.00", "0.500"]
    assert set(map(tuple, shown.values())) == {("", "", "")}


WAYS = (
    Way("model", 2, "dpm++2m", guidance=2.0), Way("small", 2, "ddim"), Way("retrofit", 4, heavy=2),
    Way("consistency", 4), Way("model", 3, cache="none"),
    Way("model", 3, guidance=2.0, cache="taylor", refresh=2), Way("model", 3, cache="taylor", refresh=Verified(1e9)),
)  # fmt: skip


def test_all_stages_run_and_what_is_there_is_not_made_again(tmp_path, monkeypatch, capsys):
    for place, patched in ((text_folder, "read_pipeline"), (diffusers_folder, "KNOWN")):  # the study changes them
        monkeypatch.setattr(place, patched, getattr(place, patched))
    for name, value in {"WAYS": WAYS, "SHOWN_WAYS": WAYS, "BATCH": 4, "AT_ONCE": 4}.items():
        monkeypatch.setattr(module, name, value)
    for name in ("SHOWN", "SHOWN_STEPS"):  # of grids at the end of a training
        monkeypatch.setattr(f"dualrate.runs.train.{name}", 1)
    command = module.dualrate  # another distillation is tested with others, tests/pipelines
    monkeypatch.setattr(module, "dualrate", lambda *words: words[-1] == tmp_path / "moments" or command(*words))
    run = Run(tmp_path, 0.3, count=40, drawn=8, model=Size(5, 2), small=Size(1, 1), share=1.0)
    run.train()
    run.score()
    rows = module.rows_of(tmp_path)
    monkeypatch.setattr(module, "train", None)
    run.network("model", Size(1, 1), 1.0, 1.0)
    run.score()
    assert module.rows_of(tmp_path) == rows
    assert [row["way"] for row in rows] == [str(way) for way in WAYS]
    calls = {row["way"]: (row["heavy"], row["light"]) for row in rows}
    assert calls["model, 3, its pipeline, taylor 2, guidance 2"] == (4, 2)
    assert [row["macs"] for row in rows if "pipeline, taylor V" in row["way"]] < [rows[4]["macs"]]
    capsys.readouterr()
    (tmp_path / "captions.md").write_text("<!-- captions -->\n<!-- end of captions -->\n")
    monkeypatch.setattr(module, "RESULTS", tmp_path)
    module.page(tmp_path)
    listed = module.listed(rows)
    assert len(capsys.readouterr().out.splitlines()) == 2 + len(listed)
    assert len((tmp_path / "captions.md").read_text().splitlines()) == 4 + len(listed)
    assert (tmp_path / "captions-pictures.png").stat().st_size > 1000
