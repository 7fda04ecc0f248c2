"""The report of a training forward: as text, as a table, and as the map that a notebook shows."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
from rich.console import Console

from jenga_core.patching.report import JengaReport, Span

REPORT = JengaReport(
    enabled=True,
    score="exact",
    entry_layer=2,
    kept_fraction=(1.0, 1.0, 0.5, 0.5),
    mlp_kept_fraction=(1.0, 1.0, 0.25, 0.25),
    num_blocks=8,
    spans=(Span(2, 3, (0, 1, 2, 6)),),
)
OFF = JengaReport(False, "exact", 2, (), (), 0, ())
EARLY = JengaReport(True, "exact", 2, (), (), 0, ())


def test_text_names_every_layer() -> None:
    assert str(REPORT).splitlines() == [
        "jenga: 75% of token-layers involved, exact scores, 8 blocks",
        "  layers   0 - 1   every token involved",
        "  layers   2 - 3   50% of tokens involved, blocks 0 1 2 6",
    ]


def test_layers_above_the_last_span_are_not_forgotten() -> None:
    below = JengaReport(True, "exact", 0, (0.5, 1.0), (0.5, 1.0), 8, (Span(0, 0, (0, 7)),))
    assert str(below).splitlines()[-1] == "  layers   1 - 1   every token involved"


def test_rich_shows_a_table_with_ranges_of_blocks() -> None:
    console = Console(width=100)
    with console.capture() as shown:
        console.print(REPORT)
    lines = [line.split() for line in shown.get().splitlines()]
    assert ["0-1", "100%", "100%", "all"] in lines
    assert ["2-3", "50%", "25%", "0-2", "6"] in lines


@pytest.mark.parametrize(("report", "words"), [(OFF, "off (dense)"), (EARLY, "no training forward yet")])
def test_without_a_forward_there_is_a_sentence_only(report: JengaReport, words: str) -> None:
    console = Console(width=100)
    with console.capture() as shown:
        console.print(report)
    assert words in shown.get() and words in str(report)
    assert words in report._repr_html_() and "<svg" not in report._repr_html_()


def test_the_map_fills_what_is_involved() -> None:
    drawing = ElementTree.fromstring(re.search("<svg.*</svg>", REPORT._repr_html_())[0])  # type: ignore[index]
    titles = [title.text for title in drawing.iter("title")]
    assert titles.count("layer 0, blocks 0-7") == 1
    assert [title for title in titles if title and title.startswith("layer 3, ")] == [
        "layer 3, blocks 0-2",
        "layer 3, blocks 6-6",
    ]
    assert "layer 2: 50% of tokens involved" in titles


def test_a_long_document_stays_a_page_wide() -> None:
    long = JengaReport(True, "exact", 0, (1.0,), (1.0,), 300, ())
    width = re.search(r'<svg[^>]* width="([\d.]+)"', long._repr_html_())
    assert width is not None and 900 <= float(width[1]) < 1100
