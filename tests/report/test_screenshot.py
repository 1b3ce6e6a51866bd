"""The charts are really drawn, in light and in dark: looked at in headless Chromium, not only found in the file.

Each chart of the page is given a background of its own, so that its place in the screenshot is known exactly; then the
pixels in the colours of the style sheet are counted there.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compress.report.html import render
from compress.report.html.style import STYLE
from tests.report.sample import full

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--hide-scrollbars", "--force-color-profile=srgb",
]  # fmt: skip
# chart -> colours it must show, each with the least number of pixels
EXPECTED = {
    "chart-kl": {"first": 1500, "second": 1500, "ink": 100},
    "chart-size": {"first": 3000, "ink": 100, "soft": 40},
    "chart-curve1": {"first": 300, "second": 150, "soft": 100, "line": 200},
    "chart-curve3": {"first": 300, "second": 150, "soft": 100, "line": 200},
    "chart-widths0": {"first": 3000, "second": 800, "ink": 100},
    "chart-influence0": {"first": 5000, "bad": 200, "soft": 60},
    "chart-errors2": {"ink": 300, "soft": 60},
    "chart-time": {"first": 3000, "ink": 100},
    "chart-memory": {"first": 3000, "ink": 100},
    "chart-places0": {"soft": 60},
    "chart-outputs2": {"ink": 300, "soft": 60},
}
PHONE, DESKTOP = 500, 1280  # 500 is as narrow as a window of Chromium gets


def colours(dark: bool) -> dict[str, tuple[int, ...]]:
    block = STYLE.split("prefers-color-scheme: dark")[int(dark)]
    found = re.findall(r"--([\w-]+): #([0-9a-f]{6})", block)
    return {name: tuple(int(code[i : i + 2], 16) for i in (0, 2, 4)) for name, code in found}


def mark(index: int) -> tuple[int, int, int]:
    """A background that nothing else on the page has."""
    return 250, 20 * index, 255 - index


def screenshot(page: str, folder: Path, width: int, dark: bool) -> Any:
    from PIL import Image

    (folder / "report.html").write_text(page, encoding="utf-8")
    assert CHROMIUM
    command = [
        CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'profile'}", f"--window-size={width},6000",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}", f"--screenshot={folder / 'shot.png'}",
        (folder / "report.html").as_uri(),
    ]  # fmt: skip
    subprocess.run(command, capture_output=True, check=True, timeout=180)
    with Image.open(folder / "shot.png") as image:
        return np.asarray(image.convert("RGB")).astype(int)


def near(pixels: Any, colour: tuple[int, ...], tolerance: int = 12) -> Any:
    return (np.abs(pixels - np.array(colour)) <= tolerance).all(-1)


@pytest.mark.skipif(
    CHROMIUM is None, reason="there is no chromium on PATH (apt-get install chromium): charts not looked at"
)
@pytest.mark.parametrize("width", [PHONE, DESKTOP])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_charts_are_drawn(tmp_path: Path, dark: bool, width: int) -> None:
    marks = "".join(f"#{name} svg {{ background: rgb{mark(index)}; }}" for index, name in enumerate(EXPECTED))
    pixels = screenshot(render(full()).replace("</style>", f"{marks}</style>"), tmp_path, width, dark)
    palette = colours(dark)
    assert near(pixels[:8, :8], palette["paper"], 1).all()
    for index, (name, expected) in enumerate(EXPECTED.items()):
        rows, columns = near(pixels, mark(index), 0).nonzero()
        assert len(rows), f"{name} is not on the page"
        area = pixels[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert area.shape[1] > 300, f"{name} is {area.shape[1]} pixels wide"
        for colour, least in expected.items():
            found = int(near(area, palette[colour]).sum())
            assert found >= least, f"{name}: {found} pixels of {colour}, expected {least}"
        if name in ("chart-errors2", "chart-outputs2"):
            painted = area[~near(area, mark(index), 3)]
            # 35 cells of 35 errors, blended with the background: 35 tints
            assert (np.unique(painted, axis=0, return_counts=True)[1] > 100).sum() > 25


@pytest.mark.skipif(
    CHROMIUM is None, reason="there is no chromium on PATH (apt-get install chromium): width not looked at"
)
def test_nothing_sticks_out_on_a_phone(tmp_path: Path) -> None:
    report = full()
    report["final"]["answers"][0]["answer"] = "x" * 500
    report["model"]["name"] = "org/" + "long" * 40
    report["stages"][0]["name"] = "stage" * 20
    assert CHROMIUM
    page = render(report)
    # in a frame as narrow as a phone; what is wider than the frame shows as a scrollbar's worth of scrollWidth
    (tmp_path / "report.html").write_text(page, encoding="utf-8")
    probe = (
        "<iframe id=f src=report.html style='width:390px;height:900px;border:0'></iframe><script>"
        "onload = () => { const d = f.contentDocument.documentElement;"
        " document.title = d.scrollWidth + ' ' + d.clientWidth }</script>"
    )
    (tmp_path / "frame.html").write_text(probe)
    command = [
        CHROMIUM, *[flag for flag in FLAGS if flag != "--hide-scrollbars"], "--allow-file-access-from-files",
        f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", (tmp_path / "frame.html").as_uri(),
    ]  # fmt: skip
    out = subprocess.run(command, capture_output=True, text=True, check=True, timeout=180).stdout
    found = re.search(r"<title>(\d+) (\d+)</title>", out)
    assert found, out[:500]
    assert int(found[1]) <= int(found[2]) <= 390
