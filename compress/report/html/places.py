"""Which groups of every layer were kept, as a map."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from compress.report.html.drawing import BAD, FIRST, SOFT, TEXT_SIZE, canvas


def places(name: str, label: str, kept: Mapping[int, Collection[int]], layers: int, groups: int) -> str:
    """Layers x groups; nothing if nothing was removed from a layer that stayed.

    Args:
        name: of the drawing.
        label: for who cannot see it.
        kept: layer -> what stayed in it; a layer that is not in it was dropped whole.
        layers: how many there were.
        groups: how many each had.
    """
    from matplotlib.patches import Rectangle

    if not kept or all(len(stayed) == groups for stayed in kept.values()):
        return ""
    row = 15
    with canvas(name, row * layers + 44) as chart:
        axes = chart.axes()
        for layer in range(layers):
            for group in range(groups):
                stays = group in kept.get(layer, ())
                cell = Rectangle(
                    (group + 0.04, layer + 0.07),
                    0.92,
                    0.86,
                    facecolor=FIRST if stays else BAD,
                    alpha=0.75 if stays else 0.9,
                    linewidth=0,
                )
                axes.add_patch(cell)
                gone = "kept" if stays else "removed" if layer in kept else "dropped with its layer"
                chart.hint(cell, f"layer {layer}, group {group}: {gone}")
        axes.set_xlim(0, groups)
        axes.set_ylim(layers, 0)
        step = 1 if layers <= 16 else 2
        axes.set_yticks([layer + 0.5 for layer in range(0, layers, step)], [str(n) for n in range(0, layers, step)])
        axes.set_xticks([group + 0.5 for group in range(groups)], [str(group) for group in range(groups)])
        axes.set_ylabel("layer", color=SOFT, fontsize=TEXT_SIZE)
        axes.set_xlabel("KV group", color=SOFT, fontsize=TEXT_SIZE)
        return chart.svg(label)
