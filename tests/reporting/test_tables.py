"""From measurements on disk to the files of an experiment."""

import csv
import dataclasses
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from distillery.errors import UserError
from distillery.experiment import load_experiment
from distillery.paths import run_folder, table_folder
from distillery.reporting.tables import CSV_HEADER, tabulate_experiment, tabulate_table

LEDGER = (
    'small,top1,91.5,,,last,"Author 2020, Table 3"',
    "small-kd,error1,6.90,0.2,5,best,Other 2021",
    'big,top1,95.0,,,,"Author 2020, Table 3"',
)


def tabulate(desk, kind="md"):
    """Write the tables and return the text of the experiment's own file."""
    tabulate_experiment(desk.experiment, desk.results, desk.ledger)
    return (table_folder(desk.results) / f"toy.{kind}").read_text()


def snapshot(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def judged(desk):
    desk.write_results()
    desk.write_ledger(*LEDGER)
    return desk


def test_the_table_in_markdown(judged):
    text = tabulate(judged)
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert [re.sub(r" +", " ", line) for line in table if "---" not in line] == [
        "| Run | Teacher | Top-1 (%) | NLL | Agreement (%) | Params | Size | n | Selection | Published Top-1 (%) "
        "| Difference | Verdict |",
        "| big | – | 95.00 | 0.200 | – | 272 k | 1.10 MB | 1 | last epoch | 95.0 | 0.00 | reproduced |",
        "| small | – | 91.00 ± 1.00 | 0.310 ± 0.010 | – | 77.8 k | 320 kB | 3 | last epoch | 91.5 | -0.50 "
        "| within noise |",
        "| small-kd | big | **93.00 ± 1.00** | **0.308 ± 0.010** | 95.00 ± 0.00 | 77.8 k | 320 kB | 3 | last epoch "
        "| 93.10 ± 0.2 | – | not comparable |",
    ]


def test_the_table_in_latex(judged):
    lines = tabulate(judged, "tex").splitlines()
    assert r"\caption{Teaching a small network. Selection: last epoch.}" in lines
    assert r"\label{tab:toy:methods}" in lines
    assert r"\begin{tabular}{llrrrrrrrrl}" in lines
    cells = [r"\textbf{93.00 $\pm$ 1.00}", r"\textbf{0.308 $\pm$ 0.010}", r"95.00 $\pm$ 0.00", "77.8 k", "320 kB", "3"]
    cells += [r"93.10 $\pm$ 0.2", "--", "not comparable"]
    assert " & ".join(["small-kd", "big", *cells]) + r" \\" in lines


@pytest.mark.parametrize("start", ["=", "+", "-", "@"])
def test_a_cell_that_a_spreadsheet_would_run_is_plain_text(desk, start):
    desk.write_results()
    desk.write_ledger(f'small,top1,91.5,,,last,"{start}cmd()"')
    (row,) = [row for row in csv.DictReader(tabulate(desk, "csv").splitlines()) if row["source"]]
    assert row["source"][0] not in "=+-@\t"
    assert row["source"].endswith("cmd()")
    assert float(row["difference"]) < 0


def test_the_table_for_machines_has_every_digit(judged):
    judged.write_metrics("small", 0, top1=100 / 3)
    rows = list(csv.DictReader(tabulate(judged, "csv").splitlines()))
    assert tuple(rows[0]) == CSV_HEADER
    assert len(rows) == 3 * 5
    by_key = {(row["table"], row["run"], row["metric"]): row for row in rows}
    small = by_key["methods", "small", "top1"]
    values = [100 / 3, 91.0, 92.0]
    assert float(small["mean"]) == pytest.approx(sum(values) / 3, rel=1e-15)
    assert float(small["difference"]) == float(small["mean"]) - 91.5
    kept = [small[key] for key in ("n", "selection", "published", "verdict")]
    assert kept == ["3", "last", "91.5", "within noise"]
    assert small["source"] == "Author 2020, Table 3"
    kd = by_key["methods", "small-kd", "top1"]
    assert (kd["teacher"], kd["published"], kd["published_std"], kd["published_n"]) == ("big", "93.10", "0.2", "5")
    assert (kd["published_selection"], kd["difference"], kd["verdict"]) == ("best", "", "not comparable")
    assert by_key["methods", "big", "top1"]["std"] == ""
    assert by_key["methods", "big", "agreement"]["mean"] == ""
    assert by_key["methods", "big", "params"]["mean"] == "272474"


def test_without_published_numbers_there_is_no_published_column_or_note(desk):
    desk.write_results()
    tabulate(desk)
    for path in table_folder(desk.results).rglob("*.[mt]*"):
        assert not re.search("published|verdict|difference", path.read_text(), re.IGNORECASE), path


def test_a_table_of_runs_without_teacher_has_no_column_for_teachers(desk):
    desk.write_experiment(desk.text.replace("rows: [big, small, small-kd]", "rows: [big, small]"))
    desk.write_results()
    assert "Teacher" not in tabulate(desk)


def test_rows_may_have_labels_as_the_source_prints_them(desk):
    labels = (
        "rows: {big: ResNet-20 | Teacher, small: ResNet-8 | Student, small-kd: ' | KD'}\n      heading: Model | Method"
    )
    desk.write_experiment(desk.text.replace("rows: [big, small, small-kd]", labels))
    desk.write_results()
    rows = [line for line in tabulate(desk).splitlines() if line.startswith("| ")]
    assert [[cell.strip() for cell in row.split("|")][1:4] for row in rows] == [
        ["Model", "Method", "Run"],
        ["ResNet-20", "Teacher", "big"],
        ["ResNet-8", "Student", "small"],
        ["", "KD", "small-kd"],
    ]


def test_a_label_needs_a_cell_for_each_heading(desk):
    desk.write_experiment(desk.text.replace("rows: [big, small, small-kd]", "rows: {big: ResNet-20 | Teacher}"))
    with pytest.raises(UserError, match=r"methods: .* 'ResNet-20 | Teacher' has 2 cells .* the heading '' has 1"):
        desk.experiment  # noqa: B018


def test_a_network_may_be_measured_by_its_teacher(desk):
    desk.write_experiment(desk.text.replace("params, size]", "size_ratio]").partition("    speed:")[0])
    desk.write_results()
    ratios = [line.split("|")[6].strip() for line in tabulate(desk).splitlines() if line.startswith("| ")]
    assert ratios == ["Size ratio (%)", "–", "–", "29.09"]  # 320 of 1,100 kB


def test_two_sources_may_print_different_numbers_for_one_run(desk):
    desk.write_experiment(desk.text.replace("    speed:", "    again: {rows: [small], columns: [top1]}\n    speed:"))
    desk.write_results()
    desk.write_ledger("small,top1,91.0,,,,here,methods", "small,top1,90.0,,,,there,", "big,error1,5,,,,one,")
    desk.ledger.write_text(desk.ledger.read_text().replace("source\n", "source,table\n", 1))
    tabulate(desk)
    folder = table_folder(desk.results) / "toy"
    for table, published in (("methods", ["95", "91.0", ""]), ("again", ["90.0"])):
        with (folder / f"{table}.csv").open(newline="") as file:
            assert [row["published"] for row in csv.DictReader(file) if row["metric"] == "top1"] == published
    desk.write_ledger("small,top1,91.0,,,,here,metods")
    desk.ledger.write_text(desk.ledger.read_text().replace("source\n", "source,table\n", 1))
    with pytest.raises(UserError, match=r"row 2, table: .* has no table 'metods'; did you mean 'methods'"):
        tabulate(desk)


def test_published_times_are_shown_and_never_judged(desk):
    desk.write_results()
    desk.write_ledger("small,throughput,9000,,,,there")
    tabulate(desk)
    rows = (table_folder(desk.results) / "toy" / "speed.md").read_text().splitlines()
    (small,) = [line for line in rows if line.startswith("| small ")]
    assert [cell.strip() for cell in small.split("|")][-5:-1] == ["**4,322**", "9000", "–", "not comparable"]


def test_a_table_made_alone_is_the_same_and_needs_its_own_runs_only(judged):
    judged.write_experiment(judged.text + "    alone: {rows: [small], columns: [error1]}\n")
    tabulate(judged)
    folder = table_folder(judged.results) / "toy"
    before = {name: content for name, content in snapshot(folder).items() if name.stem == "alone"}
    shutil.rmtree(folder)
    shutil.rmtree(run_folder(judged.results, "toy", "small-kd", 0).parent)
    files = tabulate_table(judged.experiment, "alone", judged.results, judged.ledger)
    assert snapshot(folder) == before
    assert {*(path.relative_to(folder) for path in files), Path("alone.json")} == set(before)
    with pytest.raises(UserError, match=r"toy\.tables: no table 'alon'; did you mean 'alone'"):
        tabulate_table(judged.experiment, "alon", judged.results, judged.ledger)


def test_a_row_that_takes_more_steps_than_its_neighbours_is_named(desk):
    bake = "{model: cifar_resnet8, recipe: toy, %sobjective: {ce: {}, bake: {partners: 1}}}"
    lines = f"    baked: {bake % ''}\n    fair: {bake % 'batch: 16, '}\n"
    text = desk.text.replace("  tables:", lines + "  tables:").replace("[big, small, small-kd]", "[small, baked, fair]")
    desk.write_experiment(text.replace("[top1, nll, agreement, params, size]", "[top1]").partition("    speed:")[0])
    for run in ("small", "baked", "fair"):
        for seed in (0, 1, 2):
            desk.write_metrics(run, seed)
    text = tabulate(desk)
    assert "baked takes 2 times the steps of the other rows: an epoch of it shows images more than once." in text
    assert "fair takes" not in text


def test_a_partial_experiment_marks_what_is_missing_or_stale(judged):
    (run_folder(judged.results, "toy", "small", 1) / "metrics.json").unlink()
    judged.write_metrics("big", 0, digest="0" * 16)
    shutil.rmtree(run_folder(judged.results, "toy", "small-kd", 0).parent)
    shutil.rmtree(judged.results / "datasets")
    tabulate_experiment(judged.experiment, judged.results, judged.ledger, partial=True)
    text = (table_folder(judged.results) / "toy.md").read_text()
    assert "Data set toy, not prepared yet." in text
    assert "A partial experiment: 0 of 3 runs are complete." in text
    table = [re.sub(r" +", " ", line) for line in text.splitlines() if line.startswith("| ")][1:]
    assert table == [
        "| big | – | not run | not run | – | 272 k | 1.10 MB | – | – | 95.0 | – | not run |",
        "| small | – | 91.00 ± 1.41 | 0.310 ± 0.014 | – | 77.8 k | 320 kB | 2 | last epoch | 91.5 | -0.50 "
        "| within noise |",
        "| small-kd | big | not run | not run | not run | not run | not run | – | – | 93.10 ± 0.2 | – | not run |",
    ]
    with pytest.raises(UserError, match="missing"):
        tabulate(judged)


def test_times_stand_apart_and_leave_the_experiment_as_it_was(judged):
    tabulate(judged)
    folder = table_folder(judged.results)
    before = snapshot(folder)
    judged.write_profile("small", latency_ms=99.0, throughput=1.0, device="Other CPU", threads=8)
    tabulate(judged)
    changed = {str(path) for path, content in snapshot(folder).items() if content != before[path]}
    assert changed - {"toy/_experiment.json", "toy/methods.json"} == {
        f"toy/speed.{kind}" for kind in ("md", "tex", "csv", "html", "json")
    }
    experiment = (folder / "toy.md").read_text()
    link = re.search(r"\[.*?\]\((toy/speed\.md)\)", experiment)[1]
    speed = (folder / link).read_text()
    assert re.search(r"\| small +\| +99\.00 \| +1 \|", speed)
    assert "Measured on Imaginary CPU (1 CPU thread) and Other CPU (8 CPU threads), float32" in speed
    assert "99.00" not in experiment
    assert "Imaginary" not in experiment + (folder / "toy.tex").read_text() + (folder / "toy.csv").read_text()


def test_the_same_results_give_the_same_bytes(judged, tmp_path):
    tabulate(judged)
    folder = table_folder(judged.results)
    first = snapshot(folder)
    shutil.rmtree(folder)
    tabulate(judged)
    assert snapshot(folder) == first


def test_the_order_of_seeds_changes_nothing_but_the_sentence_that_names_them(judged):
    tabulate(judged)
    folder = table_folder(judged.results)
    first = snapshot(folder)
    judged.write_experiment(judged.text.replace("seeds: [0, 1, 2]", "seeds: [2, 0, 1]"))
    judged.write_profile("small", digest=judged.experiment.spec("small").digest)
    judged.write_profile("small-kd", digest=judged.experiment.spec("small-kd").digest)
    tabulate(judged)
    for path, content in snapshot(folder).items():
        # What tables were made from are other profiles.
        assert (
            path.suffix == ".json"
            or content.decode().replace("Seeds 2, 0 and 1", "Seeds 0, 1 and 2") == first[path].decode()
        )


def test_each_table_is_also_written_alone(judged):
    files = tabulate_experiment(judged.experiment, judged.results, judged.ledger)
    folder = table_folder(judged.results)
    assert {path.relative_to(folder) for path in files} == {path for path in snapshot(folder) if path.suffix != ".json"}
    assert {str(path.relative_to(folder)) for path in files} == {
        f"{stem}.{kind}" for stem in ("toy", "toy/methods", "toy/speed") for kind in ("md", "tex", "csv", "html")
    }
    experiment, alone = (folder / "toy.md").read_text(), (folder / "toy" / "methods.md").read_text()
    table = alone.partition("## ")[2].partition("## How")[0]
    assert "| small-kd |" in table
    assert table in experiment
    assert alone.startswith("# toy\n")


def test_tables_that_the_experiment_no_longer_has_disappear(judged):
    tabulate(judged)
    alone = table_folder(judged.results) / "toy"
    (alone / "notes.txt").write_text("mine")
    judged.write_experiment(judged.text.partition("    speed:")[0])
    tabulate(judged)
    assert sorted(path.name for path in alone.iterdir()) == [
        "_experiment.json",
        *("methods.csv", "methods.html", "methods.json", "methods.md", "methods.tex"),
        "notes.txt",
    ]


def test_an_experiment_needs_no_tables(desk):
    desk.write_experiment(desk.text.partition("  tables:")[0])
    tabulate(desk)
    folder = table_folder(desk.results)
    assert (folder / "toy.md").read_text().startswith("# toy\n\nData set toy:")
    assert (folder / "toy.csv").read_text() == ",".join(CSV_HEADER) + "\n"
    assert (folder / "toy").is_dir()


@pytest.mark.parametrize("fault", ["metrics", "ledger", "manifest"])
def test_nothing_is_written_when_something_is_wrong(judged, fault):
    tabulate(judged)
    before = snapshot(table_folder(judged.results))
    judged.write_metrics("small", 1, top1=12.0)
    if fault == "metrics":
        (run_folder(judged.results, "toy", "small-kd", 2) / "metrics.json").unlink()
    elif fault == "ledger":
        judged.write_ledger("small,top1,?,,,,here")
    else:
        (judged.results / "datasets" / "toy" / "manifest.json").unlink()
    with pytest.raises(UserError):
        tabulate(judged)
    assert snapshot(table_folder(judged.results)) == before


def test_every_table_of_a_rehearsal_says_so(desk):
    desk.write_results()
    tabulate_experiment(dataclasses.replace(desk.experiment, rehearsal=True), desk.results, desk.ledger)
    for path in ("toy.md", "toy.tex", "toy.html", "toy/methods.md", "toy/methods.tex", "toy/methods.html"):
        text = (table_folder(desk.results) / path).read_text()
        assert "A rehearsal on generated images: the numbers mean nothing." in text


def test_titles_may_hold_anything(desk):
    title = "R_50 | 100 % & <b> α → $x$ *T*"
    desk.write_experiment(desk.text.replace("Teaching a small network", f"'{title}'"))
    desk.write_results()
    tabulate(desk)
    folder = table_folder(desk.results)
    assert r"## R_50 \| 100 % & \<b> α → \$x\$ \*T\*" in (folder / "toy.md").read_text()
    caption = r"\caption{R\_50 $|$ 100 \% \& $<$b$>$ $\alpha$ $\rightarrow$ \$x\$ *T*. Selection: last epoch.}"
    assert caption in (folder / "toy.tex").read_text()


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed (texlive-latex-recommended)")
def test_the_experiment_compiles_with_booktabs_alone(judged):
    tabulate(judged)
    folder = table_folder(judged.results)
    paper = folder / "paper.tex"
    paper.write_text(
        "\\documentclass{article}\\usepackage{booktabs}\\begin{document}\\input{toy}\\input{toy/speed}\\end{document}\n"
    )
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", paper.name]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, errors="replace", check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout[-2000:]
    assert (folder / "paper.pdf").stat().st_size > 1000


def test_a_table_says_which_labels_its_runs_may_use(workplace):
    workplace.edit(
        "small:  {model: cifar_resnet8, recipe: tiny}", "small:  {model: cifar_resnet8, recipe: tiny, labels: 6}"
    )
    workplace.edit("recipe: tiny, teacher: big,", "recipe: tiny, labels: 0.5, teacher: big,")
    experiment = load_experiment(workplace.experiment)
    tabulate_experiment(experiment, workplace.results, experiment.published, partial=True)
    text = (workplace.results / "tables/tiny.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:4]] for line in text.splitlines() if line.startswith("|")]
    assert rows[0] == ["Run", "Teacher", "Labels"]
    assert rows[2:] == [["big", "–", "all"], ["small", "–", "6"], ["taught", "big", "50 % + unlabelled"]]
    assert "*Labels*: training images whose label a run may use, drawn by its seed; " in text
    (workplace.folder / "few.txt").write_text("train/ape/000.png\n")
    workplace.edit("labels: 0.5", f"labels: {{list: {workplace.folder / 'few.txt'}}}")
    experiment = load_experiment(workplace.experiment)
    tabulate_experiment(experiment, workplace.results, experiment.published, partial=True)
    text = (workplace.results / "tables/tiny.md").read_text()
    assert "few + unlabelled" in text
    assert "*Labels*: training images whose label a run may use, drawn by its seed or named by a list; " in text
