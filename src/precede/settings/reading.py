"""Reading what people write: strict YAML, and one sentence for each thing that can be wrong with it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml

from precede.data.sentences import bound, did_you_mean


def sentence(error: Any, model: type[Any], where: str) -> str:
    """One sentence for one pydantic error."""
    parts = [part for part in map(str, error["loc"]) if not re.search(r"[\[\]()]|^(constrained-)?(float|list)", part)]
    path = ".".join([where, *parts] if where else parts)
    given, context = error.get("input"), error.get("ctx", {})
    match error["type"]:
        case "extra_forbidden":
            block = _block(model, error["loc"][:-1])
            return f"unknown setting '{path}'{did_you_mean(str(error['loc'][-1]), list(block.model_fields))}"
        case "missing":
            return f"'{path}' is missing"
        case "value_error":
            return f"{path}: {context['error']}" if path else str(context["error"])
        case "literal_error":
            return f"{path} is '{given}', but it must be {context['expected']}"
        case "greater_than":
            return f"{path} must be above {bound(context['gt'])}, not {given}"
        case "greater_than_equal":
            return f"{path} must be at least {bound(context['ge'])}, not {given}"
        case "less_than":
            return f"{path} must be below {bound(context['lt'])}, not {given}"
        case "less_than_equal":
            return f"{path} must be at most {bound(context['le'])}, not {given}"
        case _:
            return f"{path} is {given!r}: {error['msg'][:1].lower()}{error['msg'][1:]}"


def _block(model: Any, path: Sequence[Any]) -> Any:
    """The block of settings at `path` of a pydantic model, or the last on the way that is one."""
    for part in path:
        field = model.model_fields.get(part)
        types = [] if field is None else [field.annotation, *get_args(field.annotation)]
        model = next((kind for kind in types if hasattr(kind, "model_fields")), model)
    return model


class _Loader(yaml.SafeLoader):
    """Safe YAML in which 1e-3 is a number (as in YAML 1.2) and a key given twice is an error."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?$|^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$"),
    list("-+0123456789."),
)


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise yaml.constructor.ConstructorError(None, None, "a key must be a word", key.start_mark)
    keys = [loader.construct_object(key, deep=True) for key, _ in node.value]
    seen = set[Any]()
    for key in keys:
        if key in seen:
            raise yaml.constructor.ConstructorError(None, None, f"the key '{key}' stands twice", node.start_mark)
        seen.add(key)
    return {key: loader.construct_object(value, deep=True) for key, (_, value) in zip(keys, node.value, strict=True)}


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


MOST_BYTES, MOST_VALUES, DEEPEST = 2**18, 100_000, 20
"""More than any recipe has: of its file, of values in all, of mappings and lists in one another."""


def read_text(path: Path, where: str) -> str:
    """The text of a recipe's file. Raises ValueError, naming `where`, for what is no file, is too long, or is not UTF-8."""
    try:
        if path.exists() and not path.is_file():
            raise ValueError(f"{where} is {'a folder' if path.is_dir() else 'no regular file'}; give a YAML file")
        with path.open("rb") as file:
            raw = file.read(MOST_BYTES + 1)
        if len(raw) > MOST_BYTES:
            raise ValueError(f"{where} has more than {MOST_BYTES:,} bytes, so it is no recipe; give its YAML file")
        return raw.decode("utf-8")
    except FileNotFoundError:
        raise
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{where} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def unshared(settings: Any) -> Any:
    """A copy of settings in which what a YAML anchor repeats stands by itself at each place.

    Raises ValueError where they hold more values, or hold them deeper, than any recipe does: an anchor that holds itself has no
    end.
    """
    count = 0

    def copy_of(value: Any, depth: int) -> Any:
        nonlocal count
        count += 1
        if depth > DEEPEST:
            raise ValueError(f"settings lie more than {DEEPEST} deep in one another")
        if count > MOST_VALUES:
            raise ValueError(f"the settings hold more than {MOST_VALUES:,} values")
        if isinstance(value, Mapping):
            return {name: copy_of(one, depth + 1) for name, one in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(copy_of(one, depth + 1) for one in value)
        return value

    return copy_of(settings, 0)


def parse_yaml(text: str, where: str) -> Any:
    """The value of a YAML text. Raises ValueError, naming `where` and the line, for text that is not valid."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" in line {mark.line + 1}" if mark else ""
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise ValueError(f"{where} is not valid YAML{line}: {problem}") from None
    except RecursionError:
        raise ValueError(f"{where} is not valid YAML: it is nested too deeply") from None
    except ValueError as error:  # a date that is none, for one
        raise ValueError(f"{where} is not valid YAML: {error}") from None
