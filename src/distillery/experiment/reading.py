"""Read YAML strictly and say what is wrong in one line: file, key, value, and what would be right."""

import hashlib
import json
import math
import re
import stat
from collections.abc import Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from distillery.atomic import write_text
from distillery.errors import UserError
from distillery.paths import cache_folder

Model = TypeVar("Model", bound=BaseModel)

# More than any configuration needs, and little enough that a file made to exhaust the reader is refused at once.
MOST_BYTES = 2**22
MOST_NODES = 100_000
DEEPEST = 50
LONGEST_JOINED = 10_000
# A text of so many letters takes longer to parse than to look for what came of it before; so many are kept.
LONG = 30_000
MOST_KEPT = 20

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's where there is one: ten times as fast
_TAG = "tag:yaml.org,2002:"
# What a plain word is where a reader may have meant text.
_KINDS = {"bool": "true or false", "null": "null", "int": "a number", "float": "a number", "timestamp": "a date"}
# YAML 1.1 has octals (010), sixties (1:30), underscores, infinities and NaN, and takes 1e-3 for text.
_NUMBER = re.compile(r"[-+]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+][0-9]+)?")
_LIKE_A_NUMBER = re.compile(r"[-+]?(?:0[xob])?\.?[0-9][0-9_]*(?:\.[0-9_]*)?(?:[eE][-+]?[0-9]+)?")


class _JoiningLoader(_Loader):  # type: ignore[misc]
    """Knows one tag more, of torchdistill: `!join [a, b]` is the text ab."""


def _joined(loader: Any, node: Any) -> str:  # noqa: ANN401
    words = [str(word) for word in loader.construct_sequence(node, deep=True)]
    if sum(map(len, words)) > LONGEST_JOINED:
        raise _fault(f"!join makes more than {LONGEST_JOINED:,} letters", node)
    return "".join(words)


_JoiningLoader.add_constructor("!join", _joined)


def read_mapping(path: Path, *, joins: bool = False) -> dict[str, Any]:
    """Read a YAML file that holds one mapping with text keys; with ``joins``, `!join` makes one text of a list's words.

    Raises:
        UserError: the file is missing, unreadable, not YAML, or not a mapping; or says something that YAML takes for
            something else than it looks like, such as the number 010 or the key ``no``.
    """
    content = parse_yaml(_read_text(path), str(path), joins=joins)
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a mapping of keys, found {_shown(content)}")
    return content


def _read_text(path: Path) -> str:
    try:
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode):  # a pipe would be waited for
            raise UserError(f"{path}: cannot be read: it is {_kind_of_file(facts.st_mode)}, not a file")
        if facts.st_size > MOST_BYTES:
            raise UserError(
                f"{path}: {facts.st_size:,} bytes are more than a configuration has; the limit is {MOST_BYTES:,}"
            )
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        meant = _meant_file(path) if isinstance(error, FileNotFoundError) else ""
        raise UserError(f"{path}: cannot be read: {reason}{meant}") from None


def _meant_file(path: Path) -> str:
    """Which files a missing one resembles, beside it and in config/, as ``; did you mean 'config/digits.yaml'?``."""
    files = [file for folder in dict.fromkeys([path.parent, Path("config")]) for file in sorted(folder.glob("*.yaml"))]
    stems = get_close_matches(path.stem, [file.stem for file in files], n=2, cutoff=0.6)
    close = dict.fromkeys(repr(str(file)) for stem in stems for file in files if file.stem == stem)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def _kind_of_file(mode: int) -> str:
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def parse_yaml(text: str, where: str, *, joins: bool = False) -> Any:  # noqa: ANN401
    """Plain data from YAML; ``where`` says in an error what the text is.

    Raises:
        UserError: as for ``read_mapping``.
    """
    try:
        # One's own copy: callers may change what they get.
        return deepcopy(_parse(text, joins))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise UserError(f"{where}{place}: {error.problem or 'not valid YAML'}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{where}: not valid YAML: {str(error).splitlines()[0]}") from None


@lru_cache(maxsize=512)
def _parse(text: str, joins: bool) -> object:
    """Parse a text once: the recipes of an experiment's many runs are few, and parsing YAML is what takes its time.

    A long one is not parsed again by other processes either, of which a page of thousands of runs has as many.
    """
    if len(text) < LONG:
        return _parse_now(text, joins)
    # All that decides what comes of it. Nothing else is looked at, so that nothing can be stale.
    made_of = (text, joins, Path(__file__).read_text(encoding="utf-8"), yaml.__version__, _Loader.__name__)
    key = hashlib.sha256(repr(made_of).encode()).hexdigest()
    with suppress(OSError, RuntimeError, ValueError):  # RuntimeError: there is no home
        seal, _, content = (cache_folder() / "yaml" / f"{key}.json").read_text(encoding="utf-8").partition("\n")
        if seal == _seal(key, content):
            return json.loads(content)
    parsed = _parse_now(text, joins)
    with suppress(OSError, RuntimeError, ValueError, UserError):
        folder, content = cache_folder() / "yaml", json.dumps(parsed)
        write_text(folder / f"{key}.json", f"{_seal(key, content)}\n{content}")
        for old in sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime)[:-MOST_KEPT]:
            old.unlink(missing_ok=True)
    return parsed


def _seal(key: str, content: str) -> str:
    return hashlib.sha256(f"{key}\n{content}".encode()).hexdigest()


def _parse_now(text: str, joins: bool) -> object:
    _check_extent(text)
    loader = (_JoiningLoader if joins else _Loader)(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _check_node(node, loader, set())
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _check_extent(text: str) -> None:
    """Look through the events before anything is built of them: libyaml's recursion is unlimited, and nine lists of
    nine aliases each stand for a billion nodes."""
    sizes: dict[str, int] = {}  # of anchored nodes, aliases in them counted in full
    opened: list[tuple[str | None, int]] = [(None, 0)]
    for event in yaml.parse(text, Loader=_Loader):
        size = 0
        if isinstance(event, yaml.CollectionStartEvent):
            opened.append((event.anchor, 1))
            if len(opened) > DEEPEST:
                raise _fault("nested too deeply for a configuration", event)
        elif isinstance(event, yaml.AliasEvent):
            if any(anchor == event.anchor for anchor, _ in opened):
                raise _fault(f"*{event.anchor} stands inside of itself", event)
            size = sizes.get(event.anchor or "", 1)
        elif isinstance(event, yaml.ScalarEvent | yaml.CollectionEndEvent):
            anchor, size = opened.pop() if isinstance(event, yaml.CollectionEndEvent) else (event.anchor, 1)
            if anchor is not None:
                sizes[anchor] = size
        opened[-1] = (opened[-1][0], opened[-1][1] + size)
        if opened[-1][1] > MOST_NODES:
            raise _fault(f"more than {MOST_NODES:,} values, aliases counted in full", event)


def _check_node(node: yaml.Node, loader: Any, seen: set[int]) -> None:  # noqa: ANN401
    if id(node) in seen:
        return
    seen.add(id(node))
    plain = isinstance(node, yaml.ScalarNode) and not node.style
    usual = loader.resolve(type(node), node.value, (plain, not plain))
    if node.tag == "!join" and isinstance(loader, _JoiningLoader) and isinstance(node, yaml.SequenceNode):
        if not all(isinstance(part, yaml.ScalarNode) or part.tag == node.tag for part in node.value):
            raise _fault("!join takes a list of words", node)
    elif node.tag != usual:
        raise _fault(f"the tag {node.tag.removeprefix(_TAG)!r} is not supported; write the plain value", node)
    if isinstance(node, yaml.MappingNode):
        _check_keys(node)
        for key, value in node.value:
            if key.tag != f"{_TAG}merge":
                _check_node(key, loader, seen)
            _check_node(value, loader, seen)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _check_node(value, loader, seen)
    elif isinstance(node, yaml.ScalarNode) and not node.style:
        _check_plain(node)


def _check_keys(node: yaml.MappingNode) -> None:
    """Keys are text, and unique, which PyYAML drops: a run written twice must not lose its first line."""
    seen = set()
    for key, _ in node.value:
        kind = key.tag.removeprefix(_TAG)
        if not isinstance(key, yaml.ScalarNode):
            raise _fault("a key must be plain text", key)
        if kind not in ("str", "merge"):
            hint = "put it in quotes"
            if kind == "bool":
                meaning = "true" if key.value.lower() in ("yes", "true", "on") else "false"
                raise _fault(f"key `{key.value}` means {meaning} in YAML, not text; {hint}", key)
            raise _fault(f"key `{key.value}` is {_KINDS.get(kind, kind)} in YAML, not text; {hint}", key)
        if key.value in seen and kind == "str":
            raise _fault(f"key {key.value!r} occurs twice", key)
        seen.add(key.value)


def _check_plain(node: yaml.ScalarNode) -> None:
    """A word without quotes is what it looks like: a decimal number, or text that looks like none."""
    kind, text = node.tag.removeprefix(_TAG), node.value
    if kind not in ("int", "float", "str", "bool", "null"):
        raise _fault(f"{text} is {_KINDS.get(kind, kind)} in YAML; put it in quotes if it is text", node)
    if kind in ("int", "float"):
        if not _NUMBER.fullmatch(text) or not math.isfinite(float(text)):
            raise _fault(f"{text} is not a plain finite number; {_meant(text)}", node)
    elif kind == "str" and _LIKE_A_NUMBER.fullmatch(text):
        raise _fault(f"{text} is text in YAML and looks like a number; {_meant(text)}", node)


def _meant(text: str) -> str:
    """What somebody may have meant who wrote what only looks like a number."""
    quotes = "put it in quotes if it is text"
    parts = re.fullmatch(r"([-+]?)0*([0-9_]+)(\.[0-9_]*)?(?:[eE]([-+]?)([0-9]+))?", text)
    if parts is None or not math.isfinite(float(text)):
        return f"write decimal digits, or {quotes}"
    sign, whole, part, direction, power = parts.groups()
    number = sign + whole + (part or ".0" * (power is not None)) + (f"e{direction or '+'}{power}" if power else "")
    return f"write {number.replace('_', '')}, or {quotes}"


def _fault(problem: str, place: Any) -> yaml.MarkedYAMLError:  # noqa: ANN401
    return yaml.MarkedYAMLError(None, None, problem, place.start_mark)


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
        # A key that is missing may be there with a letter wrong.
        helpful.sort(key=lambda fault: fault["type"] == "missing")
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
    "float_type": "is not valid; expected a number",
    "int_type": "is not valid; expected a whole number",
    "bool_type": "is not valid; expected true or false",
    "string_type": "is not valid; expected text",
    "finite_number": "is not valid; expected a finite number",
    "string_too_short": "is not valid; expected some text",
}


def _describe(fault: Any, model: type[BaseModel], data: object, prefix: tuple[str, ...]) -> str:  # noqa: ANN401
    location = _written_location(fault, data)
    key = ".".join([*prefix, *map(str, location)]) or "the file"
    kind, value, context = fault["type"], fault.get("input"), fault.get("ctx", {})
    if kind == "extra_forbidden":
        valid = [name for block in _blocks(model, fault["loc"][:-1])[:1] for name in block.model_fields]
        return f"{key}: unknown key {str(location[-1])!r}; {nearest(str(location[-1]), valid)}"
    if kind == "plugin":
        return f"{key}: {context['said']}"
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
    said = _MESSAGES.get(kind, f"is not valid; {message[0].lower()}{message[1:]}")
    return f"{key}: {_shown(value)} {said}{_hint(kind, value)}"


def _hint(kind: str, value: object) -> str:
    """How a value came to be of another kind than it looks."""
    if kind in ("float_type", "int_type") and isinstance(value, str) and _LIKE_A_NUMBER.fullmatch(value):
        return "; write it without quotes"
    if kind == "string_type" and isinstance(value, bool | int | float):
        return "; put it in quotes" + " (`no`, `off`, `yes` and `on` are false and true)" * isinstance(value, bool)
    return ""


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
    text = json.dumps(value) if value is None or isinstance(value, bool) else repr(value)  # as YAML has them
    return text if len(text) <= 60 else f"{text[:57]}..."
