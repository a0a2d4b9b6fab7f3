# Pages for DVC, in versions/<page>/: jobs.json, of which dvc.yaml makes its stages, and lineage.json, what each job
# descends from. DVC watches the second, so that it takes a result for stale when Snakemake does, and for no other reason.
import hashlib
import json
from types import SimpleNamespace


def jobs_of_page(wildcards):
    """The values that dvc.yaml makes its stages of: a job a line, under the name of its stage."""
    page = PAGES[wildcards.experiment]
    stages = ("train", "distil", "tune", "distil_tuned", "import", "adopt")
    jobs = {stage: {} for stage in (*stages, "evaluate", "compare", "profile")}
    for job in members(page):
        compared = "compare" if page.teacher(job.run) else "evaluate"
        jobs[making_stage(page, job.run)][job.name] = making_job(page, job)
        jobs[compared][job.name] = named_job(page, job)
    for run in page.experiment.runs:
        jobs["profile"][run] = {
            "run": run,
            "seed": page.seeds(run)[0],
            "line": pattern(run),
        }
    dataset = page.experiment.dataset
    return {
        "page": page.name,
        "dataset": dataset,
        "dataset_line": pattern(dataset),
        "prepare": prepared_here(page),
        **jobs,
    }


def lineage_of_page(wildcards):
    """What each job of a page descends from: its parameters, and its inputs that people edit, by content."""
    page = PAGES[wildcards.experiment]
    prepare = SimpleNamespace(dataset=page.experiment.dataset)
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
            for job in members(page)
        },
        "measure": {
            job.name: {
                "params": digest(job),
                "sources": fingerprint_files(
                    run_lineage("evaluation/evaluate.py")(job)
                ),
            }
            for job in members(page)
        },
        "profile": {
            job.run: {
                "params": first_digest(job),
                "sources": fingerprint_files(run_lineage("evaluation/profile.py")(job)),
            }
            for job in members(page)
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


def members(page):
    """Every run and seed of a page, as the wildcards of its jobs."""
    return [
        SimpleNamespace(
            experiment=page.name, run=run, seed=str(seed), name=f"{run}-seed{seed}"
        )
        for run, seed in page.members()
    ]


def making_stage(page, run):
    """Which stage of dvc.yaml makes a run: they differ in what a run needs and leaves."""
    initial = listed(initial_weights(SimpleNamespace(experiment=page.name, run=run)))
    if page.experiment.runs[run].recipe is None:
        return "adopt" if initial else "import"
    if initial:
        return "distil_tuned" if page.teacher(run) else "tune"
    return "distil" if page.teacher(run) else "train"


def making_job(page, job):
    """A job that makes a network, with its recipe and the weights it starts from if it has them."""
    found, recipe = named_job(page, job), page.experiment.runs[job.run].recipe
    if recipe is not None:
        found["recipe"] = recipe
    for initial in listed(initial_weights(job))[:1]:
        found["initial"] = str(initial)
    return found


def named_job(page, job):
    """What the job of a run and seed is called, and its teacher if it has one."""
    found = {
        "run": job.run,
        "seed": int(job.seed),
        "line": pattern(job.run),
        "key": pattern(job.name),
    }
    teacher = page.teacher(job.run)
    if teacher is not None:
        found["teacher"] = str(Path(of_teacher("run.json")(job)[0]).parent)
        found["teacher_line"] = pattern(teacher)
    return found


def pattern(name):
    """A name as DVC finds it among the keys of a file: it takes a dot for a step down, and ? for any character."""
    return name.replace(".", "?")


def prepared_here(page):
    """The data set, unless another page's stages prepare it: DVC wants every output to have one stage."""
    for path in sorted(Path("versions").glob("*/jobs.json")):
        if path.parent.name != page.name:
            if page.experiment.dataset in json.loads(path.read_text())["prepare"]:
                return {}
    return {page.experiment.dataset: {}}


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
