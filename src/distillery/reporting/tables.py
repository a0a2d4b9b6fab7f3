"""The tables of an experiment: the files under results/tables/."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from distillery.atomic import write_text
from distillery.data.manifest import FILE_NAME, Manifest, read_manifest
from distillery.errors import UserError
from distillery.experiment import Experiment
from distillery.experiment.reading import nearest
from distillery.experiment.schema.columns import COLUMNS, PROFILE
from distillery.paths import dataset_folder, profile_path, run_folder, table_folder, table_seal
from distillery.reporting.content import Content, Entry, gather, read_ledger
from distillery.reporting.html import Part, to_html
from distillery.reporting.legend import introduce, legend
from distillery.reporting.markup import Sheet, defuse, escape_markdown, latex_head, to_latex, to_markdown
from distillery.reporting.measurements import Measured, needed_files, read_measurements
from distillery.reporting.run_notes import Notes, note_runs
from distillery.reporting.sheets import lay_out
from distillery.results import file_hash, remove_others, write_seals

CSV_HEADER = (
    "table", "run", "teacher", "metric", "mean", "std", "n", "selection", "published", "published_std", "published_n",
    "published_selection", "difference", "tolerance", "verdict", "source", "baseline", "low", "high", "p", "p_holm",
    "seeds_needed",
)  # fmt: skip


def tabulate_experiment(experiment: Experiment, results: Path, published: Path, *, partial: bool = False) -> list[Path]:
    """Write the tables of an experiment from the metrics and profiles of its runs, and return the files.

    The experiment's own four files have the same bytes whenever they are made from the same results. A table
    with times cannot have that, so it is only written alone, and the experiment links to it. The ledger ``published``
    need not exist. ``partial`` marks what is missing or stale instead of refusing it.

    Raises:
        UserError: a measurement is missing or stale, or the ledger is wrong. Nothing is written then.
    """
    manifest = _read_manifest(experiment, results, partial)
    ledger = read_ledger(experiment, published)
    runs = read_measurements(experiment, results, partial=partial, origins=True)
    contents = [gather(experiment, name, table, runs, ledger) for name, table in experiment.config.tables.items()]
    tables = [_Written(experiment.name, content) for content in contents]
    stable = [table for table in tables if not table.content.timed]
    notes: Notes = {}

    folder, introduction = table_folder(results), introduce(experiment, manifest, runs)
    reading = legend([table.content for table in stable])
    files = {
        folder / f"{experiment.name}.md": _join(
            [f"# {experiment.name}\n", introduction, *(_section(table) for table in tables), reading]
        ),
        folder / f"{experiment.name}.tex": _latex(stable),
        folder / f"{experiment.name}.csv": _csv(stable),
        folder / f"{experiment.name}.html": _html(experiment, tables, introduction, reading, runs, results, notes),
    }
    parts: dict[str | None, dict[Path, str]] = {None: files}
    for table in tables:
        introduction = introduce(experiment, manifest, runs, [table.content.name])
        parts[table.content.name] = _alone(experiment, table, introduction, results, notes)
    # Snakemake declares the folder as an output: a seal makes it even for an experiment without tables.
    made_of = {name: tuple(table.content.name for table in stable) if name is None else (name,) for name in parts}
    sources = _sources(experiment, made_of.values(), results)
    seals = [_write(experiment, name, part, sources[made_of[name]], results) for name, part in parts.items()]
    written = [path for part in parts.values() for path in part]
    remove_others(folder / experiment.name, (".md", ".tex", ".csv", ".html", ".json"), keep=[*written, *seals])
    return written


def tabulate_table(
    experiment: Experiment, name: str, results: Path, published: Path, *, partial: bool = False
) -> list[Path]:
    """Write one table alone, from its own runs, and return the files: the same bytes as with its experiment.

    Raises:
        UserError: the experiment has no such table, or as for an experiment.
    """
    if name not in experiment.config.tables:
        known = nearest(name, experiment.config.tables)
        raise UserError(f"{experiment.path}: {experiment.name}.tables: no table {name!r}; {known}")
    manifest = _read_manifest(experiment, results, partial)
    ledger = read_ledger(experiment, published)
    runs = read_measurements(experiment, results, [name], partial=partial, origins=True)
    content = gather(experiment, name, experiment.config.tables[name], runs, ledger)
    introduction = introduce(experiment, manifest, runs, [name])
    files = _alone(experiment, _Written(experiment.name, content), introduction, results, {})
    _write(experiment, name, files, _sources(experiment, [(name,)], results)[name,], results)
    return list(files)


def _read_manifest(experiment: Experiment, results: Path, partial: bool) -> Manifest | None:
    """The data set's manifest; None if a partial experiment is made before its data set."""
    folder = dataset_folder(results, experiment.config.dataset)
    return None if partial and not (folder / FILE_NAME).exists() else read_manifest(folder)


@dataclass(frozen=True, eq=False)
class _Written:
    """A table in each format, made once: it stands on its experiment's page and on one of its own."""

    experiment: str
    content: Content

    @cached_property
    def sheet(self) -> Sheet:
        return lay_out(self.content)

    @cached_property
    def markdown(self) -> str:
        return to_markdown(self.sheet)

    @cached_property
    def latex(self) -> str:
        # No name has a colon, so that no two tables have the same label.
        return to_latex(self.sheet, f"tab:{self.experiment}:{self.content.name}", self.content.table.latex)

    @cached_property
    def csv(self) -> str:
        """Its rows, without the header."""
        table = self.content.table
        entries = [self.content.entries[run, metric] for run in table.runs() for metric in table.columns]
        records = [_record(self.content, entry) for entry in entries]
        return _csv_lines([[record.get(name) for name in CSV_HEADER] for record in records])


def _write(
    experiment: Experiment, table: str | None, files: dict[Path, str], sources: Mapping[Path, str], results: Path
) -> Path:
    """Write files and, beside them, what they are and what they were made of; return that."""
    for path, text in files.items():
        write_text(path, text)
    seal = table_seal(results, experiment.name, table)
    write_seals(seal, files, sources, results)
    return seal


def _sources(
    experiment: Experiment, several: Iterable[tuple[str, ...]], results: Path
) -> dict[tuple[str, ...], dict[Path, str]]:
    """The hashes of the results behind each of several choices of tables, as far as they are there."""
    hashes: dict[Path, str | None] = {}
    found = {}
    for tables in dict.fromkeys(several):
        paths = [dataset_folder(results, experiment.config.dataset) / FILE_NAME]
        for run, names in needed_files(experiment, tables).items():
            folders = [run_folder(results, experiment.name, run, seed) for seed in experiment.seeds(run)]
            paths += [folder / name for name in sorted(names - {PROFILE}) for folder in folders]
            paths += [profile_path(results, experiment.name, run)] if PROFILE in names else []
        hashes |= {path: file_hash(path) if path.is_file() else None for path in paths if path not in hashes}
        found[tables] = {path: made for path in paths if (made := hashes[path]) is not None}
    return found


def _alone(experiment: Experiment, table: _Written, introduction: str, results: Path, notes: Notes) -> dict[Path, str]:
    """A table in files of its own."""
    path, reading = table_folder(results) / experiment.name / table.content.name, legend([table.content])
    return {
        path.with_name(f"{path.name}.md"): _join([f"# {experiment.name}\n", introduction, table.markdown, reading]),
        path.with_name(f"{path.name}.tex"): _latex([table]),
        path.with_name(f"{path.name}.csv"): _csv([table]),
        path.with_name(f"{path.name}.html"): _html(
            experiment, [table], introduction, reading, table.content.runs, results, notes, alone=True
        ),
    }


def _section(table: _Written) -> str:
    """A table on its experiment, or the way to it."""
    if not table.content.timed:
        return table.markdown
    place = f"{table.experiment}/{table.content.name}.md"
    why = "Times differ from machine to machine and from day to day, so they stand apart"
    return f"## {escape_markdown(table.content.title)}\n\n{why}: [{place}]({place}).\n"


def _html(
    experiment: Experiment,
    tables: list[_Written],
    introduction: str,
    reading: str,
    runs: Mapping[str, Measured],
    results: Path,
    notes: Notes,
    *,
    alone: bool = False,
) -> str:
    shown = [table for table in tables if alone or not table.content.timed]
    parts = [
        Part(table.content.name, table.content.title, table.sheet if table in shown else None, _latex([table]))
        for table in tables
    ]
    noted = note_runs(experiment, [table.content for table in shown], runs, results, notes)
    return to_html(experiment.name, introduction, parts, noted, reading, up="../../" if alone else "../")


def _latex(tables: Iterable[_Written]) -> str:
    siunitx = any(table.content.table.latex.siunitx for table in tables)
    return _join([latex_head(["siunitx"] if siunitx else []), *(table.latex for table in tables)])


def _join(parts: Iterable[str]) -> str:
    """Parts that end their last lines, with an empty line between them."""
    return "\n".join(part for part in parts if part)


def _csv(tables: Iterable[_Written]) -> str:
    return _csv_lines([CSV_HEADER]) + "".join(table.csv for table in tables)


def _csv_lines(rows: Iterable[Sequence[Any]]) -> str:
    file = io.StringIO()
    # Floats have their shortest exact form, and None is empty.
    csv.writer(file, lineterminator="\n").writerows(
        [defuse(cell) if isinstance(cell, str) else cell for cell in row] for row in rows
    )
    return file.getvalue()


def _record(content: Content, entry: Entry) -> dict[str, Any]:
    record: dict[str, Any] = {"table": content.name, "run": entry.run, "metric": entry.metric}
    record["teacher"] = content.teachers[entry.run]
    if entry.summary is not None:
        record |= {"mean": entry.summary.mean, "std": entry.summary.std, "n": entry.summary.n}
        if COLUMNS[entry.metric].file != PROFILE:
            record["selection"] = content.runs[entry.run].selection
    if entry.gain is not None:
        gain = entry.gain
        record |= {"baseline": content.table.baseline, "low": gain.low, "high": gain.high, "p": gain.p}
        record |= {"p_holm": gain.p_holm, "seeds_needed": gain.seeds_needed}
    if entry.published is not None and entry.verdict is not None:
        record |= {
            "published": entry.published.value,
            "published_std": entry.published.std,
            "published_n": entry.published.n,
            "published_selection": entry.published.selection,
            "difference": entry.verdict.difference,
            "tolerance": entry.verdict.tolerance,
            "verdict": entry.verdict.finding,
            "source": entry.published.source,
        }
    return record
