"""Sources whose items are there in several modalities."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from PIL import Image

from bench.ptvd_verses import write_plots
from models.datasets import list_items, modalities_of, modality_of, read_item
from models.errors import UsageError


@pytest.fixture
def manifest(tmp_path) -> Path:
    """Of four rows the second lacks its text, the third its picture, the fourth names a picture that is not there."""
    for name in ("a.png", "b.png"):
        Image.new("L", (4, 4)).save(tmp_path / name)
    rows = [
        ("key", "text", "path", "colour"),
        ("both", "a square", "a.png", "black"),
        ("picture", "", "b.png", ""),
        ("text", "a circle", "", ""),
        ("gone", "a line", "c.png", ""),
    ]
    with (tmp_path / "x.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return tmp_path / "x.csv"


@pytest.mark.parametrize("modality", [None, "text", "image"])
def test_a_row_needs_the_modality_that_is_asked_for_and_no_other(manifest, modality):
    assert modalities_of(str(manifest)) == ("text", "image")
    assert modality_of(str(manifest)) == "text"
    found = list_items(str(manifest), modality=modality)
    first, second = ("image", "text") if modality == "image" else ("text", "image")
    kept = "picture" if modality == "image" else "text"
    assert [(i.key, list(i.other_uris)) for i in found.items] == [("both", [second]), (kept, [])]
    assert found.items[0].attributes == {"colour": "black"}
    contents = {first: read_item(found.items[0].uri), second: read_item(found.items[0].other_uris[second])}
    assert (contents["text"], contents["image"].size) == ("a square", (4, 4))
    without = "no path" if modality == "image" else "no text"
    # What a row gives and cannot be used is told, also where it is not what was asked for.
    assert [(r.key, r.reason) for r in found.rejected] == [
        ("text" if modality == "image" else "picture", without),
        ("gone", "missing"),
    ]


def test_a_modality_that_a_source_does_not_have_is_named(manifest):
    with pytest.raises(UsageError, match="holds texts and images, no videos"):
        list_items(str(manifest), modality="video")
    with pytest.raises(UsageError, match="'glyphs' holds images, no texts"):
        list_items("glyphs", "queries", "text")


def test_segments_of_plots_are_videos_and_sentences(tmp_path):
    source = f"ptvd:{write_plots(tmp_path, episodes=2)}"
    assert modalities_of(source) == ("video", "text")
    segments, sentences = list_items(source).items, list_items(source, modality="text").items
    assert len(segments) == len(sentences) == 40
    for segment, sentence in zip(segments, sentences, strict=True):
        assert (segment.key, segment.label, segment.attributes) == (
            sentence.key,
            sentence.label,
            sentence.attributes,
        )
        assert dict(sentence.other_uris) == {"video": segment.uri}
        assert dict(segment.other_uris) == {"text": sentence.uri}
        assert read_item(sentence.uri) == read_item(segment.uri).sentence
