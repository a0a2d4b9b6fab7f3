# ruff: noqa: E501
"""Record, save and restore results: what `make track`, `record`, `save` and `restore` do. docs/versioning.md tells why.

DVC keeps the bytes and knows what was made of what; Snakemake decides what is stale. Results are recorded only when
Snakemake has nothing left to do for them, and handed to Snakemake only when their bytes are those that were recorded
and this checkout would make them of the same things.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cached import discard_damaged, md5_of, recorded_outputs

from distillery.errors import UserError

ROOT = Path(__file__).parents[1]
VERSIONS = Path("versions")
HOME_EXPERIMENT = "digits"  # the experiment of the dvc.yaml in the root
RUN_FILES = {"weights.safetensors", "run.json", "history.csv", "tensorboard", "metrics.json"}
TARGETS = re.compile(
    r"results/(datasets/[^/]+|[^/]+/[^/]+/seed\d+/(weights\.safetensors|metrics\.json)"
    r"|[^/]+/[^/]+/profile\.json|tables/[^/]+\.md|figures/[^/]+)"
)


def main(arguments: list[str]) -> int:
    """Run one command; 0 if it did what it says."""
    parser = argparse.ArgumentParser(prog="versions.py", description=__doc__)
    commands = parser.add_subparsers(required=True)
    for command in (track, lineage, record, save, restore):
        add = commands.add_parser(command.__name__, help=command.__doc__)
        add.add_argument("experiment", nargs="?", default="")
        add.set_defaults(command=command)
    options = parser.parse_args(arguments)
    os.chdir(ROOT)
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    try:
        options.command(options.experiment)
    except UserError as error:
        print(f"distillery: {error}", file=sys.stderr)
        return 2
    return 0


# --- commands --------------------------------------------------------------------------------------------------------


def track(experiment: str) -> None:
    """Make an experiment's stages known to DVC."""
    known = sorted(path.stem for path in Path("config").glob("*.yaml") if path.stem != "datasets")
    if experiment not in known:
        raise UserError(f"EXPERIMENT={experiment}: expected an experiment of config/; valid: {', '.join(known)}")
    refresh_lineage(experiment)
    for other in parent_experiments(experiment):
        if not stages_file(other).is_file():
            forget(experiment)
            raise UserError(f"config/{experiment}.yaml: takes weights of {other}; first make track EXPERIMENT={other}")
    if not stages_file(experiment).exists():
        head, _, stages = Path("dvc.yaml").read_text(encoding="utf-8").partition("\nvars:\n")
        assert head
        _, _, stages = stages.partition("\nstages:\n")
        stages_file(experiment).write_text(
            f"# The stages of config/{experiment}.yaml, a copy of the root's dvc.yaml, made by `make track EXPERIMENT={experiment}`.\n"
            f"vars:\n  - root: ../..\n  - jobs.json\n\nstages:\n{stages}",
            encoding="utf-8",
        )
    print(
        f"Tracked. Make the experiment by `snakemake` and `make record EXPERIMENT={experiment}`, or by `dvc repro {stages_file(experiment)}`."
    )
    print(f"For git: git add {folder(experiment)}")


def lineage(experiment: str) -> None:
    """Note what the experiment's jobs descend from; DVC's first stage. Stops DVC if the experiment has other jobs than it read."""
    before = read_json(folder(experiment) / "jobs.json")
    refresh_lineage(experiment)
    after = read_json(folder(experiment) / "jobs.json")
    if before != after:
        names = sorted(job_names(before) ^ job_names(after))
        changed = f": {', '.join(names[:3])}{' ...' * (len(names) > 3)}" if names else ""
        raise UserError(
            f"config/{experiment}.yaml: its runs were changed, and with them the stages in {stages_file(experiment)}{changed}; "
            "run dvc repro again"
        )


def record(experiment: str) -> None:
    """Note in dvc.lock what the experiment's results are and what they were made of."""
    if not stages_file(experiment).is_file():
        raise UserError(
            f"EXPERIMENT={experiment}: DVC does not know this experiment yet; first make track EXPERIMENT={experiment}"
        )
    if is_recorded(experiment):
        print(f"{experiment} is recorded already.")
        return
    check_made(experiment)
    refresh_lineage(experiment)
    check_strays(experiment)
    record_raw_images()
    dvc("commit", "--force", "--quiet", str(stages_file(experiment)), failed="the results could not be recorded")
    print(f"Recorded {experiment}. For git: git add data.dvc {lock_file(experiment)} {folder(experiment)}")


def save(experiment: str) -> None:
    """Record experiments and send their results to the remote."""
    check_remote()
    made = [experiment] if experiment else made_experiments()
    for each in made:
        if not is_recorded(each):
            record(each)
    for each in made:
        check_cache(each)
    dvc(
        "push",
        failed="the push stopped. What has arrived stays there and nothing here was touched; make save sends the rest",
    )
    print("Saved. Commit and push data.dvc, versions/ and every dvc.lock, so that others find it.")


def restore(experiment: str) -> None:
    """Bring recorded results back and hand them to Snakemake.

    Not if this checkout would make other results: to Snakemake, which knows nothing of files that it did not make, old
    results would pass for new ones.
    """
    experiments = [experiment] if experiment else [each for each in tracked_experiments() if lock_file(each).is_file()]
    for each in experiments:
        if not lock_file(each).is_file():
            raise UserError(
                f"{lock_file(each)}: missing: this commit has no record of {each}; make record EXPERIMENT={each}"
            )
    if not experiments:
        raise UserError("dvc.lock: missing: nothing was recorded in this commit; check out one that has a dvc.lock")
    check_remote()
    for each in experiments:
        check_lineage(each)
    pull(experiments, records=[*([] if experiment else [Path("data.dvc")]), *map(lock_file, experiments)])
    adopt(experiments)
    print(f"Restored {', '.join(experiments)}: nothing to do for Snakemake until something is changed.")


# --- experiments -----------------------------------------------------------------------------------------------------------


def folder(experiment: str) -> Path:
    """What is kept in git about an experiment's versions."""
    return VERSIONS / experiment


def stages_file(experiment: str) -> Path:
    """The dvc.yaml with an experiment's stages."""
    return Path("dvc.yaml") if experiment == HOME_EXPERIMENT else folder(experiment) / "dvc.yaml"


def lock_file(experiment: str) -> Path:
    """The dvc.lock that records an experiment."""
    return stages_file(experiment).with_name("dvc.lock")


def tracked_experiments() -> list[str]:
    """The experiments that DVC knows."""
    return sorted(path.parent.name for path in VERSIONS.glob("*/jobs.json") if stages_file(path.parent.name).is_file())


def made_experiments() -> list[str]:
    """The tracked experiments of which there are results here."""
    experiments = [experiment for experiment in tracked_experiments() if Path("results", experiment).is_dir()]
    if not experiments:
        raise UserError("results: nothing was made here yet; make demo, or snakemake --cores all")
    return experiments


def jobs(experiment: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Stage, name and values of each job of an experiment."""
    for stage, block in (read_json(folder(experiment) / "jobs.json") or {}).items():
        if isinstance(block, dict):
            for name, values in block.items():
                yield stage, name, values


def job_names(content: dict[str, Any] | None) -> set[str]:
    """The stages that a jobs.json makes."""
    blocks = (content or {}).items()
    return {f"{stage}@{name}" for stage, block in blocks if isinstance(block, dict) for name in block}


def parent_experiments(experiment: str) -> set[str]:
    """Other experiments whose runs this one starts from."""
    paths = [Path(values["initial"]).parts for _, _, values in jobs(experiment) if "initial" in values]
    return {parts[1] for parts in paths if parts[0] == "results"} - {experiment}


def forget(experiment: str) -> None:
    """Undo a refused `track`."""
    for name in ("jobs.json", "lineage.json"):
        (folder(experiment) / name).unlink(missing_ok=True)
    folder(experiment).rmdir()


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON file, or None if there is none or half of one, as after a merge."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return content


# --- checks ----------------------------------------------------------------------------------------------------------


def check_made(experiment: str) -> None:
    """Refuse to record what Snakemake would make anew: it would pass for the result of what stands there now."""
    planned = snakemake("--dry-run", "--cores", "1", "--config", f"experiments={experiment}")
    waiting = re.findall(r"^Job \d+: (.+)$", planned, flags=re.MULTILINE)
    if waiting:
        more = f" and {len(waiting) - 1} more jobs" if len(waiting) > 1 else ""
        raise UserError(
            f"{experiment}: not up to date: {waiting[0]}{more} to do; first snakemake --cores all --config experiments={experiment}"
        )


def check_strays(experiment: str) -> None:
    """Refuse files that no run of the experiment owns: tables are recorded with all of the experiment's results, and a clone would
    not get these."""
    members: dict[str, set[str]] = {}
    for _, _, values in jobs(experiment):
        if "run" in values:
            members.setdefault(values["run"], {"profile.json"}).add(f"seed{values['seed']}")
    results = Path("results", experiment)
    for path in [found for pattern in ("*", "*/*", "*/*/*") for found in sorted(results.glob(pattern))]:
        run, *inside = path.relative_to(results).parts
        if run not in members or not members[run].issuperset(inside[:1]) or not RUN_FILES.issuperset(inside[1:]):
            raise UserError(
                f"{path}: belongs to no run of config/{experiment}.yaml; move it out of {results}, or delete it"
            )


def record_raw_images() -> None:
    """Keep the bytes of the raw images that data.dvc tells of; if others lie there, say so and leave them."""
    if not Path("data.dvc").is_file() or not Path("data").exists():
        return
    status = output("dvc", "status", "data.dvc")
    if "modified" in status:
        print("data/ is not what data.dvc tells of, and is not recorded; dvc add data makes it a new version.")
    elif "up to date" not in status:
        dvc("commit", "--force", "--quiet", "data.dvc", failed="the raw images could not be recorded")


def is_recorded(experiment: str) -> bool:
    """Whether DVC sees no change since the experiment was recorded."""
    return run("dvc", "status", "--quiet", str(stages_file(experiment)), "data.dvc").returncode == 0


def check_remote() -> None:
    """Refuse to push or pull without knowing where."""
    if not output("dvc", "config", "core.remote").strip():
        raise UserError(
            "no remote to save to or restore from; e.g. dvc remote add --default store /shared/distillery "
            "(docs/versioning.md has SSH and S3)"
        )


def pull(experiments: list[str], records: list[Path]) -> None:
    """Bring the files of experiments back, and read all of them: DVC believes what a remote sends.

    What proves damaged is thrown away, here and in the cache, and asked for once more.
    """
    raw = [str(record) for record in records if record.suffix == ".dvc"]
    for _ in range(2):
        dvc(
            *("pull", "--with-deps", *raw, *(str(stages_file(experiment)) for experiment in experiments)),
            failed="not everything came back; what came is in place, files of your own were left alone. Mend what DVC "
            "says above, then make restore again",
        )
        wrong = [each for path in records for each in discard_damaged(path)]
        if not wrong:
            return
    more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
    raise UserError(
        f"{wrong[0].path}{more}: the remote's copy is damaged. Delete {wrong[0].object} there, make save where the "
        "results are whole, then make restore"
    )


def check_cache(experiment: str) -> None:
    """Refuse to send damaged copies: mend the cache from the results, if those are whole."""
    for path in (Path("data.dvc"), lock_file(experiment)):
        damaged = list(discard_damaged(path, keep_files=True))
        wrong = [each for each in damaged if not each.is_whole()]
        if wrong:
            raise UserError(
                f"{wrong[0].path}: damaged, in the cache too: not the bytes that {path} records. Delete it and make "
                "restore, or make it anew with snakemake"
            )
        if damaged:
            target = str(stages_file(experiment) if path.name == "dvc.lock" else path)
            dvc("commit", "--force", "--quiet", target, failed="the cache could not be mended")
            print(f"Mended {len(damaged)} damaged files of the cache from the results.")


def check_lineage(experiment: str) -> None:
    """Refuse to hand results to Snakemake that this checkout would make of other things than those recorded."""
    path = folder(experiment) / "lineage.json"
    if (path, md5_of(path) if path.is_file() else "") not in list(recorded_outputs(lock_file(experiment))):
        raise UserError(f"{path}: not the one that {lock_file(experiment)} tells of; check out a commit that has both")
    text = path.read_text(encoding="utf-8")
    before = lineage_of_jobs(path)
    refresh_lineage(experiment)
    after = lineage_of_jobs(path)
    path.write_text(text, encoding="utf-8")
    changed = sorted(job for job in {*before, *after} if before.get(job) != after.get(job))
    if changed:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise UserError(
            f"{experiment}: {changed[0]}{more}: config/ or src/ were changed since it was recorded, so nothing was restored; "
            "make restore in the commit that recorded it, then go back to your changes"
        )


def lineage_of_jobs(path: Path) -> dict[str, Any]:
    """What each job of a lineage.json descends from, by the job's name."""
    found = {}
    for stage, block in (read_json(path) or {}).items():
        jobs = {"": block} if "params" in block else block
        found.update({f"{stage} {name}".strip(): values for name, values in jobs.items()})
    return found


# --- the two tools ---------------------------------------------------------------------------------------------------


def refresh_lineage(experiment: str) -> None:
    """Write jobs.json and lineage.json of an experiment, as it stands now."""
    snakemake("--cores", "1", "--forcerun", "record_lineage", "--", str(folder(experiment) / "lineage.json"))


def adopt(experiments: list[str]) -> None:
    """Tell Snakemake that the recorded results belong to this checkout."""
    targets = []
    for experiment in experiments:
        paths = [str(path) for path, _ in recorded_outputs(lock_file(experiment))]
        targets += [
            f"{path}/manifest.json" if path.startswith("results/datasets/") else path
            for path in paths
            if TARGETS.fullmatch(path)
        ]
    snakemake("--touch", "--forceall", "--cores", "1", "--", *targets)


def snakemake(*arguments: str) -> str:
    """What Snakemake prints; its failure is one line."""
    result = run("snakemake", *arguments)
    if result.returncode:
        lines = [line.strip() for line in result.stdout.splitlines() if line.strip()]
        told = [line for line in lines if line.startswith("distillery: ")]
        if told:
            raise UserError(told[-1].removeprefix("distillery: "))
        if any("Directory cannot be locked" in line or "LockException" in line for line in lines):
            raise UserError(
                f"{ROOT}: another snakemake works here; wait for it, or after it was killed: snakemake --unlock"
            )
        raise UserError(f"snakemake {' '.join(arguments)}: {lines[-1] if lines else 'failed'}")
    return result.stdout


def dvc(*arguments: str, failed: str) -> None:
    """Run DVC before the user's eyes; after what it says itself, its failure is one line."""
    if subprocess.run(["dvc", *arguments]).returncode:
        raise UserError(failed)


def output(*command: str, **environment: str) -> str:
    """What a command prints to standard output."""
    return subprocess.run(command, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True).stdout


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a command and keep what it prints."""
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
