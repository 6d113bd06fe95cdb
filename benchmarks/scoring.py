"""The pair scorer's speed and memory against what people use, in one run: SmolLM2-135M-Instruct, fp32, every core.

    python benchmarks/scoring.py [--pairs 64] [--data FILE] [--methods ours padded lm-eval trl] [--quick]

Each method scores the same chosen and rejected completions in a fresh process, after a warm-up on two pairs; loading and
tokenising are not timed (`lm-eval` tokenises inside, thousandths of its time). `padded` is what users write: 8 pairs a
batch as they come, chosen and rejected in one batch padded on the right, all logits, one log-softmax. `lm-eval` is
`HFLM.loglikelihood` with a batch of 8 (its `auto` tries batches of the model's whole context, which no CPU holds). `trl` is
DPOTrainer's `precompute_ref_log_probs` at its default batch, 8 pairs. Ours gives entropies and varentropies too.

Peak memory is the process's high-water mark (VmHWM) while it scores, weights included. The floor is 2 FLOPs per weight that
a token goes through (the head only where a token is scored) at the rate of a square fp32 matrix product, measured in the same
process as ours. Pairs are HH-RLHF's (`--data`, JSON lines with `chosen` and `rejected`), else sampled from the model.
`--quick` only shows that the parts work: its sizes are too small to mean anything.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import json
import logging
import os
import platform
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import cpu_count, get_context
from pathlib import Path
from typing import Any

import torch

from precede.libraries import datasets, quiet, transformers, trl
from precede.models.load import BUNDLED, load
from precede.sampling import prompt_ids, sample, texts
from precede.scoring.logprobs import score, scoring_path

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "hh-harmless-1500.jsonl.gz"
TURN = "\n\nAssistant:"
PROMPTS = [
    "The",
    "Once upon a time",
    "In 1969",
    "A recipe for bread:",
    "Dear Sir,",
    "Water boils when",
    "She said",
    "def ",
]

Texts = list[tuple[str, str, str]]
"""Prompt, chosen, rejected."""
Pair = tuple[list[int], list[list[int]]]
"""Ids of a prompt, and of both completions with their EOS."""


def read_pairs(path: Path, count: int) -> Texts:
    """The first pairs of a file, split behind the last turn of the assistant that both sides share."""
    found: Texts = []
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
        for line in lines:
            chosen, rejected = (json.loads(line)[side] for side in ("chosen", "rejected"))
            place = chosen.rfind(TURN) + len(TURN)
            prompt, sides = chosen[:place], (chosen[place:], rejected[place:])
            if prompt == rejected[:place] and all(side.strip() for side in sides) and sides[0] != sides[1]:
                found.append((prompt, *sides))
            if len(found) == count:
                break
    return found


def sample_pairs(count: int) -> Texts:
    model, tokenizer = load(BUNDLED)
    each = -(-count // len(PROMPTS))
    found: Texts = []
    for prompt in PROMPTS:
        ids = prompt_ids(tokenizer, prompt)
        written = texts(tokenizer, ids, sample(model, tokenizer, ids, 2 * each, max_new_tokens=128, seed=0))
        found += [(prompt, f" {a}", f" {b}") for a, b in zip(written[::2], written[1::2], strict=True)]
    return found[:count]


def encode(tokenizer: Any, pairs: Texts) -> list[Pair]:
    """The joined text is tokenised, and cut behind the prompt's tokens."""
    found = []
    for prompt, *sides in pairs:
        ids = prompt_ids(tokenizer, prompt)
        joined = [tokenizer(prompt + side)["input_ids"] for side in sides]
        assert all(row[: len(ids)] == ids for row in joined)
        found.append((ids, [[*row[len(ids) :], tokenizer.eos_token_id] for row in joined]))
    return found


Method = Callable[[Any, Any, Texts], Callable[[], list[list[float]]]]
"""Takes what is loaded and gives the function to be timed; that gives the summed log-probs of chosen and rejected."""


def ours(model: Any, tokenizer: Any, pairs: Texts) -> Callable[[], list[list[float]]]:
    ids = encode(tokenizer, pairs)

    def run() -> list[list[float]]:
        scores = score(model, [prompt for prompt, _ in ids], [rows for _, rows in ids])
        return [[entry.logp for entry in group] for group in scores]

    return run


def padded(model: Any, tokenizer: Any, pairs: Texts) -> Callable[[], list[list[float]]]:
    ids, size = encode(tokenizer, pairs), 8

    def batch(part: list[Pair]) -> list[list[float]]:
        rows = [(prompt, sides[side]) for side in range(2) for prompt, sides in part]
        width = max(len(prompt) + len(row) for prompt, row in rows)
        inputs, attention, loss = (torch.zeros(len(rows), width, dtype=torch.long) for _ in range(3))
        for place, (prompt, row) in enumerate(rows):
            length = len(prompt) + len(row)
            inputs[place, :length] = torch.tensor(prompt + row)
            attention[place, :length] = 1
            loss[place, len(prompt) : length] = 1
        with torch.no_grad():
            logits = model(input_ids=inputs, attention_mask=attention).logits
            logps = logits[:, :-1].log_softmax(-1).gather(2, inputs[:, 1:, None])[..., 0]
        sums = (logps * loss[:, 1:]).sum(-1)
        return sums.view(2, -1).T.tolist()

    return lambda: [sums for begin in range(0, len(ids), size) for sums in batch(ids[begin : begin + size])]


def lm_eval(model: Any, tokenizer: Any, pairs: Texts) -> Callable[[], list[list[float]]]:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8, device="cpu")
    end = tokenizer.eos_token
    requests = [
        Instance(request_type="loglikelihood", doc={}, arguments=(prompt, side + end), idx=0)
        for prompt, *sides in pairs
        for side in sides
    ]

    def run() -> list[list[float]]:
        sums = [value for value, _ in harness.loglikelihood(requests, disable_tqdm=True)]
        return [list(pair) for pair in zip(sums[::2], sums[1::2], strict=True)]

    return run


def by_trl(model: Any, tokenizer: Any, pairs: Texts) -> Callable[[], list[list[float]]]:
    """Its trainer does this while it is made: what is timed is the method that scores."""

    class Stopped(trl().DPOTrainer):
        def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
            self.scoring = dataset, name, batch_size
            return dataset

    rows = {key: [pair[place] for pair in pairs] for place, key in enumerate(("prompt", "chosen", "rejected"))}
    config = trl().DPOConfig(
        precompute_ref_log_probs=True,
        output_dir=tempfile.mkdtemp(),
        max_length=None,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        dataloader_pin_memory=False,
        report_to="none",
        disable_tqdm=True,
    )
    made = Stopped(model, args=config, train_dataset=datasets().Dataset.from_dict(rows), processing_class=tokenizer)

    def run() -> list[list[float]]:
        scored = trl().DPOTrainer._precompute_ref_logps(made, *made.scoring)
        return [[row["ref_chosen_logps"], row["ref_rejected_logps"]] for row in scored]

    return run


METHODS: dict[str, Method] = {"ours": ours, "padded": padded, "lm-eval": lm_eval, "trl": by_trl}


def high_water(reset: bool = False) -> float:
    """The process's peak memory in MiB; with `reset`, counted anew from here on."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def product_rate() -> float:
    """FLOPs per second of a square fp32 matrix product, the best of ten."""
    left, right = torch.randn(2, 2048, 2048)
    seconds = []
    for _ in range(10):
        began = time.perf_counter()
        torch.matmul(left, right)
        seconds.append(time.perf_counter() - began)
    return 2 * 2048**3 / min(seconds)


def measure(name: str, pairs: Texts, threads: int) -> dict[str, Any]:
    """One method, in this process; for ours also the floor."""
    torch.set_num_threads(threads)  # in a fresh process
    logging.disable(logging.WARNING)
    result: dict[str, Any] = {}
    with warnings.catch_warnings(), quiet():
        warnings.simplefilter("ignore")
        model, tokenizer = load(BUNDLED)
        METHODS[name](model, tokenizer, pairs[:2])()
        run = METHODS[name](model, tokenizer, pairs)
        if name == "ours":
            rate = product_rate()
        high_water(reset=True)
        began = time.perf_counter()
        logps = run()
        result |= {"seconds": time.perf_counter() - began, "peak": high_water(), "logps": logps}
        if name == "ours":
            ids = encode(tokenizer, pairs)
            scored = sum(len(row) for _, rows in ids for row in rows)
            fed = sum(len(prompt) + sum(len(row) - 1 for row in rows) for prompt, rows in ids)
            head = model.get_output_embeddings().weight.numel()
            layers = sum(parameter.numel() for parameter in model.model.layers.parameters() if parameter.ndim > 1)
            rate = max(rate, product_rate())
            floor = 2 * (layers * fed + head * scored) / rate
            result |= {"rate": rate, "floor": floor, "scored": scored, "fed": fed, "path": scoring_path(model)}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="ours is always run")
    parser.add_argument("--threads", type=int, default=cpu_count())
    parser.add_argument("--quick", action="store_true", help="four pairs, to see that it works")
    options = parser.parse_args()
    os.environ["TQDM_DISABLE"] = "1"
    torch.set_num_threads(options.threads)
    count = 4 if options.quick else options.pairs
    pairs = read_pairs(options.data, count) if options.data.is_file() else sample_pairs(count)
    source = options.data.name if options.data.is_file() else "sampled from the model"
    print(
        f"{platform.processor() or platform.machine()}, {options.threads} threads, torch {torch.__version__}", end=", "
    )
    print(f"transformers {transformers().__version__}, trl {trl().__version__}; {len(pairs)} pairs, {source}")
    found: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(["ours", *options.methods]):
        if name == "lm-eval" and importlib.util.find_spec("lm_eval") is None:
            print("lm-eval is not installed; pip install 'precede[eval]'")
            continue
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            found[name] = pool.submit(measure, name, pairs, options.threads).result()
        own, this = found["ours"], found[name]
        if name == "ours":
            print(f"{own['scored']} completion tokens scored, {own['fed']} distinct tokens fed, path {own['path']}")
            print(
                f"{'':10}{'seconds':>10}{'tokens/s':>10}{'to ours':>9}{'peak MiB':>10}{'to ours':>9}{'largest gap':>13}"
            )
        gap = (torch.tensor(this["logps"]) - torch.tensor(own["logps"])).abs().max()
        row = f"{name:10}{this['seconds']:10.2f}{own['scored'] / this['seconds']:10.0f}"
        row += f"{this['seconds'] / own['seconds']:9.2f}{this['peak']:10.0f}{this['peak'] / own['peak']:9.2f}"
        print(f"{row}{gap:8.5f} nats", flush=True)
    own = found["ours"]
    print(f"matrix products: {own['rate'] / 1e9:.0f} GFLOP/s; floor {own['floor']:.2f} s, ", end="")
    print(f"of which ours reaches {own['floor'] / own['seconds']:.1%}")


if __name__ == "__main__":
    main()
