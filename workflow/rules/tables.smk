# Metrics of many runs -> the page: tables and figures.
localrules:
    assemble_tables,
    draw_figures,


rule assemble_tables:
    input:
        manifest=unless_partial(page_manifest),
        measured=unless_partial(table_measurements),
        published=published_ledger,
        lineage=table_lineage,
    output:
        markdown=report(
            "results/tables/{experiment}.md",
            category="Tables",
            labels={"page": "{experiment}", "format": "Markdown"},
            caption="../report/tables.rst",
        ),
        latex="results/tables/{experiment}.tex",
        csv=report(
            "results/tables/{experiment}.csv",
            category="Tables",
            labels={"page": "{experiment}", "format": "CSV"},
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
            lambda page: page_manifest(page) + table_measurements(page)
        ),
    message:
        "assemble the tables of {wildcards.experiment}"
    shell:
        "exec distillery tabulate config/{wildcards.experiment}.yaml {params.partial} > {log} 2>&1"


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
            labels={"page": "{experiment}", "figure": "{figure}"},
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
            lambda page: training_histories(page) + figure_measurements(page)
        ),
    message:
        "draw the figures of {wildcards.experiment}"
    shell:
        "exec distillery plot config/{wildcards.experiment}.yaml {params.partial} > {log} 2>&1"
