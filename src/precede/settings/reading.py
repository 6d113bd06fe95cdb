"""Reading what people write: strict YAML, and one sentence for each thing that can be wrong with it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, get_args

import yaml

from precede.data.sentences import did_you_mean


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
            return f"{path} must be above {context['gt']:g}, not {given}"
        case "greater_than_equal":
            return f"{path} must be at least {context['ge']:g}, not {given}"
        case "less_than":
            return f"{path} must be below {context['lt']:g}, not {given}"
        case "less_than_equal":
            return f"{path} must be at most {context['le']:g}, not {given}"
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
    for key in keys:
        if keys.count(key) > 1:
            raise yaml.constructor.ConstructorError(None, None, f"the key '{key}' stands twice", node.start_mark)
    return {key: loader.construct_object(value, deep=True) for key, (_, value) in zip(keys, node.value, strict=True)}


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


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
