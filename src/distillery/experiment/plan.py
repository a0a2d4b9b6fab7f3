"""What the workflow asks about experiments: which targets there are, what each result needs, and what decides it.

Rules of ``workflow/`` see the configuration through a ``Plan`` only. An experiment is read when a target needs it, with
those that its runs start from, so that a broken file in config/ stops no other. Paths are relative to the folder
that Snakemake works in.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from distillery.errors import UserError
from distillery.experiment.bank import bank_address
from distillery.experiment.experiment import Experiment
from distillery.experiment.ledger import (
    MEASURED,
    PROBING,
    PROFILING,
    REPORTING,
    digest_of,
    entry,
    file_sha256,
    images_entry,
)
from distillery.experiment.loading import experiment_names, load_dataset, load_experiment, teachers_written
from distillery.experiment.reading import nearest, read_mapping
from distillery.experiment.rehearsal import rehearsed_dataset, representatives
from distillery.experiment.schema.block import NAME_PATTERN
from distillery.experiment.schema.columns import COLUMNS, PROBED, PROBES
from distillery.experiment.schema.dataset import HUB_PREFIX, Dataset
from distillery.experiment.sweep import written_out
from distillery.paths import RESULTS, bank_folder, dataset_folder, figure_folder, profile_path, run_folder, table_folder
from distillery.results import try_json

# What `--config key=value` may set.
SWITCHES = ("experiments", "partial", "rehearsal")
TABLE_SUFFIXES = (".md", ".html", ".tex", ".csv", ".json")
Kind = Literal["imported", "teacher", "student"]
# So often, reading a page for single runs is cheaper than reading it whole.
MOST_NARROWED = 8


@dataclass(frozen=True)
class Plan:
    """The experiments of a configuration folder, as the workflow sees them.

    Args:
        config: the folder with the experiments, ``recipes/`` and ``datasets.yaml``.
        chosen: the experiments whose results Snakemake makes when it is given no target.
        partial: assemble what there is, and make nothing.
        rehearsal: every experiment shrunk to a few steps on generated images.
        needed_files: says which files fill the cells of some tables, by run (``reporting`` knows the columns).
        whole: experiments are read whole; a single job needs no other lines of a long page than those of its run.
    """

    config: Path
    chosen: tuple[str, ...] = ("digits",)
    partial: bool = False
    rehearsal: bool = False
    needed_files: Callable[..., Mapping[str, set[str]]] = lambda experiment, tables=None: {}
    whole: bool = True
    _read: dict[tuple[str, str | None], Experiment] = field(default_factory=dict, compare=False, repr=False)
    _datasets: dict[str, Dataset] = field(default_factory=dict, compare=False, repr=False)
    # The data sets behind each experiment: thousands of jobs ask for them.
    _families: dict[str, list[str]] = field(default_factory=dict, compare=False, repr=False)
    _found: dict[str, dict[str, Kind]] = field(default_factory=dict, compare=False, repr=False)

    # --- which targets there are -------------------------------------------------------------------------------------

    def experiment(self, name: str, run: str | None = None) -> Experiment:
        """One experiment, read and checked when it is first asked for; of a plan that is not ``whole``, for a run.

        Raises:
            UserError: there is none of this name, or it is wrong.
        """
        # A group of many jobs reads it once.
        seen = sum(other == name for other, _ in self._read)
        only = None if self.whole or self.rehearsal or seen > MOST_NARROWED else run
        if (name, only) not in self._read:
            path = self.config / f"{name}.yaml"
            if not path.is_file():
                raise UserError(f"no experiment {path}; {nearest(name, experiment_names(self.config))}")
            self._read[name, only] = load_experiment(path, rehearsal=self.rehearsal, run=only)
        return self._read[name, only]

    def names(self) -> list[str]:
        """The names of all experiments, by their files: none is read."""
        return [name for name in experiment_names(self.config) if re.fullmatch(NAME_PATTERN, name)]

    def datasets(self) -> list[str]:
        """The names of all data sets; what cannot be a name is none."""
        return [name for name in read_mapping(self.config / "datasets.yaml") if re.fullmatch(NAME_PATTERN, name)]

    def meant(self, target: str) -> str | None:
        """The result that a target nearly names; None if it is one, or resembles none."""
        parts = list(Path(target).parts)
        for place, part in enumerate(parts):
            valid = self._below(parts[:place])
            if part in valid or not valid:
                continue
            close = get_close_matches(part, valid, n=1)
            if not close:
                return None
            parts[place] = close[0]
        meant = str(Path(*parts))
        return None if meant == str(Path(target)) else meant

    def _below(self, parts: list[str]) -> list[str]:
        """The names that a result's path may go on with; none where that is not for this plan to say."""
        names = self.names()
        match parts:
            case []:
                return [str(RESULTS)]
            case [_]:
                return ["tables", "figures", "datasets", *names]
            case [_, "tables"]:
                return [*names, *(f"{name}{suffix}" for name in names for suffix in TABLE_SUFFIXES)]
            case [_, "tables", name]:
                tables = self.experiment(name).config.tables if name in names else ()
                return [f"{table}{suffix}" for table in tables for suffix in TABLE_SUFFIXES]
            case [_, "figures"]:
                return names
            case [_, "datasets"]:
                return self.datasets()
            case [_, name] if name in names:
                return list(self.experiment(name).config.runs)
            case [_, name, run] if name in names:
                return ["profile.json", *(f"seed{seed}" for seed in self.experiment(name).seeds(run))]
            case [_, name, _, _] if name in names:
                return [
                    "weights.safetensors",
                    "run.json",
                    "history.csv",
                    "metrics.json",
                    PROBES,
                    "predictions.json",
                    "bank",
                ]
        return []

    def pattern(self, kind: Kind) -> str:
        """A pattern for {experiment} before runs that are imported, that teach others, or that do neither.

        The rules that make networks differ in machine and priority, so the path alone decides which one makes it. The
        files are looked through without being checked: one that cannot be read has no targets, and says why only when
        it is asked for.
        """
        for name in self.names():
            if name not in self._found:
                self._found[name] = self._kinds(name)
        kinds = {f"{name}/{run}": each for name, found in self._found.items() for run, each in found.items()}
        # One name may be a teacher in one experiment and a student in another: {experiment} looks ahead at {run}.
        # There may be thousands of students, and Snakemake reads the pattern for every job: they are all others.
        pairs = [pair for pair, found in kinds.items() if (found == kind) != (kind == "student")]
        look = "?!" if kind == "student" else "?="
        return f"({look}(?:{any_of(pairs)})/)(?:{any_of(self.names())})"

    def _kinds(self, name: str) -> dict[str, Kind]:
        try:
            path = self.config / f"{name}.yaml"
            content = written_out(path, name, read_mapping(path)[name])
            runs: dict[str, Any] = {run: keys for run, keys in content["runs"].items() if isinstance(keys, dict)}
        except (UserError, LookupError, TypeError, AttributeError):
            return {}
        teachers = {teacher for keys in runs.values() for teacher in teachers_written(keys)}
        # A run with neither key trains by `defaults`; a rehearsal trains stand-ins for weights from elsewhere.
        imported = {
            run
            for run, keys in runs.items()
            if keys.get("recipe") is None
            and keys.get("weights") is not None
            and (not self.rehearsal or str(keys.get("weights")).startswith("run:"))
        }
        kinds: dict[str, Kind] = {}
        for run in runs:
            kinds[str(run)] = "imported" if run in imported else "teacher" if str(run) in teachers else "student"
        if self.rehearsal:
            kinds |= dict.fromkeys(self._stand_ins(name, runs), "student")
        return kinds

    def _stand_ins(self, name: str, runs: Iterable[str]) -> list[str]:
        try:
            return [run for run in self.experiment(name).config.runs if run not in runs]
        except UserError:
            return []

    # --- what a run is, and what it needs ----------------------------------------------------------------------------

    def digest(self, experiment: str, run: str, seed: str | None = None) -> str:
        """What decides a run's weights, as a hash; of the first seed where none is named."""
        return self.experiment(experiment, run).spec(run, None if seed is None else int(seed)).digest

    def evaluation(self, experiment: str, run: str, seed: str) -> str:
        """What decides a run's metrics: the run, and how it is measured."""
        return f"{self.digest(experiment, run, seed)}, evaluation {MEASURED}"

    def probing(self, experiment: str, run: str, seed: str) -> str:
        """What decides a run's probes: the run, which ones tables show of it, and how its embedding is probed."""
        shown = self.experiment(experiment).probes(run)
        without = "".join(f", no {name}" for name in PROBED if name not in shown)
        return f"{self.digest(experiment, run, seed)}, probing {PROBING}{without}"

    def profiling(self, experiment: str, run: str) -> str:
        """What decides a run's profile: the run, and how it is counted and timed."""
        return f"{self.digest(experiment, run)}, profiling {PROFILING}"

    def first_seed_files(self, experiment: str, run: str) -> list[str]:
        """Weights and record of a run's first seed, which stands for all where only the architecture matters."""
        return self._network(self.experiment(experiment, run), run)

    def teacher_files(self, experiment: str, run: str) -> list[str]:
        """Weights and record of a run's teacher, if it has one."""
        read = self.experiment(experiment, run)
        read.seeds(run)
        return [file for teacher in read.teachers_of(run) for file in self._network(read, teacher)]

    def bank(self, experiment: str, run: str, seed: str, *, planning: bool = True) -> list[str]:
        """The banks that a run learns from, if it learns from some and is not finished.

        Banks are removed after their last student. Were one an input of finished students too, it would be made again
        for one student more, and Snakemake would train all of them again with it. A finished student that is trained
        anew for another reason, and a job that was planned so (not ``planning``), records what it does not find.
        """
        read = self.experiment(experiment, run)
        read.seeds(run)
        spec = read.spec(run, int(seed))
        banks = [
            bank_folder(RESULTS, experiment, teacher, read.seeds(teacher)[0], bank_address(alone))
            for teacher, alone in zip(read.teachers_of(run), spec.by_teacher(), strict=True)
            if alone.answers is not None
        ]
        folder = run_folder(RESULTS, experiment, run, int(seed))
        record = try_json(folder / "run.json") or {}
        finished = record.get("digest") == spec.digest and (folder / "weights.safetensors").exists()
        return [str(bank) for bank in banks if (not finished if planning else bank.exists())]

    def initial_files(self, experiment: str, run: str) -> list[str]:
        """Weights and record of the run whose weights a run imports or starts from.

        Files from elsewhere are no inputs: the digest holds their bytes, wherever they lie.
        """
        origin = self.experiment(experiment, run).origin(run)
        return self._network(*origin) if origin else []

    def _network(self, experiment: Experiment, run: str) -> list[str]:
        folder = run_folder(RESULTS, experiment.name, run, experiment.seeds(run)[0])
        return [str(folder / "weights.safetensors"), str(folder / "run.json")]

    # --- data sets ---------------------------------------------------------------------------------------------------

    def manifest(self, experiment: str, run: str | None = None) -> str:
        """The prepared data set of an experiment, which all its runs have in common."""
        return str(dataset_folder(RESULTS, self.experiment(experiment, run).config.dataset) / "manifest.json")

    def dataset(self, name: str) -> Dataset:
        """What datasets.yaml says about a data set; generated images in a rehearsal.

        Raises:
            UserError: there is no such data set, or it is wrong.
        """
        if name not in self._datasets:
            dataset = load_dataset(self.config / "datasets.yaml", name)
            self._datasets[name] = rehearsed_dataset(name, dataset) if self.rehearsal else dataset
        return self._datasets[name]

    def preparing(self, name: str) -> str:
        """What decides a prepared data set besides its raw images, as a hash."""
        dataset = self.dataset(name)
        further = [] if dataset.unlabelled is None else [dataset.unlabelled]
        return digest_of([images_entry(dataset), str(Path(dataset.path)), dataset.embed, *further])

    def raw_images(self, name: str) -> list[str]:
        """What DVC knows of the raw images: a small file that `dvc add data` changes when images were changed.

        Without DVC, and outside data/, images are not watched: `snakemake --forcerun prepare_dataset` says that they
        changed.
        """
        known = Path("data.dvc").exists() and Path(self.dataset(name).path).is_relative_to("data")
        return ["data.dvc"] if known else []

    def raw_images_of(self, experiment: str, run: str | None = None) -> list[str]:
        """The same for the data set of an experiment and of all that its runs start from.

        All that descends from the images asks for it, and not only the job that reads them: a failed job loses its
        outputs, and Snakemake takes a missing intermediate file for no reason to run, so that old tables would pass.
        """
        # One that is read for a run alone has no runs that start from others of other experiments.
        read = self.experiment(experiment, run)
        if experiment not in self._families:
            family = read.family(read.config.runs)
            self._families[experiment] = sorted({other.config.dataset for other, _ in family} | {read.config.dataset})
        return sorted({file for dataset in self._families[experiment] for file in self.raw_images(dataset)})

    def download(self, name: str) -> str:
        """Where raw images are fetched from; empty where datasets.yaml names no source."""
        dataset = self.dataset(name)
        remote = dataset.download is not None or dataset.path.startswith(HUB_PREFIX)
        return dataset.model_dump_json(include={"path", "download"}) if remote else ""

    def download_mark(self, name: str) -> list[str]:
        """Says that raw images were fetched, which only some machines of a cluster can do."""
        return [f"{dataset_folder(RESULTS, name)}.downloaded"] if self.download(name) else []

    # --- tables and figures ------------------------------------------------------------------------------------------

    def measurements(self, experiment: str, table: str | None = None) -> list[str]:
        """The data set and the measurements behind the tables of an experiment, or behind one of them."""
        read = self.experiment(experiment)
        needed = self.needed_files(read, None if table is None else [self._table(read, table)])
        return [self.manifest(experiment), *self._files(read, needed)]

    def drawn(self, experiment: str) -> list[str]:
        """The histories behind an experiment's figures, and the measurements behind the tables that are drawn."""
        read = self.experiment(experiment)
        measured = self.needed_files(read, self._drawn_tables(read))
        return self._seed_files(read, read.trained(), "history.csv") + self._files(read, measured)

    def published(self, experiment: str, *, drawn: bool = False) -> list[str]:
        """The ledger of published numbers, if there is one; for figures, if any shows them."""
        read = self.experiment(experiment)
        wanted = not drawn or self._drawn_tables(read)
        return [str(read.published)] if wanted and read.published.is_file() else []

    def tabulating(self, experiment: str, table: str | None = None) -> str:
        """What decides tables besides measurements: their layout, published numbers, and the runs behind them.

        The runs stand for themselves and for their measurements, so that old tables are stale after a failed job.
        """
        read = self.experiment(experiment)
        names = list(read.config.tables) if table is None else [self._table(read, table)]
        return self._reporting(read, names, self.needed_files(read, names), self.published(experiment))

    def drawing(self, experiment: str) -> str:
        """What decides figures besides measurements."""
        read = self.experiment(experiment)
        tables = self._drawn_tables(read)
        runs = [*read.trained(), *self.needed_files(read, tables)]
        return self._reporting(read, tables, runs, self.published(experiment, drawn=True))

    def _reporting(self, experiment: Experiment, tables: list[str], runs: Iterable[str], published: list[str]) -> str:
        layout = [(name, entry(experiment.config.tables[name])) for name in tables]
        numbers = [file_sha256(Path(file)) for file in published]
        members = [(run, seed) for run in dict.fromkeys(runs) for seed in experiment.seeds(run)]
        measured = sorted(f"{run}/{seed}: {experiment.spec(run, seed).digest}" for run, seed in members)
        # Learning curves alone show histories, not measurements.
        how: list[object] = [MEASURED, PROFILING] if tables else []
        shown = {COLUMNS[column].file for name in tables for column in experiment.config.tables[name].columns}
        how += [PROBING] if PROBES in shown else []
        return digest_of([layout, numbers, measured, REPORTING, how])

    def all_results(self) -> list[str]:
        """All that belongs to the chosen experiments.

        Tables and figures would be enough to ask for, but a run that was deleted is to be made again too.
        """
        files: list[str] = []
        for name in self.chosen:
            read = self.experiment(name)
            files += [str(table_folder(RESULTS) / f"{name}.md"), str(figure_folder(RESULTS, name))]
            if not self.partial:
                files.append(self.manifest(name))
                files += self._seed_files(read, read.config.runs, "weights.safetensors")
                files += self._seed_files(read, read.config.runs, "metrics.json")
                files += self._files(read, self.needed_files(read))
        return list(dict.fromkeys(files))

    def representatives(self) -> list[str]:
        """One run of each recipe and kind of teacher; training measures it."""
        files: list[str] = []
        for name, run in representatives([self.experiment(name) for name in self.names()]):
            files += self._seed_files(self.experiment(name), [run], "weights.safetensors")
        return files

    def unless_partial(self, files: list[str]) -> list[str]:
        """What tables and figures wait for; partial ones wait for nothing."""
        return [] if self.partial else files

    def found_if_partial(self, files: list[str]) -> list[str]:
        """The hashes of what is there when tables are partial, so that they are made again when more is."""
        hashes = {file: file_sha256(Path(file)) for file in files} if self.partial else {}
        return [f"{file}: {found[:16]}" for file, found in hashes.items() if found is not None]

    def _files(self, experiment: Experiment, needed: Mapping[str, set[str]]) -> list[str]:
        """The paths of these files of runs: a profile for each run, all others for each seed."""
        files: list[str] = []
        for run, names in needed.items():
            for name in sorted(names - {"profile.json"}):
                files += self._seed_files(experiment, [run], name)
            if "profile.json" in names:
                files.append(str(profile_path(RESULTS, experiment.name, run)))
        return files

    def _seed_files(self, experiment: Experiment, runs: Iterable[str], name: str) -> list[str]:
        members = [(run, seed) for run in runs for seed in experiment.seeds(run)]
        return [str(run_folder(RESULTS, experiment.name, run, seed) / name) for run, seed in members]

    def _table(self, experiment: Experiment, table: str) -> str:
        tables = experiment.config.tables
        if table not in tables:
            where = f"{experiment.path}: {experiment.name}.tables"
            raise UserError(f"{where}: no table {table!r}; {nearest(table, tables)}")
        return table

    def _drawn_tables(self, experiment: Experiment) -> list[str]:
        return [name for name, table in experiment.config.tables.items() if table.drawn]


def any_of(names: Iterable[str]) -> str:
    """A pattern that matches these names and nothing else."""
    return "|".join(map(re.escape, sorted(names))) or "(?!)"


def make_plan(
    folder: Path,
    switches: Mapping[str, object],
    needed_files: Callable[..., Mapping[str, set[str]]],
    *,
    whole: bool = True,
) -> Plan:
    """The plan that Snakemake's command line asks for, by `--config key=value`.

    Raises:
        UserError: a key or a value is not known.
    """
    for key in switches:
        if key not in SWITCHES:
            raise UserError(f"--config {key}: unknown key {key!r}; {nearest(str(key), list(SWITCHES))}")
    plan = Plan(
        folder,
        partial=_switch(switches, "partial"),
        rehearsal=_switch(switches, "rehearsal"),
        needed_files=needed_files,
        whole=whole,
    )
    # This repository's demo, where it is there; a workflow that takes this one as a module has pages of its own.
    asked = switches.get("experiments", "digits" if "digits" in plan.names() else "all")
    names = [str(name) for name in asked] if isinstance(asked, list) else str(asked).split(",")
    names = plan.names() if names == ["all"] else names
    if not names:
        raise UserError(f"--config experiments={asked}: name some; valid: {', '.join(plan.names())}, or all")
    for name in names:
        if name not in plan.names():
            path = folder / f"{name}.yaml"
            raise UserError(f"--config experiments={asked}: no experiment {path}; {nearest(name, plan.names())}")
    return replace(plan, chosen=tuple(names))


def _switch(switches: Mapping[str, object], name: str) -> bool:
    value = str(switches.get(name, False)).lower()
    if value not in ("true", "false"):
        raise UserError(f"--config {name}={switches[name]}: expected true or false")
    return value == "true"
