# What DVC is told of an experiment; lineage.smk knows it.
localrules:
    record_lineage,


rule record_lineage:
    output:
        jobs="versions/{experiment}/jobs.json",
        lineage="versions/{experiment}/lineage.json",
    log:
        "logs/{experiment}/lineage.log",
    params:
        jobs=jobs_of_experiment,
        lineage=lineage_of_experiment,
    message:
        "record what {wildcards.experiment} descends from"
    script:
        "../scripts/lineage.py"
