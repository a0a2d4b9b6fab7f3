# Raw images -> Arrow shards and a manifest.


rule download_dataset:
    output:
        touch("results/datasets/{dataset}.downloaded"),
    log:
        "logs/datasets/{dataset}/download.log",
    localrule: True
    params:
        source=lambda w: plan.download(w.dataset),
    message:
        "download data set {wildcards.dataset}"
    shell:
        'exec distillery download {wildcards.dataset:q} --config-dir "$CONFIG" > {log:q} 2>&1'


rule prepare_dataset:
    input:
        raw=lambda w: plan.raw_images(w.dataset),
        downloaded=ancient(lambda w: plan.download_mark(w.dataset)),
    output:
        "results/datasets/{dataset}/manifest.json",
    log:
        "logs/datasets/{dataset}/prepare.log",
    benchmark:
        "logs/datasets/{dataset}/prepare.benchmark.jsonl"
    threads: 8
    params:
        digest=lambda w: plan.preparing(w.dataset),
    message:
        "prepare data set {wildcards.dataset}"
    shell:
        'exec distillery prepare {wildcards.dataset:q} --config-dir "$CONFIG" --workers {threads} $SHRUNK > {log:q} 2>&1'
