"""Features of PTVD's segments under named encoders: two encoders over the same segments are two versions of one gallery.

    features/ENCODER/VID.npy     (segments, dim) float32, in the plot's order; or, with `per_frame`, (frames, dim) float32

The published set holds features, not videos, in files of which no layout is documented: this one is ours, and asks for one
`numpy.save` an episode. Of frames, a segment's feature is the mean over its window, as a unit vector.

`write_embeddings` makes the file that `gallery embed --from-file` takes; its rows follow the gallery's keys. For an upgrade
without any video: one gallery, two files, two models of these names.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from models.datasets.embeddings_file import map_embeddings
from models.datasets.ptvd import Episode, Ptvd
from models.datasets.ptvd_tasks import frame_window
from models.errors import UsageError

F32 = npt.NDArray[np.float32]


def encoders(dataset: Ptvd) -> list[str]:
    """Names of the encoders that there are features of."""
    return sorted(place.name for place in (dataset.folder / "features").glob("*") if place.is_dir())


def read_features(
    dataset: Ptvd, encoder: str, episodes: Sequence[str] | None = None, *, per_frame: bool = False
) -> tuple[list[str], F32]:
    """Keys of segments (n) and their vectors (n, dim) float32, by episode and then by place in the plot.

    Args:
        episodes: those of the data set unless given.
        per_frame: the files have a row a frame, not a row a segment.

    Raises:
        UsageError: no such encoder, an episode without its file, another number of rows, of dimensions, or a value that is
            not finite.
        ItemError: an episode's plot cannot be read.
    """
    if encoder not in encoders(dataset):
        known = ", ".join(encoders(dataset)) or "none"
        raise UsageError(f"there are no features of {encoder[:80]!r} in {dataset.folder}; there are {known}.")
    names: list[str] = []
    parts: list[F32] = []
    for name in dataset.episode_names() if episodes is None else episodes:
        episode = dataset.episode(name)
        if not episode.segments:
            continue
        path = dataset.folder / "features" / encoder / f"{name}.npy"
        rows = map_embeddings(path)
        if parts and rows.shape[1] != parts[0].shape[1]:
            raise UsageError(f"{path} has {rows.shape[1]} dimensions; the others have {parts[0].shape[1]}.")
        parts.append(_of_segments(episode, rows, per_frame, path))
        names += [segment.key for segment in episode.segments]
    if not parts:
        raise UsageError(f"no episode of {dataset.folder} has a segment: there are no features to read.")
    vectors = np.concatenate(parts)
    if not np.isfinite(vectors).all():
        raise UsageError(f"features of {encoder} hold values that are no finite numbers.")
    return names, vectors


def write_embeddings(
    dataset: Ptvd, encoder: str, keys: Sequence[str], path: Path, *, per_frame: bool = False
) -> tuple[int, int]:
    """Write the features of `keys`, in this order, as the .npy file that `gallery embed --from-file` reads; its shape.

    Raises UsageError and ItemError as `read_features`, and for a key without a feature.
    """
    episodes = sorted({key.rpartition("_")[0] for key in keys})
    known = set(dataset.episode_names())
    names, vectors = read_features(
        dataset, encoder, [name for name in episodes if name in known], per_frame=per_frame
    )
    row = {name: at for at, name in enumerate(names)}
    lacking = [key for key in keys if key not in row]
    if lacking:
        raise UsageError(
            f"{len(lacking)} keys have no feature of {encoder}; the first is {lacking[0][:80]!r}."
        )
    wanted = np.ascontiguousarray(vectors[[row[key] for key in keys]])
    with path.open("wb") as file:  # numpy.save would add a suffix to a name without one
        np.save(file, wanted, allow_pickle=False)
    return wanted.shape[0], wanted.shape[1]


def _of_segments(episode: Episode, rows: F32, per_frame: bool, path: Path) -> F32:
    if not per_frame:
        if len(rows) != len(episode.segments):
            raise UsageError(
                f"{path} has {len(rows)} rows for {len(episode.segments)} segments; "
                "if it has a row a frame, read it with per_frame."
            )
        return np.asarray(rows, np.float32)
    means = np.empty((len(episode.segments), rows.shape[1]), np.float64)
    for at, segment in enumerate(episode.segments):
        first, count = frame_window(len(rows), episode.duration_s, segment.start_s, segment.end_s)
        means[at] = rows[first : first + count].mean(axis=0, dtype=np.float64)
    lengths = np.linalg.norm(means, axis=1, keepdims=True)
    return (means / np.where(lengths > 0, lengths, 1)).astype(np.float32)
