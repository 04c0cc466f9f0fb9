"""A small data set in PTVD's layout. Every word and number in it is made up here: the real one may not be shared."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

# Episode: duration, plot segments. They nest (1 in 0), are equal in time (2 and 3), unsorted, empty, and run past the end.
PLOTS = {
    "ep-a": (
        100.0,
        [
            (10, 50, "a robot paints the harbour"),
            (20, 30, "the robot runs out of blue"),
            (60, 80, "rain"),
            (60, 80, "an umbrella is lost"),
            (5, 15, "boats arrive"),
            (40, 40, "a flash"),
            (95, 120, "credits roll"),
        ],
    ),
    "ep-b": (200.0, [(0, 100, "rain"), (100, 200, "a long silence")]),
    "ep-c": (50.0, [(0, 20, "soup is cooked"), (10, 30, "soup is eaten")]),
}
COMMENTS = {
    "ep-a": (
        100.0,
        [(45, 50, "wow"), (12, 17, "blue!"), (12, 17, "blue!"), (12, 17, "wow"), (85, 90, "nobody is here")],
    ),
    "ep-b": (170.0, [(1, 6, "first")]),
}
SUBTITLES = {
    "ep-a": (100.2, [(30, 35, "hello"), (21, 22, "no blue"), (50, 52, "bye")]),
    "ep-b": (260.0, [(0, 5, "hm")]),
}
SERIES = {
    "harbour": (["ep-a", "ep-b"], ["comedy", "robots"], "['ep-a', 'ep-b']"),
    "kitchen": (["ep-c"], ["cooking", "comedy"], "['ep-c']"),
}


def track(duration, rows):
    return {
        "duration": duration,
        "timestamps": [[start, end] for start, end, _ in rows],
        "sentences": [text for *_, text in rows],
    }


def write_track(path: Path, duration, rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(track(duration, rows), ensure_ascii=False), encoding="utf-8")
    return path


def write_world(root: Path) -> Path:
    for kind, tracks in (("plot", PLOTS), ("BSC", COMMENTS), ("subtitle", SUBTITLES)):
        for name, (duration, rows) in tracks.items():
            write_track(root / kind / f"{name}.json", duration, rows)
    for name, (_, genres, printed) in SERIES.items():
        place = root / "metadata" / name
        place.mkdir(parents=True)
        fields = {
            "title": f"The {name}", "region_name": ["Nowhere"], "protagonist_name": ["A. Person", "B. Person"], "tag": None,
            "publish_date": "2020-01-02", "description": "It's made up.", "detailed_division_type_name": genres,
            "detailed_division_type_id": [str(i) for i, _ in enumerate(genres)],
        }  # fmt: skip
        answer = {"errorno": 0, "results": [{"fields": fields, "id": name, "retcode": 0}]}
        (place / "meta_txsp.json").write_text(repr(answer), encoding="utf-8")
        (place / "long_video_vids.txt").write_text(printed + "\n", encoding="utf-8")
        (place / "abstract.txt").write_text("Made up as well.\n", encoding="utf-8")
    frames = root / "frames" / "ep-a"
    frames.mkdir(parents=True)
    for number in (1000, 9, 10, 200):
        (frames / f"ep-a-{number}.jpg").write_bytes(b"")
    (frames / "ep-a-poster.jpg").write_bytes(b"")
    return root


def write_features(root: Path, encoder: str, dim: int, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    place = root / "features" / encoder
    place.mkdir(parents=True)
    made = {}
    for name, (_, rows) in PLOTS.items():
        made[name] = rng.standard_normal((len(rows), dim)).astype(np.float32)
        np.save(place / f"{name}.npy", made[name])
    return made
