"""A random rotation and a uniform quantiser: the baseline every trained codec has to beat. Ours; no paper's.

A vector is turned by a fixed random orthogonal matrix, so that its length is spread evenly over all coordinates, and
scaled to a root mean square of 1 a coordinate. Each coordinate y then falls into one of 2^{u+1} cells of one width, the
step, the outermost ones open:

    c = clip(⌊y / step⌋ + 2^u, 0, M)

The levels 2c − M are the cells' centres over step / 2, so the code points where the vector points: one recurrent code
whose planes nobody had to train. With u = 0 it is the sign of a random rotation, whatever the step is. The step is
fitted to a sample by the mean cosine of vector and code.

With fewer dimensions than the vectors have, the rotation is one of their m leading principal directions (about the
origin, as cosines are); with more, several rotations stand side by side.

Where vectors crowd around one direction, their differences are smaller than a cell. Then their mean is taken off first
(`crowded`), and codes compare what is left: another cosine than that of the floats, and often a better one.

Towards an old codec the rotation is not drawn: it is the orthogonal matrix that brings the vectors nearest to the old codes of
the same items (orthogonal Procrustes; Schönemann, 1966), which needs no descent and leaves the cosines between vectors as
they are where the code is as wide as they are.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from models.artifact import Manifest, save_artifact
from models.codecs.base import CodecTask, checked, noisy
from models.codecs.codes import Codes, CodeShape
from models.options import at_least

if TYPE_CHECKING:
    from torch import Tensor

_CHUNK_ROWS = 8192
_SAMPLE_ROWS = 4096
_STEPS = np.geomspace(0.1, 2.0, 61)


def fit(task: CodecTask, noise: float = 0.03, crowded: float = 0.7) -> Manifest:
    """Draws the rotation, fits the step and writes the artifact; see `models.codecs.fit_codec`.

    Args:
        noise: standard deviation of Gaussian noise on each coordinate of both sides of a pair; for `expected_flips` alone.
        crowded: length of the vectors' mean above which it is taken off first, half of each vector being the same; 1: never.
    """
    from torch import from_numpy

    at_least(0, noise=noise, crowded=crowded)
    started = time.monotonic()
    draw = np.random.default_rng(task.seed)
    mean = task.anchors.mean(axis=0)
    centre = bool(np.linalg.norm(mean) > crowded)
    middle = np.asarray(mean if centre else np.zeros_like(mean), np.float32)
    if task.old_positives is None:
        rotation = turning(task.anchors - middle, task.width, draw)
    else:
        rotation = turning_towards(task.positives - middle, task.old_positives)
    rows = draw.permutation(len(task.anchors))[:_SAMPLE_ROWS]
    turned = turn(task.anchors[rows] - middle, rotation)
    step = _fitted_step(turned, task.shape)
    sides = [
        turn(noisy(side[rows], noise, draw) - middle, rotation) for side in (task.anchors, task.positives)
    ]
    differences = np.sqrt(np.square(sides[0] - sides[1]).mean(axis=0)).astype(np.float32)
    if task.progress is not None:
        task.progress(1, 1)
    return save_artifact(
        task.folder,
        {
            "rotation": from_numpy(rotation),
            "centre": from_numpy(middle),
            "noise": from_numpy(np.maximum(differences, np.float32(1e-6))),
        },
        options={**task.options, "step": step},
        training={
            "pairs": len(task.anchors),
            "noise": noise,
            "centred": centre,
            "seed": task.seed,
            "seconds": round(time.monotonic() - started, 2),
        },
        **task.artifact,
    )


def load(manifest: Manifest, tensors: Mapping[str, Tensor]) -> RotationCodec:
    """The codec of an artifact."""
    return RotationCodec(
        manifest, tensors["rotation"].numpy(), tensors["centre"].numpy(), tensors["noise"].numpy()
    )


class RotationCodec:
    """A `Codec`; see the module."""

    def __init__(
        self, manifest: Manifest, rotation: np.ndarray, centre: np.ndarray, noise: np.ndarray
    ) -> None:
        self.manifest = manifest
        self.shape = CodeShape(manifest.dim, manifest.options["loops"])
        self.rotation = rotation
        self.centre = centre
        self.noise = noise
        self.step = float(manifest.options["step"])
        shapes = rotation.shape, centre.shape, noise.shape
        dim = manifest.options["source_dim"]
        if shapes != ((dim, manifest.dim), (dim,), (manifest.dim,)):
            raise ValueError(f"a rotation, a centre and a noise of {shapes}")

    def encode(self, vectors: np.ndarray) -> Codes:
        """See `models.codecs.base.Codec`."""
        vectors = checked(self.manifest, vectors)
        codes: Codes = np.zeros((len(vectors), self.shape.width), np.uint8)
        for at in range(0, len(vectors), _CHUNK_ROWS):
            rows = slice(at, at + _CHUNK_ROWS)
            codes[rows] = cells(turn(vectors[rows] - self.centre, self.rotation), self.shape, self.step)
        return codes

    def expected_flips(self, vectors: np.ndarray) -> np.ndarray:
        """(n,) float32: Σ over coordinates and their two thresholds of Φ(−distance / σ) · bits that turn beyond it.

        σ is the root mean square of y(anchor) − y(positive) over the pairs of the fit, one a coordinate. Thresholds further
        away than the nearest on either side are left out: a step that large is rare.
        """
        from models.codecs.networks import below

        vectors = checked(self.manifest, vectors)
        found = np.zeros(len(vectors), np.float32)
        for at in range(0, len(vectors), _CHUNK_ROWS):
            rows = slice(at, at + _CHUNK_ROWS)
            turned = turn(vectors[rows] - self.centre, self.rotation)
            codes = cells(turned, self.shape, self.step)
            lower = (codes.astype(np.float32) - 2**self.shape.loops) * np.float32(self.step)
            upper = lower + np.float32(self.step)
            down = np.where(codes > 0, np.bitwise_count(codes ^ (codes - 1)), 0)
            up = np.where(codes < self.shape.top, np.bitwise_count(codes ^ (codes + 1)), 0)
            chances = down * below((turned - lower) / self.noise) + up * below((upper - turned) / self.noise)
            found[rows] = chances.sum(axis=1)
        return found


def turning(vectors: np.ndarray, width: int, draw: np.random.Generator) -> np.ndarray:
    """(d, m) float32 that turns (n, d) vectors; see the module."""
    dim = vectors.shape[1]
    if width >= dim:
        blocks = [_rotation(dim, draw) for _ in range(-(-width // dim))]
        return np.ascontiguousarray(np.concatenate(blocks, axis=1)[:, :width], np.float32)
    _, directions = np.linalg.eigh(vectors.T.astype(np.float64) @ vectors)  # the least first
    return np.ascontiguousarray(directions[:, -width:] @ _rotation(width, draw), np.float32)


def turning_towards(vectors: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """(d, m) float32 that turns (n, d) vectors nearest to (n, m) codes: U Vᵀ of the singular vectors of vectorsᵀ codes."""
    left, _, right = np.linalg.svd(vectors.T.astype(np.float64) @ codes, full_matrices=False)
    return np.ascontiguousarray(left @ right, np.float32)


def _rotation(dim: int, draw: np.random.Generator) -> np.ndarray:
    """(dim, dim) float64, orthogonal, each as likely as any other (Mezzadri, 2007)."""
    orthogonal, triangle = np.linalg.qr(draw.standard_normal((dim, dim)))
    return np.asarray(orthogonal * np.where(np.diag(triangle) < 0, -1, 1))


def turn(vectors: np.ndarray, rotation: np.ndarray) -> np.ndarray:
    """(n, d) -> (n, m) float32, turned and with a root mean square of 1."""
    turned = vectors @ rotation
    lengths = np.sqrt(np.square(turned).mean(axis=1, keepdims=True))
    return np.asarray(turned / np.maximum(lengths, 1e-12), np.float32)


def cells(turned: np.ndarray, shape: CodeShape, step: float) -> Codes:
    """(n, m) float32 -> (n, m) uint8: the formula of the module's text."""
    found: Codes = np.clip(np.floor(turned / np.float32(step)) + 2**shape.loops, 0, shape.top).astype(
        np.uint8
    )
    return found


def cosines(turned: np.ndarray, codes: Codes, shape: CodeShape) -> np.ndarray:
    """(n,) float32: of each row and its code."""
    levels = shape.levels(codes).astype(np.float32)
    lengths = np.sqrt(np.einsum("ij,ij->i", levels, levels) * np.einsum("ij,ij->i", turned, turned))
    return np.asarray(np.einsum("ij,ij->i", turned, levels) / np.maximum(lengths, 1e-12), np.float32)


def _fitted_step(turned: np.ndarray, shape: CodeShape) -> float:
    if not shape.loops:
        return 1.0
    means = [float(cosines(turned, cells(turned, shape, step), shape).mean()) for step in _STEPS]
    return float(_STEPS[int(np.argmax(means))])
