# What a network is worth: its metrics on the validation images, its size and its speed.


rule evaluate:
    input:
        manifest=lambda w: plan.manifest(w.experiment, w.run),
        raw=lambda w: plan.raw_images_of(w.experiment, w.run),
        weights="results/{experiment}/{run}/seed{seed}/weights.safetensors",
        record="results/{experiment}/{run}/seed{seed}/run.json",
        teacher=lambda w: plan.teacher_files(w.experiment, w.run),
    output:
        "results/{experiment}/{run}/seed{seed}/metrics.json",
    log:
        "logs/{experiment}/{run}/seed{seed}/evaluate.log",
    benchmark:
        "logs/{experiment}/{run}/seed{seed}/evaluate.benchmark.jsonl"
    # Before trainings that wait for a core: a teacher's old measurement goes when its new one begins, and its students
    # compare it with what they find.
    priority: 1
    threads: 1
    resources:
        gpu=0,
        jobs_per_gpu=1,
        workers=1,
    # The run again: after a failed training, old metrics still lie there and have to be known for stale.
    params:
        digest=lambda w: plan.evaluation(w.experiment, w.run, w.seed),
    message:
        "evaluate {wildcards.experiment}/{wildcards.run}, seed {wildcards.seed}"
    shell:
        "exec $WITH_GPUS {resources.gpu} {resources.jobs_per_gpu}"
        ' distillery evaluate "$CONFIG"/{wildcards.experiment:q}.yaml {wildcards.run:q} --seed {wildcards.seed:q} $SHRUNK'
        " --measured --threads {threads} --workers {resources.workers} > {log:q} 2>&1"


# Made only where a table has a column of it.
rule probe:
    input:
        manifest=lambda w: plan.manifest(w.experiment, w.run),
        raw=lambda w: plan.raw_images_of(w.experiment, w.run),
        weights="results/{experiment}/{run}/seed{seed}/weights.safetensors",
        record="results/{experiment}/{run}/seed{seed}/run.json",
    output:
        "results/{experiment}/{run}/seed{seed}/probes.json",
    log:
        "logs/{experiment}/{run}/seed{seed}/probe.log",
    benchmark:
        "logs/{experiment}/{run}/seed{seed}/probe.benchmark.jsonl"
    threads: 1
    resources:
        gpu=0,
        jobs_per_gpu=1,
        workers=1,
    params:
        digest=lambda w: plan.probing(w.experiment, w.run, w.seed),
    message:
        "probe {wildcards.experiment}/{wildcards.run}, seed {wildcards.seed}"
    shell:
        "exec $WITH_GPUS {resources.gpu} {resources.jobs_per_gpu}"
        ' distillery probe "$CONFIG"/{wildcards.experiment:q}.yaml {wildcards.run:q} --seed {wildcards.seed:q} $SHRUNK'
        " --threads {threads} --workers {resources.workers} > {log:q} 2>&1"


rule profile_model:
    input:
        manifest=lambda w: plan.manifest(w.experiment, w.run),
        raw=lambda w: plan.raw_images_of(w.experiment, w.run),
        network=lambda w: plan.first_seed_files(w.experiment, w.run),
    output:
        "results/{experiment}/{run}/profile.json",
    log:
        "logs/{experiment}/{run}/profile.log",
    benchmark:
        "logs/{experiment}/{run}/profile.benchmark.jsonl"
    # After the trainings, so that it is timed on a machine that is as quiet as it gets.
    priority: -1
    threads: 1
    # It counts as so many jobs on a GPU, and has one for itself.
    resources:
        gpu=0,
    params:
        digest=lambda w: plan.profiling(w.experiment, w.run),
    message:
        "profile {wildcards.experiment}/{wildcards.run}"
    shell:
        "exec $WITH_GPUS $(({resources.gpu} > 0)) 1"
        ' distillery profile "$CONFIG"/{wildcards.experiment:q}.yaml {wildcards.run:q} $SHRUNK --threads {threads}'
        " > {log:q} 2>&1"
