"""Recipes by name, and help that leaves groups within groups out."""

import os
from dataclasses import fields

import pytest
from cli.command import call

from dualrate.cli.demo import Demo
from dualrate.cli.distill import parse_distill
from dualrate.cli.sample import Sample
from dualrate.cli.train import parse_train
from dualrate.comparison.candidates import _planned
from dualrate.options.parsing import _outer, parse, recipe_named, recipe_result
from dualrate.pipelines.command import Retrofit, parse_retrofit
from dualrate.pipelines.recipe import RetrofitRecipe
from dualrate.recipes.tasks import task_named
from dualrate.sampling.catalogue import at_gamma
from dualrate.sampling.grids import check_grid

RECIPES = {"one": lambda: 1}


@pytest.mark.parametrize(("arguments", "code"), [([], 2), (["--help"], 0), (["-h"], 0), (["--help-all"], 0)])
@pytest.mark.parametrize("parse", [parse_train, parse_distill])
def test_without_a_recipe_they_are_listed(parse, arguments, code, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse(arguments)
    assert stopped.value.code == code
    listed = capsys.readouterr().out
    assert "auto" in listed
    assert "package.module:function" in listed


@pytest.mark.parametrize(("arguments", "code"), [([], 2), (["--data.source", "x"], 2), (["--help"], 0)])
def test_without_a_model_to_retrofit_the_usage_is_told(arguments, code, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse_retrofit(arguments)
    assert stopped.value.code == code
    assert "usage: dualrate retrofit FOLDER" in capsys.readouterr().out


def test_a_retrofit_has_one_way_to_train():
    assert "by" not in {field.name for field in fields(Retrofit)}


@pytest.mark.parametrize(
    ("options", "iterations"),
    [
        (["--fit.max-seconds", "60"], None),
        (["--fit.max_seconds=60"], None),
        (["--fit.max-seconds", "60", "--fit.iterations", "5"], 5),
        (["--fit.iterations=5"], 5),
    ],
)
def test_seconds_without_iterations_are_all_that_ends_a_training(options, iterations):
    trained = parse_train(["fashion-mnist-light", *options])
    student = parse_distill(["fashion-mnist", "--teacher", "x", *options])
    assert trained.experiment.fit.iterations == student.recipe.fit.iterations == iterations
    stages = parse_train(["fashion-mnist-latents", *(option.replace("--", "--base.") for option in options)]).stages
    assert stages.base.fit.iterations == iterations
    assert stages.first.fit.iterations is not None


def test_a_recipe_is_ours_or_of_another_package():
    assert recipe_named("one", RECIPES, "train") is RECIPES["one"]
    assert recipe_named("time:time", {}, "train")() > 0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("two", "there is no recipe 'two': `dualrate train` lists them"),
        ("math:pi", "math:pi is no recipe: expected a function, got 3.14"),
    ],
)
def test_a_name_that_is_no_recipe_s_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        recipe_named(name, RECIPES, "train")


def test_what_a_recipe_returns_is_looked_at():
    assert recipe_result(3, int, "mine:three") == 3
    with pytest.raises(ValueError, match="the recipe mine:three returns str, expected int"):
        recipe_result("3", int, "mine:three")


HELP = """usage: dualrate train

╭─ options ────╮
│ --out OUT    │
╰──────────────╯
╭─ fit options ─╮
│ --fit.seed    │
╰───────────────╯
╭─ networks.model options ─╮
│ --networks.model.patch   │
╰──────────────────────────╯
╭─ networks.model.levels.0 options ─╮
│ --networks.model.levels.0.kind    │
╰───────────────────────────────────╯
╭─ data options ─╮
│ --data.size    │
╰────────────────╯
"""


def test_groups_within_groups_are_left_out_of_help_and_named():
    head, tail = HELP.split("╭─ networks.model options")[0], "╭─ data" + HELP.split("╭─ data")[1]
    assert _outer(HELP) == head + tail + "\nMore: --networks.model.*. --help-all shows these too.\n"
    assert _outer(head + tail) == head + tail
    bare = " options \n   --out\n\n networks.model options \n   --patch\n\n data options \n   --size\n"
    assert _outer(bare).startswith(" options \n   --out\n\n data options \n   --size\n\nMore: --networks.model.*.")


def test_a_wide_terminal_has_the_help_of_a_narrow_one(monkeypatch, capsys):
    """Where tyro would put groups side by side, no line of another group is left out."""
    shown = {}
    for columns in ("100", "160", "200"):
        monkeypatch.setenv("COLUMNS", columns)
        assert call(monkeypatch, "train", "fashion-mnist-dual-45", "--help") == 0
        shown[columns] = capsys.readouterr().out
    assert all(f"--data.{name}" in shown["200"] for name in ("source", "size", "channels", "on-bad", "label"))
    assert shown["100"] == shown["160"] == shown["200"]


@pytest.mark.parametrize("option", ["--steps", "--num", "--guidance", "--seed"])
def test_numbers_are_written_in_the_digits_0_to_9(option):
    assert parse(Sample, ["run", "--out", "x", "--num", "12"], "sample").num == 12
    with pytest.raises(ValueError, match=r"is a (whole )?number .*got '\uff11\uff12'"):
        parse(Sample, ["run", "--out", "x", option, "\uff11\uff12"], "sample")


@pytest.mark.parametrize(
    ("read", "text"),
    [
        (task_named, "super-resolution:\uff14"),
        (at_gamma, "ancestral:\uff10.5"),
        (check_grid, "blend:\uff10.5"),
        (_planned, "\u0663\u0662/\u0668"),
    ],
)
def test_numbers_within_texts_too(read, text):
    with pytest.raises(ValueError, match=r"got|no grid|no plan|no noise level"):
        read(text)


PLACES = {
    "MODEL": "--networks.model.levels.0.channels",
    "LIGHT": "fashion-mnist-light",
    "DUAL": "fashion-mnist-dual-45",
    "LISTS": "--help` lists them",
}
ONE_LINE = [
    (
        "train LIGHT --fit.precision float23",
        "--fit.precision is auto, bfloat16 or float32, got 'float23' (did you mean float32?)",
    ),
    (
        "train auto --data.source . --rate dul",
        "--rate is both, dual, light, medium, single or None, got 'dul' (did you mean dual?)",
    ),
    (
        "train DUAL --networks.light.levels.0.kind convv",
        "--networks.light.levels.0.kind is conv or transformer, got 'convv' (did you mean conv?)",
    ),
    ("demo --minutes", "--minutes takes a value, and none follows: `dualrate demo --help` says which"),
    (
        "train DUAL --method.times.heavy 3",
        "--method.times.heavy takes 2 values, and fewer follow: `dualrate train DUAL --help` says which",
    ),
    ("demo --minutes soon", "minutes is a number above 0 and at most 1,000,000, or None, got 'soon'"),
    (
        "train DUAL --method.times.heavy few many",
        "heavy is 2 values, each a whole number from 1 to 100,000, got ('few', 'many')",
    ),
    ("sample RUN --out out --num 4 5", "no option takes '5': `dualrate sample LISTS"),
    ("sample RUN --out out --compile=maybe", "--compile takes no value, got 'maybe': `dualrate sample LISTS"),
    ("train LIGHT --window leads", "there is no option --window: `dualrate train LIGHT LISTS"),
    (
        "train LIGHT --networks.light.channels 4",
        "there is no option --networks.light.channels (did you mean MODEL?): `dualrate train LIGHT LISTS",
    ),
    ("train LIGHT --out " + "long/" * 40 + "er and more", "no option takes 'and': `dualrate train LIGHT LISTS"),
]


@pytest.mark.parametrize(("line", "says"), ONE_LINE)
def test_what_the_parser_refuses_is_one_line_with_what_to_do(line, says, monkeypatch, capsys):
    """An invalid choice, a value that is missing or that none takes, and an option that there is not."""
    for short, text in PLACES.items():
        line, says = line.replace(short, text), says.replace(short, text)
    assert call(monkeypatch, *line.split()) == 2
    assert capsys.readouterr().err == f"dualrate: {says}\n"


def test_a_recipe_s_option_is_meant_where_the_recipe_has_taken_its_options(monkeypatch, capsys):
    with pytest.raises(ValueError, match=r"no option --shar \(did you mean --share\?\)"):
        parse(Demo, ["--shar", "0.5"], "dualrate retrofit FOLDER", beside=RetrofitRecipe())


def test_the_width_of_a_terminal_is_left_as_it_was(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    with pytest.raises(ValueError, match="--minutes takes a value"):
        parse(Demo, ["--minutes"], "dualrate demo")
    assert "COLUMNS" not in os.environ
