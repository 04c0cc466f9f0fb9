"""What all image encoders in plain torch share: preprocessing by the manifest, batches, normalisation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from models.artifact import Manifest
from models.encoders.device import unit_rows
from models.errors import ItemError

_BATCH = 512
PROTOTYPES = "prototypes"
"""Name of the extra tensor with class prototypes; no parameter of the network."""


@dataclass(frozen=True)
class ImagePreprocessing:
    """A picture becomes (channels, size, size) uint8: keep the aspect ratio, pad the rest.

    Attributes:
        size: edge in pixels.
        mode: "L" (grey, 1 channel) or "RGB" (3 channels); transparency is painted over `fill`.
        fill: 0..255, the colour of the padding.
    """

    size: int = 32
    mode: str = "L"
    fill: int = 0

    modality: ClassVar[str] = "image"

    def __post_init__(self) -> None:
        if self.mode not in ("L", "RGB") or not 4 <= self.size <= 1024 or not 0 <= self.fill <= 255:
            raise ValueError(f"preprocessing cannot be {asdict(self)}")

    @property
    def channels(self) -> int:
        """1 for grey, 3 for RGB."""
        return 1 if self.mode == "L" else 3

    def __call__(self, picture: Any) -> np.ndarray:
        """(channels, size, size) uint8 from a decoded picture. Raises ItemError for a picture without area."""
        if min(picture.size) < 1:
            raise ItemError("empty", f"a picture of {picture.size[0]} x {picture.size[1]} pixels has no area")
        picture = self._coloured(picture)
        if picture.size != (self.size, self.size):
            picture = self._boxed(picture)
        pixels = np.asarray(picture, np.uint8)
        return pixels[None] if self.mode == "L" else np.ascontiguousarray(pixels.transpose(2, 0, 1))

    def _coloured(self, picture: Image.Image) -> Image.Image:
        if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
            rgba = picture.convert("RGBA")
            ground = Image.new("RGBA", rgba.size, (self.fill, self.fill, self.fill, 255))
            picture = Image.alpha_composite(ground, rgba)
        return picture if picture.mode == self.mode else picture.convert(self.mode)

    def _boxed(self, picture: Image.Image) -> Image.Image:
        scale = self.size / max(picture.size)
        width, height = (max(1, round(edge * scale)) for edge in picture.size)
        resized = picture.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2.0)
        if width == height:
            return resized
        box = Image.new(
            self.mode, (self.size, self.size), self.fill if self.mode == "L" else (self.fill,) * 3
        )
        box.paste(resized, ((self.size - width) // 2, (self.size - height) // 2))
        return box


class TorchImageEncoder:
    """A `TensorEncoder` around a network (B, channels, size, size) float32 0..1 -> (B, dim) float32."""

    together = _BATCH
    reads = ImagePreprocessing

    def __init__(self, manifest: Manifest, network: nn.Module) -> None:
        self.manifest = manifest
        self.network = channels_last(network.eval())
        self.network.requires_grad_(False)
        self.preprocessing = self.reads(**manifest.preprocessing)

    @property
    def dim(self) -> int:
        """Length of the vectors."""
        return self.manifest.dim

    @property
    def modality(self) -> str:
        """Always "image"."""
        return "image"

    def preprocess(self, item: Any) -> np.ndarray:
        """(channels, size, size) uint8 from a decoded picture. Raises ItemError for a text, a clip or an empty picture."""
        if isinstance(item, str):
            raise ItemError(
                "modality", f"{self.manifest.name} embeds images, this item is a text: {item[:40]!r}"
            )
        if isinstance(item, np.ndarray):
            raise ItemError("modality", f"{self.manifest.name} embeds images, this item is a video")
        return self.preprocessing(item)

    def encode(self, prepared: Sequence[np.ndarray]) -> np.ndarray:
        """(n, dim) float32, L2-normalised, finite; `prepared`: n arrays (channels, size, size) uint8, or one stack."""
        out = np.empty((len(prepared), self.dim), np.float32)
        with torch.inference_mode():
            for at in range(0, len(prepared), self.together):
                (pixels,) = self.collate(prepared[at : at + self.together])
                out[at : at + len(pixels)] = self.embed(pixels).numpy()
        return out

    def arrange(self, prepared: Sequence[np.ndarray]) -> Sequence[int]:
        """As they come: all have one size."""
        return range(len(prepared))

    def collate(self, prepared: Sequence[np.ndarray], *, pinned: bool = False) -> tuple[Tensor]:
        """One (n, channels, size, size) uint8 tensor from n >= 1 results of `preprocess`."""
        first = np.asarray(prepared[0])
        kind = torch.from_numpy(np.empty(0, first.dtype)).dtype
        stack = torch.empty((len(prepared), *first.shape), dtype=kind, pin_memory=pinned)
        np.stack(prepared, out=stack.numpy())
        return (stack,)

    def forward_on(self, device: torch.device, dtype: torch.dtype) -> Callable[..., Tensor]:
        """A copy of the network on `device` in `dtype`, from pixels as `collate` makes them to vectors in float32."""
        network = deepcopy(self.network).to(device=device, dtype=dtype)

        def forward(pixels: Tensor) -> Tensor:
            return unit_rows(network(to_float(pixels).to(dtype)))

        return forward

    def embed(self, pixels: Tensor) -> Tensor:
        """(B, dim) float32, L2-normalised, from (B, channels, size, size) uint8 or float 0..1, under autograd's mode."""
        return functional.normalize(self.network(to_float(pixels)), dim=1)

    @classmethod
    def restore(cls, manifest: Manifest, network: nn.Module, tensors: Mapping[str, Tensor]) -> Self:
        """The encoder with the artifact's weights. Raises RuntimeError when they do not fit the network."""
        network.load_state_dict({key: value for key, value in tensors.items() if key != PROTOTYPES})
        return cls(manifest, network)


def to_float(pixels: Tensor) -> Tensor:
    """float32 0..1, pictures channels-last, from uint8 0..255 (or floats, unchanged)."""
    if pixels.dtype == torch.uint8:
        pixels = pixels.float().div_(255.0)
    return arranged(pixels)


def arranged(pixels: Tensor) -> Tensor:
    """A batch as its network computes it fastest: pictures channels-last, clips as they are."""
    return pixels.contiguous(
        memory_format=torch.channels_last if pixels.dim() == 4 else torch.contiguous_format
    )


def channels_last(network: nn.Module) -> nn.Module:
    """The network with the weights of its 2-D convolutions channels-last, in place; those of 3-D ones cannot be."""
    for weight in network.parameters():
        if weight.dim() == 4:
            # As Module.to does it: a weight of one channel is laid out anew too, which other kernels depend on.
            weight.data = weight.data.to(memory_format=torch.channels_last)
    return network
