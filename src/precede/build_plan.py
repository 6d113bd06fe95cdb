"""What a build is made of: its stages as values, the audits before them, the measurements after them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from precede import theory
from precede.build_inputs import Inputs
from precede.build_recipe import BuildRecipe
from precede.models.fingerprints import code_fingerprint, data_fingerprint, fingerprint
from precede.settings.build import Align, BuildStage, Distill
from precede.store import Stage

VERSIONS = {"measure": 2, "audit": 2}
"""Kind of stage → code version, 1 for the others; raised whenever the code would give other numbers or names."""


@dataclass(frozen=True)
class Step:
    """A stage of the order as a value, its settings, and what was asked of the model it starts from."""

    name: str
    settings: BuildStage
    stage: Stage
    audit: Stage | None


@dataclass(frozen=True)
class Plan:
    """All that a build is made of: the stages in order, and the measurement of each model."""

    recipe: BuildRecipe
    root: Stage
    steps: list[Step]
    measures: dict[str, Stage]
    """Label of a model (`start`, a stage's name) → its measurement."""
    tasks: dict[str, Stage]
    """The same for lm-eval's tasks, if there are any."""
    inputs: Inputs


def make_plan(recipe: BuildRecipe, inputs: Inputs) -> Plan:
    """The stages of `recipe` by content: models, data and settings that change the outcome enter their keys.

    Settings of the evaluation enter the keys of audits and measurements only, so that measuring anew trains nothing; all but
    the length of samples, which training draws too.
    """
    settings = recipe.settings
    data = settings.data.model_dump(mode="json") | {"content": data_fingerprint(settings.data.source)}
    world = {"kind": "build", "data": data, "dtype": settings.dtype, "max_new_tokens": inputs.max_new_tokens}
    world |= {"reward": settings.reward, "reward_model": settings.reward_model}
    if settings.reward_model is not None:
        world["reward_content"] = fingerprint(settings.reward_model)
    elif settings.reward is not None:
        world["reward_content"] = code_fingerprint(settings.reward)
    content = {inputs.name(model): inputs.content(model) for model in inputs.models}
    teacher = {"teacher": settings.teacher, "teacher_content": content.get(str(settings.teacher))}
    start = inputs.start
    config = {
        "model": start,
        "content": content.get(str(start)),
        "student": settings.student.model if start is None and settings.student is not None else None,
    }

    def stage(name: str, kind: str, config: dict[str, Any], parent: Stage | None) -> Stage:
        return Stage(name, kind, world, config, parent, (settings.seed,), VERSIONS.get(kind, 1))

    merged = None if start is None else inputs.adapters.get(inputs.name(start))
    root = merged or stage("start", "teacher", config, None)
    judged = settings.evaluation.model_dump(mode="json", exclude={"tasks", "task_folder", "task_limit"})
    judged |= {"target_reward": inputs.target_reward}
    parent, steps, measures = root, [], {}
    if start is not None:
        measures["start"] = stage("measure", "measure", judged, root)
    kinds = [one.model_dump()["kind"] for _, one in recipe.sequence()]
    for place, (name, block) in enumerate(recipe.sequence()):
        own = block.active() | {"defaults": type(block).defaults}
        if isinstance(block, Distill):
            assert settings.student is not None
            own |= {
                "student": settings.student.model_dump(mode="json"),
                "content": content.get(str(settings.student.model)),
            }
            if block.completions is not None:
                own["completions_content"] = data_fingerprint(block.completions)
        if isinstance(block, Align) and (block.reference == "teacher" or block.pairs == "seeded"):
            own |= teacher
        asked = None
        due = "audit" not in settings.skip and "align" in kinds[place:] and isinstance(block, Align | Distill)
        if due and (parent is not root or start is not None):
            beta = next(b.beta for _, b in recipe.sequence()[place:] if isinstance(b, Align))
            asked = stage("audit", "audit", judged | {"beta": beta} | teacher, parent)
        made = stage(name, block.model_dump()["kind"], own, parent)
        steps.append(Step(name, block, made, asked))
        measures[name] = stage("measure", "measure", judged | {"content": content}, made)
        parent = made
    tasks = {}
    if settings.evaluation.tasks:
        asked_tasks = settings.evaluation.model_dump(mode="json", include={"tasks", "task_folder", "task_limit"})
        first = {"start": root} if start is not None else {}
        tasks = {label: stage("tasks", "tasks", asked_tasks, one) for label, one in {**first, "final": parent}.items()}
    return Plan(recipe, root, steps, measures, tasks, inputs)


def expected_loss(recipe: BuildRecipe, audited: dict[str, Any]) -> list[str]:
    """What distilling before aligning is expected to lose, in sentences, from the audit of the model before both.

    By the order gap (docs/theory.md): logit m_AK − logit m_KA = (Δ/β)(1/τ − 1) nats; and with a measured target mass m, by
    the number of distillation samples that can show the target at all.
    """
    blocks = [stage for _, stage in recipe.sequence()]
    place = next((n for n, stage in enumerate(blocks) if isinstance(stage, Distill)), None)
    if place is None or not any(isinstance(stage, Align) for stage in blocks[place:]):
        return []
    distill = blocks[place]
    assert isinstance(distill, Distill)
    reach, tau = audited["settings"]["reach_nats"], distill.temperature
    gap = float(theory.order_gap(1.0, 1.0 / reach, tau))
    lines = [
        f"the order {recipe.order} distils before it aligns: by the order gap, align > distill would end {gap:.1f} nats higher "
        f"in the log-odds of the desirable (Δ/β = {reach:.1f}, τ = {tau:g})"
        if gap > 0
        else f"the order {recipe.order} distils before it aligns: at τ = {tau:g} the order gap is 0, and the order costs "
        "what the student is too small, and the samples too few, to show"
    ]
    mass = audited["models"][0]["numbers"].get("target_mass")
    if mass is not None and mass["value"] is not None:
        lines.append(
            f"{100 * mass['value']:.1f} % of the teacher's samples are desirable: the student is shown them that often, no more"
        )
    return lines
