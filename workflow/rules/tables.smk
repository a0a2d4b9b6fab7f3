# Metrics of many runs -> the experiment's tables and figures.
localrules:
    assemble_tables,
    assemble_table,
    draw_figures,


rule assemble_tables:
    input:
        measured=lambda w: plan.unless_partial(plan.measurements(w.experiment)),
        raw=lambda w: plan.raw_images_of(w.experiment),
        published=lambda w: plan.published(w.experiment),
    output:
        page=report(
            "results/tables/{experiment}.html",
            category="Tables",
            labels={"experiment": "{experiment}", "format": "HTML"},
            caption="../report/tables.rst",
        ),
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
    resources:
        track="",
    params:
        digest=lambda w: plan.tabulating(w.experiment),
        found=lambda w: plan.found_if_partial(plan.measurements(w.experiment)),
    message:
        "assemble the tables of {wildcards.experiment}"
    shell:
        'exec distillery tabulate "$CONFIG"/{wildcards.experiment:q}.yaml $PARTIAL $SHRUNK --track={resources.track:q} > {log:q} 2>&1'


# One table alone needs its own runs only. Its experiment writes the same bytes, but waits for all of them.
rule assemble_table:
    input:
        measured=lambda w: plan.unless_partial(plan.measurements(w.experiment, w.table)),
        raw=lambda w: plan.raw_images_of(w.experiment),
        published=lambda w: plan.published(w.experiment),
    output:
        multiext(
            "results/tables/{experiment}/{table}",
            ".md",
            ".tex",
            ".csv",
            ".html",
            ".json",
        ),
    log:
        "logs/{experiment}/tables/{table}.log",
    benchmark:
        "logs/{experiment}/tables/{table}.benchmark.jsonl"
    params:
        digest=lambda w: plan.tabulating(w.experiment, w.table),
        found=lambda w: plan.found_if_partial(plan.measurements(w.experiment, w.table)),
    message:
        "assemble the table {wildcards.table} of {wildcards.experiment}"
    shell:
        'exec distillery tabulate "$CONFIG"/{wildcards.experiment:q}.yaml {wildcards.table:q} $PARTIAL $SHRUNK > {log:q} 2>&1'


rule draw_figures:
    input:
        measured=lambda w: plan.unless_partial(plan.drawn(w.experiment)),
        raw=lambda w: plan.raw_images_of(w.experiment),
        published=lambda w: plan.published(w.experiment, drawn=True),
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
    resources:
        track="",
    params:
        digest=lambda w: plan.drawing(w.experiment),
        found=lambda w: plan.found_if_partial(plan.drawn(w.experiment)),
    message:
        "draw the figures of {wildcards.experiment}"
    shell:
        'exec distillery plot "$CONFIG"/{wildcards.experiment:q}.yaml $PARTIAL $SHRUNK --track={resources.track:q} > {log:q} 2>&1'
