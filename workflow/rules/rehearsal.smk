# With `--config rehearsal=true`, everything happens in a folder of its own, which has its own config/ and results/: every
# run with its real networks and objective, on a few generated images (src/distillery/config/rehearsal.py).

if REHEARSAL:

    workdir: REHEARSAL

    onsuccess:
        print(
            f"Rehearsed: experiments, logs and tables are in {REHEARSAL}/; the numbers in the tables mean nothing."
        )


localrules:
    rehearse_families,


rule rehearse_families:
    input:
        lambda wildcards: [
            f"results/{experiment}/{run}/{file}"
            for experiment, run in representatives(EXPERIMENTS.values())
            for file in ("seed0/metrics.json", "profile.json")
        ],
