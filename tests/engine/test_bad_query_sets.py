"""Query sets, pairs and clicks that cannot be used: one clear error, and nothing is left behind. Nothing is embedded for that."""

from __future__ import annotations

import pytest
from PIL import Image

from orchestrator.errors import ConflictError, UsageError
from orchestrator.service import galleries, listings
from tests.engine import platform


@pytest.fixture
def world(context, tmp_path):
    platform.plain_gallery(context, tmp_path)
    return context


def test_a_query_set_that_nothing_answers_is_refused_whole(world, tmp_path):
    other = tmp_path / "other"
    (other / "unknown-class").mkdir(parents=True)
    Image.new("L", (8, 8)).save(other / "unknown-class" / "q.png")
    with pytest.raises(UsageError, match="no label is shared"):
        galleries.import_query_set(world, "pics", "other", str(other))
    with pytest.raises(ConflictError, match="already"):
        galleries.import_query_set(world, "pics", "asked", str(tmp_path / "queries"))


def test_explicit_pairs_are_relevance_and_unknown_keys_in_them_are_counted(world, tmp_path):
    pairs = tmp_path / "pairs.csv"
    pairs.write_text(
        "query,item\nclass-00/0.png,class-01/3.png\nclass-00/0.png,nobody\nnobody,class-00/0.png\n"
    )
    imported = galleries.import_query_set(world, "pics", "paired", str(tmp_path / "queries"), pairs=pairs)
    assert imported.rejected == 2
    assert imported.unanswerable == imported.taken - 1


CLICKED = "query,item,count\nclass-00/0.png,class-01/3.png,2\nclass-00/0.png,class-01/3.png,1\n"
FEW = "class-00/1.png,class-02/0.png,2\nclass-00/0.png,nobody,9\n"


def test_clicks_are_relevance_of_their_own_kind_and_those_of_a_pair_are_added_up(world, tmp_path):
    clicks = tmp_path / "clicks.csv"
    clicks.write_text(CLICKED + FEW)
    folder = str(tmp_path / "queries")
    imported = galleries.import_query_set(world, "pics", "clicked", folder, clicks=clicks, minimum_clicks=3)
    assert (imported.rejected, imported.too_few_clicks) == (1, 1)
    assert imported.unanswerable == imported.taken - 1, "2 + 1 clicks are enough, 2 are not"
    shown = listings.query_set(world, "pics", "clicked")
    assert (shown["relevance"], shown["relevant_pairs"]) == ("clicks", 1)
    clicks.write_text("query,item\n" + 3 * "class-00/0.png,class-01/3.png\n")
    imported = galleries.import_query_set(world, "pics", "lines", folder, clicks=clicks, minimum_clicks=3)
    assert imported.unanswerable == imported.taken - 1, "without a count every line is a click"


def test_queries_without_relevance_have_none_whatever_their_labels_say(world, tmp_path):
    imported = galleries.import_query_set(world, "pics", "logged", str(tmp_path / "queries"), unlabelled=True)
    assert (imported.taken, imported.unanswerable) == (120, 0)
    shown = listings.query_set(world, "pics", "logged")
    assert (shown["relevance"], shown["answerable"]) == ("none", 0)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("query\nclass-00/0.png\n", "needs the columns query,item; it has query"),
        ("", "needs the columns query,item; it has none"),
        (
            CLICKED + "class-00/1.png,class-02/0.png,-1\n",
            "line 4: count is '-1'; write a whole number from 1",
        ),
        (CLICKED + "class-00/1.png,class-02/0.png,0\n", "line 4: count is '0'"),
        (CLICKED + "class-00/1.png,class-02/0.png,0.5\n", "line 4: count is '0.5'"),
        (CLICKED + "class-00/1.png,class-02/0.png\n", "line 4: count is ''"),
        (b"query,item\n\xff,x\n", "cannot be read"),
        ("query,item\nnobody,nothing\n", "the clicks name none"),
        ("query,item\nclass-00/0.png\n", "the clicks name none"),
        ("query,item,count\nclass-00/0.png,class-01/3.png,4\n", "all 1 clicked pairs have fewer clicks than"),
    ],
)
def test_clicks_that_cannot_be_used_are_one_clear_error_and_leave_no_query_set(
    world, tmp_path, content, said
):
    clicks = tmp_path / "clicks.csv"
    clicks.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UsageError, match=said):
        galleries.import_query_set(
            world, "pics", "clicked", str(tmp_path / "queries"), clicks=clicks, minimum_clicks=5
        )
    assert [row["name"] for row in listings.query_sets(world, "pics")] == ["asked"]


def test_a_query_set_has_one_kind_of_relevance(world, tmp_path):
    with pytest.raises(UsageError, match="one kind of relevance"):
        galleries.import_query_set(
            world, "pics", "both", str(tmp_path / "queries"), clicks=tmp_path / "c.csv", unlabelled=True
        )
    (tmp_path / "strange" / "class").mkdir(parents=True)
    Image.new("L", (8, 8)).save(tmp_path / "strange" / "class" / "q.png")
    with pytest.raises(UsageError, match=r"no label is shared.*--unlabelled"):
        galleries.import_query_set(world, "pics", "strange", str(tmp_path / "strange"))
