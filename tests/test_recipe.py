"""Recipes: what is refused, in one sentence, and what a sweep makes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from conftest import SMALL
from precede.settings.order import Order, parse_order
from precede.settings.recipe import Recipe, load_recipe, read_recipe, shipped_recipes
from precede.settings.sweep import Variant, sharpening_control


def points(recipe: Recipe) -> list[Variant]:
    """The recipe's own point and its sweep, without the controls of what sharpening gives."""
    return [variant for variant in recipe.variants if len(variant.orders) > 1]


BAD: dict[str, tuple[list[str], str]] = {
    "unknown setting": (["align.betta=0.1"], r"unknown setting 'align\.betta'; did you mean 'beta'\?"),
    "unknown block": (["algin.beta=0.1"], r"no block 'algin' in 'algin\.beta'; did you mean 'align'\?"),
    "unknown top-level key": (["seads=4"], r"unknown key 'seads'; did you mean 'seeds'\?"),
    "wrong type": (["align.beta=much"], r"align\.beta is 'much'"),
    "number as text": (["align.steps=ten"], r"align\.steps is 'ten'"),
    "fraction of a step": (["align.steps=1.5"], r"align\.steps is 1\.5"),
    "beta of 0": (["align.beta=0"], r"align\.beta must be at least 1e-09, not 0"),
    "beta that underflows": (["align.beta=5e-324"], r"align\.beta must be at least 1e-09, not 5e-324"),
    "beta that overflows": (["align.beta=1e308"], r"align\.beta must be at most 1e\+09, not 1e\+308"),
    "noise that underflows": (
        ["align.preference.scale=1e-320"],
        r"align\.preference: scale must be 0 or at least 1e-09",
    ),
    "billion steps": (["align.steps=1000000000"], r"align\.steps must be at most 10,000,000, not 1000000000"),
    "billion modes": (["world.layout=ring", "world.modes=1000000000"], r"world\.modes must be at most 1,000, not 1000"),
    "steep weights": (["world.zipf_exponent=1e300"], r"world\.zipf_exponent must be at most 20, not 1e\+300"),
    "covariance that underflows": (
        ["world.covariance=[[1, 0], [0, 1e-320]]"],
        r"covariance must be symmetric and positive definite, of eigenvalues from 1e-09",
    ),
    "billion seeds": (["seeds=1000000000"], r"seeds must be a number of seeds above 0 and up to 100,000"),
    "endless seed": (["seeds=[18446744073709551616]"], r"seeds must be .* whole numbers from 0 and below 2\*\*63"),
    "sweep of a million": (
        ["sweep={align.beta: [%s], align.steps: [%s]}" % ((",".join(map(str, range(1, 1001))),) * 2)],
        r"the recipe asks for 1,000,001 settings and 8,000,008 runs .*; sweep fewer values, or take fewer seeds",
    ),
    "endless order": (
        [f"orders=[{' > '.join(['align'] * 10_000)}]"],
        r"the order 'align > align > align > align …' has 10,000 stages, and 100 are the most",
    ),
    "endless path": ([f"align{'.align' * 3000}=1"], r"settings lie more than 20 deep in one another"),
    "kind that is a list": (
        ["align.kind=[align]"],
        r"align\.kind is '\['align'\]', but stages of the mixture world are",
    ),
    "name of the folder above": (["recipe=.."], r"recipe must be a name of .* that begins with a letter or a digit"),
    "name of a hidden folder": (["recipe=.runs"], r"recipe must be a name of .* that begins with a letter or a digit"),
    "stage whose name no folder has": ([f"{'a' * 300}={{kind: align}}"], r"is not a stage's name; use at most 100"),
    "teacher that is no block": (["teacher=false"], r"teacher must be a mapping of settings, not bool"),
    "description that is no text": (["description={a: 1}"], r"description must be a text, not a mapping"),
    "negative beta": (["align.beta=-1"], r"align\.beta must be at least 1e-09, not -1"),
    "infinite beta": (["align.beta=.inf"], r"align\.beta"),
    "beta not a number": (["align.beta=.nan"], r"align\.beta is nan: input should be a finite number"),
    "temperature of 0": (["distill.temperature=0"], r"distill\.temperature must be at least 1e-09, not 0"),
    "negative temperature": (["distill.temperature=-0.5"], r"distill\.temperature must be at least 1e-09, not -0\.5"),
    "unknown order word": (["orders=[align > distil]"], r"unknown stage 'distil'; the stages are align, distill"),
    "empty place in an order": (["orders=['align > > distill']"], r"has an empty place"),
    "order twice": (["orders=[align > distill, align>distill]"], r"the same order twice"),
    "orders not a list": (["orders=3"], r"orders must be a list"),
    "student larger than the data allow": (
        ["distill.components=200"],
        r"distill: 200 components need at least 600 samples, 3 each, but samples is 300",
    ),
    "teacher larger than the data allow": (["teacher.components=300"], r"300 components need at least 900 samples"),
    "unknown method": (["align.method=grpo"], r"align\.method is 'grpo', but it must be 'ppo', 'dpo' or 'exact'"),
    "unknown pairs": (["align.pairs=mixed"], r"align\.pairs is 'mixed', but it must be 'on_policy' or 'off_policy'"),
    "unknown reference": (["align.reference=truth"], r"must be 'self' or 'teacher'"),
    "unknown world": (["world.kind=grid"], r"world\.kind is 'grid', but the worlds are mixture, grammar, text"),
    "stage of a kind the world lacks": (
        ["warm={kind: sft}"],
        r"warm\.kind is 'sft', but stages of the mixture world are",
    ),
    "wrong number of modes": (["world.modes=7"], r"layout 'grid' has 8 modes, not 7"),
    "target that does not exist": (["world.target_modes=[8]"], r"target_modes must lie between 0 and 7"),
    "target twice": (["world.target_modes=[1, 1]"], r"names a mode twice"),
    "everything is target": (["world.layout=ring", "world.modes=2", "world.target_modes=[0, 1]"], r"names every mode"),
    "target weight of 1": (["world.target_weight=1"], r"world\.target_weight must be below 1, not 1"),
    "covariance not positive": (["world.covariance=[[1, 2], [2, 1]]"], r"symmetric and positive definite"),
    "flip rate above a half": (["align.preference.flip_rate=0.7"], r"flip_rate must be at most 0\.5, not 0\.7"),
    "no seeds": (["seeds=0"], r"seeds must be a number of seeds above 0"),
    "seed twice": (["seeds=[1, 1]"], r"seeds names a seed twice"),
    "seeds as text": (["seeds=many"], r"seeds must be"),
    "sweep not a list": (["sweep={align.beta: 0.1}"], r"sweep\.align\.beta must be a list of values, not a number"),
    "sweep of nothing": (["sweep={align.beta: []}"], r"sweep\.align\.beta must be a list of values"),
    "sweep of the seeds": (["sweep={seeds: [1, 2]}"], r"sweep names 'seeds', which is not the path of a setting"),
    "sweep of an unknown setting": (["sweep={align.bet: [1]}"], r"unknown setting 'align\.bet'"),
    "bad value in a sweep": (["sweep={align.beta: [0.1, -2]}"], r"align\.beta must be at least 1e-09, not -2"),
    "covariance not finite": (["world.covariance=[[.nan, 0], [0, 1]]"], r"covariance must be finite"),
    "negative variance": (["world.covariance=-1"], r"world\.covariance must be at least 1e-09, not -1"),
    "key that is no word": (["align={[1]: 2}"], r"is not valid YAML in line 1: a key must be a word"),
    "date that is none": (["align.beta=2020-13-45"], r"--set align\.beta=2020-13-45 is not valid YAML"),
    "default teacher too large": (
        ["world.layout=ring", "world.modes=200", "world.target_modes=[1]"],
        r"teacher: 200 components need at least 600 samples, 3 each, but samples is 400",
    ),
    "set without a value": (["align.beta"], r"--set takes path\.to\.key=value, not 'align\.beta'"),
    "set to broken YAML": (["align.beta=[1"], r"--set align\.beta=\[1 is not valid YAML"),
    "a stage that is not a block": (["align=5"], r"align must be a mapping of settings, not a number"),
}


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(SMALL), "utf-8")
    return path


@pytest.mark.parametrize("case", BAD)
def test_bad_recipes_are_refused_in_one_sentence(case: str, written: Path) -> None:
    overrides, pattern = BAD[case]
    with pytest.raises(ValueError, match=pattern) as caught:
        load_recipe(str(written), overrides)
    assert "\n" not in str(caught.value)
    assert "validation error" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("align: {beta: 1", r"is not valid YAML in line"),
        ("- a\n- b\n", r"must be a mapping of settings, not a list"),
        ("world: {kind: mixture}\nworld: {kind: text}\n", r"the key 'world' stands twice"),
        ("world: {kind: mixture}\norders: [polish]\n", r"has no stages"),
        ("world: 3\nalign: {}\n", r"world\.kind is missing"),
        ("world: {kind: mixture}\nalign: {}\ndistill: {}\nrecipe: ../x\n", r"recipe must be a name"),
        ("world: {kind: text}\nteacher: {}\nalign: {}\ndistill: {}\n", r"there are no prompts"),
        ("world: {kind: text, prompt: The}\nstudent: {keep_layers: 2}\n", r"there is no teacher; name one"),
        ("world: {kind: text, prompt: The}\ndata: pairs.jsonl\n", r"give either data or world\.prompt, not both"),
        ("", r"must be a mapping of settings, not nothing"),
    ],
)
def test_bad_files(text: str, pattern: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text, "utf-8")
    with pytest.raises(ValueError, match=pattern):
        load_recipe(str(path))


def test_one_order_may_be_a_text(written: Path) -> None:
    assert list(load_recipe(str(written), ["orders=align > distill"]).orders) == [Order(("align", "distill"))]


def test_missing_file_names_the_recipes(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError,
        match=r"there is no recipe .*none\.yaml; give a YAML file or one of audit-grammar, grammar, grammar-full, grammar-",
    ):
        load_recipe(str(tmp_path / "none.yaml"))
    with pytest.raises(ValueError, match="is a folder"):
        load_recipe(str(tmp_path))
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="cannot be read"):
        load_recipe(str(tmp_path / "binary.yaml"))


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes_are_valid_and_named_as_their_files(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.description


@pytest.mark.parametrize("name", shipped_recipes())
def test_resolved_recipe_reads_back_as_itself(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    path = tmp_path / "again.yaml"
    path.write_text(yaml.safe_dump(recipe.resolved, sort_keys=False, allow_unicode=True), "utf-8")
    again = load_recipe(str(path))
    assert again.resolved == recipe.resolved
    assert again.variants == recipe.variants


def with_sweep(sweep: Any) -> dict[str, Any]:
    raw = copy.deepcopy(SMALL)
    raw["sweep"] = sweep
    return raw


def test_sweep_is_a_grid_and_grids_add_up() -> None:
    grid = read_recipe(with_sweep({"align.beta": [0.1, 0.2], "distill.temperature": [0.5, 0.7, 1.0]}))
    assert len(points(grid)) == 6  # the recipe's own point is one of them
    both = read_recipe(with_sweep([{"align.beta": [0.1, 0.2]}, {"distill.temperature": [0.7]}]))
    assert [(v.settings["align.beta"], v.settings["distill.temperature"]) for v in points(both)] == [
        (0.1, 0.5),
        (0.2, 0.5),
        (0.1, 0.7),
    ]


def test_settings_that_a_method_does_not_read_make_no_variants() -> None:
    recipe = read_recipe(with_sweep({"align.method": ["ppo", "dpo"], "align.pairs": ["on_policy", "off_policy"]}))
    assert [(v.settings["align.method"], v.settings["align.pairs"]) for v in points(recipe)] == [
        ("ppo", None),
        ("dpo", "on_policy"),
        ("dpo", "off_policy"),
    ]
    assert "clip" in recipe.variants[0].stages["align"]
    assert "clip" not in recipe.variants[1].stages["align"]


def test_world_and_teacher_can_be_swept() -> None:
    recipe = read_recipe(with_sweep({"world.target_weight": [0.02, 0.1], "teacher.samples": [400, 500]}))
    assert len(points(recipe)) == 4
    assert {v.settings["world.target_weight"] for v in recipe.variants} == {0.02, 0.1}


def test_stages_under_names_of_their_own(written: Path) -> None:
    recipe = load_recipe(
        str(written), ["polish={kind: align, method: dpo}", "sweep=[]", "orders=[align > distill > polish]"]
    )
    assert recipe.orders == [Order(("align", "distill", "polish"))]
    assert recipe.variants[0].settings["polish.method"] == "dpo"


def test_sweep_can_be_set_by_path_and_blocks_may_be_empty(tmp_path: Path) -> None:
    path = tmp_path / "bare.yaml"
    path.write_text("world: {kind: mixture}\nalign:\ndistill:\nseeds: 2\n", "utf-8")
    recipe = load_recipe(str(path), ["sweep.align.beta=[0.1, 0.2]", "teacher.samples=500"])
    assert [variant.settings["align.beta"] for variant in points(recipe)] == [0.1, 0.2]
    assert recipe.variants[0].teacher["samples"] == 500
    with pytest.raises(ValueError, match="the recipe sweeps a list of grids"):
        load_recipe("mixture", ["sweep.align.beta=[0.1]"])


def test_deep_nesting_and_long_names_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "deep.yaml"
    path.write_text("[" * 5000, "utf-8")
    with pytest.raises(ValueError, match="is not valid YAML"):
        load_recipe(str(path))
    with pytest.raises(ValueError, match="has a part of more than 255 characters, and no file has such a name"):
        load_recipe("x" * 300)


def test_numbers_in_exponent_notation_are_numbers(written: Path) -> None:
    recipe = load_recipe(str(written), ["align.learning_rate=1e-3", "sweep=[]"])
    assert recipe.variants[0].stages["align"]["learning_rate"] == 0.001


def test_order_text_round_trip() -> None:
    order = parse_order("  a>b   > a ", {"a", "b"})
    assert str(order) == "a > b > a"
    assert parse_order(str(order), {"a", "b"}) == order


@pytest.mark.parametrize("value", ["'8'", "0", "1.5", "true"])
def test_accumulated_batches_are_a_whole_number(value: str) -> None:
    with pytest.raises(ValueError, match=r"align\.trainer: gradient_accumulation_steps must be a whole number from 1"):
        load_recipe("grammar", [f"align.trainer.gradient_accumulation_steps={value}", "sweep=[]"])


def test_every_pair_of_orders_has_its_sharpening_matched_control() -> None:
    """At τ = 0.5 the other order alone at half the price; a price that is swept already is no variant of its own."""
    exact = {**SMALL, "align": {"method": "exact"}}
    recipe = read_recipe({**exact, "sweep": [{"align.beta": [0.1, 0.2], "distill.temperature": [1.0]}]})
    controls = [variant for variant in recipe.variants if len(variant.orders) == 1]
    assert [(v.settings["align.beta"], v.settings["distill.temperature"]) for v in controls] == [(0.05, 0.5)]
    assert [str(order) for order in controls[0].orders] == ["distill > align"]
    assert not controls[0].own
    swept = read_recipe({**exact, "sweep": [{"align.beta": [0.05]}]})
    assert [(v.settings["align.beta"], len(v.orders)) for v in swept.variants] == [(0.1, 2), (0.05, 2), (0.025, 1)]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {"align.beta": 0.05}),
        ({"distill": {"temperature": 1.0}}, None),
        ({"align": {"reference": "teacher"}}, None),
        ({"distill": {"temperature": 0.7}, "align": {"beta": 0.3}}, {"align.beta": 0.21}),
        ({"polish": {"kind": "align"}, "orders": ["align > distill > polish", "distill > align > polish"]}, None),
        ({"polish": {"kind": "align"}, "orders": ["align > distill", "distill > polish"]}, None),
        (
            {
                "again": {"kind": "distill", "temperature": 0.7},
                "orders": ["align > distill > again", "distill > again > align"],
            },
            {"align.beta": 0.035},
        ),
    ],
)
def test_where_there_is_a_control(changes: dict[str, Any], expected: dict[str, float] | None) -> None:
    raw = {**SMALL, "sweep": [], "align": {"method": "exact"}, "distill": {}} | changes
    own = read_recipe(raw).variants[0]
    assert sharpening_control(own.stages, own.orders[0], own.orders[1]) == expected
    assert sharpening_control(own.stages, own.orders[1], own.orders[0]) is None


def text(*overrides: str, **blocks: Any) -> Recipe:
    raw = {"teacher": "t", "student": {"keep_layers": 3}, "data": "pairs.jsonl", "world": {"reward": "hedge"}, **blocks}
    return load_recipe(raw, overrides)


def test_settings_of_the_data_name_the_points_of_their_sweep() -> None:
    recipe = text('sweep={"data.limit": [100, 200]}')
    assert [variant.settings["data.limit"] for variant in points(recipe)] == [None, 100, 200]


def test_numbers_of_numpy_may_be_swept() -> None:
    recipe = text(sweep={"align.beta": list(np.geomspace(0.05, 1, 3))})
    assert [grid["align.beta"] for grid in yaml.safe_load(yaml.safe_dump(recipe.resolved))["sweep"]] == [
        pytest.approx([0.05, 0.2236068, 1.0])
    ]


@pytest.mark.parametrize(
    ("overrides", "blocks", "pattern"),
    [
        (["sweep=3"], {}, r"sweep must be a mapping"),
        (["sweep={align.beta: [2020-01-01]}"], {}, r"sweep holds a value that is no number"),
        (
            ["align.method=rloo", "align.trainer.per_device_train_batch_size=4"],
            {},
            r"a step of 4 .* no multiple of the 8",
        ),
        (["align.method=kto", "align.trainer.per_device_train_batch_size=1"], {}, r"align: kto needs 2 rows at once"),
    ],
)
def test_what_would_stop_a_run_late_is_said_at_once(overrides: list[str], blocks: dict[str, Any], pattern: str) -> None:
    with pytest.raises(ValueError, match=pattern):
        text(*overrides, **blocks)


def test_a_world_may_be_named_in_short() -> None:
    assert text(world="text").variants[0].world["kind"] == "text"


def test_a_flag_finds_the_align_stage_by_whatever_name() -> None:
    raw = {"teacher": "t", "data": "pairs.jsonl", "student": {"keep_layers": 3}}
    named = raw | {"prefer": {"kind": "align"}, "orders": ["prefer > distill", "distill > prefer"]}
    recipe = load_recipe(named, flags={"align.beta": 0.5})
    assert recipe.variants[0].stages["prefer"]["beta"] == 0.5
    assert "align" not in recipe.variants[0].stages
    with pytest.raises(ValueError, match=r"several stages of kind align \(prefer, polish\); use --set STAGE\.beta"):
        load_recipe(named | {"polish": {"kind": "align"}}, flags={"align.beta": 0.5})
