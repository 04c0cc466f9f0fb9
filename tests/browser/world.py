"""The ledger that the browser looks at, made by the services that people use, with the networks of `tests.engine.platform`.

Gallery `pics`: rollout 1 embedded it, 2 was taken back, 3 is halted half-way by a gate. Gallery `more`: 4 embedded it, 5 goes
on. Gallery `hostile`, whose people gave names that a browser could take for its own: 6 embedded it, 7 is paused.
"""

from __future__ import annotations

import threading
from pathlib import Path

from orchestrator.context import Context
from orchestrator.service import advance, certify, embed, finish, galleries, rollouts
from orchestrator.service.evaluate import evaluate_rollout
from orchestrator.service.start import StartRequest, start
from tests.engine import platform
from workers.drain import drain

TAKEN_BACK, HALTED, GOES_ON, HOSTILE = 2, 3, 5, 7
# What the rollouts of this ledger are started with.
SETTINGS = {
    "flip_ks": [1, 3],
    "gate": [
        {"measure": "negative_flip_rate", "limit": 0.02, "minimum_n": 100},
        {"measure": "quarantine_rate", "limit": 0.2, "minimum_n": 10, "effect": "alert"},
    ],
}

SCRIPT = "<script>window.taken=1</script>"
HOSTILE_KEYS = (
    SCRIPT,
    '"onerror="window.taken=1" x="',
    "'><img src=x onerror=window.taken=1>",
    "</textarea></title></style>{{7*7}}${7*7}<svg/onload=window.taken=1>",
    "javascript:window.taken=1",
    "very-long-" + "x" * 400,
    "\u0635\u0648\u0631\u0629 \u05de\u05e4\u05ea\u05d7 (right to left)",
    "../../etc/passwd?key=&gallery=#fragment",
)
HOSTILE_LABEL = '<b onmouseover="window.taken=1">'
HOSTILE_TENANT = '"><script>window.taken=1</script>'


def build(context: Context, folder: Path) -> None:
    """Fill an empty ledger; pictures and models are written to `folder`."""
    pictures, queries = (
        platform.draw_pictures(folder / "pictures"),
        platform.draw_pictures(folder / "queries", 3, seed=7),
    )
    (pictures / "class-00" / "torn.png").write_bytes(b"this is no picture")
    for name, network in (
        ("old", {"seed": 0}),
        ("kin", {"seed": 0, "moved": 0.02}),
        ("far", {"seed": 0, "moved": 0.1, "kept": 3}),
        ("stranger", {"seed": 9}),
    ):
        platform.register_network(context, folder, name, **network)
    _halted(context, folder, pictures, queries)
    _going_on(context, pictures, queries)
    _hostile(context, folder, pictures, queries)


def _halted(context: Context, folder: Path, pictures: Path, queries: Path) -> None:
    galleries.create_gallery(context, "pics", str(pictures))
    tenants = ("acme", "zoo", "acme", "")
    rows = [
        (f"q{number}", str(picture), picture.parent.name, tenants[number % 4])
        for number, picture in enumerate(sorted(queries.rglob("*.png")))
    ]
    asked = platform.write_csv(folder / "asked.csv", ("key", "path", "label", "tenant"), rows)
    galleries.import_query_set(context, "pics", "asked", str(asked))
    platform.work(context, embed.embed_gallery(context, "pics", "old").id)
    for new in ("kin", "stranger"):
        certify.certify(context, certify.CertifyRequest("old", new, "pics", minimum_queries=20))
    taken_back = begin(context, "pics", "kin")
    work_some(context, taken_back, 2)
    rollouts.rollback(context, taken_back, "the marketing site complained")
    platform.certify_by_hand(context, "far")
    halted = begin(context, "pics", "far")
    work_some(context, halted, 8)
    assert rollouts.reread(context, halted).state == "paused"


def _going_on(context: Context, pictures: Path, queries: Path) -> None:
    galleries.create_gallery(context, "more", str(pictures))
    galleries.import_query_set(context, "more", "asked", str(queries))
    platform.work(context, embed.embed_gallery(context, "more", "old").id)
    certify.certify(context, certify.CertifyRequest("old", "kin", "more", minimum_queries=20))
    work_some(context, begin(context, "more", "kin"), 3)


def _hostile(context: Context, folder: Path, pictures: Path, queries: Path) -> None:
    for name, source, keys in (("gallery", pictures, 200), ("queries", queries, 60)):
        files = sorted(path for path in source.rglob("*.png") if path.name != "torn.png")[:keys]
        rows = [
            (_hostile_key(number), str(path), HOSTILE_LABEL + path.parent.name, HOSTILE_TENANT)
            for number, path in enumerate(files)
        ]
        platform.write_csv(folder / f"hostile-{name}.csv", ("key", "path", "label", "tenant"), rows)
    galleries.create_gallery(context, "hostile", str(folder / "hostile-gallery.csv"))
    galleries.import_query_set(context, "hostile", "asked", str(folder / "hostile-queries.csv"))
    platform.work(context, embed.embed_gallery(context, "hostile", "old").id)
    platform.certify_by_hand(context, "far", "hostile")
    hostile = begin(context, "hostile", "far")
    work_some(context, hostile, 8)  # a gate pauses it: its queries are too few
    rollouts.resume(context, hostile)
    rollouts.pause(context, hostile, SCRIPT)


def _hostile_key(number: int) -> str:
    """Different for each number, the shortest ones first."""
    key, again = HOSTILE_KEYS[number % len(HOSTILE_KEYS)], number // len(HOSTILE_KEYS)
    return f"{key}{again}" if again else key


def begin(context: Context, gallery: str, to: str) -> int:
    """Start a rollout in entropy order and plan it; returns its id."""
    return start(context, StartRequest(gallery, to, prototypes="classes")).id


def work_some(context: Context, rollout_id: int, batches: int) -> None:
    """Commit about so many batches, as a worker does, and count the flips after each."""
    advance.advance(context, rollout_id)
    enough, left = threading.Event(), batches

    def committed(seq: int) -> None:
        nonlocal left
        left -= 1
        if left <= 0:
            enough.set()

    result = drain(context, rollout_id, owner="browser-test", stop=enough, committed=committed)
    if result.failure is not None:
        raise result.failure
    evaluate_rollout(context, rollout_id, {})
    finish.complete(context, rollout_id)
