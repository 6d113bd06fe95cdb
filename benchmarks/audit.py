"""What the audit's numbers are worth: typicality on models' own samples, and verdicts against what alignment then reached.

    python benchmarks/audit.py [all | typicality calibration] [--store FOLDER] [--workers N] [--cases FILE] [--write]

`typicality` samples SmolLM2-135M-Instruct and the same model with 24 of its 30 layers at two lengths, scores the samples and
tests z against N(0, 1). `calibration` runs the recipe `audit-grammar` (finished stages are taken from the store), audits each
of its 72 references with the teacher and the exact reward, and writes what it found, and the target mass that alignment reached
in both orders, to `CASES`; `--cases` reads such a file instead. From the cases it chooses the thresholds of the verdict's
rules, on worlds of even number, and says what predictions and verdicts are worth on those of odd number. `--write` puts the
result into docs/audit-calibration.md and docs/figures/calibration.svg.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from scipy import stats

from calibration import Case, read, save
from calibration_page import draw, page
from precede.data.preferences import Preference, PreferenceData
from precede.evaluate.audit import audit
from precede.evaluate.signals import side
from precede.files import cache_folder
from precede.jobs.compare import compare, prepare
from precede.models.load import BUNDLED, load, remove_layers
from precede.plan import Node, Plan
from precede.sampling import prompt_ids, sample, texts
from precede.scoring.logprobs import score
from precede.settings.recipe import load_recipe
from precede.store import Store
from precede.worlds.grammar.chains import EOS
from precede.worlds.grammar.world import PROMPT

ROOT = Path(__file__).resolve().parent.parent
PAIRS, SAMPLES = 256, 16
"""Pairs of each reference's audit, and samples drawn for each."""
OUT = Path("runs/audit-grammar")
CASES = OUT / "cases.json"
PAGE, FIGURE = ROOT / "docs" / "audit-calibration.md", ROOT / "docs" / "figures" / "calibration.svg"


def typicality(count: int = 200, lengths: Sequence[int] = (32, 128)) -> list[str]:
    lines = ["| model | tokens | samples | mean z | sd of z | KS distance | KS p |", "| --- " * 7 + "|"]
    model, tokenizer = load(BUNDLED)
    prompt = prompt_ids(tokenizer, "The")
    for name, network in (("SmolLM2-135M-Instruct", model), ("24 of its 30 layers", remove_layers(model, 24))):
        for length in lengths:
            rows = sample(network, tokenizer, prompt, count, max_new_tokens=length, seed=length, batch_size=50)
            z = side([found[0] for found in score(network, [prompt] * count, [[row] for row in rows])]).typicality
            test = stats.kstest(z, "norm")
            numbers = f"{z.mean():+.2f} | {z.std(ddof=1):.2f} | {test.statistic:.3f} | {test.pvalue:.2f}"
            lines.append(f"| {name} | {length} | {len(z)} | {numbers} |")
            tell(lines[-1])
    return lines


def tell(text: str) -> None:
    print(text, flush=True)


def cases(store_folder: Path, workers: int | None) -> list[Case]:
    recipe = load_recipe("audit-grammar")
    compare(recipe, store=store_folder, workers=workers, out=OUT, tell=tell)
    store, (worlds, plan, _) = Store(store_folder), prepare(recipe, store_folder)
    ends: dict[tuple[str, int], dict[str, Node]] = {}
    for arm in plan.arms:
        for chain in arm.blocks:
            (seed,) = chain[-1].seeds
            ends.setdefault((repr(sorted(arm.settings.items())), seed), {})[str(arm.order)] = chain[-1]
    found = []
    for number, orders in enumerate(ends.values()):
        last, other = orders["distill > align"], orders["align > distill"]
        found.append(case(store, plan, worlds[last.variant], last, other))
        predicted = found[-1].numbers["achievable_mass"].value
        tell(f"{number + 1} of {len(ends)}: {found[-1].verdict}, {predicted:.3f}, {found[-1].realised:.3f}")
    save(found, CASES)
    return found


def case(store: Store, plan: Plan, world: Any, last: Node, other: Node) -> Case:
    reference, teacher, (seed,) = last.edges["parent"], last.root(), last.seeds
    chains, words = world.chains(seed), world.tokenizer(teacher)
    streams = [torch.Generator().manual_seed(million * 1_000_000 + seed) for million in (1, 2)]
    rows = chains.sample(20 * PAIRS, streams[0])[0]
    good = chains.sample(PAIRS, streams[1], chains.target_modes)[0]
    rest = [row for row, reward in zip(rows, chains.target_posterior(rows).tolist(), strict=True) if reward < 0.5]

    def text(row: Sequence[int]) -> str:
        return texts(words, PROMPT.prompt, [row])[0]

    pairs = [
        Preference(place + 1, PROMPT.prompt, list(a), list(b), "", text(a), text(b))
        for place, (a, b) in enumerate(zip(good, rest[:PAIRS], strict=True))
    ]

    def reward(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
        ids = [words.convert_tokens_to_ids(completion.split()) for completion in completions]
        length = world.config["max_new_tokens"]
        ended = [row if len(row) == length else [*row, EOS] for row in ids]
        values: list[float] = chains.target_posterior(ended).tolist()
        return values

    judged = audit(
        world.folder(reference, store),
        PreferenceData("the truth", pairs, [], []),
        teacher=world.folder(teacher, store),
        reward=reward,
        target_reward=world.config["target_reward"],
        beta=last.config["beta"],
        samples=SAMPLES,
        max_new_tokens=world.config["max_new_tokens"],
        seed=seed,
    )
    masses = [store.metrics(plan.measures[model.key])["target_mass"][0] for model in (last, other)]
    assert masses[0] is not None
    assert masses[1] is not None
    (candidate,) = judged.candidates
    assert judged.teacher_numbers is not None
    settings = {
        "weight": world.config["target_weight"],
        "temperature": reference.config["temperature"],
        "hidden_size": reference.edges["student"].config["hidden_size"],
    }
    return Case(
        seed=seed,
        world=seed % world.config["worlds"],
        settings=settings,
        beta=last.config["beta"],
        advantage=judged.settings["advantage"],
        numbers=candidate.numbers,
        teacher=judged.teacher_numbers,
        verdict=candidate.verdict.level,
        realised=masses[0],
        other=masses[1],
    )


def calibration(found: Sequence[Case], write: bool) -> list[str]:
    lines = page(found)
    print("\n".join(lines))
    if write:
        draw(found, FIGURE)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=["all", "typicality", "calibration"], default="all")
    parser.add_argument("--store", type=Path, default=cache_folder() / "stages", help="where the stages are")
    parser.add_argument("--workers", type=int, help="processes that run stages")
    parser.add_argument("--cases", type=Path, help="a file of cases, instead of training and auditing")
    parser.add_argument("--write", action="store_true", help="write the page and the figure in docs/")
    options = parser.parse_args()
    parts = ("typicality", "calibration") if "all" in options.parts else options.parts
    for part in parts:
        if part == "typicality":
            lines = typicality()
        else:
            found = read(options.cases) if options.cases else cases(options.store, options.workers)
            lines = calibration(found, options.write)
        if options.write:
            text = PAGE.read_text("utf-8")
            begin, end = (text.index(f"<!-- {part}: {word} -->") for word in ("begin", "end"))
            begin += len(f"<!-- {part}: begin -->")
            PAGE.write_text(text[:begin] + "\n" + "\n".join(lines) + "\n" + text[end:], "utf-8")


if __name__ == "__main__":
    main()
