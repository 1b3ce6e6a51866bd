"""A matplotlib figure as inline SVG that takes its colours and its font from the page around it.

matplotlib is asked to draw with placeholder colours, and every placeholder becomes a CSS variable, so that one drawing
serves light and dark. Nothing of the user's is touched: figures are made without pyplot, settings are matplotlib's own
defaults and are put back, and ids do not depend on anything random, so that equal reports give equal bytes.
"""

from __future__ import annotations

import io
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from compress.report.html.markup import clean

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 350
"""Units across a chart. One unit is about one CSS pixel, on a phone too: labels keep their size there."""
INK, SOFT, LINE = "#010101", "#020202", "#030303"
FIRST, SECOND, BAD = "#040404", "#050505", "#060606"
VARIABLES = {INK: "--ink", SOFT: "--soft", LINE: "--line", FIRST: "--first", SECOND: "--second", BAD: "--bad"}
"""Placeholder colour -> variable of the style sheet."""
TEXT_SIZE = 12
SVG = "{http://www.w3.org/2000/svg}"
LINK = "{http://www.w3.org/1999/xlink}href"


class Canvas:
    """A figure, and what its parts say when pointed at."""

    def __init__(self, figure: Figure, name: str) -> None:
        self.figure = figure
        self.name = name
        self.hints: dict[str, str] = {}
        self.dots: list[tuple[Axes, tuple[float, float], str, Mapping[str, str]]] = []

    def dot(self, axes: Axes, where: tuple[float, float], text: str, **attributes: str) -> None:
        """A circle that the style sheet paints and a script can find; `text` as in `hint`."""
        self.dots.append((axes, where, clean(text), attributes))

    def axes(self, position: Any = 111, **options: Any) -> Axes:
        """Axes without a frame, labelled in the page's colours."""
        axes: Axes = self.figure.add_subplot(position, **options)
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.patch.set_visible(False)
        axes.tick_params(length=0, labelsize=TEXT_SIZE, labelcolor=SOFT)
        return axes

    def hint(self, artist: Artist, text: str) -> None:
        """Say `text` when `artist` is pointed at."""
        gid = f"{self.name}-hint{len(self.hints)}"
        artist.set_gid(gid)
        self.hints[gid] = clean(text)

    def strips(self, axes: Axes, x: Sequence[float], texts: Sequence[str]) -> None:
        """Say `texts` when the axes are pointed at, each from half-way to the point before to half-way to the next."""
        middles = [(left + right) / 2 for left, right in pairwise(x)]
        for left, right, text in zip([x[0] - 0.5, *middles], [*middles, x[-1] + 0.5], texts, strict=True):
            self.hint(axes.axvspan(left, right, facecolor="none", linewidth=0, zorder=9), text)

    def svg(self, label: str) -> str:
        """The drawing, to be put into a page; `label` is read aloud in its place."""
        buffer = io.StringIO()
        with warnings.catch_warnings():
            # a glyph that matplotlib's font lacks is only measured wrongly: the browser draws the text
            warnings.filterwarnings("ignore", message="Glyph")
            self.figure.savefig(buffer, format="svg")
        root = ET.fromstring(buffer.getvalue())
        self._tidy(root)
        width, height = root.get("viewBox", "").split()[2:]
        for axes, where, text, attributes in self.dots:
            x, y = axes.transData.transform(where)
            place = {"cx": f"{x:.2f}", "cy": f"{float(height) - y:.2f}", "r": "5.5"}
            circle = ET.SubElement(root, "circle", place | {key.rstrip("_"): v for key, v in attributes.items()})
            ET.SubElement(circle, "title").text = text
        root.attrib.clear()
        root.attrib.update({"viewBox": f"0 0 {width} {height}", "role": "img", "aria-label": label})
        return ET.tostring(root, encoding="unicode")

    def _tidy(self, root: ET.Element) -> None:
        """Make plain elements for HTML of `root`: no namespaces, only ids that are in use, colours of the page."""
        for parent in root.iter():
            for child in [c for c in parent if c.tag == f"{SVG}metadata" or self._is_global_style(c)]:
                parent.remove(child)
        used = set(re.findall(r"#([\w-]+)", " ".join(v for e in root.iter() for k, v in e.items() if k != "style")))
        for element in root.iter():
            element.tag = element.tag.removeprefix(SVG)
            element.text, element.tail = (element.text or "").strip() or None, None
            if "style" in element.attrib:
                element.set("style", styled(element.attrib["style"]))
            if LINK in element.attrib:
                element.set("href", element.attrib.pop(LINK).replace("#", f"#{self.name}-"))
            if "clip-path" in element.attrib:
                element.set("clip-path", element.attrib["clip-path"].replace("#", f"#{self.name}-"))
            if element.tag == "text" and element.get("transform", "").startswith("rotate(-0 "):
                del element.attrib["transform"]
            gid = element.attrib.pop("id", "")
            if gid in self.hints:
                title = ET.Element("title")
                title.text = self.hints[gid]
                element.insert(0, title)
                element.set("pointer-events", "all")  # what is not painted can be pointed at, too
            if gid in used:
                element.set("id", f"{self.name}-{gid}")

    @staticmethod
    def _is_global_style(element: ET.Element) -> bool:
        """Inside a page, matplotlib's `<style>*{...}</style>` would style the whole page."""
        return element.tag == f"{SVG}defs" and any(child.tag == f"{SVG}style" for child in element)


def styled(style: str) -> str:
    """CSS of one element: placeholders become variables, and the font's name is left to the page."""
    style = re.sub(r"font: (?:[\w ]*? )?([\d.]+px) [^;]*", r"font-size: \1", style)
    style = re.sub(r"font-family: [^;]*;? ?", "", style)
    for colour, variable in VARIABLES.items():
        style = style.replace(colour, f"var({variable})")
    return style


@contextmanager
def canvas(name: str, height: float) -> Iterator[Canvas]:
    """Draw and finish inside: matplotlib's defaults hold here, whatever the user's settings are.

    Args:
        name: unlike that of any other chart of the page.
        height: in units of which the chart is `WIDTH` wide.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    settings: dict[Any, Any] = {k: v for k, v in matplotlib.rcParamsDefault.items() if not k.startswith("backend")}
    settings |= {
        "svg.fonttype": "none",
        "svg.hashsalt": "compress",
        "text.parse_math": False,
        "axes.unicode_minus": False,
        "font.size": TEXT_SIZE,
        "text.color": INK,
    }
    with warnings.catch_warnings(), matplotlib.rc_context():
        warnings.simplefilter("ignore", matplotlib.MatplotlibDeprecationWarning)
        matplotlib.rcParams.update(settings)
        layout = ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.03)
        figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72, layout=layout)
        figure.patch.set_visible(False)
        yield Canvas(figure, name)
