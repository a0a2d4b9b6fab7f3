"""Stage the documentation: the repository's Markdown, what it links to, a reference, and the notebooks run.

    python scripts/docs.py .docs/source      # then: mkdocs build

Paths stay those of the repository, so that a link means the same in an editor and on the site.
"""

import inspect
import re
import shutil
import sys
from base64 import b64decode
from pathlib import Path
from textwrap import dedent
from urllib.parse import unquote

ROOT = Path(__file__).parents[1]
PAGES = ("*.md", "docs/**/*.md", "config/**/*.md", "results/*.md", "tests/golden*/*.md")
LINK = re.compile(r"(\[[^\]]*\])\(([^)#\s]+)(#[^)\s]*)?\)")
CLASSES = {
    "distillery.distill.term": ("Term",),
    "distillery.distill.step": ("StepInputs", "Outputs"),
    "distillery.experiment.schema.objective": ("Needs", "TermOptions"),
    "distillery.models.taps": ("TapPlan",),
}


def stage(target: Path) -> None:
    """Copy all pages, with the files that they lead to; a link to a folder becomes one to its README, or text."""
    shutil.rmtree(target, ignore_errors=True)
    for source in sorted({path for pattern in PAGES for path in ROOT.glob(pattern)}):
        place = source.relative_to(ROOT)

        def settle(link: re.Match[str], source: Path = source) -> str:
            text, address, anchor = link[1], link[2], link[3] or ""
            if "://" in address or address.startswith("mailto:"):
                return link[0]
            linked = source.parent / unquote(address)
            if linked.is_dir() and (linked / "README.md").is_file():
                return f"{text}({address.rstrip('/')}/README.md{anchor})"
            if linked.is_dir():
                return text.strip("[]")
            if linked.suffix == ".ipynb":
                return f"{text}({address.removesuffix('.ipynb')}.md)"
            if linked.is_file() and linked.suffix != ".md":
                # A site shows files by their suffix; what has none is downloaded.
                kept = target / linked.resolve().relative_to(ROOT)
                kept.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(linked, kept)
            return link[0]

        page = target / place
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(LINK.sub(settle, source.read_text(encoding="utf-8")), encoding="utf-8")
    for image in ROOT.glob("docs/images/*"):
        kept = target / image.relative_to(ROOT)
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, kept)


def write_reference(target: Path) -> None:
    """Write a page of all commands, by their own help, and one of what is public in Python, by its docstrings."""
    import typer

    import distillery
    from distillery import cli, losses

    folder = target / "reference"
    folder.mkdir(parents=True, exist_ok=True)
    commands = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
    parts = ["# Commands\n", "Each is also `python -m distillery`; `--help` says the same.\n"]
    for name, command in commands.items():
        with command.make_context(f"distillery {name}", ["--help"], resilient_parsing=True) as context:
            parts.append(f"## {name}\n\n```text\n{command.get_help(context)}\n```\n")
    (folder / "commands.md").write_text("\n".join(parts), encoding="utf-8")

    parts = ["# Python\n", f"```python\nfrom distillery import {', '.join(sorted(distillery._PUBLIC))}\n```\n"]
    for name in sorted(distillery._PUBLIC):
        found = getattr(distillery, name)
        if callable(found):
            parts.append(_describe(name, found))
    parts.append("## What a term is made of\n")
    for module, names in CLASSES.items():
        loaded = __import__(module, fromlist=names)
        parts += [_describe(f"{module}.{name}", getattr(loaded, name)) for name in names if hasattr(loaded, name)]
    parts.append("## Losses\n\n`from distillery import losses`: pure functions of tensors.\n")
    parts += [_describe(f"losses.{name}", getattr(losses, name)) for name in losses.__all__]
    (folder / "python.md").write_text("\n".join(parts), encoding="utf-8")


def _describe(name: str, found: object) -> str:
    signature = re.sub(r"distillery(\.\w+)+\.|torch\.(?=Tensor)", "", str(inspect.signature(found)))  # type: ignore[arg-type]
    text = _as_markdown(inspect.getdoc(found) or "")
    return f"### {name.rpartition('.')[2]}\n\n```python\n{name}{signature}\n```\n\n{text}\n"


def _as_markdown(docstring: str) -> str:
    """A docstring of Google's style, its sections as lists; what it indents stays as it is set."""
    text = re.sub(r"^(Args|Returns|Raises|Yields):$", r"**\1**\n", docstring, flags=re.MULTILINE)
    text = re.sub(r"^    (\w+): ", r"- `\1`: ", text, flags=re.MULTILINE)
    text = re.sub(r"(?<=\*\*Returns\*\*\n\n)(    .*\n?)+", lambda found: dedent(found[0]), text)
    return re.sub(r"(?<!`)<(?=\w)", "&lt;", text)


def run_notebooks(target: Path) -> None:
    """Run each notebook of docs/ from top to bottom, and write what it says as a page; an error in it is one here."""
    import nbformat
    from nbclient import NotebookClient

    for source in sorted(ROOT.glob("docs/notebooks/*.ipynb")):
        page = (target / source.relative_to(ROOT)).with_suffix(".md")
        page.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, page.parent)
        notebook = nbformat.read(source, as_version=4)
        NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
        parts = []
        for place, cell in enumerate(notebook.cells):
            if cell.cell_type == "markdown":
                parts.append(cell.source)
                continue
            parts.append(f"```python\n{cell.source}\n```")
            for number, output in enumerate(cell.outputs):
                data = output.get("data", {})
                if "image/png" in data:
                    image = page.with_name(f"{page.stem}-{place}-{number}.png")
                    image.write_bytes(b64decode(data["image/png"]))
                    parts.append(f"![What the cell draws]({image.name})")
                else:
                    text = str(output.get("text") or data.get("text/plain", "")).rstrip()
                    parts.append(f"```text\n{text}\n```")
        page.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


if __name__ == "__main__":
    folder = Path(sys.argv[1]).resolve()
    stage(folder)
    write_reference(folder)
    run_notebooks(folder)
