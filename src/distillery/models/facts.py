"""What building a network tells of it, kept for the next time: a check of a thousand runs need not import torch again.

The facts lie in the user's cache folder; they may be removed at any time, and are left out where it cannot be written.
Those of the networks that Distillery's own pages name are shipped.
"""

import atexit
import json
from collections import ChainMap
from contextlib import AbstractContextManager, suppress
from functools import cache, lru_cache
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from distillery.atomic import write_json
from distillery.errors import UserError
from distillery.experiment.plugins import is_plugin, source_of
from distillery.paths import cache_folder

FLOAT = 4
# What checks of Distillery's pages find; tests/models/test_shipped_facts.py writes it, and holds it true.
SHIPPED = Path(__file__).with_name("networks.json")
# What decides whether a network can be built, how large it is and which images it takes, beside the libraries.
SOURCES = ("facts.py", "initialisation.py", "registry.py", "zoo/*.py", "../experiment/zoo.py")
Arguments = tuple[tuple[str, bool | int | float | str], ...]


@lru_cache(maxsize=1024)
def network_bytes(
    name: str, classes: int, arguments: Arguments, size: int | None = None, images: int | None = None
) -> int:
    """The bytes of a network's weights in float32.

    ``arguments`` are the sorted items of its ``model_args``. With a ``size``, it takes one blank image of so many
    pixels a side, too; with ``images``, it can also be trained on a batch of so many.

    Raises:
        UserError: there is no such network, or it takes no such arguments or images; the line begins with the key, or
            names the model.
    """
    source = source_of(name) if is_plugin(name) else ""
    key = json.dumps([name, classes, arguments, size, images, source])
    facts = _facts()
    if key not in facts:
        facts[key] = _built_bytes(name, classes, arguments, size, images)
    return facts[key]


def _built_bytes(name: str, classes: int, arguments: Arguments, size: int | None, images: int | None) -> int:
    import torch

    from distillery.models.registry import check_input, check_training, create_model

    if size is not None:
        network = create_model(name, classes, **dict(arguments))
        check_input(network, name, size, classes)
        if images is not None:
            check_training(network, name, size, images)
    else:
        try:
            with torch.device("meta"), _undrawn():  # shapes alone
                network = create_model(name, classes, **dict(arguments))
        # Some networks compute with numbers while they are built, and cannot be built without any.
        except (UserError, RuntimeError):
            network = create_model(name, classes, **dict(arguments))
    count: int = sum(value.numel() for value in network.state_dict().values())
    return FLOAT * count


def _undrawn() -> AbstractContextManager[object]:
    """Draw no weights: where they have shapes alone, torch would import its compiler for that, which takes a second."""
    from torch.overrides import TorchFunctionMode

    class Undrawn(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, given: Any = (), named: Any = None) -> Any:  # noqa: ANN401
            initial = getattr(function, "__module__", None) == "torch.nn.init"
            if initial or getattr(function, "__name__", "") in ("normal_", "uniform_"):
                return next(iter((*given, *(named or {}).values())))
            return function(*given, **(named or {}))

    return Undrawn()


@cache
def _facts() -> ChainMap[str, int]:
    """All that is known, read once; what is added is written when the process ends."""
    path, code = cache_folder() / "networks.json", _code()
    kept = _read_facts(path, code)
    before = len(kept)

    def keep() -> None:
        if len(kept) > before:
            with suppress(UserError):
                write_json(path, {"code": code, "facts": kept})

    atexit.register(keep)
    return ChainMap(kept, _read_facts(SHIPPED, code))


def _read_facts(path: Path, code: str) -> dict[str, int]:
    """The facts of a file, none if they are of other code."""
    with suppress(OSError, ValueError, LookupError, TypeError):
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["code"] == code:
            return dict(content["facts"])
    return {}


def _code() -> str:
    """What stands for all code that builds networks, plugins aside: with another, nothing is known any more."""
    files = [path for pattern in SOURCES for path in sorted(Path(__file__).parent.glob(pattern))]
    return f"{sha256(b''.join(path.read_bytes() for path in files)).hexdigest()} {_libraries()}"


def _libraries() -> str:
    """The versions of those that build networks; a build for GPUs builds the same."""
    found = []
    for package in ("torch", "timm", "torchvision"):
        with suppress(PackageNotFoundError):
            found.append(f"{package} {version(package).partition('+')[0]}")
    return ", ".join(found)
