"""The tables of an experiment: what each cell says, and the files under results/tables/."""

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
from distillery.experiment.schema.columns import COLUMNS, METRICS, PROFILE, Column
from distillery.experiment.schema.experiment import Grid, head_cells
from distillery.paths import dataset_folder, profile_path, run_folder, table_folder, table_seal
from distillery.reporting.content import Content, Entry, gather, read_ledger
from distillery.reporting.html import Part, to_html
from distillery.reporting.legend import NOT_RUN, SELECTIONS, introduce, legend
from distillery.reporting.markup import Cell, Sheet, defuse, escape_markdown, latex_head, to_latex, to_markdown
from distillery.reporting.measurements import Measured, Profile, needed_files, read_measurements
from distillery.reporting.origins import describe_origins
from distillery.reporting.run_notes import Notes, note_runs
from distillery.reporting.statistics import MOST_SEEDS, Gain
from distillery.results import file_hash, remove_others, write_seals

NOTHING = "–"
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


def lay_out(content: Content) -> Sheet:
    """One row a run, one column a metric; beside them what says how far the numbers can be trusted and compared.

    A grid has its own two settings instead, and the metrics of a run together in its cell.
    """
    if content.table.grid is not None:
        return _lay_out_grid(content, content.table.grid)
    has_teacher = any(content.teachers.values())
    heads = list(head_cells(content.table.heading)) if content.table.heading else []
    headings = (
        heads
        + ["Run"]
        + ["Teacher"] * has_teacher
        + ["Labels"] * bool(content.labels)
        + [COLUMNS[metric].heading for metric in content.table.columns]
    )
    keys = ["label"] * len(heads) + ["run"] + ["teacher"] * has_teacher + ["labels"] * bool(content.labels)
    keys += content.table.columns
    words = len(heads) + 1 + has_teacher + bool(content.labels)
    numeric = [False] * words + [True] * len(content.table.columns)
    if content.scored:
        headings += ["n", "Selection"]
        keys += ["n", "selection"]
        numeric += [True, False]
    for metric in content.judged:
        headings += [f"Published {COLUMNS[metric].heading}", "Difference", "Verdict"]
        keys += ["published", "difference", "verdict"]
        numeric += [True, True, False]
    labels = {run: list(head_cells(label)) if heads else [] for run, label in content.table.rows.items()}
    rows = [(*map(Cell, labels[run]), *_row(content, run, has_teacher)) for run in content.table.rows]
    return Sheet(
        content.name, content.title, tuple(headings), tuple(numeric), tuple(rows), _notes(content), tuple(keys)
    )


def _lay_out_grid(content: Content, grid: Grid) -> Sheet:
    metrics = " / ".join(COLUMNS[metric].heading for metric in content.table.columns)
    rows = [
        (*map(Cell, head_cells(heading)), *(Cell(NOTHING) if run is None else _grid_cell(content, run) for run in runs))
        for heading, runs in grid.down.items()
    ]
    corner = head_cells(grid.corner or metrics)
    numeric = (*(False for _ in corner), *(True for _ in grid.across))
    headings = (*corner, *grid.across)
    title = f"{content.title} ({metrics})"
    return Sheet(content.name, title, headings, numeric, tuple(rows), _notes(content))


def _grid_cell(content: Content, run: str) -> Cell:
    """The metrics of a run, with the published number and verdict of each that has them."""
    entries = [content.entries[run, metric] for metric in content.table.columns]
    texts = []
    for entry in entries:
        text = _value_cell(content, entry).text
        if entry.published is not None:
            published, _, finding = _verdict_cells(entry)
            text += f" ({published.text})" if finding.text == text else f" ({published.text}: {finding.text})"
        texts.append(text)
    findings = dict.fromkeys(entry.verdict.finding for entry in entries if entry.verdict is not None)
    value = None if entries[0].summary is None else entries[0].summary.mean
    hint = "\n".join(dict.fromkeys(part for entry in entries for part in _hints(content, entry)))
    return Cell(" / ".join(texts), entries[0].best, value, hint, "".join(findings) if len(findings) == 1 else "", run)


def _row(content: Content, run: str, has_teacher: bool) -> tuple[Cell, ...]:
    teacher = content.teachers[run]
    alone = "" if teacher is None or " + " in teacher else teacher
    cells = [Cell(run, run=run)] + [Cell(teacher or NOTHING, run=alone)] * has_teacher
    cells += [Cell(content.labels.get(run, "all"))] * bool(content.labels)
    cells += [_value_cell(content, content.entries[run, metric]) for metric in content.table.columns]
    if content.scored:
        measured = content.runs.get(run, Measured())
        n = measured.n
        cells += [Cell(str(n or NOTHING), value=n or None), Cell(SELECTIONS.get(measured.selection, NOTHING))]
    for metric in content.judged:
        cells += _verdict_cells(content.entries[run, metric])
    return tuple(cells)


def _value_cell(content: Content, entry: Entry) -> Cell:
    column, summary = COLUMNS[entry.metric], entry.summary
    if summary is None:
        return Cell(entry.uncompared or (NOT_RUN if entry.gap else NOTHING))
    hint = "\n".join(_hints(content, entry)[:1])
    if entry.gain is not None:
        # The table's n is the run's own.
        fewer = 1 < entry.gain.n < len(content.runs[entry.run].metrics)
        text = describe_gain(entry.gain, column) + f", n = {entry.gain.n}" * fewer
        finding = "" if not entry.gain.shown else "better" if entry.gain.mean > 0 else "worse"
        return Cell(text, entry.best, summary.mean, hint, finding, entry.run)
    spread = "" if summary.std is None else f" ± {column.show(summary.std)}"
    return Cell(column.show(summary.mean) + spread, entry.best, summary.mean, hint, run=entry.run)


def _hints(content: Content, entry: Entry) -> list[str]:
    """What stands behind a value: its seeds or its test; and behind a verdict, its test and its source."""
    column, gain, measured = COLUMNS[entry.metric], entry.gain, content.runs.get(entry.run, Measured())
    if gain is not None:
        tests = [f"{name} {p:.2g}" for name, p in (("p", gain.p), ("p by Holm's method", gain.p_holm)) if p is not None]
        hints = [", ".join([f"over {content.table.baseline}: paired t-test over {gain.n} seeds", *tests])]
    else:
        seeds = measured.by_seed(column.key) if column.file == METRICS and column.compute is None else {}
        hints = [", ".join(f"seed {seed}: {column.show(value)}" for seed, value in sorted(seeds.items()))]
    return [*hints, *_verdict_hints(entry)]


def _verdict_hints(entry: Entry) -> list[str]:
    number, verdict, column = entry.published, entry.verdict, COLUMNS[entry.metric]
    if number is None or verdict is None:
        return []
    hint: str = verdict.finding
    if verdict.tolerance is not None and column.better is None:
        hint += ": compared by the published digits"
    elif verdict.tolerance is not None:
        hint += f": noise explains a shortfall of {column.show(verdict.tolerance)} (one-sided t-test at 5 %)"
    runs = "" if number.n is None else f", n = {number.n}"
    epoch = "" if number.selection is None else f", {SELECTIONS[number.selection]}"
    return [hint, f"source: {number.source}{runs}{epoch}"]


def describe_gain(gain: Gain, column: Column) -> str:
    """A gain with all that says how far it can be trusted: ``+3.50 (2.10 to 4.90), p 0.002``."""
    text = column.show_difference(gain.mean)
    if gain.n == 1:
        return f"{text} (n = 1{_more_seeds(gain)})"
    if gain.p is None:
        return f"{text} (the same for all {gain.n} seeds)"
    interval = (
        "" if gain.low is None or gain.high is None else f" ({column.show(gain.low)} to {column.show(gain.high)})"
    )
    return f"{text}{interval}, {show_p(gain.p if gain.p_holm is None else gain.p_holm)}"


def show_p(p: float) -> str:
    """A p-value as papers print it; what is significant does not print as 0.050."""
    if p < 0.001:
        return "p < 0.001"
    if p >= 0.1:
        return f"p {p:.2f}"
    return f"p {p if p >= 0.05 else min(p, 0.049):.3f}"


def _more_seeds(gain: Gain) -> str:
    if not gain.mean:
        return ""
    if gain.seeds_needed is None:
        return "; needs seeds"
    number = f"about {gain.seeds_needed}" if gain.seeds_needed <= MOST_SEEDS else f"more than {MOST_SEEDS:,}"
    return f"; {number} seeds would show it"


def _verdict_cells(entry: Entry) -> list[Cell]:
    number, verdict = entry.published, entry.verdict
    if number is None or verdict is None:
        return [Cell(NOTHING)] * 3
    spread = "" if number.std is None else f" ± {number.std}"
    column = COLUMNS[entry.metric]
    value = column.show(float(number.value)) if column.decimals is None else f"{number.value:f}"
    difference = NOTHING if verdict.difference is None else column.show_difference(verdict.difference)
    hint = "\n".join(_verdict_hints(entry))
    return [
        Cell(value + spread, value=float(number.value), hint=hint),
        Cell(difference, value=verdict.difference, hint=hint),
        Cell(verdict.finding, hint=hint, finding=verdict.finding),
    ]


def _notes(content: Content) -> tuple[str, ...]:
    """What gains are over, which rows take more steps, what the runs were made by, and on what they were timed."""
    baseline = content.table.baseline
    notes = ["A rehearsal on generated images: the numbers mean nothing."] if content.rehearsal else []
    notes += [f"Gains are over {baseline}, paired by seed."] if baseline else []
    if content.table.grid is not None and content.labels:
        notes.append(f"Labels used: {'; '.join(f'{run} {labels}' for run, labels in content.labels.items())}.")
    notes += [
        f"{run} takes {ratio:.2g} times the steps of the other rows: an epoch of it shows images more than once."
        for run, ratio in content.longer.items()
    ]
    shown = [content.runs[run] for run in content.table.runs() if run in content.runs]
    compared = () if baseline in (None, *content.table.runs()) else content.runs.get(baseline or "", Measured()).origins
    origins = describe_origins([*(origin for measured in shown for origin in measured.origins), *compared])
    return (*notes, *([origins] if origins else []), *(_machine_notes(content, shown) if content.timed else ()))


def _machine_notes(content: Content, shown: Iterable[Measured]) -> tuple[str, ...]:
    profiles = [measured.profile for measured in shown if measured.profile is not None]
    machines = dict.fromkeys(machine for profile in profiles for machine in _machines(profile, content.table.columns))
    if not machines:
        return ()
    text = f"Measured on {' and '.join(machines)}, float32"
    if content.table.columns_along("speed"):
        batches = dict.fromkeys(str(profile.throughput_batch) for profile in profiles)
        text += f"; images a second in batches of {' or '.join(batches)}"
    return (f"{text}.",)


def _machines(profile: Profile, columns: Iterable[str]) -> list[str]:
    """What the times of some columns were taken on."""
    keys = [machine for column in columns if (machine := COLUMNS[column].machine) is not None]
    used = [(profile.value(name), profile.value(threads)) for name, threads in keys]
    return [
        name if threads is None else f"{name} ({threads} CPU thread{'s' * (threads > 1)})"
        for name, threads in used
        if name is not None
    ]


# --- files -----------------------------------------------------------------------------------------------------------


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
