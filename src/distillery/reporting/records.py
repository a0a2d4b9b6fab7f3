"""Records of an experiment without weights and images: small enough for git, and all that its tables are made from."""

import shutil
from collections.abc import Iterator
from pathlib import Path

from distillery.atomic import replace_file
from distillery.data.manifest import FILE_NAME, read_manifest
from distillery.errors import UserError
from distillery.experiment import Experiment
from distillery.experiment.schema.columns import PROBES
from distillery.paths import dataset_folder, figure_folder, profile_path, records_list, run_folder
from distillery.reporting.figures import table_figures
from distillery.reporting.measurements import needed_files
from distillery.reporting.run_cards import write_cards
from distillery.reporting.style import house_style, save
from distillery.reporting.tables import tabulate_experiment
from distillery.results import (
    check_weights,
    command,
    file_hash,
    read_json,
    read_text,
    remove_others,
    unusable,
    write_seals,
)

RECORD, HISTORY = "run.json", "history.csv"


def keep_records(experiment: Experiment, results: Path, target: Path) -> list[str]:
    """Copy an experiment's records into another folder of results, in the place of those that are there.

    Runs that were not made, measured or are of another configuration are left out; a line says each.

    Raises:
        UserError: there are none, or a record or the weights beside it are damaged. Nothing is changed then.
    """
    read_manifest(dataset_folder(results, experiment.config.dataset))
    files, left_out = [dataset_folder(results, experiment.config.dataset) / FILE_NAME], list[str]()
    profiled = {run for run, names in needed_files(experiment).items() if "profile.json" in names}
    for run, seed in experiment.members():
        found = list(_records_of(experiment, run, seed, results))
        if isinstance(found[-1], str):
            left_out.append(f"{run}, seed {seed}: {found[-1]}")
            continue
        files += [path for path in found if isinstance(path, Path)]
        profile = profile_path(results, experiment.name, run)
        if run in profiled and profile.is_file():
            read_json(profile, command("profile", experiment.path, run, None, results))
            files += [profile] if profile not in files else []
    if len(files) == 1:
        raise UserError(f"{results}: has no finished and measured run of {experiment.path}")
    if results.resolve() == target.resolve():
        raise UserError(f"{target}: is where the results lie; name another folder")
    shutil.rmtree(target / experiment.name, ignore_errors=True)
    copies = [target / path.relative_to(results) for path in files]
    for path, copy in zip(files, copies, strict=True):
        with replace_file(copy) as temporary:
            shutil.copyfile(path, temporary)
    write_seals(records_list(target, experiment.name), copies, {}, target)
    return left_out


def _records_of(experiment: Experiment, run: str, seed: int, results: Path) -> Iterator[Path | str]:
    """The files of a run, or at the end why it is left out."""
    folder = run_folder(results, experiment.name, run, seed)
    if not (folder / RECORD).is_file():
        yield "not made"
        return
    trained_by = command("train", experiment.path, run, seed, results)
    record = read_json(folder / RECORD, trained_by, ("digest", "weights_sha256"))
    if record["digest"] != experiment.spec(run, seed).digest:
        yield f"of another configuration (its digest is {record['digest']})"
        return
    if not (folder / "metrics.json").is_file():
        yield "not measured"
        return
    check_weights(folder / "weights.safetensors", record, trained_by)
    yield folder / RECORD
    if "history_sha256" in record:
        read_text(folder / HISTORY, trained_by)
        if file_hash(folder / HISTORY) != record["history_sha256"]:
            raise unusable(folder / HISTORY, "not the history that its run.json is about", trained_by)
        yield folder / HISTORY
    for name in ("metrics.json", PROBES):
        if (folder / name).is_file():
            read_json(folder / name, command("evaluate", experiment.path, run, seed, results))
            yield folder / name


def report_records(experiment: Experiment, folder: Path) -> list[Path]:
    """Write tables, their figures and cards of kept records beside them, the same bytes every time; return the files.

    What is missing, or was made by another configuration than the page has now, is *not run*.

    Raises:
        UserError: a record is damaged, or the ledger is wrong.
    """
    files = tabulate_experiment(experiment, folder, experiment.published, partial=True)
    figures = figure_folder(folder, experiment.name)
    figures.mkdir(parents=True, exist_ok=True)
    with house_style():
        for name, figure in table_figures(experiment, folder, experiment.published, partial=True).items():
            files += save(figure, figures, name, ["svg"])
    remove_others(figures, [".svg"], keep=files)
    return [*files, write_cards(experiment, folder)]
