# With `--config rehearsal=true`, everything happens in a folder of its own, which has its own config/ and results/: every
# run with its real networks and objective, on a few generated images (src/distillery/config/rehearsal.py).


def set_up_rehearsal():
    """Write the rehearsal's pages; return its folder, or None if this is none."""
    if not asked("rehearsal"):
        return None
    folder = Path("results", "rehearsal")
    one_line_errors(write_rehearsal)(
        one_line_errors(load_pages)(CONFIG).values(), folder
    )
    for name in ("src", "workflow"):
        link = folder / name
        if not link.is_symlink():
            link.symlink_to(Path("..", "..", name))
    return str(folder)


REHEARSAL = set_up_rehearsal()

if REHEARSAL:

    workdir: REHEARSAL

    onsuccess:
        print(
            f"Rehearsed: pages, logs and tables are in {REHEARSAL}/; the numbers in the tables mean nothing."
        )


localrules:
    rehearse_families,


rule rehearse_families:
    input:
        lambda wildcards: [
            f"results/{page}/{run}/{file}"
            for page, run in representatives(PAGES.values())
            for file in ("seed0/metrics.json", "profile.json")
        ],
