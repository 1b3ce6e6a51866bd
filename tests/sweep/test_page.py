"""sweep.html: whole, offline, safe, and its choice changes with the reader's budget (looked at in Chromium)."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from compress.sweep.page import render
from compress.sweep.points import collect
from compress.sweep.quality import QUALITIES
from compress.sweep.write import write_sweep
from tests.report.test_screenshot import CHROMIUM, FLAGS, colours, near, screenshot
from tests.sweep import sample

needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="there is no chromium on PATH (apt-get install chromium): the page not looked at"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("page") / "sweep"
    sample.write(found)
    return found


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    return render(collect(folder))


def data(page: str) -> dict[str, object]:
    held = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert held
    return json.loads(held[1])


def test_it_loads_nothing_and_runs_only_its_own_script(page: str) -> None:
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert len(scripts) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    policy = html.unescape(re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1])  # type: ignore[index]
    assert "default-src 'none'" in policy and f"script-src 'sha256-{digest}'" in policy
    assert not re.search(r"(?:src|href)=\"(?!#|data:,|\d+/report\.html\")", page)
    assert "fetch(" not in page and "url(" not in page.replace("url(#", "")
    assert len(page) < 300_000


def test_equal_runs_give_equal_bytes(page: str, folder: Path) -> None:
    assert render(collect(folder)) == page


def test_nothing_from_outside_becomes_markup(tmp_path: Path) -> None:
    evil = "</script><img src=x onerror=alert(1)>&'\""
    for number in range(2):
        report = sample.run(number, 0.5 + number / 10, "nf4")
        report["command"] += " " + shlex.quote(f"model.path={evil if number else 1}")
        report["model"]["name"] = report["pipeline"] = report["text"]["origin"] = evil
        sample.place(tmp_path / str(number), ["a"], number, report=report)
    sample.place(tmp_path / "2", [evil], 2, state="failed", problem=evil)
    drawn = render(collect(tmp_path))
    assert "<img" not in drawn
    assert len(re.findall("</script>", drawn)) == 2
    assert evil in str([run["title"] for run in data(drawn)["runs"]]).replace("\\'", "'")  # type: ignore[attr-defined]


def test_not_finite_is_no_number_in_the_page(tmp_path: Path) -> None:
    for number, value in enumerate((float("nan"), 0.3, float("inf"))):
        report = sample.run(number, 0.7 + number / 10, "nf4")
        report["final"] |= dict.fromkeys((*(quality.name for quality in QUALITIES), "kl_stderr"), value)
        sample.place(tmp_path / str(number), ["a"], number, report=report)
    assert "nan" in write_sweep(tmp_path)
    drawn = (tmp_path / "sweep.html").read_text(encoding="utf-8")
    for quality in data(drawn)["qualities"]:  # type: ignore[attr-defined]
        assert quality["front"] == [1] and quality["middle"] == 1
    assert "NaN" not in re.sub(r"<script>.*</script>", "", drawn, flags=re.DOTALL)


def test_it_warns_of_what_does_not_compare(tmp_path: Path) -> None:
    for number in range(2):
        report = sample.run(number, 0.7, "nf4")
        report["command"] += f" seed={number}"
        report["protocol"] = f"windows of {number}"
        report["threads"] = 1 + number
        sample.place(tmp_path / str(number), ["a"], number, report=report)
    drawn = render(collect(tmp_path))
    assert "2 different protocols: their figures of quality do not compare" in drawn
    assert "2 different machines: their speeds do not compare" in drawn
    assert "different texts" not in drawn


def test_one_run_is_a_page_too(tmp_path: Path) -> None:
    report = sample.run(0, 0.7, "nf4")
    del report["final"]["speed"]
    sample.place(tmp_path / "0", ["a"], 0, report=report)
    drawn = render(collect(tmp_path))
    assert 'id="pace"' not in drawn and 'id="size"' in drawn and drawn.count("<circle") == 3


PROBE = """<iframe id=f src=sweep.html style='width:{width}px;height:900px;border:0'></iframe><pre id=out></pre><script>
onload = () => {{
  const w = f.contentWindow, d = f.contentDocument, said = {{}};
  const at = id => d.getElementById(id);
  const put = (id, value, kind) => {{ at(id).value = value; at(id).dispatchEvent(new w.Event(kind)); }};
  const chosen = () => at('choice').classList.contains('nothing') ? null : at('which').textContent.split(/[ :]/)[1];
  const order = () => [...d.querySelectorAll('#runs tbody tr')].map(row => +row.dataset.run);
  const columns = [...d.querySelectorAll('#runs thead button')];
  const press = name => columns.find(button => button.textContent === name).click();
  said.width = [d.documentElement.scrollWidth, d.documentElement.clientWidth];
  said.free = chosen();
  put('size', '90', 'input'); said.size90 = chosen(); said.why = at('why').textContent;
  said.marked = [...d.querySelectorAll('.chosen[data-run]')].map(e => +e.dataset.run);
  put('pace', '19', 'input'); said.both = chosen();
  put('pace', '10', 'input'); said.none = chosen(); said.nothing = at('why').textContent;
  at('clear').click(); said.cleared = chosen();
  put('size', '125', 'input'); said.size125 = chosen(); said.command = at('make').textContent;
  put('quality', '1', 'change'); said.shown = [...d.querySelectorAll('figure')].filter(e => !e.hidden).map(e => e.id);
  press('size'); said.up = order(); press('size'); said.down = order(); press('quant'); said.words = order();
  const dot = d.querySelector('figure:not([hidden]) .dot[data-run="8"]'), box = dot.getBoundingClientRect();
  dot.ownerSVGElement.dispatchEvent(new w.PointerEvent('pointermove', {{clientX: box.x + 9, clientY: box.y + 4}}));
  said.tip = at('tip').hidden ? '' : at('tip').textContent;
  const hint = at('tip').getBoundingClientRect();
  said.inside = hint.left >= 0 && hint.right <= d.documentElement.clientWidth;
  dot.ownerSVGElement.dispatchEvent(new w.MouseEvent('click', {{clientX: box.x + 9, clientY: box.y + 4}}));
  said.open = at('run-8').open;
  out.textContent = JSON.stringify(said);
}}</script>"""


@needs_chromium
@pytest.mark.parametrize("width", [390, 1280])
def test_the_choice_follows_the_budget(page: str, folder: Path, tmp_path: Path, width: int) -> None:
    (tmp_path / "sweep.html").write_text(page, encoding="utf-8")
    (tmp_path / "frame.html").write_text(PROBE.format(width=width), encoding="utf-8")
    command = [
        str(CHROMIUM), *[flag for flag in FLAGS if flag != "--hide-scrollbars"], "--allow-file-access-from-files",
        f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1400,1000", "--dump-dom",
        (tmp_path / "frame.html").as_uri(),
    ]  # fmt: skip
    out = subprocess.run(command, capture_output=True, text=True, check=True, timeout=180).stdout
    found = re.search(r'<pre id="out">(.*?)</pre>', out, re.DOTALL)
    assert found and found[1], out[-2000:]
    said = json.loads(html.unescape(found[1]))
    points = collect(folder).points

    def best(size: float, pace: float, figure: str = "kl_to_teacher") -> str:
        fitting = [p for p in points if p.verified and p.bytes <= size * 1e6 and (p.milliseconds or 0) <= pace]
        return min(fitting, key=lambda p: p.figures[figure]).name

    assert said["width"][0] <= said["width"][1] <= width
    assert said["free"] == said["cleared"] == str(data(page)["qualities"][0]["middle"])  # type: ignore[index]
    assert said["size90"] == best(90, 1e9) == "2"  # run 5 would fit and be better, but is not verified
    assert said["both"] == best(90, 19) and said["size125"] == best(125, 1e9)
    assert set(said["marked"]) == {2} and len(said["marked"]) == 8  # seven charts and the table
    assert "within 90 MB" in said["why"]
    assert said["none"] is None and "No run fits" in said["nothing"] and "81.0 MB" in said["nothing"]
    assert said["command"] == points[int(said["size125"])].command
    assert said["shown"] == [
        "chart-kl-to-the-original-other-text-size",
        "chart-kl-to-the-original-other-text-decode-ms-per-token",
        "chart-size-decode-ms-per-token",
    ]
    sizes = [points[index].bytes for index in said["up"]]
    assert sizes == sorted(sizes) and [points[i].bytes for i in said["down"]] == sorted(sizes, reverse=True)
    assert [points[i].told["quant@stages.quant"] for i in said["words"]] == ["int8"] * 4 + ["nf4"] * 4 + [
        "qat_int8"
    ] * 4
    assert said["tip"].startswith("run 8: prune.keep=0.8 quant=nf4") and said["inside"] and said["open"]


@needs_chromium
@pytest.mark.parametrize("width", [500, 1280])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_charts_are_drawn(page: str, tmp_path: Path, dark: bool, width: int) -> None:
    names = {
        "chart-kl-to-the-original-held-out-text-size": (250, 10, 200),
        "chart-kl-to-the-original-held-out-text-decode-ms-per-token": (250, 30, 190),
        "chart-size-decode-ms-per-token": (250, 50, 180),
    }
    marks = "".join(f"#{name} svg {{ background: rgb{mark}; }}" for name, mark in names.items())
    pixels = screenshot(page.replace("</style>", f"{marks}</style>"), tmp_path, width, dark)
    palette = colours(dark)
    assert near(pixels[:8, :8], palette["paper"], 1).all()
    for name, mark in names.items():
        rows, columns = near(pixels, mark, 0).nonzero()
        assert len(rows), f"{name} is not on the page"
        area = pixels[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert area.shape[1] > 280, f"{name} is {area.shape[1]} pixels wide"
        # dots of the front, the chosen one, the one that is not verified, labels
        for colour, least in {"first": 200, "second": 80, "bad": 40, "soft": 60}.items():
            found = int(near(area, palette[colour]).sum())
            assert found >= least, f"{name}: {found} pixels of {colour}, expected {least}"
