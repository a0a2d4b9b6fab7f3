# Raw images -> Arrow shards and a manifest.


rule prepare_dataset:
    input:
        raw=lambda wildcards: raw_record(wildcards.dataset),
        code=sources("data/prepare.py"),
    output:
        "results/datasets/{dataset}/manifest.json",
    log:
        "logs/datasets/{dataset}/prepare.log",
    benchmark:
        "logs/datasets/{dataset}/prepare.benchmark.jsonl"
    threads: 8
    params:
        dataset=dataset_line,
    message:
        "prepare data set {wildcards.dataset}"
    shell:
        "exec distillery prepare {wildcards.dataset} --workers {threads} > {log} 2>&1"
