# What rules know of the configuration: a plan (src/distillery/experiment/plan.py), asked by one-line functions.
#
# Inputs are results and data.dvc, parameters are digests of all that decides a result. Code is neither: editing or updating
# it makes nothing again, and `distillery why TARGET` says what does.
import gc
import os
import sys
from pathlib import Path

try:
    from distillery.cluster.gpus import all_devices
    from distillery.errors import UserError
    from distillery.experiment.plan import any_of, make_plan
    from distillery.paths import REHEARSAL, shipped
    from distillery.reporting.measurements import needed_files
    from distillery.results import dead_terms
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


class OneLineErrors:
    """Lets a user's mistake end Snakemake with its one line; exceptions would come with a traceback."""

    def __init__(self, make, *arguments, **options):
        self.plan = self.answer(make, *arguments, **options)

    def answer(self, function, *arguments, **options):
        try:
            return function(*arguments, **options)
        except UserError as error:
            sys.exit(f"distillery: {error}")

    def __getattr__(self, name):
        found = getattr(self.plan, name)
        if not callable(found):
            return found
        return lambda *arguments, **options: self.answer(found, *arguments, **options)


# What is imported stays, and need not be looked through for garbage.
gc.freeze()

plan = OneLineErrors(
    make_plan, Path("config"), config, needed_files, whole=workflow.is_main_process
)

# A rehearsal works in a folder of its own, with its own logs and results.
if plan.rehearsal:
    # Resolved, for results/ may be a link to another disk.
    FOLDER = os.path.relpath(Path("config").resolve(), REHEARSAL.resolve())

    workdir: str(REHEARSAL)

    plan = OneLineErrors(make_plan, Path(FOLDER), config, needed_files)


# Snakemake itself only says that nothing makes a misspelt target. It knows its targets later than its rules.
for target in sys.argv[1:]:
    if plan.meant(target):
        print(
            f"distillery: {target}: did you mean {plan.meant(target)}?", file=sys.stderr
        )


# Parts of the rules' commands. They are no parameters, for where things lie makes nothing stale.
os.environ.update(
    CONFIG=str(plan.config),
    SHRUNK="--rehearsal --results results" if plan.rehearsal else "",
    PARTIAL="--partial" if plan.partial else "",
    LAUNCH=str(shipped("workflow/scripts/launch.sh")),
    WITH_GPUS="python -m distillery.cluster.gpus",
)


onstart:
    # Trap: under a limit of jobs a timespan, which Snakemake has by default, each look for work asks for another one a
    # timespan later: after some hundred jobs, they keep a core busy. Only clusters need a limit.
    if workflow.local_exec:
        workflow.scheduler.job_rate_limiter = None
    # Trap: torch takes the first one.
    chosen = (
        "gpu" in workflow.global_resources or "CUDA_VISIBLE_DEVICES" in os.environ
    )
    if workflow.local_exec and not chosen and (devices := all_devices()):
        print(
            f"note: of {len(devices)} GPUs, all jobs use the first, together; with --profile local each has one of its own"
        )


onsuccess:
    if plan.rehearsal:
        print(
            f"Rehearsed: tables, logs and results are in {REHEARSAL}/; the numbers in the tables mean nothing."
        )
        for line in dead_terms(Path("results")):
            print(f"warning: {line}")


wildcard_constraints:
    dataset=any_of(plan.datasets()),
    experiment=any_of(plan.names()),
    run="[^/]+",
    table="[A-Za-z0-9][A-Za-z0-9._-]*",
    seed="0|[1-9][0-9]*",
