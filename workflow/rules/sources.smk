# What people edit and results descend from: code, and the record of the raw images. Editing a file makes again what was
# made with it, and nothing else.
import ast
from functools import cache
from itertools import chain

PACKAGE = Path("src", "distillery")
MEASURING = (PACKAGE / "evaluation" / "metrics.py",)
IMPORTING = tuple(
    PACKAGE / "models" / "pretrained" / name
    for name in ("load.py", "checkpoint.py", "rename.py", "hub.py")
)

# What decides no result: the configuration (digests stand for it), names, files, messages, progress, and the lists of
# networks and of terms (a network's or term's own file counts for the runs that use it).
INDIFFERENT = {*(PACKAGE / "experiment").rglob("*.py"), PACKAGE / "__init__.py"} | {
    PACKAGE / name
    for name in (
        "atomic.py",
        "errors.py",
        "paths.py",
        "models/registry.py",
        "models/zoo/__init__.py",
        "distill/registry.py",
        "provenance.py",
        "cluster/run_lock.py",
        "training/metric_logger.py",
        "cluster/signals.py",
    )
}


@cache
def sources(*roots, without=()):
    """The files that modules of the package are made of: they themselves and what they import, lazily or not."""
    found, waiting = set(), [PACKAGE / root for root in roots]
    while waiting:
        path = waiting.pop()
        if path not in found | INDIFFERENT and path not in without:
            found.add(path)
            waiting += imported_files(path)
    return sorted(map(str, found))


@cache
def imported_files(path):
    """The package's own files that a file imports."""
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


def below_package(module):
    """The path of a module below the package's folder."""
    return module_files(module)[-1].relative_to(PACKAGE)


def making_sources(line):
    """The code that decides a run's weights: of networks and of terms of objectives, only its own.

    How networks are measured decides none. The networks of timm and torchvision have versions instead of files.
    """
    network = (
        [below_package(ZOO[line.model].builder.partition(":")[0])]
        if line.model in ZOO
        else []
    )
    if line.recipe is None:
        return sources("models/pretrained/load.py", "models/normalize.py", *network)
    terms = [
        below_package(TERMS[term].partition(":")[0]) for term in line.objective.terms()
    ]
    unused = MEASURING if line.weights is not None else MEASURING + IMPORTING
    return sources("training/run.py", *terms, *network, without=unused)


def lineage(experiment, runs, *roots):
    """Everything that results of some runs descend from and that people edit; ``roots`` are the result's own code.

    All of it, not only what the job itself reads, because a failed job loses its outputs, and Snakemake takes a missing
    intermediate file for no reason to run: after an edit and a failed training, old tables would pass for new.
    """
    family = [(experiment, None), *experiment.family(runs)]
    lines = [relative.config.runs[run] for relative, run in family if run is not None]
    code = set(sources("data/prepare.py", *roots)).union(*map(making_sources, lines))
    records = (raw_record(relative.config.dataset) for relative, _ in family)
    return list(dict.fromkeys(chain.from_iterable(records))) + sorted(code)


def run_lineage(*roots):
    """An input function: what a result of one run descends from."""

    @one_line_errors
    def files(wildcards):
        experiment = EXPERIMENTS[wildcards.experiment]
        experiment.seeds(wildcards.run)
        return lineage(experiment, [wildcards.run], *roots)

    return files
