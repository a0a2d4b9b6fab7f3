"""Read YAML strictly and say what is wrong in one line: file, key, value, and what would be right."""

from collections.abc import Hashable, Mapping, Sequence
from copy import deepcopy
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from distillery.errors import UserError

Model = TypeVar("Model", bound=BaseModel)


class _StrictLoader(yaml.SafeLoader):
    """YAML's own rule that keys are unique, which PyYAML drops: a run written twice must not lose its first line."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.constructor.ConstructorError(None, None, "a key must be plain text", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} occurs twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds one mapping with text keys.

    Raises:
        UserError: the file is missing, unreadable, not YAML, or not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UserError(f"{path}: cannot be read: {reason}") from None
    try:
        # One's own copy: callers may change what they get.
        content = deepcopy(_parse(text))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise UserError(f"{path}{where}: {error.problem or 'not valid YAML'}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a mapping of keys, found {_shown(content)}")
    for key in content:
        if not isinstance(key, str):
            raise UserError(f"{path}: key {key!r} must be text; put it in quotes")
    return content


@lru_cache(maxsize=512)
def _parse(text: str) -> object:
    """Parse a text once: the recipes of an experiment's many runs are few, and parsing YAML is what takes its time."""
    return yaml.load(text, Loader=_StrictLoader)


def validate(model: type[Model], data: object, path: Path, prefix: tuple[str, ...] = ()) -> Model:
    """Turn plain data into its configuration class.

    Raises:
        UserError: the data does not fit; the line names the first fault and how many more there are.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        faults = error.errors(include_url=False)
        # A mapping is no misspelt word: where both are legal, what is wrong inside the mapping says more.
        helpful = [fault for fault in faults if not _is_mapping_for_word(fault)] or faults
        others = {tuple(_written_location(fault, data)) for fault in helpful} - {
            tuple(_written_location(helpful[0], data))
        }
        more = f" (and {len(others)} more)" if others else ""
        raise UserError(f"{path}: {_describe(helpful[0], model, data, prefix)}{more}") from None


def nearest(name: str, valid: Mapping[str, object] | list[str]) -> str:
    """Say which valid names a wrong one resembles, and list them all while the list is short."""
    names = sorted(valid)
    close = get_close_matches(name, names, n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
    known = ", ".join(names) if len(names) <= 20 else f"{', '.join(names[:20])}, ... ({len(names)} in all)"
    return f"{hint}valid: {known or 'none'}"


def _is_mapping_for_word(fault: Any) -> bool:  # noqa: ANN401
    return fault["type"] == "literal_error" and isinstance(fault["input"], Mapping)


# What pydantic says less plainly.
_MESSAGES = {
    "string_pattern_mismatch": "is not a plain name; use letters, digits and . _ - only, letter or digit first",
    "dict_type": "is not valid; expected a mapping of keys",
    "model_type": "is not valid; expected a mapping of keys",
    "model_attributes_type": "is not valid; expected a mapping of keys",
    "tuple_type": "is not valid; expected a list",
    "list_type": "is not valid; expected a list",
}


def _describe(fault: Any, model: type[BaseModel], data: object, prefix: tuple[str, ...]) -> str:  # noqa: ANN401
    location = _written_location(fault, data)
    key = ".".join([*prefix, *map(str, location)]) or "the file"
    kind, value, context = fault["type"], fault.get("input"), fault.get("ctx", {})
    if kind == "extra_forbidden":
        valid = [name for block in _blocks(model, fault["loc"][:-1])[:1] for name in block.model_fields]
        return f"{key}: unknown key {str(location[-1])!r}; {nearest(str(location[-1]), valid)}"
    if kind == "missing":
        return f"{key}: missing; this key is required"
    if kind == "union_tag_not_found":
        names = {name for block in _blocks(model, fault["loc"]) for name in _tags(block)}
        return f"{key}: missing `name`; valid: {', '.join(sorted(names))}"
    if kind == "union_tag_invalid":
        valid = context["expected_tags"].replace("'", "").split(", ")
        return f"{key}.name: unknown name {context['tag']!r}; {nearest(context['tag'], valid)}"
    if kind == "literal_error" and isinstance(value, str):
        valid = context["expected"].replace("'", "").replace(" or ", ", ").split(", ")
        return f"{key}: {_shown(value)} is not valid; {nearest(value, valid)}"
    message = fault["msg"].removeprefix("Value error, ")
    return f"{key}: {_shown(value)} {_MESSAGES.get(kind, f'is not valid; {message[0].lower()}{message[1:]}')}"


def _written_location(fault: Any, data: object) -> list[int | str]:  # noqa: ANN401
    """Keep the parts of a fault's location that the user wrote; pydantic adds the tags of unions and key markers."""
    absent = fault["type"] in ("extra_forbidden", "missing")
    written: list[int | str] = []
    for part in fault["loc"][:-1] if absent else fault["loc"]:
        inside_mapping = isinstance(data, Mapping) and part in data
        inside_list = isinstance(data, list | tuple) and isinstance(part, int) and part < len(data)
        if inside_mapping or inside_list:
            data = data[part]  # type: ignore[index]
            written.append(part)
    return [*written, fault["loc"][-1]] if absent else written


def _blocks(annotation: Any, location: Sequence[int | str] = ()) -> list[type[BaseModel]]:  # noqa: ANN401
    """The classes that may stand at a location below an annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if not location:
            return [annotation]
        part, *rest = location
        if part in annotation.model_fields:
            return _blocks(annotation.model_fields[str(part)].annotation, rest)
        # What pydantic puts into a location for the member of a union that it tried.
        return _blocks(annotation, rest) if part in (*_tags(annotation), annotation.__name__) else []
    inside = location[1:] if get_origin(annotation) in (dict, list, tuple) else location
    return [block for inner in get_args(annotation) for block in _blocks(inner, inside)]


def _tags(block: type[BaseModel]) -> tuple[str, ...]:
    """The values of the `name` key that tells the classes of a union apart."""
    return get_args(block.model_fields["name"].annotation) if "name" in block.model_fields else ()


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
