"""How figures look, and how they are written: the same bytes every time, with any matplotlibrc of the user's."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from distillery.atomic import replace_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which stay apart for colour-blind eyes; without yellow, which vanishes on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
OTHERS = "#DDDDDD"
INK = "#202020"
STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that no installed font decides
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#606060",
    "axes.labelcolor": INK,
    "xtick.color": "#606060",
    "ytick.color": "#606060",
    "axes.grid": True,
    "grid.color": "#E8E8E8",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.hashsalt": "distillery",
    "svg.fonttype": "path",
}
PIXELS_PER_INCH = 160


@contextmanager
def house_style() -> Iterator[None]:
    """Draw in this project's style."""
    import matplotlib.style

    # The default style first: a user's own matplotlibrc must not change the bytes.
    with matplotlib.style.context(["default", STYLE]):
        yield


def save(figure: "Figure", folder: Path, name: str, kinds: Sequence[str] = ("svg", "png")) -> list[Path]:
    """Write a figure as SVG and PNG, or as one of them, and return the files."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    return [_save(figure, folder / f"{name}.{kind}") for kind in kinds]


def _save(figure: "Figure", path: Path) -> Path:
    kind = path.suffix[1:]
    # Dates and versions would change the bytes of an unchanged picture.
    metadata = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
    with replace_file(path) as temporary:
        figure.savefig(temporary, format=kind, dpi=PIXELS_PER_INCH, metadata=metadata)
    return path
