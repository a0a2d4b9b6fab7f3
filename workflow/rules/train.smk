# Networks: trained by a recipe, or imported. Teachers are trained like students; the two rules differ in name, so that a
# profile can give them different machines.
#
# Everything that belongs to the machine (threads, processes, nodes, GPUs) is no parameter here: changing it retrains nothing.
#
# Every rule's command starts with exec, so that the process that Snakemake and Slurm know is the one that saves its state
# when it is asked to stop, and not a shell that dies at once and leaves it behind.
#
# A student does not wait for its teacher's metrics.json: it measures the teacher itself before it learns from it, and
# measuring teachers again must not train students again. (Marking the file `ancient` would make Snakemake overlook other
# changes of the student in the same call.)


rule train_student:
    input:
        manifest=lambda w: plan.manifest(w.experiment, w.run),
        raw=lambda w: plan.raw_images_of(w.experiment, w.run),
        teacher=lambda w: plan.teacher_files(w.experiment, w.run),
        initial=lambda w: plan.initial_files(w.experiment, w.run),
        answers=lambda w: plan.bank(
            w.experiment, w.run, w.seed, planning=workflow.is_main_process
        ),
    output:
        weights=ensure(
            "results/{experiment}/{run}/seed{seed}/weights.safetensors", non_empty=True
        ),
        history="results/{experiment}/{run}/seed{seed}/history.csv",
        record="results/{experiment}/{run}/seed{seed}/run.json",
        tensorboard=directory("results/{experiment}/{run}/seed{seed}/tensorboard"),
    log:
        "logs/{experiment}/{run}/seed{seed}/train.log",
    benchmark:
        "logs/{experiment}/{run}/seed{seed}/train.benchmark.jsonl"
    wildcard_constraints:
        experiment=plan.pattern("student"),
    # Sums over threads round differently for different numbers of threads, so the number does not follow the machine.
    threads: 1
    resources:
        nodes=1,
        gpu=0,
        jobs_per_gpu=1,
        gpus_per_node=0,
        cpus_per_task=2,
        workers=1,
        loader="auto",
        track="",
        cache="",
        speed="",
    params:
        digest=lambda w: plan.digest(w.experiment, w.run, w.seed),
    message:
        "train {wildcards.experiment}/{wildcards.run}, seed {wildcards.seed}"
    shell:
        "exec $WITH_GPUS {resources.gpu} {resources.jobs_per_gpu}"
        ' bash "$LAUNCH" {resources.nodes} {resources.gpus_per_node} {resources.cpus_per_task}'
        ' train "$CONFIG"/{wildcards.experiment:q}.yaml {wildcards.run:q} --seed {wildcards.seed:q} $SHRUNK'
        " --expect-digest {params.digest:q} --threads {threads} --workers {resources.workers} --measure"
        " --loader {resources.loader:q} --cache={resources.cache:q} --speed={resources.speed:q}"
        " --track={resources.track:q} --requeue > {log:q} 2>&1"


use rule train_student as train_teacher with:
    wildcard_constraints:
        experiment=plan.pattern("teacher"),
    # Students wait for it.
    priority: 1
    message:
        "train {wildcards.experiment}/{wildcards.run}, seed {wildcards.seed}, a teacher"


# A teacher's answers to all augmented images, once for all students that share them; `snakemake --notemp` keeps them.
rule answer_teacher:
    input:
        manifest=lambda w: plan.manifest(w.experiment, w.run),
        raw=lambda w: plan.raw_images_of(w.experiment, w.run),
        teacher=lambda w: plan.first_seed_files(w.experiment, w.run),
    output:
        temp(directory("results/{experiment}/{run}/seed{seed}/bank/{address}")),
    log:
        "logs/{experiment}/{run}/seed{seed}/bank-{address}.log",
    benchmark:
        "logs/{experiment}/{run}/seed{seed}/bank-{address}.benchmark.jsonl"
    wildcard_constraints:
        address="[0-9a-f]{16}",
    # Students wait for it.
    priority: 1
    threads: 1
    resources:
        gpu=0,
        jobs_per_gpu=1,
        workers=1,
        speed="",
    message:
        "store the answers of {wildcards.experiment}/{wildcards.run} (bank {wildcards.address})"
    shell:
        "exec $WITH_GPUS {resources.gpu} {resources.jobs_per_gpu}"
        ' distillery answer "$CONFIG"/{wildcards.experiment:q}.yaml {wildcards.run:q} --address {wildcards.address:q}'
        " $SHRUNK --threads {threads} --workers {resources.workers} --speed={resources.speed:q} > {log:q} 2>&1"


# Local: the machine that starts jobs has the network that a download needs, and computing nodes often have not.
rule import_weights:
    input:
        manifest=lambda w: plan.manifest(w.experiment, w.run),
        raw=lambda w: plan.raw_images_of(w.experiment, w.run),
        initial=lambda w: plan.initial_files(w.experiment, w.run),
    output:
        weights=ensure(
            "results/{experiment}/{run}/seed{seed}/weights.safetensors", non_empty=True
        ),
        record="results/{experiment}/{run}/seed{seed}/run.json",
    log:
        "logs/{experiment}/{run}/seed{seed}/import.log",
    benchmark:
        "logs/{experiment}/{run}/seed{seed}/import.benchmark.jsonl"
    wildcard_constraints:
        experiment=plan.pattern("imported"),
    localrule: True
    params:
        digest=lambda w: plan.digest(w.experiment, w.run, w.seed),
    message:
        "import {wildcards.experiment}/{wildcards.run}"
    shell:
        'exec distillery train "$CONFIG"/{wildcards.experiment:q}.yaml {wildcards.run:q} --seed {wildcards.seed:q} $SHRUNK'
        " --expect-digest {params.digest:q} > {log:q} 2>&1"
