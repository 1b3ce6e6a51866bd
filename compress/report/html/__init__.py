"""report.html: one page that loads nothing, runs no script, and follows the reader's light or dark theme.

page.py       what comes in which order
sections.py   what a run did and what came of it, as HTML
layers.py     sections about layers, answers, and how to make it again
errors.py     what quantization moved
charts.py     what each chart shows
places.py     which groups of every layer were kept
drawing.py    a matplotlib figure as inline SVG that takes its colours from the page
markup.py     escaping, tables, figures
style.py      the style sheet
"""

from compress.report.html.page import render

__all__ = ["render"]
