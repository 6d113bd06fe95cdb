"""What it costs and gains that threads fall asleep soon where they wait (`precede.machine.wait_asleep`), in one run.

    python benchmarks/waiting.py [--rounds 5] [--quick]

The same small build (a random Llama of four layers, 200 pairs, DPO, then distillation of what it writes) by the command line,
on all cores, as the command line sets it, with threads that sleep at once, and with threads that spin, in turn; first on the
machine as it is, then beside a process per core that computes without end. Seconds are those of the build's stages, by the
wall's clock and by that of the cores; medians over the rounds, ratios with their range. The machine must be quiet otherwise.
`--quick` only shows that the parts work.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from precede.libraries import transformers
from precede.machine import cores
from precede.models.load import save
from precede.worlds.grammar.chains import tokenizer

WORDS, LENGTH, PAIRS = 32, 24, 200
POLICIES = {"as set": None, "asleep at once": "PASSIVE", "spinning": "ACTIVE"}


def write_inputs(folder: Path) -> None:
    """`teacher` and `pairs.jsonl`."""
    words, generator = tokenizer(WORDS), torch.Generator().manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4}
    config = transformers().LlamaConfig(vocab_size=WORDS, max_position_embeddings=64, eos_token_id=1, **shape)
    save(transformers().LlamaForCausalLM(config), words, folder / "teacher")
    with (folder / "pairs.jsonl").open("w", encoding="utf-8") as file:
        for _ in range(PAIRS):
            ids = torch.randint(2, WORDS, (3, LENGTH // 2), generator=generator).tolist()
            prompt, chosen, rejected = (" ".join(words.convert_ids_to_tokens(row)) for row in ids)
            file.write(json.dumps({"prompt": prompt, "chosen": f" {chosen}", "rejected": f" {rejected}"}) + "\n")


def seconds(folder: Path, policy: str | None, steps: int) -> tuple[float, float]:
    """Wall and CPU seconds of the stages of one build."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    environment |= {} if policy is None else {"OMP_WAIT_POLICY": policy}
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        command = ["build", "--teacher", "teacher", "--keep-layers", "2", "--data", "pairs.jsonl", "--skip", "audit"]
        command += [
            "--out",
            f"{scratch}/model",
            "--store",
            f"{scratch}/store",
            "--set",
            "evaluation.samples_per_prompt=1",
        ]
        command += [word for stage in ("align", "distill") for word in ("--set", f"{stage}.trainer.max_steps={steps}")]
        done = subprocess.run(
            [sys.executable, "-m", "precede", *command], cwd=folder, env=environment, capture_output=True, text=True
        )
        if done.returncode:
            raise SystemExit(done.stderr)
        stages = json.loads((folder / scratch / "model" / "build.json").read_text("utf-8"))["stages"]
    wall, cpu = (sum(stage["cost"][name] for stage in stages) for name in ("wall_seconds", "cpu_seconds"))
    return wall, cpu


@contextmanager
def beside(count: int) -> Iterator[None]:
    """So many processes that compute without end."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    rounds, steps = (1, 2) if arguments.quick else (arguments.rounds, 40)
    print(f"load before: {os.getloadavg()[0]:.1f}, {cores()} cores, medians of {rounds} rounds in turn\n")
    heads = [f"{policy}, {clock} s" for clock in ("wall", "CPU") for policy in POLICIES]
    print(f"| machine | {' | '.join(heads)} | spinning / as set, wall |")
    print("| --- " * (2 + len(heads)) + "|")
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        write_inputs(folder)
        for name, count in (("quiet", 0), (f"{cores()} busy processes beside it", cores())):
            taken: dict[str, list[tuple[float, float]]] = {policy: [] for policy in POLICIES}
            with beside(count):
                for _ in range(rounds):
                    for policy, value in POLICIES.items():
                        taken[policy].append(seconds(folder, value, steps))
            ratios = [spun[0] / own[0] for own, spun in zip(taken["as set"], taken["spinning"], strict=True)]
            cells = [f"{statistics.median(one[i] for one in taken[policy]):.1f}" for i in (0, 1) for policy in POLICIES]
            spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"
            print(f"| {name} | {' | '.join(cells)} | {spread} |", flush=True)


if __name__ == "__main__":
    main()
