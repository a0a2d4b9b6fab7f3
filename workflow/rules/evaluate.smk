# What a network is worth: its metrics on the validation images, its size and its speed.


rule evaluate:
    input:
        manifest=manifest,
        weights="results/{experiment}/{run}/seed{seed}/weights.safetensors",
        record="results/{experiment}/{run}/seed{seed}/run.json",
        teacher=of_teacher("weights.safetensors"),
        teacher_record=of_teacher("run.json"),
        lineage=run_lineage("evaluation/evaluate.py"),
    output:
        "results/{experiment}/{run}/seed{seed}/metrics.json",
    log:
        "logs/{experiment}/{run}/seed{seed}/evaluate.log",
    benchmark:
        "logs/{experiment}/{run}/seed{seed}/evaluate.benchmark.jsonl"
    # Any name, so that a mistyped one gets an answer from the experiment instead of "no rule to produce".
    wildcard_constraints:
        run="[^/]+",
    # Before trainings that wait for a core: a teacher's old measurement goes when its new one begins, and its students
    # compare it with what they find.
    priority: 1
    threads: 1
    resources:
        workers=1,
    # The spec again: after a failed training, old metrics still lie there and have to be known for stale.
    params:
        digest=digest,
    message:
        "evaluate {wildcards.experiment}/{wildcards.run}, seed {wildcards.seed}"
    shell:
        "exec distillery evaluate config/{wildcards.experiment}.yaml {wildcards.run} --seed {wildcards.seed}"
        " --threads {threads} --workers {resources.workers} > {log} 2>&1"


rule profile_model:
    input:
        manifest=manifest,
        weights=of_first_seed("weights.safetensors"),
        record=of_first_seed("run.json"),
        lineage=run_lineage("evaluation/profile.py"),
    output:
        "results/{experiment}/{run}/profile.json",
    log:
        "logs/{experiment}/{run}/profile.log",
    benchmark:
        "logs/{experiment}/{run}/profile.benchmark.jsonl"
    # After the trainings, so that it is timed on a machine that is as quiet as it gets.
    priority: -1
    threads: 1
    params:
        digest=first_digest,
    message:
        "profile {wildcards.experiment}/{wildcards.run}"
    shell:
        "exec distillery profile config/{wildcards.experiment}.yaml {wildcards.run} --threads {threads} > {log} 2>&1"
