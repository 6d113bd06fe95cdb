"""What a node of language models will take, before it runs: FLOPs, seconds, the peak of memory, disk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from precede.machine import matmul_rate, memory_of
from precede.metrics import Cost
from precede.models.memory import FP32, FULL_LOGITS, Shape
from precede.plan import MODELS, STAGES, Node
from precede.sampling import batch_size
from precede.stages.context import Amounts, Work
from precede.stages.registry import METHODS
from precede.stages.running import planned_steps
from precede.stages.trainer import in_bf16

if TYPE_CHECKING:
    from precede.worlds.language import LanguageWorld

RUNTIME = {"cpu": 0.65 * 2**30, "cuda": 0.5 * 2**30}
"""Bytes that are there before any model: on a CPU torch, transformers, TRL and what they import, as measured (torch 2.13, TRL
1.16: 0.46 GiB imported, 0.65 when a toy has been trained); of a GPU its context, which is a guess."""
HELD_TOKEN = 32
"""Bytes of a token of the rows that are drawn, which stand in Python's lists."""
ALLOCATOR = 1.1
"""What an allocator takes for what is asked of it in a step, as measured."""
MOMENTS = 2
"""What Adam keeps for each trained weight."""
VLLM_SHARE = 0.3
"""Of a GPU's memory, that vLLM takes by TRL's default beside the training."""

CHECKPOINTS = 3
"""Checkpoints of a training that are on the disk at once."""
EFFICIENCY = {"sampled": 0.3, "other": 0.6}
"""Rate of the FLOPs of `Cost` over that of matrix products, of sampling and of the rest; see `cost`."""


def cost(world: LanguageWorld, node: Node) -> Cost:
    """Expected cost per seed, as if every completion ran to its full length; the peak of memory by `peak_bytes`.

    Seconds are FLOPs over the rate of matrix products (`precede.machine.matmul_rate`, measured here and now) times the world's
    `efficiency`, and `seconds_per_node`.
    """
    model = node if node.kind in MODELS else node.edges.get("model")
    made, drawn, parameters = Cost(), Cost(), 0 if model is None else world.parameters(model)
    if node.kind in STAGES or node.kind == "teacher":
        work, sizes = world.work(node), world.sizes(node)
        made, drawn = work.cost(sizes), Work(0.0, work.sampled).cost(sizes)
    elif node.kind in ("measure", "truth"):
        decodings = 2 if node.config.get("temperature") is not None else 1
        tokens = node.config["samples_per_prompt"] * world.prompts(node) * world.row_tokens(node)
        drawn.sample(parameters, decodings * tokens)
        made.sample(parameters, decodings * tokens)
        if node.kind == "measure":
            made.score(parameters, (decodings + 1) * tokens)
            made.score(world.truth_parameters(node), decodings * tokens)
    elif node.kind == "audit":
        times = world.audit_samples(node)
        for audited in node.edges.values():
            drawn.sample(world.parameters(audited), times * world.prompts(node) * world.row_tokens(node))
            made.score(world.parameters(audited), 2 * world.prompts(node) * world.row_tokens(node))
        made.sampled_tokens, made.flops = drawn.sampled_tokens, made.flops + drawn.flops
    made.peak_memory_bytes = world.peak_bytes(node)
    rate = matmul_rate(world.device.type, world.threads)
    slow, fast = (world.efficiency[name] * rate for name in ("sampled", "other"))
    made.wall_seconds = world.seconds_per_node + drawn.flops / slow + (made.flops - drawn.flops) / fast
    return made


def peak_bytes(world: LanguageWorld, node: Node) -> float:
    """Bytes of memory at the highest, of the GPU where there is one, else of the process: the highest of a node's phases.

    - Training: w·N weights, w·N gradients, 2w·N moments of Adam (w = 4 bytes), and of every model beside it (reference,
      teacher, reward model) its weights; activations and logits of one micro-batch, at the width of the longest row
      (`precede.models.memory`). Gradients grow as activations go: the larger of the two counts, and their sum where gradients
      of several micro-batches are accumulated. With LoRA only the adapter has gradients and moments; 4-bit weights take 0.55
      bytes, and the whole model stands beside at the end, where the adapter is merged.
    - Sampling: weights, key-value cache and logits of the rows drawn at once, before the training or, on-policy, within it.
    - Measuring: the model with its reference, the truth's model, and the same of sampling. Auditing: one model after another.

    Limits: one process, its model not cut over several GPUs; Adam in fp32 whatever `trainer.optim` says; what a user's reward
    loads is not known. Held against measured peaks in tests/test_forecast.py.
    """
    device = world.device.type
    beside = RUNTIME.get(device, RUNTIME["cuda"]) + FP32 * world.reward_parameters()
    if rows := world.rows_drawn(node):
        beside += HELD_TOKEN * rows * world.row_tokens(node)
    if node.kind in STAGES or node.kind == "teacher":
        return beside + max(_training(world, node, device), *_around(world, node))
    if node.kind in MODELS:
        above = node.edges.get("teacher")
        return beside + world.shape(node).weights + (0 if above is None else world.shape(above).weights)
    models = [world.shape(model) for role, model in node.edges.items() if role in ("model", "reference", "teacher")]
    if not models:
        return beside
    largest = max(models, key=lambda shape: shape.weights)
    weights = largest.weights
    if node.kind == "measure":
        weights = sum(shape.weights for shape in models) + FP32 * world.truth_parameters(node)
    return beside + weights + (0 if node.kind == "tasks" else _drawing(world, node, largest))


def _training(world: LanguageWorld, node: Node, device: str) -> float:
    """Weights, optimiser, and the larger of a step's and a round of sampling's memory."""
    config, trainer, shape = node.config, node.config["trainer"], world.shape(node)
    method, lora = METHODS[config.get("method", "sft")], config["lora"]
    work, batch = world.work(node), trainer["per_device_train_batch_size"]
    quantized = lora is not None and lora["quantization"] == "4bit"
    trained = shape.parameters if lora is None else lora["rank"] * shape.adapter
    held = (shape.in_4_bits() if quantized else shape.weights) + MOMENTS * FP32 * trained
    held += 0 if lora is None else FP32 * trained
    for role in {*work.scored} - {"policy"}:
        itself = role == "reference" and node.edges.get("reference") == node.edges.get("parent")
        if node.kind == "distill" and "teacher" not in work.scored:
            continue  # it samples beside the teacher, before the training
        if not (lora is not None and (itself or method.own_reference_only)):
            other = world.shape(node.edges.get(role, node))
            copied = node.kind == "distill" and config["temperature"] != 1.0  # `sharpened`
            held += other.weights + (other.weights + FP32 * other.vocabulary * other.width if copied else 0)
    width, checkpointing = world.longest(node), bool(trainer.get("gradient_checkpointing"))
    tokens = method.rows_per_example * batch * width
    bf16 = in_bf16(world.config["dtype"], world.device)
    step = shape.activations(tokens, bf16=bf16, checkpointing=checkpointing)
    step += FULL_LOGITS * shape.logits(tokens) if method.whole_logits else shape.tiles(tokens, device)
    step = ALLOCATOR * step + (2 * shape.parameters if bf16 else 0)  # autocast's copies of the weights
    gradients, accumulated = FP32 * trained, trainer.get("gradient_accumulation_steps", 1)
    step = step + gradients if accumulated > 1 else max(step, gradients)
    if "policy" in work.sampled:
        if trainer.get("use_vllm"):
            held += trainer.get("vllm_gpu_memory_utilization", VLLM_SHARE) * memory_of(device)
        else:
            step = max(step, shape.sampling(batch * accumulated, width))
    return held + step


def _around(world: LanguageWorld, node: Node) -> list[float]:
    """What is drawn before the training; behind it the KL to another reference, or the adapter's model put together."""
    shape, work, lora = world.shape(node), world.work(node), node.config["lora"]
    phases = [0.0]
    for role in {*work.sampled} - {"policy"}:
        drawn = world.shape(node.edges.get(role, node))
        beside = world.shape(node.edges["reference"]).weights if "extrapolation" in node.config else 0
        phases.append(beside + drawn.weights + _drawing(world, node, drawn))
    optimiser = MOMENTS * shape.weights if lora is None else 0
    if node.kind == "align" and node.edges["reference"] != node.edges["parent"]:
        phases.append(2 * shape.weights + optimiser + world.shape(node.edges["reference"]).weights)
    return [*phases, 2 * shape.weights] if lora is not None else phases


def _drawing(world: LanguageWorld, node: Node, shape: Shape) -> float:
    width = world.longest(node)
    rows = world.prompts(node) * node.config.get("samples_per_prompt", 1)
    return shape.sampling(min(rows, batch_size(int(width), world.sample_batch)), width)


def disk_bytes(world: LanguageWorld, nodes: Sequence[Node]) -> tuple[float, float]:
    """Bytes in the store of the models that nodes leave, an adapter with its model, and of the checkpoints of the largest.

    A training keeps two checkpoints, and has a third before the oldest goes; each is weights and Adam's two moments.
    """
    kept, checkpoints = 0.0, 0.0
    for node in nodes:
        if node.kind not in MODELS or node.kind == "given":
            continue
        shape, lora = world.shape(node), node.config.get("lora")
        trained = FP32 * (shape.parameters if lora is None else lora["rank"] * shape.adapter)
        kept += shape.weights + (0 if lora is None else trained)
        if node.config.get("trainer", {"save_strategy": "no"}).get("save_strategy") != "no":
            checkpoints = max(checkpoints, CHECKPOINTS * (1 + MOMENTS) * trained)
    return kept, checkpoints


def expected(world: LanguageWorld, node: Node) -> Amounts:
    """What decides the work of a training, before it runs."""
    config, rows = node.config, world.prompts(node)
    times = config.get("samples_per_prompt", 1)
    if node.kind == "teacher":
        rows = config["trainer"]["max_steps"] * config["trainer"]["per_device_train_batch_size"]
    drawn = 0 if config.get("pairs") == "given" or "samples_per_prompt" not in config else times * rows
    examples = times // 2 * rows if drawn and node.kind == "align" else drawn or rows
    if METHODS[config.get("method", "sft")].compares:
        examples = rows * config["trainer"]["num_generations"]
    return Amounts(examples, planned_steps(config, examples), world.row_tokens(node), drawn)
