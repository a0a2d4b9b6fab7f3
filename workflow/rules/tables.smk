# Metrics of many runs -> the experiment: tables and figures.
localrules:
    assemble_tables,
    assemble_table,
    draw_figures,


rule assemble_tables:
    input:
        manifest=unless_partial(experiment_manifest),
        measured=unless_partial(table_measurements),
        published=published_ledger,
        lineage=table_lineage,
    output:
        markdown=report(
            "results/tables/{experiment}.md",
            category="Tables",
            labels={"experiment": "{experiment}", "format": "Markdown"},
            caption="../report/tables.rst",
        ),
        latex="results/tables/{experiment}.tex",
        csv=report(
            "results/tables/{experiment}.csv",
            category="Tables",
            labels={"experiment": "{experiment}", "format": "CSV"},
            caption="../report/tables.rst",
        ),
        single=directory("results/tables/{experiment}"),
    log:
        "logs/{experiment}/tables.log",
    benchmark:
        "logs/{experiment}/tables.benchmark.jsonl"
    params:
        tables=tables_block,
        digests=table_digests,
        partial="--partial" if PARTIAL else "",
        found=found_if_partial(
            lambda experiment: experiment_manifest(experiment)
            + table_measurements(experiment)
        ),
    message:
        "assemble the tables of {wildcards.experiment}"
    shell:
        "exec distillery tabulate config/{wildcards.experiment}.yaml {params.partial} > {log} 2>&1"


# One table alone needs its own runs only. Its experiment writes the same bytes, but waits for all of them.
rule assemble_table:
    input:
        manifest=unless_partial(experiment_manifest),
        measured=unless_partial(table_measurements),
        published=published_ledger,
        lineage=table_lineage,
    output:
        multiext("results/tables/{experiment}/{table}", ".md", ".tex", ".csv"),
    log:
        "logs/{experiment}/tables/{table}.log",
    benchmark:
        "logs/{experiment}/tables/{table}.benchmark.jsonl"
    wildcard_constraints:
        table="[A-Za-z0-9][A-Za-z0-9._-]*",
    params:
        table=asked_table,
        digests=table_digests,
        partial="--partial" if PARTIAL else "",
        found=found_if_partial(
            lambda experiment, tables: experiment_manifest(experiment)
            + table_measurements(experiment, tables)
        ),
    message:
        "assemble the table {wildcards.table} of {wildcards.experiment}"
    shell:
        "exec distillery tabulate config/{wildcards.experiment}.yaml {wildcards.table} {params.partial} > {log} 2>&1"


rule draw_figures:
    input:
        histories=unless_partial(training_histories),
        measured=unless_partial(figure_measurements),
        published=drawn_ledger,
        lineage=figure_lineage,
    output:
        curves=report(
            directory("results/figures/{experiment}"),
            patterns=["{figure}.svg"],
            category="Figures",
            labels={"experiment": "{experiment}", "figure": "{figure}"},
            caption="../report/figures.rst",
        ),
    log:
        "logs/{experiment}/figures.log",
    benchmark:
        "logs/{experiment}/figures.benchmark.jsonl"
    params:
        digests=trained_digests,
        tables=drawn_tables,
        partial="--partial" if PARTIAL else "",
        found=found_if_partial(
            lambda experiment: training_histories(experiment)
            + figure_measurements(experiment)
        ),
    message:
        "draw the figures of {wildcards.experiment}"
    shell:
        "exec distillery plot config/{wildcards.experiment}.yaml {params.partial} > {log} 2>&1"
