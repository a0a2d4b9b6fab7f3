# Raw images -> Arrow shards and a manifest.


rule download_dataset:
    output:
        touch("results/datasets/{dataset}.downloaded"),
    log:
        "logs/datasets/{dataset}/download.log",
    localrule: True
    params:
        source=download_source,
    message:
        "download data set {wildcards.dataset}"
    shell:
        "exec distillery download {wildcards.dataset} > {log} 2>&1"


rule prepare_dataset:
    input:
        raw=lambda wildcards: raw_record(wildcards.dataset),
        downloaded=ancient(download_mark),
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
