"""What every codec must do, on real embeddings: names of characters, by wordllama."""

from __future__ import annotations

import shutil
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.artifact import Manifest, load_artifact, save_artifact
from models.codecs import CODECS, Codec, fit_codec, load_codec
from models.codecs.base import noisy
from models.codecs.codes import CodeShape
from models.encoders.wordllama import create, load
from models.errors import ArtifactError, UsageError

WIDTH = 64
# Fitted in a second; a codec that is not here is fitted as it is.
SMALL: dict[str, dict[str, Any]] = {
    "recurrent": {"hidden": 0, "steps": 40, "learning_rate": 1e-2},
    "hash": {"hidden": 0, "steps": 40, "learning_rate": 1e-2},
}
TOWARDS_OLD = {
    "steps": 100,
    "old_weight": 10.0,
    "temperature": 0.1,
    "negatives": 50,
    "batch_size": 128,
    "noise": 0.0,
}
MADE = [("recurrent", 0), ("recurrent", 1), ("hash", 0), ("rotation", 0), ("rotation", 2)]


@dataclass(frozen=True)
class Names:
    """Embeddings of full names, and of the same names without their first word: (n, 64) float32."""

    full: np.ndarray
    short: np.ndarray

    @property
    def held_out(self) -> np.ndarray:
        return np.arange(0, len(self.full), 2)

    @property
    def fitted(self) -> np.ndarray:
        return np.arange(1, len(self.full), 2)


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> Names:
    texts = [unicodedata.name(chr(code), "") for code in range(0x20, 0x1FFFF)]
    chosen = [t.lower() for t in texts if t.count(" ") >= 3 and "CJK" not in t and "HANGUL" not in t][::7]
    encoder = load(create(tmp_path_factory.mktemp("words"), "words", 64), {})
    return Names(encoder.encode(chosen), encoder.encode([t.partition(" ")[2] for t in chosen]))


def fitted(folder: Path, names: Names, method: str, loops: int, **more: Any) -> Codec:
    rows = names.fitted
    options = {**SMALL.get(method, {}), **more.pop("options", {})}
    settings = {"width": WIDTH, "name": "c", "modality": "text", "source_fingerprint": "from", "seed": 0}
    fit_codec(
        method, names.short[rows], names.full[rows], rows,
        loops=loops, folder=folder, options=options, **{**settings, **more},
    )  # fmt: skip
    return load_codec(folder)


@pytest.fixture(scope="module", params=MADE, ids=lambda made: f"{made[0]}-{made[1]}")
def made(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, names: Names
) -> tuple[Codec, Path]:
    """One of each, and its folder: fitted once."""
    folder = tmp_path_factory.mktemp("codec") / "c"
    return fitted(folder, names, *request.param), folder


def unit(codec: Codec, vectors: np.ndarray) -> np.ndarray:
    return codec.shape.unit(codec.encode(vectors))


def found_first(queries: np.ndarray, gallery: np.ndarray, rows: np.ndarray) -> float:
    return float(((queries @ gallery.T).argmax(axis=1) == rows).mean())


def test_every_codec_is_tested_here() -> None:
    assert {method for method, _ in MADE} == set(CODECS)


def test_what_is_saved_is_what_encodes_and_a_seed_repeats(
    tmp_path: Path, names: Names, made: tuple[Codec, Path]
) -> None:
    first, folder = made
    method, loops = first.manifest.architecture, first.shape.loops
    codes = first.encode(names.full)
    assert codes.dtype == np.uint8
    assert codes.shape == (len(names.full), WIDTH)
    assert codes.max() <= first.shape.top == 2 ** (loops + 1) - 1
    second = fitted(tmp_path / "2", names, method, loops)
    for again in (second, load_codec(folder)):
        assert np.array_equal(codes, again.encode(names.full))
        assert np.array_equal(first.expected_flips(names.full), again.expected_flips(names.full))
        assert first.manifest.digest == again.manifest.digest
        assert first.manifest.fingerprint == again.manifest.fingerprint
    other = fitted(tmp_path / "3", names, method, loops, seed=1)
    assert other.manifest.fingerprint != first.manifest.fingerprint
    assert not np.array_equal(codes, other.encode(names.full))


def test_items_nobody_fitted_on_are_found_by_their_codes(names: Names, made: tuple[Codec, Path]) -> None:
    codec, rows = made[0], names.held_out
    by_floats = found_first(names.short[rows], names.full, rows)
    by_codes = found_first(unit(codec, names.short[rows]), unit(codec, names.full), rows)
    assert by_codes > 0.5 * by_floats  # chance is below 0.001


def test_the_manifest_says_whose_embeddings_are_encoded_and_how(made: tuple[Codec, Path]) -> None:
    manifest = made[0].manifest
    assert (manifest.kind, manifest.dim) == ("codec", WIDTH)
    assert manifest.options["source_fingerprint"] == "from"
    assert (manifest.options["source_dim"], manifest.options["loops"]) == (64, made[0].shape.loops)


def test_the_same_weights_of_another_models_embeddings_are_another_space(
    tmp_path: Path, names: Names
) -> None:
    one, other = (
        fitted(tmp_path / source, names, "rotation", 0, source_fingerprint=source).manifest
        for source in ("from", "elsewhere")
    )
    assert one.digest == other.digest
    assert one.fingerprint != other.fingerprint


def test_flips_are_expected_as_often_as_they_come(names: Names, made: tuple[Codec, Path]) -> None:
    codec, rows = made[0], names.held_out
    expected = codec.expected_flips(names.full[rows])
    pairs = [codec.shape.pack(codec.encode(side[rows])) for side in (names.full, names.short)]
    turned = np.bitwise_count(pairs[0] ^ pairs[1]).sum(axis=1)
    assert expected.dtype == np.float32
    assert expected.mean() == pytest.approx(turned.mean(), rel=0.4)


def test_codes_that_noise_turns_more_bits_of_are_less_certain(names: Names, made: tuple[Codec, Path]) -> None:
    codec, draw = made[0], np.random.default_rng(0)
    vectors = names.full[names.held_out]
    packed = codec.shape.pack(codec.encode(vectors))
    turned = np.zeros(len(vectors))
    for _ in range(10):
        moved = codec.encode(noisy(vectors, 0.03, draw))
        turned += np.bitwise_count(packed ^ codec.shape.pack(moved)).sum(axis=1)
    ranks = [np.argsort(np.argsort(each)) for each in (codec.expected_flips(vectors), turned)]
    assert np.corrcoef(ranks)[0, 1] > 0.3


def test_queries_of_a_compatible_codec_find_their_rows_among_old_codes(tmp_path: Path, names: Names) -> None:
    old = fitted(tmp_path / "old", names, "rotation", 0)
    gallery, rows = unit(old, names.full), names.held_out
    alone, together = (
        fitted(tmp_path / str(place), names, "recurrent", 1, seed=1, options=TOWARDS_OLD, old_positives=codes)
        for place, codes in enumerate((None, gallery[names.fitted]))
    )
    found = [found_first(unit(codec, names.short[rows]), gallery, rows) for codec in (alone, together)]
    assert found[0] < 0.02
    assert found[1] > 0.2
    assert together.manifest.training["old_weight"] == 10


def test_what_cannot_be_fitted_is_refused_before_anything_is_written(tmp_path: Path, names: Names) -> None:
    def refused(match: str, method: str = "rotation", loops: int = 0, **more: Any) -> None:
        with pytest.raises(UsageError, match=match):
            fitted(tmp_path / "c", names, method, loops, **more)

    refused("unknown codec 'best'", "best")
    refused("loops must be 0, not 1: choose a width of 128", "hash", 1)
    refused("0 to 3 loops", loops=4)
    refused("a width of 1 to 65536", width=0)
    refused("cannot take hidden; it has noise", options={"hidden": 3})
    refused("unknown residual 'old'", "recurrent", options={"residual": "old"})
    refused("unknown optimiser 'best'", "recurrent", options={"optimiser": "best"})
    refused("temperature must be above 0", "recurrent", options={"temperature": 0})
    old = np.ones((len(names.fitted), WIDTH), np.float32)
    refused("has its old codec's width", "recurrent", old_positives=old[:, :8])
    refused("old codes are not finite", "recurrent", old_positives=old * np.nan)
    few = Names(names.full[:30], names.short[:30])
    with pytest.raises(UsageError, match="15 pairs are too few"):
        fitted(tmp_path / "c", few, "rotation", 0)
    broken = Names(names.full * np.float32(np.nan), names.short)
    with pytest.raises(UsageError, match="not finite"):
        fitted(tmp_path / "c", broken, "rotation", 0)
    with pytest.raises(UsageError, match="needs pairs"):
        fitted(tmp_path / "c", Names(names.full[:, :8], names.short), "rotation", 0)
    assert not (tmp_path / "c").exists()


def test_vectors_of_another_length_are_refused_and_none_are_no_trouble(made: tuple[Codec, Path]) -> None:
    codec = made[0]
    for act in (codec.encode, codec.expected_flips):
        with pytest.raises(ValueError, match=r"encodes \(n, 64\) embeddings, not \(2, 63\)"):
            act(np.ones((2, 63), np.float32))
    assert codec.encode(np.zeros((0, 64), np.float32)).shape == (0, WIDTH)


def rewritten(folder: Path, **changes: Any) -> None:
    """The artifact once more, its manifest changed, its digest right."""
    manifest, tensors = load_artifact(folder)
    kept = {
        name: getattr(manifest, name)
        for name in ("kind", "name", "architecture", "options", "modality", "preprocessing", "dim")
    }
    saved: Manifest = save_artifact(folder, tensors, **{**kept, **changes})
    assert saved.digest == manifest.digest


def test_an_artifact_that_is_no_such_codec_is_refused(tmp_path: Path, made: tuple[Codec, Path]) -> None:
    folder = tmp_path / "c"
    shutil.copytree(made[1], folder)
    options, method = made[0].manifest.options, made[0].manifest.architecture
    for changes, match in (
        ({"dim": WIDTH + 1}, "does not fit its codec"),
        ({"options": {**options, "loops": 5}}, "does not fit its codec"),
        ({"options": {}}, "does not fit its codec"),
        ({"architecture": "best"}, "unknown codec 'best'"),
        ({"kind": "adapter"}, "holds an adapter, not a codec"),
    ):
        rewritten(
            folder, **{"dim": WIDTH, "options": options, "architecture": method, "kind": "codec", **changes}
        )
        with pytest.raises(ArtifactError, match=match):
            load_codec(folder)
    (folder / "weights.safetensors").write_bytes(b"x" * 64)
    with pytest.raises(ArtifactError, match="does not match its manifest"):
        load_codec(folder)


def test_all_settings_of_the_paper_can_be_given(tmp_path: Path, names: Names) -> None:
    paper = {"optimiser": "sgd", "learning_rate": 0.08, "weight_decay": 1e-3, "residual": "published"}
    codec = fitted(
        tmp_path / "c", names, "recurrent", 3, options={**paper, "hidden": 32, "layers": 2, "steps": 5}
    )
    assert codec.shape == CodeShape(WIDTH, 3)
    assert codec.manifest.options["residual"] == "published"
    assert codec.manifest.training["optimiser"] == "sgd"
    assert codec.encode(names.full[:10]).max() > 7  # all four planes are used
