"""Plots with features that carry meaning, without any data of PTVD: public-domain verses in two translations.

A segment is a verse, or a parent that holds two; an episode is a run of verses. The *plot's sentence* is the World English
Bible's text, and what stands for the *video* is the King James Version's: its text embeddings (wordllama, 64 and 256 dims) are
the features under two encoders. So a sentence and its segment say the same in other words, and nothing is tuned.
`takes/` holds the same episodes with features of the first two thirds of the words: another take of each segment, which video
queries ask with.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from models.datasets import verses
from models.encoders import load_encoder, wordllama

DIMS = {"wl64": 64, "wl256": 256}
SECONDS = 30


def write_plots(folder: Path, *, episodes: int = 12, verses_each: int = 16, first: int = 8000) -> Path:
    """Write `folder/plots` and `folder/takes`; returns the first. Every fourth verse's parent holds it and the next."""
    numbers = sorted(set(verses.texts("web")) & set(verses.texts("kjv")))[first:]
    encoders = {}
    for name, dims in DIMS.items():
        wordllama.create(folder / f".{name}", name, dims)
        encoders[name] = load_encoder(folder / f".{name}")
    for at in range(episodes):
        mine = numbers[at * verses_each : (at + 1) * verses_each]
        spans = [[place] for place in range(len(mine))]
        spans += [[place, place + 1] for place in range(0, len(mine) - 1, 4)]
        says = {
            translation: [
                " ".join(verses.texts(translation)[mine[place]] for place in span) for span in spans
            ]
            for translation in ("web", "kjv")
        }
        track = {
            "duration": len(mine) * SECONDS,
            "timestamps": [[span[0] * SECONDS, (span[-1] + 1) * SECONDS] for span in spans],
            "sentences": says["web"],
        }
        comments = {
            "duration": len(mine) * SECONDS,
            "timestamps": [[5, 10], [5, 10], [95, 100]],
            "sentences": ["amen", "amen", says["kjv"][3][:30]],
        }
        for part, texts in (("plots", says["kjv"]), ("takes", [_most(text) for text in says["kjv"]])):
            for kind, document in (("plot", track), ("BSC", comments)):
                place = folder / part / kind / f"ep-{at:03d}.json"
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
            for name, encoder in encoders.items():
                place = folder / part / "features" / name / f"ep-{at:03d}.npy"
                place.parent.mkdir(parents=True, exist_ok=True)
                np.save(place, encoder.encode([encoder.preprocess(text) for text in texts]))
    return folder / "plots"


def _most(text: str) -> str:
    words = text.split()
    return " ".join(words[: max(1, len(words) * 2 // 3)])
