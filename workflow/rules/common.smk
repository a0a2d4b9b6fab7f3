# The pages of config/, and what rules ask about them. Rules see the pages through these functions only, so that a job
# depends on what it uses and on nothing else that stands in the same file.
import hashlib
import os
import re
import sys
from functools import wraps
from pathlib import Path

try:
    from distillery.config import load_pages
    from distillery.config.reading import nearest, read_mapping
    from distillery.config.rehearsal import representatives, write_rehearsal
    from distillery.config.resolve import load_dataset
    from distillery.config.schema.dataset import HUB_PREFIX
    from distillery.errors import UserError
    from distillery.models.zoo import ZOO
    from distillery.objectives.terms import TERMS
    from distillery.reporting.measurements import needed_files, tables_with_figures
except ModuleNotFoundError as error:
    sys.exit(
        f"distillery: {error}; {sys.executable} is not the environment of this project: run `make` in its root, "
        "then use .venv/bin/snakemake"
    )

# Jobs find the commands of the environment that Snakemake runs in, whether it is activated or not.
os.environ.update(
    PATH=os.pathsep.join(
        [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
    )
)

CONFIG = Path("config")


def one_line_errors(function):
    """Let a user's mistake end Snakemake with its one line; exceptions would come with a traceback."""

    @wraps(function)
    def answer(*arguments):
        try:
            return function(*arguments)
        except UserError as error:
            sys.exit(f"distillery: {error}")

    return answer


@one_line_errors
def asked(name):
    """Whether the command line says `--config name=true`."""
    value = str(config.get(name, False)).lower()
    if value not in ("true", "false"):
        raise UserError(f"--config {name}={value}: expected true or false")
    return value == "true"


def set_up_rehearsal():
    """Write the rehearsal's pages; return its folder, or None if this is none."""
    if not asked("rehearsal"):
        return None
    folder = Path("results", "rehearsal")
    one_line_errors(write_rehearsal)(
        one_line_errors(load_pages)(CONFIG).values(), folder
    )
    for name in ("src", "workflow"):
        link = folder / name
        if not link.is_symlink():
            link.symlink_to(Path("..", "..", name))
    return str(folder)


REHEARSAL = set_up_rehearsal()


include: "rehearsal.smk"


PAGES = one_line_errors(load_pages)(CONFIG)
DATASETS = one_line_errors(read_mapping)(CONFIG / "datasets.yaml")


# --- which targets there are -----------------------------------------------------------------------------------------


def any_of(names):
    """A pattern that matches these names and nothing else."""
    return "|".join(map(re.escape, sorted(names))) or "(?!)"


def experiments_before(runs):
    """A pattern for {experiment} in {experiment}/{run}/ that matches only before the given (experiment, run) pairs.

    One name may be a teacher on one page and a student on another, so {experiment} has to look ahead at {run}.
    """
    pairs = any_of(f"{experiment}/{run}" for experiment, run in runs)
    return f"(?=(?:{pairs})/)(?:{any_of(PAGES)})"


LINES = [
    (page.name, run, page) for page in PAGES.values() for run in page.experiment.runs
]
IMPORTED = [
    (name, run) for name, run, page in LINES if page.experiment.runs[run].recipe is None
]
TEACHERS = [
    (name, run)
    for name, run, page in LINES
    if run in page.teachers() and (name, run) not in IMPORTED
]
STUDENTS = [
    (name, run)
    for name, run, page in LINES
    if (name, run) not in [*IMPORTED, *TEACHERS]
]


wildcard_constraints:
    dataset=any_of(DATASETS),
    experiment=any_of(PAGES),
    run=any_of(run for _, run, _ in LINES),
    seed="0|[1-9][0-9]*",


@one_line_errors
def chosen_pages(wildcards):
    """All that belongs to the pages that `--config pages=...` names, or to every page for `pages=all`.

    Tables and figures would be enough to ask for, but a run that was deleted is to be made again too.
    """
    chosen = config.get("pages", "digits")
    names = chosen if isinstance(chosen, list) else str(chosen).split(",")
    names = list(PAGES) if names == ["all"] else names
    for name in names:
        if name not in PAGES:
            raise UserError(
                f"--config pages={chosen}: no page {CONFIG / f'{name}.yaml'}; {nearest(name, PAGES)}"
            )
    return [file for name in names for file in page_files(PAGES[name])]


def page_files(page):
    """Tables, figures, weights and measurements of a page."""
    runs = page.experiment.runs
    made = of_members(page, runs, "weights.safetensors")
    measured = of_members(page, runs, "metrics.json") + table_measurements(page)
    pages = [f"results/tables/{page.name}.md", f"results/figures/{page.name}"]
    if PARTIAL:
        return pages
    return [*pages, *made, *dict.fromkeys(measured)]


# --- what a job needs ------------------------------------------------------------------------------------------------


def asked_page(wildcards):
    """The page that a job belongs to; a run or seed that it does not have is the user's mistake."""
    page = PAGES[wildcards.experiment]
    page.spec(wildcards.run, int(wildcards.seed))
    return page


@one_line_errors
def digest(wildcards):
    """What decides a run's weights, as a hash: equal however the YAML is laid out, commented or ordered."""
    return asked_page(wildcards).spec(wildcards.run, int(wildcards.seed)).digest


@one_line_errors
def manifest(wildcards):
    """The prepared data set of a page."""
    return f"results/datasets/{PAGES[wildcards.experiment].experiment.dataset}/manifest.json"


def of_teacher(name):
    """An input function: this file of the run's teacher, if it has one."""

    @one_line_errors
    def file(wildcards):
        page = asked_page(wildcards)
        teacher = page.teacher(wildcards.run)
        return (
            [f"results/{page.name}/{teacher}/seed{page.seeds(teacher)[0]}/{name}"]
            if teacher
            else []
        )

    return file


def first_seed(wildcards):
    """The first seed of a run, which stands for all where only the architecture matters."""
    return one_line_errors(PAGES[wildcards.experiment].seeds)(wildcards.run)[0]


def of_first_seed(name):
    """An input function: this file of the run's first seed."""
    return (
        lambda wildcards: f"results/{wildcards.experiment}/{wildcards.run}/seed{first_seed(wildcards)}/{name}"
    )


def first_digest(wildcards):
    """The digest of the run's first seed."""
    return PAGES[wildcards.experiment].spec(wildcards.run).digest


@one_line_errors
def initial_weights(wildcards):
    """The files that a run imports or starts from; none if it downloads or a file is missing, which the job says best."""
    page = PAGES[wildcards.experiment]
    origin = page.origin(wildcards.run)
    if origin is not None:
        page, run = origin
        folder = f"results/{page.name}/{run}/seed{page.seeds(run)[0]}"
        return [f"{folder}/weights.safetensors", f"{folder}/run.json"]
    weights = page.experiment.runs[wildcards.run].weights
    return weights if weights is not None and Path(weights).is_file() else []


@one_line_errors
def dataset_line(wildcards):
    """What datasets.yaml says about a data set."""
    dataset = load_dataset(CONFIG / "datasets.yaml", wildcards.dataset)
    return dataset.model_dump_json(exclude_defaults=True)


@one_line_errors
def raw_record(dataset):
    """What DVC knows of the raw images: a small file that `dvc add data` changes when images were changed.

    Images outside data/ are not watched; `snakemake --forcerun prepare_dataset` tells that they changed.
    """
    raw = Path(load_dataset(CONFIG / "datasets.yaml", dataset).path)
    return ["data.dvc"] if raw.is_relative_to("data") else []


@one_line_errors
def download_source(wildcards):
    """Where raw images are fetched from; empty where datasets.yaml knows nobody who has them."""
    line = load_dataset(CONFIG / "datasets.yaml", wildcards.dataset)
    remote = line.download is not None or line.path.startswith(HUB_PREFIX)
    return line.model_dump_json(include={"path", "download"}) if remote else ""


def download_mark(wildcards):
    """Says that raw images were fetched, which only some machines of a cluster can do."""
    mark = f"results/datasets/{wildcards.dataset}.downloaded"
    return mark if download_source(wildcards) else []


# --- what a page needs -----------------------------------------------------------------------------------------------


def of_members(page, runs, name):
    """This file of every seed of some runs."""
    return [
        f"results/{page.name}/{run}/seed{seed}/{name}"
        for run in runs
        for seed in page.seeds(run)
    ]


def table_rows(page, tables=None):
    """The runs behind some of a page's tables, or all, each once."""
    return list(needed_files(page, tables))


def trained_runs(page):
    """The runs of a page that have a history."""
    return [
        run for run, line in page.experiment.runs.items() if line.recipe is not None
    ]


def asked_files(files, wildcards):
    """What a page needs, or one table of it where the target names one."""
    page = PAGES[wildcards.experiment]
    if "table" not in wildcards.keys():
        return files(page)
    asked_table(wildcards)
    return files(page, [wildcards.table])


def table_measurements(page, tables=None):
    """The measurements that the cells of some of a page's tables, or all, are filled with."""
    needed = needed_files(page, tables)
    measured = [run for run in needed if "metrics.json" in needed[run]]
    profiled = [run for run in needed if "profile.json" in needed[run]]
    return of_members(page, measured, "metrics.json") + [
        f"results/{page.name}/{run}/profile.json" for run in profiled
    ]


def figure_measurements(page):
    """The measurements behind those tables that are drawn too."""
    return table_measurements(page, tables_with_figures(page))


def published_ledger(wildcards):
    """The published numbers of a page, if it has any."""
    ledger = CONFIG / "published" / f"{wildcards.experiment}.csv"
    return ledger if ledger.is_file() else []


def tables_block(wildcards):
    """How a page lays out its tables, names and order included."""
    return [
        (name, table.model_dump_json(exclude_defaults=True))
        for name, table in PAGES[wildcards.experiment].experiment.tables.items()
    ]


@one_line_errors
def asked_table(wildcards):
    """How the one table is laid out that a target names."""
    page = PAGES[wildcards.experiment]
    tables = page.experiment.tables
    if wildcards.table not in tables:
        known = nearest(wildcards.table, tables)
        raise UserError(
            f"{page.path}: {page.name}.tables: no table {wildcards.table!r}; {known}"
        )
    return tables[wildcards.table].model_dump_json(exclude_defaults=True)


def digests(page, runs):
    """What decides the weights of some runs."""
    return sorted(
        f"{run}/{seed}: {page.spec(run, seed).digest}"
        for run in runs
        for seed in page.seeds(run)
    )


def table_digests(wildcards):
    """The specs behind tables: after a failed training, they tell that the old tables are stale."""
    page = PAGES[wildcards.experiment]
    return digests(page, asked_files(table_rows, wildcards))


def table_lineage(wildcards):
    """What tables descend from."""
    page = PAGES[wildcards.experiment]
    return lineage(
        page,
        asked_files(table_rows, wildcards),
        "evaluation/evaluate.py",
        "evaluation/profile.py",
        "reporting/tables.py",
    )


def figure_lineage(wildcards):
    """What a page's figures descend from."""
    page = PAGES[wildcards.experiment]
    drawn = needed_files(page, tables_with_figures(page))
    measuring = ["evaluation/evaluate.py", "evaluation/profile.py"] if drawn else []
    return lineage(
        page,
        dict.fromkeys([*trained_runs(page), *drawn]),
        "reporting/figures.py",
        *measuring,
    )


def drawn_ledger(wildcards):
    """The published numbers of a page, if a figure shows any."""
    drawn = tables_with_figures(PAGES[wildcards.experiment])
    return published_ledger(wildcards) if drawn else []


def training_histories(page):
    """The learning curves of a page's runs."""
    return of_members(page, trained_runs(page), "history.csv")


# --- a page with gaps ------------------------------------------------------------------------------------------------


# A page as far as there are results, without making any.
PARTIAL = asked("partial")


def unless_partial(files):
    """An input function: what a page or a table needs. A partial one waits for nothing."""
    return lambda wildcards: [] if PARTIAL else asked_files(files, wildcards)


def found_if_partial(files):
    """A parameter: what of it is there when the page is partial, so that the page is made anew when more is."""

    def found(wildcards):
        paths = map(Path, asked_files(files, wildcards) if PARTIAL else [])
        return [
            f"{path}: {hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"
            for path in paths
            if path.is_file()
        ]

    return found


def page_manifest(page, tables=None):
    """The prepared data set of a page, in a list; ``tables`` are all of one data set."""
    return [f"results/datasets/{page.experiment.dataset}/manifest.json"]


def trained_digests(wildcards):
    """The specs behind a page's figures."""
    page = PAGES[wildcards.experiment]
    drawn = needed_files(page, tables_with_figures(page))
    return digests(page, dict.fromkeys([*trained_runs(page), *drawn]))


def drawn_tables(wildcards):
    """How a page lays out the tables that are drawn too."""
    page = PAGES[wildcards.experiment]
    drawn = tables_with_figures(page)
    return [(name, text) for name, text in tables_block(wildcards) if name in drawn]
