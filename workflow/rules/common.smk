# The experiments of config/, and what rules ask about them. Rules see the experiments through these functions only, so that a job
# depends on what it uses and on nothing else that stands in the same file.
import hashlib
import os
import re
import sys
from functools import wraps
from pathlib import Path

try:
    from distillery.experiment import load_experiments
    from distillery.experiment.reading import nearest, read_mapping
    from distillery.experiment.rehearsal import representatives, write_rehearsal
    from distillery.experiment.resolving import load_dataset
    from distillery.experiment.schema.dataset import HUB_PREFIX
    from distillery.errors import UserError
    from distillery.models.zoo import ZOO
    from distillery.distill.registry import TERMS
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
    """Write the rehearsal's experiments; return its folder, or None if this is none."""
    if not asked("rehearsal"):
        return None
    folder = Path("results", "rehearsal")
    one_line_errors(write_rehearsal)(
        one_line_errors(load_experiments)(CONFIG).values(), folder
    )
    for name in ("src", "workflow"):
        link = folder / name
        if not link.is_symlink():
            link.symlink_to(Path("..", "..", name))
    return str(folder)


REHEARSAL = set_up_rehearsal()


include: "rehearsal.smk"


EXPERIMENTS = one_line_errors(load_experiments)(CONFIG)
DATASETS = one_line_errors(read_mapping)(CONFIG / "datasets.yaml")


# --- which targets there are -----------------------------------------------------------------------------------------


def any_of(names):
    """A pattern that matches these names and nothing else."""
    return "|".join(map(re.escape, sorted(names))) or "(?!)"


def experiments_before(runs):
    """A pattern for {experiment} in {experiment}/{run}/ that matches only before the given (experiment, run) pairs.

    One name may be a teacher on one experiment and a student on another, so {experiment} has to look ahead at {run}.
    """
    pairs = any_of(f"{experiment}/{run}" for experiment, run in runs)
    return f"(?=(?:{pairs})/)(?:{any_of(EXPERIMENTS)})"


LINES = [
    (experiment.name, run, experiment)
    for experiment in EXPERIMENTS.values()
    for run in experiment.config.runs
]
IMPORTED = [
    (name, run)
    for name, run, experiment in LINES
    if experiment.config.runs[run].recipe is None
]
TEACHERS = [
    (name, run)
    for name, run, experiment in LINES
    if run in experiment.teachers() and (name, run) not in IMPORTED
]
STUDENTS = [
    (name, run)
    for name, run, experiment in LINES
    if (name, run) not in [*IMPORTED, *TEACHERS]
]


wildcard_constraints:
    dataset=any_of(DATASETS),
    experiment=any_of(EXPERIMENTS),
    run=any_of(run for _, run, _ in LINES),
    seed="0|[1-9][0-9]*",


@one_line_errors
def chosen_experiments(wildcards):
    """All that belongs to the experiments that `--config experiments=...` names, or to every experiment for `experiments=all`.

    Tables and figures would be enough to ask for, but a run that was deleted is to be made again too.
    """
    chosen = config.get("experiments", "digits")
    names = chosen if isinstance(chosen, list) else str(chosen).split(",")
    names = list(EXPERIMENTS) if names == ["all"] else names
    for name in names:
        if name not in EXPERIMENTS:
            raise UserError(
                f"--config experiments={chosen}: no experiment {CONFIG / f'{name}.yaml'}; {nearest(name, EXPERIMENTS)}"
            )
    return [file for name in names for file in experiment_files(EXPERIMENTS[name])]


def experiment_files(experiment):
    """Tables, figures, weights and measurements of an experiment."""
    runs = experiment.config.runs
    made = of_members(experiment, runs, "weights.safetensors")
    measured = of_members(experiment, runs, "metrics.json") + table_measurements(
        experiment
    )
    experiments = [
        f"results/tables/{experiment.name}.md",
        f"results/figures/{experiment.name}",
    ]
    if PARTIAL:
        return experiments
    return [*experiments, *made, *dict.fromkeys(measured)]


# --- what a job needs ------------------------------------------------------------------------------------------------


def asked_experiment(wildcards):
    """The experiment that a job belongs to; a run or seed that it does not have is the user's mistake."""
    experiment = EXPERIMENTS[wildcards.experiment]
    experiment.spec(wildcards.run, int(wildcards.seed))
    return experiment


@one_line_errors
def digest(wildcards):
    """What decides a run's weights, as a hash: equal however the YAML is laid out, commented or ordered."""
    return asked_experiment(wildcards).spec(wildcards.run, int(wildcards.seed)).digest


@one_line_errors
def manifest(wildcards):
    """The prepared data set of an experiment."""
    return f"results/datasets/{EXPERIMENTS[wildcards.experiment].config.dataset}/manifest.json"


def of_teacher(name):
    """An input function: this file of the run's teacher, if it has one."""

    @one_line_errors
    def file(wildcards):
        experiment = asked_experiment(wildcards)
        teacher = experiment.teacher(wildcards.run)
        return (
            [
                f"results/{experiment.name}/{teacher}/seed{experiment.seeds(teacher)[0]}/{name}"
            ]
            if teacher
            else []
        )

    return file


def first_seed(wildcards):
    """The first seed of a run, which stands for all where only the architecture matters."""
    return one_line_errors(EXPERIMENTS[wildcards.experiment].seeds)(wildcards.run)[0]


def of_first_seed(name):
    """An input function: this file of the run's first seed."""
    return (
        lambda wildcards: f"results/{wildcards.experiment}/{wildcards.run}/seed{first_seed(wildcards)}/{name}"
    )


def first_digest(wildcards):
    """The digest of the run's first seed."""
    return EXPERIMENTS[wildcards.experiment].spec(wildcards.run).digest


@one_line_errors
def initial_weights(wildcards):
    """The files that a run imports or starts from; none if it downloads or a file is missing, which the job says best."""
    experiment = EXPERIMENTS[wildcards.experiment]
    origin = experiment.origin(wildcards.run)
    if origin is not None:
        experiment, run = origin
        folder = f"results/{experiment.name}/{run}/seed{experiment.seeds(run)[0]}"
        return [f"{folder}/weights.safetensors", f"{folder}/run.json"]
    weights = experiment.config.runs[wildcards.run].weights
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


# --- what an experiment needs -----------------------------------------------------------------------------------------------


def of_members(experiment, runs, name):
    """This file of every seed of some runs."""
    return [
        f"results/{experiment.name}/{run}/seed{seed}/{name}"
        for run in runs
        for seed in experiment.seeds(run)
    ]


def table_rows(experiment, tables=None):
    """The runs behind some of an experiment's tables, or all, each once."""
    return list(needed_files(experiment, tables))


def trained_runs(experiment):
    """The runs of an experiment that have a history."""
    return [
        run for run, line in experiment.config.runs.items() if line.recipe is not None
    ]


def asked_files(files, wildcards):
    """What an experiment needs, or one table of it where the target names one."""
    experiment = EXPERIMENTS[wildcards.experiment]
    if "table" not in wildcards.keys():
        return files(experiment)
    asked_table(wildcards)
    return files(experiment, [wildcards.table])


def table_measurements(experiment, tables=None):
    """The measurements that the cells of some of an experiment's tables, or all, are filled with."""
    needed = needed_files(experiment, tables)
    measured = [run for run in needed if "metrics.json" in needed[run]]
    profiled = [run for run in needed if "profile.json" in needed[run]]
    return of_members(experiment, measured, "metrics.json") + [
        f"results/{experiment.name}/{run}/profile.json" for run in profiled
    ]


def figure_measurements(experiment):
    """The measurements behind those tables that are drawn too."""
    return table_measurements(experiment, tables_with_figures(experiment))


def published_ledger(wildcards):
    """The published numbers of an experiment, if it has any."""
    ledger = CONFIG / "published" / f"{wildcards.experiment}.csv"
    return ledger if ledger.is_file() else []


def tables_block(wildcards):
    """How an experiment lays out its tables, names and order included."""
    return [
        (name, table.model_dump_json(exclude_defaults=True))
        for name, table in EXPERIMENTS[wildcards.experiment].config.tables.items()
    ]


@one_line_errors
def asked_table(wildcards):
    """How the one table is laid out that a target names."""
    experiment = EXPERIMENTS[wildcards.experiment]
    tables = experiment.config.tables
    if wildcards.table not in tables:
        known = nearest(wildcards.table, tables)
        raise UserError(
            f"{experiment.path}: {experiment.name}.tables: no table {wildcards.table!r}; {known}"
        )
    return tables[wildcards.table].model_dump_json(exclude_defaults=True)


def digests(experiment, runs):
    """What decides the weights of some runs."""
    return sorted(
        f"{run}/{seed}: {experiment.spec(run, seed).digest}"
        for run in runs
        for seed in experiment.seeds(run)
    )


def table_digests(wildcards):
    """The specs behind tables: after a failed training, they tell that the old tables are stale."""
    experiment = EXPERIMENTS[wildcards.experiment]
    return digests(experiment, asked_files(table_rows, wildcards))


def table_lineage(wildcards):
    """What tables descend from."""
    experiment = EXPERIMENTS[wildcards.experiment]
    return lineage(
        experiment,
        asked_files(table_rows, wildcards),
        "evaluation/evaluate.py",
        "evaluation/profile.py",
        "reporting/tables.py",
    )


def figure_lineage(wildcards):
    """What an experiment's figures descend from."""
    experiment = EXPERIMENTS[wildcards.experiment]
    drawn = needed_files(experiment, tables_with_figures(experiment))
    measuring = ["evaluation/evaluate.py", "evaluation/profile.py"] if drawn else []
    return lineage(
        experiment,
        dict.fromkeys([*trained_runs(experiment), *drawn]),
        "reporting/figures.py",
        *measuring,
    )


def drawn_ledger(wildcards):
    """The published numbers of an experiment, if a figure shows any."""
    drawn = tables_with_figures(EXPERIMENTS[wildcards.experiment])
    return published_ledger(wildcards) if drawn else []


def training_histories(experiment):
    """The learning curves of an experiment's runs."""
    return of_members(experiment, trained_runs(experiment), "history.csv")


# --- an experiment with gaps ------------------------------------------------------------------------------------------------


# An experiment as far as there are results, without making any.
PARTIAL = asked("partial")


def unless_partial(files):
    """An input function: what an experiment or a table needs. A partial one waits for nothing."""
    return lambda wildcards: [] if PARTIAL else asked_files(files, wildcards)


def found_if_partial(files):
    """A parameter: what of it is there when the experiment is partial, so that the experiment is made anew when more is."""

    def found(wildcards):
        paths = map(Path, asked_files(files, wildcards) if PARTIAL else [])
        return [
            f"{path}: {hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"
            for path in paths
            if path.is_file()
        ]

    return found


def experiment_manifest(experiment, tables=None):
    """The prepared data set of an experiment, in a list; ``tables`` are all of one data set."""
    return [f"results/datasets/{experiment.config.dataset}/manifest.json"]


def trained_digests(wildcards):
    """The specs behind an experiment's figures."""
    experiment = EXPERIMENTS[wildcards.experiment]
    drawn = needed_files(experiment, tables_with_figures(experiment))
    return digests(experiment, dict.fromkeys([*trained_runs(experiment), *drawn]))


def drawn_tables(wildcards):
    """How an experiment lays out the tables that are drawn too."""
    experiment = EXPERIMENTS[wildcards.experiment]
    drawn = tables_with_figures(experiment)
    return [(name, text) for name, text in tables_block(wildcards) if name in drawn]
