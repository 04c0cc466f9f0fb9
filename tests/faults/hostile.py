"""Hostile input, made by a seed: the same seed makes the same pictures, vectors, names and messages, byte by byte."""

from __future__ import annotations

import base64
import io
import json
import os
import random
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.faults.volume import ROOT

FILE = ROOT / "reports" / "hostile.json"


def record(kind: str, **numbers: int | float) -> None:
    """Keep what one kind of hostile input did: `injected`, `crashes`, `stored` and whatever else was counted."""
    FILE.parent.mkdir(exist_ok=True)
    (FILE.parent / ".gitignore").write_text("*\n")
    found = json.loads(FILE.read_text()) if FILE.exists() else {}
    partial = FILE.with_suffix(".new")
    partial.write_text(json.dumps(found | {kind: numbers}, indent=1, sort_keys=True))
    partial.rename(FILE)


# -- pictures ---------------------------------------------------------------------------------------------------------


def encoded(mode: str, kind: str, rng: np.random.Generator, edge: int = 24, **more: Any) -> bytes:
    """A sound picture of random pixels as bytes."""
    channels = {"L": 1, "RGB": 3, "RGBA": 4, "CMYK": 4, "LA": 2}[mode]
    pixels = rng.integers(0, 256, (edge, edge, channels), np.uint8).squeeze()
    buffer = io.BytesIO()
    Image.fromarray(pixels, mode).save(buffer, kind, **more)
    return buffer.getvalue()


def png(
    width: int, height: int, data: bytes, *, depth: int = 8, colour: int = 0, extra: bytes = b""
) -> bytes:
    """A PNG with a header that may claim anything."""
    header = struct.pack(">IIBBBBB", width & 0xFFFFFFFF, height & 0xFFFFFFFF, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def chunk(name: bytes, data: bytes) -> bytes:
    """One chunk of a PNG, its checksum right."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def sound_pictures(rng: np.random.Generator) -> list[tuple[str, bytes]]:
    """Pictures that nothing is wrong with, to be damaged."""
    return [
        ("png", encoded("RGB", "PNG", rng)),
        ("png", encoded("LA", "PNG", rng)),
        ("jpg", encoded("RGB", "JPEG", rng)),
        ("jpg", encoded("CMYK", "JPEG", rng)),
        ("jpg", encoded("L", "JPEG", rng, progressive=True)),
        ("gif", encoded("L", "GIF", rng)),
        ("webp", encoded("RGBA", "WEBP", rng)),
        ("bmp", encoded("RGB", "BMP", rng)),
        ("tiff", encoded("RGB", "TIFF", rng, compression="tiff_lzw")),
        ("tiff", encoded("L", "TIFF", rng, compression="tiff_deflate")),
    ]


# What no decoder may take for a picture: each goes with whatever suffix.
NO_PICTURES = (
    b"",
    b"\0",
    b"\x80\x04\x95cos\nsystem\n(S'exit 1'\ntR.",
    b"#!/bin/sh\nexit 1\n",
    b"<svg xmlns='http://www.w3.org/2000/svg' onload='x()'/>",
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%id) (r) file\n",
    b"%PDF-1.7\n",
    b"MZ" + bytes(64),
    b"\x7fELF" + bytes(64),
    b"PK\x03\x04" + bytes(40),
    b"GIF89a",
    b"RIFF\xff\xff\xff\xffWEBPVP8 ",
    b"BM" + bytes(8),
    b"II*\0" + bytes(4),
    b"MM\0*\xff\xff\xff\xff",
    b"\xff\xd8\xff\xe0",
    b"\x89PNG\r\n\x1a\n",
    b"id=ImageMagick\n",
    b"P6\n999999999 999999999\n255\n",
    b"\x93NUMPY\x01\0",
)


def bombs(rng: random.Random) -> bytes:
    """A few bytes that claim, or unpack to, far more than our limit."""
    kind = rng.randrange(6)
    if kind == 0:  # 400 MB out of 400 kB
        edge = 20_000
        return png(edge, edge, zlib.compress(bytes(2_000_000), 9))
    if kind == 1:
        return png(rng.choice((2**31 - 1, 2**32 - 1, 70_000)), rng.choice((2**31 - 1, 1_000)), b"")
    if kind == 2:  # a comment that unpacks to 64 MB
        text = chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(2**26), 9))
        return png(4, 4, zlib.compress(bytes(20)), extra=text)
    if kind == 3:
        return b"GIF89a\xff\xff\xff\xff\x80\0\0" + bytes(6) + b",\0\0\0\0\xff\xff\xff\xff\0\x08\x01\0\0;"
    if kind == 4:
        header = struct.pack("<IiiHHIIiiII", 40, 2**30, -(2**30), 1, 24, 0, 0, 0, 0, 0, 0)
        return b"BM" + struct.pack("<IHHI", 2**31, 0, 0, 54) + header
    entries = [(256, 4, 1, 2**31 - 1), (257, 4, 1, 2**31 - 1), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1),
               (273, 4, 1, 8), (278, 4, 1, 2**31 - 1), (279, 4, 1, 2**31 - 1)]  # fmt: skip
    body = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<I", 8) + body + bytes(4)


def damaged(content: bytes, rng: random.Random) -> bytes:
    """A sound picture cut off early: no decoder can have all of it."""
    return content[: rng.randrange(1, max(2, len(content) * 3 // 5))]


def flipped(content: bytes, rng: random.Random) -> bytes:
    """A sound picture with some bits turned, mostly in its headers. It may still be one."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 3, 30))):
        reach = len(changed) if rng.random() < 0.5 else min(len(changed), 64)
        changed[rng.randrange(reach)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def exif_nonsense(rng: random.Random) -> bytes:
    """A JPEG with an EXIF block of random bytes, or of entries that point at themselves."""
    block = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 3)
    for tag in (0x0112, 0x8769, 0x0112):
        block += struct.pack(
            "<HHII", tag, rng.randrange(14), rng.choice((1, 2**31)), rng.choice((8, 99, 2**32 - 1))
        )
    block += rng.randbytes(rng.randrange(40)) + struct.pack("<I", 8)
    sound = encoded("RGB", "JPEG", np.random.default_rng(rng.randrange(2**32)))
    return sound[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + sound[2:]


def pictures(seed: int, count: int) -> Iterator[tuple[str, bytes, bool]]:
    """(file name, bytes, whether it must be refused); the others may be decoded or refused, but nothing else."""
    rng = random.Random(seed)
    sound = sound_pictures(np.random.default_rng(seed))
    for number in range(count):
        suffix, content = rng.choice(sound)
        kind = number % 8
        # A flipped or oddly tagged picture may still be a picture; all others must be refused.
        made, must = {
            0: lambda content=content: (damaged(content, rng), False),
            1: lambda content=content: (flipped(content, rng), False),
            2: lambda: (rng.choice(NO_PICTURES) + rng.randbytes(rng.randrange(50)), True),
            3: lambda: (rng.randbytes(rng.randrange(2000)), True),
            4: lambda: (bombs(rng) if rng.random() < 0.2 else png(0, rng.randrange(9), b""), True),
            5: lambda: (exif_nonsense(rng), False),
            6: lambda content=content: (content[: len(content) // 3] + rng.choice(NO_PICTURES), False),
            7: lambda: (
                png(9, 9, rng.randbytes(60), depth=rng.choice((3, 8, 16, 99)), colour=rng.randrange(9)),
                True,
            ),
        }[kind]()  # type: ignore[no-untyped-call]
        yield f"{number:05d}.{suffix}", made, must


def strange_files(folder: Path, secret: Path) -> None:
    """What is no file at all under a picture's name: folder, pipe, devices, links in a circle, a closed file, a socket."""
    import socket

    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    for name, target in {
        "zero.png": "/dev/zero", "random.png": "/dev/urandom", "terminal.png": "/dev/tty", "stdin.png": "/dev/stdin",
        "circle-a.png": "circle-b.png", "circle-b.png": "circle-a.png", "self.png": "self.png", "nowhere.png": "/nowhere",
        "environment.png": "/proc/self/environ", "memory.png": "/proc/self/mem", "passwd.png": str(secret),
    }.items():  # fmt: skip
        (folder / name).symlink_to(target)
    listening = socket.socket(socket.AF_UNIX)
    here = os.getcwd()
    os.chdir(folder)  # the path of a socket has to be short
    try:
        listening.bind("socket.png")
    finally:
        os.chdir(here)
        listening.close()
    with (folder / "huge.png").open("wb") as file:
        file.truncate(51 * 2**20)


# -- vectors ----------------------------------------------------------------------------------------------------------


def bad_rows(seed: int, count: int, dim: int) -> Iterator[np.ndarray]:
    """Single vectors that may not be stored: (dim,) float32."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        unit = rng.standard_normal(dim).astype(np.float32)
        unit /= np.linalg.norm(unit)
        place, kind = int(rng.integers(dim)), number % 9
        if kind < 3:
            unit[place] = (np.nan, np.inf, -np.inf)[kind]
        elif kind == 3:
            unit[:] = 0
        elif kind == 4:
            unit[:] = np.float32(1e-42)  # subnormal
        elif kind == 5:
            unit *= np.float32(3e38)
        elif kind == 6:
            unit *= np.float32(rng.choice((0.5, 0.98, 1.02, 2, 1e10, 1e-10)))
        elif kind == 7:
            unit[:] = np.float32(3.4e38)
        else:
            unit[place] = np.frombuffer(struct.pack("<I", 0x7F800001 + int(rng.integers(2**22))), np.float32)[
                0
            ]
        yield unit


def bad_answers(seed: int, count: int, n: int, dim: int) -> Iterator[Any]:
    """What an encoder may answer for n items instead of (n, dim) float32."""
    rng = np.random.default_rng(seed)
    good = rng.standard_normal((n, dim)).astype(np.float32)
    good /= np.linalg.norm(good, axis=1, keepdims=True)
    kinds = (
        lambda: good[:, : int(rng.integers(1, dim))],
        lambda: np.hstack([good, good]),
        lambda: good[: int(rng.integers(1, n))],
        lambda: good[:1],  # would be repeated for every item
        lambda: good[0],
        lambda: good.astype(np.float64),
        lambda: good.astype(np.complex64) * 1j,
        lambda: good.astype(np.float16),
        lambda: (good * 127).astype(np.int8),
        lambda: good.astype(object),
        lambda: good.astype(str),
        lambda: good[None],
        lambda: np.float32(rng.random()),
        lambda: None,
        lambda: good.T if n != dim else good[0],
        lambda: good.astype(">f4"),
        lambda: {"vectors": good},
        lambda: (
            np.ones((n, 1), np.float32) / np.sqrt(dim)
        ),  # would be spread over all dimensions, with length 1
    )
    for number in range(count):
        yield kinds[number % len(kinds)]()


# -- names and paths ---------------------------------------------------------------------------------------------------

FRAGMENTS = (
    *(
        "../",
        "..",
        "/",
        "//",
        "\\",
        "~",
        "~root",
        ".",
        " ",
        "*",
        "?",
        "[a-z]",
        "CON",
        "/etc/passwd",
        "/proc/self/environ",
        "/dev/zero",
    ),
    *("\0", "\n", "\r\n", "\t", "\x1b[2J", "\x1b]0;x\x07", "\x7f", "\x85"),
    *("\u202e", "\u2066", "\u2028", "\ud800", "\udcff", "\ufeff", "\u200b", "²", "٣", "🙂"),
    *("'", '"', ";", "--", "/*", "' OR 1=1 --", "'; DROP TABLE audit; --", "$$", "%", "%00", "%2e%2e%2f"),
    *("%s", "%(x)s", "%n", "{0.__class__}", "{}", "${HOME}", "$(id)", "`id`", "|id", "&"),
    *(
        "file:///etc/passwd",
        "http://127.0.0.1/",
        "s3://bucket/",
        "data:,x",
        "glyph:x",
        "text:%00",
        "verse:web/" + "9" * 5000,
    ),
    *("NaN", "-1", "-h", "--help", "=cmd()", "@SUM(1)", ",", "9" * 30, "x" * 5000),
)


def names(seed: int, count: int) -> Iterator[str]:
    """Names and paths that mean harm, alone and put together."""
    rng = random.Random(seed)
    for number in range(count):
        if number < len(FRAGMENTS):
            yield FRAGMENTS[number]
        else:
            yield "".join(rng.choice((*FRAGMENTS, "a", "pics", ".png")) for _ in range(rng.randrange(1, 6)))


# -- messages ----------------------------------------------------------------------------------------------------------


def message(task: object, arguments: object, **changes: Any) -> bytes:
    """A message as Celery puts it into the list, with anything changed."""
    body = base64.b64encode(json.dumps([arguments, {}, {}]).encode()).decode()
    properties = {
        "correlation_id": "x", "delivery_mode": 2, "delivery_tag": "t", "priority": 0, "body_encoding": "base64",
        "delivery_info": {"exchange": "", "routing_key": "hotrefresh"},
    }  # fmt: skip
    whole = {
        "body": body,
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"task": task, "id": "x", "lang": "py", "argsrepr": "", "kwargsrepr": ""},
        "properties": properties | changes.pop("properties", {}),
    }
    return json.dumps(whole | changes).encode()


def nonsense(rng: random.Random) -> Any:
    """A JSON value of any type."""
    return rng.choice(
        (None, True, -1, 0, 1.5, 2**63, -(2**63), 10**300, 1e308, "", "1", "../../etc", "x" * 10_000, [], [[]], {},
         {"a": {"b": [1]}}, {"__class__": "os.system"}, ["'; DROP TABLE audit; --"], "\u202e", "\0", float("inf"), float("nan"))
    )  # fmt: skip


def messages(seed: int, count: int, pickled: bytes) -> Iterator[bytes]:
    """Entries for the queue's list. `pickled`: a pickle that would be noticed if it were loaded."""
    rng = random.Random(seed)
    tasks = [f"hotrefresh.{name}" for name in ("deploy", "plan", "drain", "evaluate", "finalize", "sweep")]
    foreign = (
        "hotrefresh.no_such",
        "celery.backend_cleanup",
        "celery.chain",
        "os.system",
        "",
        "../x",
        None,
        5,
        ["a"],
        {"a": 1},
    )
    payload = base64.b64encode(pickled).decode()
    pickles = (
        "application/x-python-serialize",
        "pickle",
        "application/pickle",
        "yaml",
        "application/x-yaml",
        "auth",
        None,
        7,
    )
    parts = ("body", "content-encoding", "properties")
    properties = ("delivery_tag", "delivery_info", "priority", "body_encoding", "reply_to")

    def sound(**changes: Any) -> bytes:
        return message(rng.choice(tasks), [1, 1], **changes)

    kinds = (
        lambda: message(rng.choice(tasks), [nonsense(rng) for _ in range(rng.randrange(4))]),
        lambda: message(rng.choice(tasks), nonsense(rng)),
        lambda: message(rng.choice(foreign), [1, 1]),
        lambda: sound(**{"content-type": rng.choice(pickles), "body": payload}),
        lambda: sound()[: rng.randrange(300)],
        lambda: rng.randbytes(rng.randrange(200)),
        lambda: json.dumps(nonsense(rng)).encode(),
        lambda: sound(headers=nonsense(rng)),
        lambda: json.dumps(json.loads(sound()) | {rng.choice(parts): nonsense(rng)}).encode(),
        lambda: sound(properties={rng.choice(properties): nonsense(rng)}),
        lambda: b"[" * rng.choice((10, 5_000, 100_000)),
        lambda: message("hotrefresh.drain", ["x" * 1_000_000] if rng.random() < 0.1 else [-5, 10**30]),
    )
    for number in range(count):
        yield kinds[number % len(kinds)]()
