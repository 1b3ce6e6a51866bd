"""report.html: whole, offline, escaped, the same bytes for the same report."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import Any

import pytest

from compress.report.html import render
from compress.report.html.markup import esc
from compress.report.html.sections import plus_minus
from tests.report.parsed import CHARTS, SECTIONS, Page
from tests.report.sample import PROJECTIONS, full, trained

LOADING = {"src", "srcset", "href", "data", "action", "poster", "background", "formaction", "ping", "manifest"}


@pytest.fixture(scope="module")
def page() -> str:
    return render(full())


def test_every_section_is_there_in_order(page: str) -> None:
    ids = Page(page).ids
    assert [name for name in ids if name in SECTIONS] == SECTIONS
    assert [name for name in ids if name.startswith("chart-")] == CHARTS
    assert len(ids) == len(set(ids))


def test_a_model_that_was_only_exported_is_not_called_compressed() -> None:
    text = Page(render(full() | {"stages": []})).all_text()
    assert "As it is, in the formats asked for." in text and "What each format costs" in text
    assert "Compressed by" not in text and "each stage cost" not in text


def test_it_says_what_came_of_the_run(page: str) -> None:
    text = Page(page).all_text()
    for said in (
        "org/Model-67M",
        "prune → distill → quant → recover",
        "59.0 MB",
        "from 134.0 MB",
        "2.3 times smaller",
        "0.220",
        "45.0",
        "✓ Verified",
        "distill took away 67% of the KL that prune added on the held-out text",
        "Layers dropped: 4.",
        "1280 of 1536",
        "450 steps",
        "Because of Rayleigh scattering.",
        "repeats 50%",
        "(nothing)",
        "0.420 ± 0.011",
        "5ha256",
        "6.50e-05",
        "at position 57",
        "python -m compress +pipeline=prune_distill 'model.path=a b'",
        "f1ngerpr1nt",
        "torch 2.13.0",
        "2 threads",
        "public-domain speeches",
        "Held-out text, windows of 1024 tokens.",
        '"rank": 16',
        "1 linear layers stayed dense",
    ):
        assert said in text, said


def test_charts_say_their_values(page: str) -> None:
    parsed = Page(page)
    titles = [data for tag, data in parsed.text if tag == "title"]
    assert "prune, held-out: KL 0.600 ± 0.030, perplexity 36.44" in titles
    assert plus_minus(0.03) == " ± 0.030" and plus_minus(0.0) == ""
    assert "layer 4: 0.060, dropped" in titles
    assert f"model.layers.0.{PROJECTIONS[1]}: 8.05%" in titles
    assert "step 4: loss 1.236, rate 0.000298" in titles  # the second point, three steps a point
    labels = [value for tag, name, value in parsed.attributes if tag == "svg" and name == "aria-label"]
    assert len(labels) == len(CHARTS) and all(labels)


def test_failure_is_loud() -> None:
    report = full()
    report["artifacts"][0] |= {"verified": False, "error": "mean KL 2.3e-02 is above", "mean_kl": float("inf")}
    page = render(report)
    assert "<title>FAILED: " in page
    assert 'class="verdict bad" role="alert"' in page
    assert "✓" not in page
    assert Page(page).all_text().count("mean KL 2.3e-02 is above") == 2


def test_nothing_is_loaded(page: str) -> None:
    parsed = Page(page)
    for tag, name, value in parsed.attributes:
        if name.rpartition(":")[2] in LOADING:
            assert value.startswith("#") or value == "data:,", (tag, name, value)
        assert "url(" not in value.replace("url(#", ""), (tag, name, value)
        assert not name.startswith("on")
    assert not parsed.tags.keys() & {"script", "iframe", "object", "embed", "base", "img", "image", "form"}
    style = page[page.index("<style>") : page.index("</style>")]
    assert "@import" not in style and "url(" not in style
    assert page.count("<style") == 1
    assert "http://" not in page and "https://" not in page
    assert "default-src 'none'" in page


def poisoned(value: Any, poison: str) -> Any:
    """Every text of a report, and every key that is a name, followed by `poison`."""
    if isinstance(value, dict):
        named = value.keys() & {"torch", "choices", "model.layers.0.mlp.up_proj"}
        return {key + poison if key in named else key: poisoned(item, poison) for key, item in value.items()}
    if isinstance(value, list):
        return [poisoned(item, poison) for item in value]
    return value + poison if isinstance(value, str) else value


def test_every_text_is_escaped(page: str) -> None:
    evil = "\"'><script>alert(1)</script><img src=x onerror=alert(1)><!-- </title></style></svg>&lt;$x_1$"
    found = Page(render(poisoned(full(), evil)))
    drawn = ("g", "text", "path", "use", "em")  # wider labels move ticks; a poisoned empty answer is not empty
    assert {tag: n for tag, n in found.tags.items() if tag not in drawn} == {
        tag: n for tag, n in Page(page).tags.items() if tag not in drawn
    }
    assert {name for _, name, _ in found.attributes} == {name for _, name, _ in Page(page).attributes}
    assert found.all_text().count("<script>alert(1)</script>") > 50
    assert "It is." + evil in found.all_text()


def test_escaping_is_for_attributes_too() -> None:
    assert esc("<a b=\"c\" d='e'>&amp;") == "&lt;a b=&quot;c&quot; d=&#x27;e&#x27;&gt;&amp;amp;"


def test_what_is_referred_to_is_there() -> None:
    report = full()
    report["stages"][1]["details"] |= {"curve": trained()["curve"][:1], "steps": 1}  # one point is a marker
    page = render(report)
    referred = re.findall(r"(?:href=\"|url\()#([\w-]+)", page)
    assert len(set(referred)) > 3
    assert set(referred) <= set(Page(page).ids)
    assert page.count("<use ") == len(re.findall(r"<use [^>]*href=\"#", page)) > 0


def test_what_html_cannot_hold_is_shown() -> None:
    report = full()
    report["final"]["answers"][0]["answer"] = "a\x00b\x1bc\x7fd\ud800e\r\nf\tg\rh"
    report["stages"][0]["name"] = "cut\x08"
    page = render(report)
    page.encode()
    assert "a␀b␛c␡d?e\nf\tg␍h" in page
    assert "cut␈" in page


def test_equal_reports_give_equal_bytes(page: str) -> None:
    assert render(full()) == page
    code = (
        "from tests.report.sample import full; from compress.report.html import render; print(render(full()), end='')"
    )
    env = {**os.environ, "PYTHONHASHSEED": "11", "PYTHONIOENCODING": "utf-8", "TZ": "Asia/Tokyo"}
    again = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, env=env)
    assert again.stdout.decode() == page


def test_settings_of_the_user_neither_matter_nor_change(page: str) -> None:
    import matplotlib

    with matplotlib.rc_context(
        {"font.size": 40, "axes.facecolor": "red", "svg.fonttype": "path", "lines.linewidth": 9}
    ):
        before = dict(matplotlib.rcParams)
        assert render(full()) == page
        assert dict(matplotlib.rcParams) == before


def test_matplotlib_waits_until_something_is_drawn() -> None:
    code = (
        "import sys, compress.report.write; from compress.report.html import render;"
        "from tests.report.sample import full;"
        "print('matplotlib' in sys.modules); render(full()); print('matplotlib.pyplot' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["False", "False"]
