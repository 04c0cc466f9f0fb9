"""What all video encoders in plain torch share: which frames of a clip they look at, and how those become the network's input.

A prepared clip is (frames, channels, size, size) uint8: a stack of prepared pictures. So all that works on batches of pictures,
augmentation and training, works on batches of clips, with the same change for every frame of one.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from models.datasets.clips import spread
from models.encoders.images import ImagePreprocessing, TorchImageEncoder
from models.errors import ItemError


@dataclass(frozen=True)
class VideoPreprocessing(ImagePreprocessing):
    """A clip becomes (frames, channels, size, size) uint8: the middles of `frames` equal parts of it, each boxed as a picture.

    Attributes:
        frames: 1 to 64; a clip with fewer repeats some.
    """

    modality: ClassVar[str] = "video"
    frames: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.frames <= 64:
            raise ValueError(f"preprocessing cannot be {asdict(self)}")

    def __call__(self, clip: Any) -> np.ndarray:
        """(frames, channels, size, size) uint8 from (T, H, W, 1 or 3) uint8. Raises ItemError for one that is no clip."""
        if not isinstance(clip, np.ndarray) or clip.ndim != 4 or clip.shape[-1] not in (1, 3):
            raise ItemError("modality", "it is no clip of frames")
        if not clip.size:
            raise ItemError("empty", f"a clip of {clip.shape[0]} frames of {clip.shape[1:3]} shows nothing")
        chosen = clip[spread(len(clip), self.frames)]
        return np.stack([super(VideoPreprocessing, self).__call__(picture_of(frame)) for frame in chosen])


def picture_of(frame: npt.NDArray[np.uint8]) -> Image.Image:
    """A frame, (H, W, 1 or 3) uint8, as a picture in grey or colour."""
    return Image.fromarray(frame[..., 0] if frame.shape[-1] == 1 else frame)


class TorchVideoEncoder(TorchImageEncoder):
    """A `TensorEncoder` around a network (B, frames, channels, size, size) float32 0..1 -> (B, dim) float32."""

    together = 32
    reads = VideoPreprocessing

    @property
    def modality(self) -> str:
        """Always "video"."""
        return "video"

    def preprocess(self, item: Any) -> np.ndarray:
        """(frames, channels, size, size) uint8 from (T, H, W, 1 or 3) uint8. Raises ItemError for a text or a picture."""
        if not isinstance(item, np.ndarray):
            kind = "a text" if isinstance(item, str) else "a picture"
            raise ItemError("modality", f"{self.manifest.name} embeds videos, this item is {kind}")
        return self.preprocessing(item)
