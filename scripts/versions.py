"""Record, save and restore results: what `make save` and `make restore` do; docs/versioning.md says why.

DVC keeps the bytes, Snakemake decides what is stale. Results are recorded only when Snakemake has nothing left to do,
and handed to Snakemake only when their bytes are the recorded ones and this checkout gives them the same digests.
"""

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distillery.errors import UserError
from distillery.experiment import Experiment, load_experiment
from distillery.experiment.ledger import MEASURED, PROFILING
from distillery.experiment.reading import read_mapping
from distillery.paths import dataset_folder, figure_folder, profile_path, run_folder, table_folder

RESULTS = Path("results")
RAW = "data.dvc"
REFUSED = "so nothing was restored; make restore in the commit that recorded it, then go back to your changes"


def main(arguments: list[str]) -> int:
    """Run one command; 0 if it did what it says."""
    parser = argparse.ArgumentParser(prog="versions.py", description=__doc__)
    parser.add_argument("command", choices=("record", "save", "restore"))
    parser.add_argument("experiment", nargs="?", default="", help="without it, all that DVC knows")
    options = parser.parse_args(arguments)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # in order with what DVC prints
    os.chdir(Path(__file__).parents[1])
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    try:
        {"record": record, "save": save, "restore": restore}[options.command](options.experiment)
    except UserError as error:
        print(f"distillery: {error}", file=sys.stderr)
        return 2
    return 0


def record(name: str) -> None:
    """Note in dvc.lock what results are. An experiment that DVC does not know is left alone."""
    if name and name not in known():
        print(f"DVC does not know {name}: dvc.yaml has no line for it.")
    elif run("dvc", "status", "--quiet", RAW, *stages(experiments := made(name))).returncode:
        commit(experiments)


def save(name: str) -> None:
    """Record results and send them to the remote."""
    default_remote()
    experiments = made(name)
    commit(experiments)
    mend_cache(experiments)
    dvc("push", failed="the push stopped. What has arrived stays there, nothing here was touched; make save goes on")
    print("Saved. Commit and push data.dvc, dvc.yaml and dvc.lock, so that others find it.")


def restore(name: str) -> None:
    """Bring recorded results back and hand them to Snakemake.

    Not if this checkout would make other results: Snakemake, which knows nothing of files that it did not make, would
    take old ones for new. Everything is checked before anything is put in place.
    """
    lock = locked()
    experiments = with_parents([name] if name else [each for each in known() if f"experiment@{each}" in lock])
    missing = [stage for stage in stages(experiments) if stage not in lock]
    if missing or not experiments:
        raise UserError(
            f"dvc.lock: this commit has no record of {(missing or ['results'])[0]}; make save, where they are"
        )
    for stage in stages(experiments):
        if stage.startswith("dataset@") and (changed := changed_dependencies(stage)):
            raise UserError(f"{changed[0]}: {stage} was recorded with another one, {REFUSED}")
    # DVC believes what a remote sends unless it is asked not to. Set here, it holds for a plain `dvc pull` too.
    dvc("config", "--local", f"remote.{default_remote()}.verify", "true", failed="the remote could not be set up")
    targets = [*stages(experiments), *([] if name else [RAW])]
    subprocess.run(["dvc", "fetch", *targets])
    check_whole(targets)
    for experiment in experiments.values():
        check_digests(experiment)
    dvc("checkout", *targets, failed="files of your own are in the way and were left alone; move them and try again")
    hand_over(experiments)
    print(f"Restored: {', '.join(experiments)}. If this checkout still has something to make, snakemake -n says what.")


def known() -> dict[str, str]:
    """The experiments that DVC knows, with the data set of each."""
    return dict(read_mapping(Path("dvc.yaml"))["stages"]["experiment"]["foreach"])


def made(name: str) -> dict[str, Experiment]:
    """An experiment, or all that there are results of."""
    experiments = with_parents([name] if name else [each for each in known() if (RESULTS / each).is_dir()])
    if not experiments:
        raise UserError("results: nothing was made here yet; make demo, or snakemake --cores all")
    return experiments


def with_parents(names: list[str]) -> dict[str, Experiment]:
    """Experiments and those whose runs theirs start from."""
    found: dict[str, Experiment] = {}
    for name in names:
        experiment = load_experiment(Path("config", f"{name}.yaml"))
        found |= {relative.name: relative for relative, _ in experiment.family(experiment.config.runs)}
    for name, experiment in found.items():
        if known().get(name) != experiment.config.dataset:
            line = f"{name}: {experiment.config.dataset}"
            raise UserError(f"dvc.yaml: stages.experiment.foreach: DVC does not know {name}; write the line `{line}`")
    return found


def stages(experiments: dict[str, Experiment]) -> list[str]:
    """The stages of dvc.yaml that keep experiments and their data sets."""
    datasets = dict.fromkeys(experiment.config.dataset for experiment in experiments.values())
    return [f"dataset@{name}" for name in datasets] + [f"experiment@{name}" for name in experiments]


def digests(experiment: Experiment) -> Iterator[tuple[Path, str]]:
    """The files of an experiment that hold a digest, and the one that this checkout gives to each."""
    for run, seed in experiment.members():
        for name in ("run.json", "metrics.json"):
            yield run_folder(RESULTS, experiment.name, run, seed) / name, experiment.spec(run, seed).digest
        yield profile_path(RESULTS, experiment.name, run), experiment.spec(run).digest


# --- what DVC knows --------------------------------------------------------------------------------------------------


def commit(experiments: dict[str, Experiment]) -> None:
    """Record what is up to date: what Snakemake would make again would pass for the result of what stands there now."""
    chosen = f"experiments={','.join(experiments)}"
    waiting = re.findall(r"^Job \d+: (.+)$", snakemake("--dry-run", "--cores", "1", "--config", chosen), re.MULTILINE)
    if waiting:
        jobs = f"{waiting[0]}{f' and {len(waiting) - 1} more' * (len(waiting) > 1)}"
        raise UserError(f"not up to date, to do: {jobs}; first snakemake --cores all --config {chosen}")
    raw = ask("status", RAW)
    if "modified" in raw:
        print("data/ is not what data.dvc says and was not recorded; dvc add data makes it a new version.")
    targets = [*([RAW] if "not in cache" in raw else []), *stages(experiments)]
    dvc("commit", "--force", "--quiet", *targets, failed="the results could not be recorded")
    print(f"Recorded: {', '.join(experiments)}. For git: git add data.dvc dvc.yaml dvc.lock")


def locked() -> dict[str, Any]:
    """The stages that dvc.lock records."""
    return dict(read_mapping(Path("dvc.lock"))["stages"]) if Path("dvc.lock").is_file() else {}


def recorded(targets: list[str]) -> Iterator[tuple[Path, Path, Path]]:
    """Each recorded file with its copy in the cache, and the listing there of the folder that it was recorded with."""
    cache = Path(ask("cache", "dir").strip(), "files", "md5")
    lock = {RAW: read_mapping(Path(RAW)), **locked()}
    for out in (out for target in targets for out in lock[target]["outs"]):
        copy = cache / out["md5"][:2] / out["md5"][2:]
        yield Path(out["path"]), copy, copy
        for entry in json.loads(copy.read_text()) if copy.suffix == ".dir" and is_whole(copy) else ():
            yield Path(out["path"], entry["relpath"]), cache / entry["md5"][:2] / entry["md5"][2:], copy


def is_whole(copy: Path) -> bool:
    """Whether a copy in the cache is there and holds the bytes that its name promises."""
    return copy.is_file() and md5(copy) == copy.parent.name + copy.stem


def md5(path: Path) -> str:
    """The hash by which DVC knows a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def changed_dependencies(stage: str) -> list[str]:
    """What a stage depends on and is not as it was recorded."""
    changes = json.loads(ask("status", "--json", stage)).get(stage, [])
    found = [path for change in changes if isinstance(change, dict) for path in change.get("changed deps", {})]
    return [RAW if path == "workflow/data-version" else path for path in found]


def default_remote() -> str:
    """The name of the remote; no pushing or pulling without one."""
    name = run("dvc", "config", "core.remote").stdout.strip()
    if not name:
        raise UserError(
            "no remote; e.g. dvc remote add --default store /shared/distillery (docs/versioning.md has more)"
        )
    return name


def mend_cache(experiments: dict[str, Experiment]) -> None:
    """Replace damaged copies in the cache by the results, if those are whole: DVC believes its own cache."""
    targets = [RAW, *stages(experiments)]
    damaged = [(path, copy) for path, copy, _ in recorded(targets) if copy.is_file() and not is_whole(copy)]
    for path, copy in damaged:
        copy.unlink()
        if not (path.is_dir() or (path.is_file() and md5(path) == copy.parent.name + copy.name)):
            raise UserError(
                f"{path}: damaged, and its copy in the cache too; delete it, then make restore or snakemake"
            )
    if damaged:
        print(f"Damaged in the cache: {', '.join(str(path) for path, _ in damaged)}; taken from the results again.")
        commit(experiments)


def check_whole(targets: list[str]) -> None:
    """Refuse what did not come whole: `dvc fetch` drops a damaged file without a word."""
    for path, copy, listing in recorded(targets):
        if not is_whole(copy):
            copy.unlink(missing_ok=True)
            # With its folder's listing: DVC takes a listing in the remote for proof that all its files are there.
            objects = dict.fromkeys(str(each.relative_to(each.parents[3])) for each in (copy, listing))
            raise UserError(
                f"{path}: did not come whole, so nothing was restored. If the remote is to blame, delete "
                f"{' and '.join(objects)} there, make save where the results are whole, then make restore"
            )


def check_digests(experiment: Experiment) -> None:
    """Refuse results that this checkout would make of something else."""
    copies = {path: copy for path, copy, _ in recorded(stages({experiment.name: experiment}))}
    manifest = json.loads(copies[dataset_folder(RESULTS, experiment.config.dataset) / "manifest.json"].read_text())
    for path, digest in digests(experiment):
        found = json.loads(copies[path].read_text()) if path in copies else {}
        for key, expected in (("digest", digest), ("manifest_digest", manifest["digest"])):
            if found.get(key, expected) != expected:
                raise UserError(f"{path}: {key} is {found[key][:16]}, but would be {expected[:16]} here, {REFUSED}")


def hand_over(experiments: dict[str, Experiment]) -> None:
    """Make Snakemake accept that the recorded results are those of this checkout.

    Tables and figures hold no digest: if anything that they are made from was changed, they are left out, and Snakemake
    makes them again, for they are older than the results that are touched.
    """
    targets: list[Path] = []
    for name, experiment in experiments.items():
        targets.append(dataset_folder(RESULTS, experiment.config.dataset) / "manifest.json")
        files = [path for path, _ in digests(experiment) if path.is_file()]
        targets += [path for path in files if is_measured_as_now(path)]
        if not changed_dependencies(f"experiment@{name}"):
            targets += [table_folder(RESULTS) / f"{name}.md", figure_folder(RESULTS, name)]
    snakemake("--touch", "--forceall", "--cores", "1", "--", *map(str, dict.fromkeys(targets)))


def is_measured_as_now(path: Path) -> bool:
    """Whether a measurement was made as this checkout makes it; others are left for Snakemake to make again."""
    found = json.loads(path.read_text(encoding="utf-8"))
    return bool((found.get("evaluation", MEASURED), found.get("profiling", PROFILING)) == (MEASURED, PROFILING))


def snakemake(*arguments: str) -> str:
    """What Snakemake prints; shown if it fails."""
    result = run("snakemake", *arguments)
    if result.returncode:
        print(result.stdout + result.stderr, file=sys.stderr)
        raise UserError("snakemake stopped; what it says above has to be mended first")
    return result.stdout + result.stderr


def ask(*arguments: str) -> str:
    """What DVC answers; its failure, as while another DVC works here, is one line."""
    result = run("dvc", *arguments)
    if result.returncode:
        raise UserError(f"dvc {' '.join(arguments)}: {' '.join(result.stderr.split())}")
    return result.stdout


def dvc(*arguments: str, failed: str) -> None:
    """Run DVC before the user's eyes; after what it says itself, its failure is one line."""
    if subprocess.run(["dvc", *arguments]).returncode:
        raise UserError(failed)


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a command and keep what it prints."""
    return subprocess.run(command, capture_output=True, text=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
