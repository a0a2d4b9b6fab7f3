# Experiments for DVC, in versions/<experiment>/: jobs.json, of which dvc.yaml makes its stages, and lineage.json, what each job
# descends from. DVC watches the second, so that it takes a result for stale when Snakemake does, and for no other reason.
import hashlib
import json
from types import SimpleNamespace


def jobs_of_experiment(wildcards):
    """The values that dvc.yaml makes its stages of: a job a line, under the name of its stage."""
    experiment = EXPERIMENTS[wildcards.experiment]
    stages = ("train", "distil", "tune", "distil_tuned", "import", "adopt")
    jobs = {stage: {} for stage in (*stages, "evaluate", "compare", "profile")}
    for job in members(experiment):
        compared = "compare" if experiment.teacher(job.run) else "evaluate"
        jobs[making_stage(experiment, job.run)][job.name] = making_job(experiment, job)
        jobs[compared][job.name] = named_job(experiment, job)
    for run in experiment.config.runs:
        jobs["profile"][run] = {
            "run": run,
            "seed": experiment.seeds(run)[0],
            "line": pattern(run),
        }
    dataset = experiment.config.dataset
    return {
        "experiment": experiment.name,
        "dataset": dataset,
        "dataset_line": pattern(dataset),
        "prepare": prepared_here(experiment),
        **jobs,
    }


def lineage_of_experiment(wildcards):
    """What each job of an experiment descends from: its parameters, and its inputs that people edit, by content."""
    experiment = EXPERIMENTS[wildcards.experiment]
    prepare = SimpleNamespace(dataset=experiment.config.dataset)
    return {
        "prepare": {
            prepare.dataset: {
                "params": fingerprint(dataset_line(prepare)),
                "sources": fingerprint_files(
                    [*raw_record(prepare.dataset), *sources("data/prepare.py")]
                ),
            }
        },
        "make": {
            job.name: {
                "params": digest(job),
                "sources": fingerprint_files(run_lineage()(job)),
            }
            for job in members(experiment)
        },
        "measure": {
            job.name: {
                "params": digest(job),
                "sources": fingerprint_files(
                    run_lineage("evaluation/evaluate.py")(job)
                ),
            }
            for job in members(experiment)
        },
        "profile": {
            job.run: {
                "params": first_digest(job),
                "sources": fingerprint_files(run_lineage("evaluation/profile.py")(job)),
            }
            for job in members(experiment)
        },
        "tables": {
            "params": fingerprint([tables_block(wildcards), table_digests(wildcards)]),
            "sources": fingerprint_files(
                [*listed(published_ledger(wildcards)), *table_lineage(wildcards)]
            ),
        },
        "figures": {
            "params": fingerprint(
                [drawn_tables(wildcards), trained_digests(wildcards)]
            ),
            "sources": fingerprint_files(
                [*listed(drawn_ledger(wildcards)), *figure_lineage(wildcards)]
            ),
        },
    }


def members(experiment):
    """Every run and seed of an experiment, as the wildcards of its jobs."""
    return [
        SimpleNamespace(
            experiment=experiment.name,
            run=run,
            seed=str(seed),
            name=f"{run}-seed{seed}",
        )
        for run, seed in experiment.members()
    ]


def making_stage(experiment, run):
    """Which stage of dvc.yaml makes a run: they differ in what a run needs and leaves."""
    initial = listed(
        initial_weights(SimpleNamespace(experiment=experiment.name, run=run))
    )
    if experiment.config.runs[run].recipe is None:
        return "adopt" if initial else "import"
    if initial:
        return "distil_tuned" if experiment.teacher(run) else "tune"
    return "distil" if experiment.teacher(run) else "train"


def making_job(experiment, job):
    """A job that makes a network, with its recipe and the weights it starts from if it has them."""
    found, recipe = named_job(experiment, job), experiment.config.runs[job.run].recipe
    if recipe is not None:
        found["recipe"] = recipe
    for initial in listed(initial_weights(job))[:1]:
        found["initial"] = str(initial)
    return found


def named_job(experiment, job):
    """What the job of a run and seed is called, and its teacher if it has one."""
    found = {
        "run": job.run,
        "seed": int(job.seed),
        "line": pattern(job.run),
        "key": pattern(job.name),
    }
    teacher = experiment.teacher(job.run)
    if teacher is not None:
        found["teacher"] = str(Path(of_teacher("run.json")(job)[0]).parent)
        found["teacher_line"] = pattern(teacher)
    return found


def pattern(name):
    """A name as DVC finds it among the keys of a file: it takes a dot for a step down, and ? for any character."""
    return name.replace(".", "?")


def prepared_here(experiment):
    """The data set, unless another experiment's stages prepare it: DVC wants every output to have one stage."""
    for path in sorted(Path("versions").glob("*/jobs.json")):
        if path.parent.name != experiment.name:
            if experiment.config.dataset in json.loads(path.read_text())["prepare"]:
                return {}
    return {experiment.config.dataset: {}}


def listed(files):
    """One file, many or none, as a list."""
    return [files] if isinstance(files, (str, Path)) else list(files)


def fingerprint(value):
    """16 hex digits that stand for a value."""
    text = json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def fingerprint_files(files):
    """16 hex digits that stand for files, by name and content."""
    return fingerprint(sorted((str(file), content_hash(file)) for file in files))


@cache
def content_hash(file):
    """The SHA-256 of a file's content."""
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()
