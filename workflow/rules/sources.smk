# Which code a job is made of: editing a file makes again what was made with it, and nothing else.
import ast
from functools import cache

PACKAGE = Path("src", "distillery")
TERMS = PACKAGE / "objectives" / "__init__.py"

# What decides no result: the configuration (digests stand for it), names, files, messages, progress, and the list of
# networks (a network's own file counts for the runs that use it).
INDIFFERENT = {*(PACKAGE / "config").glob("*.py"), PACKAGE / "__init__.py"} | {
    PACKAGE / name
    for name in (
        "atomic.py",
        "errors.py",
        "layout.py",
        "models/registry.py",
        "reporting/provenance.py",
        "training/logbook.py",
    )
}


def sources(*roots, without=()):
    """The files that modules of the package are made of: they themselves and what they import, lazily or not."""
    found, waiting = set(), [PACKAGE / root for root in roots]
    while waiting:
        path = waiting.pop()
        if path not in found | INDIFFERENT and path.parent not in without:
            found.add(path)
            waiting += imported_files(path)
    return sorted(map(str, found))


@cache
def imported_files(path):
    """The package's own files that a file imports. The list of terms does not count as a user of every term."""
    if path == TERMS:
        return module_files("distillery.objectives.term")
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return [file for name in names for file in module_files(name)]


def module_files(name):
    """The file that holds a name of the package, and the __init__.py files that importing it runs."""
    parts = name.split(".")
    if parts[0] != PACKAGE.name:
        return []
    paths = [PACKAGE.joinpath(*parts[1:end]) for end in range(2, len(parts) + 1)]
    candidates = [
        file
        for path in paths
        for file in (path.with_suffix(".py"), path / "__init__.py")
    ]
    return [file for file in candidates if file.is_file()]


@cache
def term_modules():
    """The module of each term of an objective, by the term's key, read from the list of terms."""
    tree = ast.parse(TERMS.read_text(encoding="utf-8"))
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    modules = {alias.name: node.module for node in imports for alias in node.names}
    (terms,) = [
        node.value
        for node in tree.body
        if isinstance(node, ast.AnnAssign) and node.target.id == "TERMS"
    ]
    return {
        key.value: modules[value.id] for key, value in zip(terms.keys, terms.values)
    }


def file_in_package(module):
    """The path of a module below the package's folder."""
    return module_files(module)[-1].relative_to(PACKAGE)


def network_files(wildcards):
    """The file of a run's network, if this project has one; timm's and torchvision's have versions instead."""
    line = PAGES[wildcards.experiment].experiment.runs[wildcards.run]
    return (
        [file_in_package(ZOO[line.model].builder.partition(":")[0])]
        if line.model in ZOO
        else []
    )


def network_sources(*roots):
    """An input function: the files of some modules, and of the run's network."""
    return lambda wildcards: sources(*roots, *network_files(wildcards))


def training_sources(wildcards):
    """The code that decides a run's weights. Of the terms of objectives, only the run's own; how networks are measured
    decides none."""
    objective = PAGES[wildcards.experiment].experiment.runs[wildcards.run].objective
    terms = [file_in_package(term_modules()[term]) for term in objective.terms()]
    return sources(
        "training/run.py",
        *terms,
        *network_files(wildcards),
        without=[PACKAGE / "evaluation"],
    )
