"""One self-contained HTML page: a verdict, key figures, then sections of prose, plots and tables."""

import hashlib
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from redline.errors import missing_extra
from redline.verdict import Verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK = "#0a0b0c"  # stands for the page's own text color, which is light in dark mode
BLUE, RED, AMBER, GREEN, GRAY = "#3b82f6", "#e5484d", "#d9822b", "#2fa36b", "#8b949e"  # legible on white and on black
_STYLE: Any = {
    "axes.axisbelow": True,
    "axes.edgecolor": _INK,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": _INK,
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "grid.alpha": 0.15,
    "grid.color": _INK,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "savefig.facecolor": "none",
    "svg.fonttype": "none",
    "svg.hashsalt": "redline",
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
}


@dataclass(frozen=True, slots=True)
class Section:
    """title; caption: what to see here and under which conditions; figure: inline SVG; a table of columns and rows."""

    title: str
    caption: str = ""
    figure: Markup | None = None
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[object]] = ()


@contextmanager
def drawing(width: float = 8.0, height: float = 3.0) -> Iterator[tuple["Figure", "Axes"]]:
    """A figure in inches and its axes, in the page's style; turn it into SVG inside the block."""
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as e:
        raise missing_extra("bench", "a report with plots") from e
    with mpl.rc_context(_STYLE):
        fig = Figure(figsize=(width, height), layout="constrained")
        yield fig, fig.add_subplot()


def red_line(ax: "Axes", at: float, label: str) -> None:
    """What must not be crossed, and its name at the left end."""
    ax.axhline(at, color=RED, linewidth=1.5)
    ax.annotate(
        label, (0, at), xycoords=("axes fraction", "data"), xytext=(4, 4), textcoords="offset points", color=RED
    )


def figure_svg(fig: "Figure", label: str = "") -> Markup:
    """fig as inline SVG: text stays text, ids are its own, ink follows the page's color; label is read to the blind."""
    import matplotlib as mpl

    out = io.StringIO()
    with mpl.rc_context(_STYLE):
        fig.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg\b[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg\b[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    own = "f" + hashlib.sha256(svg.encode()).hexdigest()[:8]
    svg = re.sub(r'\bid="', f'id="{own}-', svg)
    svg = re.sub(r"url\(#", f"url(#{own}-", svg)
    svg = re.sub(r'href="#', f'href="#{own}-', svg)
    # The bytes are matplotlib's own, which escapes the text it is given.
    head = Markup('<svg role="img" aria-label="{}"').format(label)
    return head + Markup(svg.removeprefix("<svg"))  # noqa: S704


def render(
    title: str,
    verdict: Verdict | None,
    status: str,
    summary: Sequence[tuple[str, object]],
    sections: Sequence[Section],
) -> str:
    """status: the badge's word (held, broken, invalid, unproven); summary: (label, value) of the key figures."""
    folder = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=folder, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    tone = {"held": "good", "broken": "bad", "invalid": "warn"}.get(status, "plain")
    page = environment.get_template("page.html")
    return page.render(
        title=title,
        why=verdict.why if verdict is not None else "",
        status=status,
        tone=tone,
        summary=summary,
        sections=sections,
    )
