"""A project's own models and terms: Python files in plugins/, beside config/, named in YAML.

Code of Distillery is in no digest, for integers stand for it and golden outputs watch these. A plugin has neither, so
the digest of a run holds its source as parsed: comments, docstrings and layout aside, with the plugins that it imports.
"""

import ast
import hashlib
import importlib
import json
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from distillery.errors import UserError
from distillery.experiment.reading import nearest

PACKAGE = "plugins"
_NAME = re.compile(r"plugins(?:\.[A-Za-z_]\w*)+:[A-Za-z_]\w*")


class _Project:
    """Whose plugins these are: of the configuration that this process read last, before that of the current folder."""

    folder = Path(PACKAGE).absolute()


def use_project(folder: Path) -> None:
    """Take plugins from the folder plugins/ of a project."""
    _Project.folder = folder.resolve() / PACKAGE


def is_plugin(name: str) -> bool:
    """Whether a name is meant for a part of a plugin, as ``plugins.mine:net``."""
    return name.startswith(f"{PACKAGE}.")


def load_plugin(name: str) -> Any:  # noqa: ANN401
    """Import the part of a plugin that ``plugins.FILE:NAME`` names.

    Raises:
        UserError: there is no such file or no such name in it, or it cannot be imported.
    """
    path = _file_of(name)
    module = name.partition(":")[0]
    package = sys.modules.get(PACKAGE)
    if list(getattr(package, "__path__", [])) != [str(_Project.folder)]:
        for other in [other for other in sys.modules if other == PACKAGE or is_plugin(other)]:
            del sys.modules[other]
        package = sys.modules[PACKAGE] = ModuleType(PACKAGE)
        package.__path__ = [str(_Project.folder)]
        importlib.invalidate_caches()
    try:
        imported = importlib.import_module(module)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{_place(path, error)}: cannot be imported: {type(error).__name__}: {_said(error)}") from error
    attribute = name.partition(":")[2]
    if not hasattr(imported, attribute):
        raise _no_name(path, attribute, [each for each in vars(imported) if not each.startswith("_")])
    return getattr(imported, attribute)


def source_of(name: str) -> str:
    """16 hex digits of the parsed source of a plugin, and of the plugins that it imports, by their names.

    Nothing is imported.

    Raises:
        UserError: there is no such file, it is no Python, or it does not define the name.
    """
    path = _file_of(name)
    defined = _defined(_parsed(path))
    if "*" not in defined and (attribute := name.partition(":")[2]) not in defined:
        raise _no_name(path, attribute, sorted(defined))
    sources: dict[str, Any] = {}
    waiting = [name.partition(":")[0]]
    while waiting:
        module = waiting.pop()
        found = _find(module)
        if module not in sources and found is not None:
            sources[module] = _plain(_parsed(found))
            waiting += _imported(_parsed(found), module, found.name == "__init__.py")
    return hashlib.sha256(json.dumps(sources, sort_keys=True).encode()).hexdigest()[:16]


def check_own_terms(taken: Mapping[str, object], reserved: Callable[[str], bool]) -> None:
    """Check the names of all terms that plugins declare.

    Raises:
        UserError: one is a term of Distillery's, or cannot name a term; or as for ``own_terms``.
    """
    for term, where in own_terms().items():
        path = _shown(_file_of(where))
        if term in taken:
            raise UserError(f"{path}: TERMS: {term!r} is a term of Distillery's; give yours another name")
        if not term.isidentifier() or term.startswith("_") or reserved(term):
            raise UserError(f"{path}: TERMS: {term!r} cannot name a term; write letters, digits and _, e.g. my_{term}")


def own_terms() -> dict[str, str]:
    """The terms that plugins declare by ``TERMS = {"mine": MineOptions}``, as ``plugins.FILE:CLASS``. Imports none.

    Raises:
        UserError: a file is no Python, or two declare the same term.
    """
    found: dict[str, str] = {}
    for path in sorted(_Project.folder.glob("*.py")):
        for term, options in _declared(_parsed(path)):
            if term in found:
                other = _Project.folder / f"{found[term].partition(':')[0].removeprefix('plugins.')}.py"
                raise UserError(f"{_shown(path)}: TERMS: {_shown(other)} has a term {term!r} too; rename one")
            found[term] = f"{PACKAGE}.{path.stem}:{options}"
    return found


def _file_of(name: str) -> Path:
    if not _NAME.fullmatch(name):
        raise UserError(f"{name!r} names no part of a plugin; write plugins.FILE:NAME, as plugins.mine:net")
    module = name.partition(":")[0]
    path = _find(module)
    if path is None:
        missing = _Project.folder.joinpath(*module.split(".")[1:]).with_suffix(".py")
        raise UserError(f"no file {_shown(missing)}; {nearest(missing.stem, [file.stem for file in _files()])}")
    return path


def _files() -> list[Path]:
    return sorted(_Project.folder.glob("*.py"))


def _find(module: str) -> Path | None:
    place = _Project.folder.joinpath(*module.split(".")[1:])
    return next((path for path in (place.with_suffix(".py"), place / "__init__.py") if path.is_file()), None)


def _no_name(path: Path, attribute: str, defined: list[str]) -> UserError:
    return UserError(f"{_shown(path)}: has no {attribute!r}; {nearest(attribute, defined)}")


def _parsed(path: Path) -> ast.Module:
    facts = path.stat()
    return _parse(path, facts.st_mtime_ns, facts.st_size)


@lru_cache(maxsize=256)
def _parse(path: Path, _date: int, _size: int) -> ast.Module:
    try:
        return ast.parse(path.read_bytes(), str(path))
    except (SyntaxError, ValueError) as error:
        raise UserError(f"{_place(path, error)}: cannot be imported: {type(error).__name__}: {_said(error)}") from None


def _place(path: Path, error: Exception) -> str:
    """The line of a plugin at which an error arose, the innermost that is in a plugin."""
    if isinstance(error, SyntaxError) and error.lineno is not None and error.filename:
        return f"{_shown(Path(error.filename))}:{error.lineno}"
    folder = str(_Project.folder)
    lines = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(folder)]
    return f"{_shown(Path(lines[-1].filename))}:{lines[-1].lineno}" if lines else str(_shown(path))


def _shown(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _said(error: Exception) -> str:
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return (text.strip().splitlines() or ["no reason given"])[0]


def _plain(node: Any) -> Any:  # noqa: ANN401
    """A syntax tree as plain data, the same for every version of Python: no positions, docstrings or empty fields."""
    if isinstance(node, list):
        return [_plain(each) for each in node]
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = dict(ast.iter_fields(node))
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        fields["body"] = node.body[ast.get_docstring(node, clean=False) is not None :]
    return [type(node).__name__, {name: _plain(value) for name, value in fields.items() if value not in (None, [])}]


def _imported(tree: ast.Module, module: str, is_package: bool) -> list[str]:
    """The plugins that a file may import, anywhere in it."""
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parts = module.split(".")
            above = parts[: len(parts) - node.level + is_package] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    parents = [name.split(".")[:depth] for name in [*names, module] for depth in range(2, name.count(".") + 2)]
    return [".".join(parts) for parts in parents if parts[0] == PACKAGE]


def _defined(tree: ast.Module) -> set[str]:
    """The names that a file defines; with "*" where it imports all of another."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


def _declared(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """The entries of a file's ``TERMS``."""
    for node in tree.body:
        if not isinstance(node, ast.Assign | ast.AnnAssign) or not isinstance(node.value, ast.Dict):
            continue
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        if any(isinstance(target, ast.Name) and target.id == "TERMS" for target in targets):
            for key, options in zip(node.value.keys, node.value.values, strict=True):
                if isinstance(key, ast.Constant) and isinstance(key.value, str) and isinstance(options, ast.Name):
                    yield key.value, options.id
