"""Training of image and video encoders: classification with a cosine head, plus a compatible-training term.

Labelled pictures are classified by label. Unlabelled ones label themselves: each picture is a class of its own and its
augmented views must find it (instance discrimination; Wu et al., CVPR 2018, with the softmax over all instances).
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from models.artifact import Manifest, load_artifact, load_manifest, save_artifact
from models.augmentation import Augmentation
from models.compat import CompatMethod, OldModel, create_method
from models.datasets.clips import spread
from models.encoders import load_encoder
from models.encoders.images import PROTOTYPES, ImagePreprocessing, TorchImageEncoder, to_float
from models.encoders.videos import VideoPreprocessing
from models.errors import ArtifactError, ItemError, UsageError
from models.initial import initial_weights
from models.parallel import Processes
from models.training_checkpoint import Checkpoints, Keeper
from models.training_loop import Training, learning_rate_at

if TYPE_CHECKING:
    from models.datasets import Item

Progress = Callable[[int, int], None]
"""Called with (steps done, steps in all)."""

__all__ = [
    "Checkpoints",
    "Pictures",
    "Processes",
    "TrainingOptions",
    "fixed_threads",
    "learning_rate_at",
    "load_prototypes",
    "read_pictures",
    "resized",
    "train_encoder",
]


@dataclass(frozen=True)
class TrainingOptions:
    """How an image encoder is trained.

    Attributes:
        architecture: name in the registry of encoders ("convnet", "vit").
        network: the architecture's own options.
        dim: length of the embeddings.
        preprocessing: how a picture becomes the network's input.
        epochs: passes over the pictures; need not be whole.
        batch_size: pictures a step.
        learning_rate: of AdamW at its peak; warm-up over the first 10 % of the steps, then a half cosine to zero.
        weight_decay: of AdamW.
        temperature: of the softmax over the head's cosines.
        margin: additive angular margin of the true class, radians (ArcFace; Deng et al., CVPR 2019); 0: none.
        augmentation: of every picture in every step.
        method_options: of the compatible-training method.
    """

    architecture: str = "convnet"
    network: Mapping[str, Any] = field(default_factory=dict)
    dim: int = 64
    preprocessing: ImagePreprocessing = field(default_factory=ImagePreprocessing)
    epochs: float = 5.0
    batch_size: int = 256
    learning_rate: float = 3e-3
    weight_decay: float = 1e-4
    temperature: float = 0.05
    margin: float = 0.0
    augmentation: Augmentation = field(default_factory=Augmentation)
    method_options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Pictures:
    """Training pictures in memory.

    Attributes:
        pixels: (n, channels, size, size) uint8; of clips (n, frames, channels, size, size).
        labels: n class names; for unlabelled pictures each its own key.
        labelled: False where each picture is a class of its own.
    """

    pixels: np.ndarray
    labels: tuple[str, ...]
    labelled: bool = True

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in order; a class's number is its place here."""
        return tuple(sorted(set(self.labels)))

    @property
    def digest(self) -> str:
        """sha256, hex, of all pixels and labels."""
        found = hashlib.sha256(repr((self.pixels.shape, self.labelled, self.labels)).encode())
        found.update(np.ascontiguousarray(self.pixels).data)
        return found.hexdigest()


def read_pictures(items: Sequence[Item], preprocessing: ImagePreprocessing) -> Pictures:
    """Decodes and preprocesses items; those that cannot be read are left out.

    Items count as labelled when every one has a label. Raises UsageError when fewer than two pictures can be read.
    """
    from models.datasets import read_item

    labelled = all(item.label is not None for item in items)
    pixels, labels = [], []
    for item in items:
        try:
            picture = read_item(item.uri)
            _check_modality(item, picture, preprocessing)
            pixels.append(preprocessing(picture))
        except ItemError:
            continue
        labels.append(str(item.label) if labelled else item.key)
    if len(pixels) < 2 or len(set(labels)) < 2:
        raise UsageError(
            f"training needs {preprocessing.modality}s of two classes or more; {len(pixels)} of {len(items)} items could be read"
        )
    return Pictures(np.stack(pixels), tuple(labels), labelled)


def _check_modality(item: Item, content: Any, preprocessing: ImagePreprocessing) -> None:
    kind = "text" if isinstance(content, str) else "video" if isinstance(content, np.ndarray) else "image"
    if kind != preprocessing.modality:
        raise UsageError(
            f"{item.key} is no {preprocessing.modality} but {kind}: this encoder is trained on {preprocessing.modality}s"
        )


def train_encoder(
    pictures: Pictures,
    folder: Path,
    *,
    name: str,
    method: str = "independent",
    old: Path | None = None,
    old_vectors: np.ndarray | None = None,
    options: TrainingOptions | None = None,
    seed: int = 0,
    threads: int = 1,
    progress: Progress | None = None,
    device: str = "cpu",
    precision: str | None = None,
    checkpoints: Checkpoints | None = None,
    adapter_folder: Path | None = None,
    init: Path | None = None,
) -> Path:
    """Trains an encoder and writes its artifact to `folder`, which it returns.

    Under torchrun every process calls this with the same arguments; process 0 alone writes and reports progress.

    Args:
        pictures: preprocessed as `options.preprocessing` says.
        method: a compatible-training method.
        old: artifact of the frozen old model; needed by every method but "independent".
        old_vectors: (n, d_o) float32, the old model's stored embeddings of these pictures; left out, they are computed
            from `pictures`, resized to the old model's input.
        seed, threads: the same pair gives the same weights on the same machine.
        device, precision: see Processes.
        checkpoints: where the training is kept, so that it can go on after it was killed; None: nowhere.
        adapter_folder: where the artifact of a forward adapter goes, for a method that trains one along; None: nowhere.
        init: artifact of a model of this architecture whose weights are begun with; None: drawn ones.

    The artifact's extra tensor "prototypes", (C, dim) float32, L2-normalised, holds the head's rows; `training.classes`
    in the manifest names them. Raises UsageError, ArtifactError.
    """
    options = options or TrainingOptions()
    processes = Processes(device, precision)
    chosen = create_method(method, options.method_options)
    if chosen.needs and old is None:
        raise UsageError(f"method {method!r} needs the old model's artifact: name it with --old")
    initial = initial_weights(init, options.architecture) if init is not None else None
    begun = load_manifest(init).fingerprint if init is not None else None
    with fixed_threads(threads), processes.seeded(seed):
        frozen = _frozen_old(chosen, old, old_vectors, pictures, processes)
        training = Training(pictures, chosen, frozen, options, seed, processes, initial)
        keeper = _keeper(checkpoints, processes, pictures, frozen, options, method, seed, threads, begun)
        seconds = _run(training, keeper, progress if processes.rank == 0 else None, processes)
    if processes.rank > 0:
        return Path(folder)
    tensors = {
        **training.network.state_dict(),
        PROTOTYPES: functional.normalize(training.head.detach(), dim=1),
    }
    # A self-labelled class is one picture: naming them all would only swell the manifest.
    classes = list(pictures.classes) if pictures.labelled else []
    manifest = save_artifact(
        folder,
        tensors,
        kind="encoder",
        name=name,
        architecture=options.architecture,
        options=options.network,
        modality=options.preprocessing.modality,
        preprocessing=asdict(options.preprocessing),
        dim=options.dim,
        training={
            "method": method,
            "seed": seed,
            "threads": threads,
            "pictures": len(pictures.labels),
            "labelled": pictures.labelled,
            "classes": classes,
            "epochs": options.epochs,
            "processes": processes.size,
            "device": processes.device.type,
            "precision": processes.precision,
            "seconds": round(seconds, 2),
            **({} if begun is None else {"init": begun}),
        },
    )
    if adapter_folder is not None and old is not None:
        _save_forward(chosen, adapter_folder, old, manifest)
    return Path(folder)


def _save_forward(method: CompatMethod, folder: Path, old: Path, new: Manifest) -> None:
    """The adapter that a method trained along, as an artifact; nothing for a method without one."""
    from models.adapters import networks

    psi = method.forward_module()
    if not isinstance(psi, networks.Psi):
        return
    networks.save(
        psi.cpu(),
        folder,
        architecture="residual_mlp",
        kind="psi",
        shape={"hidden": psi.residual.in_features, "depth": len(psi.body) // 3},
        predicts_uncertainty=False,  # its head was never asked
        name=f"{new.name}-forward",
        modality="image",
        identity={
            "source_fingerprint": load_manifest(old).fingerprint,
            "target_fingerprint": new.fingerprint,
            "source_dim": psi.linear.in_features,
        },
        dim=psi.linear.out_features,
        training={"method": method.name, "trained": f"along with {new.name}"},
    )


def load_prototypes(folder: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    """(C, dim) float32, L2-normalised head rows of an encoder's artifact, and the names of their classes (or none).

    Raises ArtifactError when the artifact holds no prototypes.
    """
    manifest, tensors = load_artifact(folder)
    if PROTOTYPES not in tensors:
        raise ArtifactError(
            f"{folder} holds no prototypes: use class means or k-means of the gallery instead"
        )
    return tensors[PROTOTYPES].float().numpy(), tuple(manifest.training.get("classes", ()))


def _run(training: Training, keeper: Keeper | None, progress: Progress | None, processes: Processes) -> float:
    """All steps that are left, with their checkpoints; the seconds that all steps took."""
    started = time.monotonic()
    if keeper is not None and (found := keeper.found()) is not None:
        training.restore(found[0])
        started -= found[1]
    while training.done < training.steps:
        training.step()
        last = training.done == training.steps
        if keeper is not None and processes.rank == 0 and (last or keeper.due(training.done)):
            keeper.write(training.state(), training.done, time.monotonic() - started)
        if progress is not None:
            progress(training.done, training.steps)
    training.finish()
    return time.monotonic() - started


def _keeper(
    checkpoints: Checkpoints | None,
    processes: Processes,
    pictures: Pictures,
    frozen: OldModel,
    options: TrainingOptions,
    method: str,
    seed: int,
    threads: int,
    begun: str | None,
) -> Keeper | None:
    """Of the checkpoints, where there are any. Processes that train together must see the same pictures."""
    if checkpoints is None and processes.size == 1:
        return None
    digest = pictures.digest
    processes.must_agree(digest, "pictures")
    if checkpoints is None:
        return None
    parts = (frozen.vectors, frozen.labels, frozen.head, frozen.knows)
    old = hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts)).hexdigest()
    identity = {
        **asdict(options),
        "method": method,
        "pictures": digest,
        "old model": old,
        "seed": seed,
        "threads": threads,
        "processes": processes.size,
        "device": processes.device.type,
        "precision": processes.precision,
        "torch": torch.__version__,
        **({} if begun is None else {"begun with": begun}),
    }
    return Keeper(checkpoints, identity)


def _frozen_old(
    method: CompatMethod,
    old: Path | None,
    old_vectors: np.ndarray | None,
    pictures: Pictures,
    processes: Processes,
) -> OldModel:
    classes, numbers = pictures.classes, _class_numbers(pictures)
    nothing = torch.zeros(len(classes), 0), torch.zeros(len(classes)) > 0
    if old is None or not method.needs:
        return OldModel(torch.zeros(len(numbers), 0), numbers, *nothing)
    if old_vectors is None:
        vectors = _embed_resized(old, pictures.pixels, processes)
    else:
        vectors = torch.from_numpy(np.ascontiguousarray(old_vectors, np.float32))
    if "head" not in method.needs:
        return OldModel(vectors, numbers, *nothing)
    head = torch.zeros(len(classes), vectors.shape[1]).index_add_(0, numbers, vectors)
    rows, names = load_prototypes(old)
    row_of = {name: place for place, name in enumerate(names)}
    knows = torch.tensor([name in row_of for name in classes])
    for place, name in enumerate(classes):
        if name in row_of:
            head[place] = torch.from_numpy(rows[row_of[name]])
    return OldModel(vectors, numbers, functional.normalize(head, dim=1), knows)


def _embed_resized(old: Path, pixels: np.ndarray, processes: Processes) -> Tensor:
    encoder = load_encoder(old)
    if not isinstance(encoder, TorchImageEncoder):
        raise UsageError(f"{old} is no trained image or video encoder: hand its vectors over as old_vectors")
    if (encoder.modality == "video") != (pixels.ndim == 5):
        raise UsageError(f"{old} embeds {encoder.modality}s, and the new model is trained on another kind")
    on_gpu = processes.device.type != "cpu"
    forward = encoder.forward_on(processes.device, torch.float32) if on_gpu else encoder.embed

    def embed(rows: Tensor) -> Tensor:
        out = []
        for at in range(0, len(rows), 1024):
            stack = resized(to_float(torch.from_numpy(pixels)[rows[at : at + 1024]]), encoder.preprocessing)
            with torch.inference_mode():
                out.append(forward(stack.to(processes.device)).cpu())
        return torch.cat(out).clone()  # out of inference mode: what a method keeps may meet autograd

    return processes.compute_rows(len(pixels), embed).cpu()


def resized(pixels: Tensor, preprocessing: ImagePreprocessing) -> Tensor:
    """(B, c, s, s) float32 0..1 -> the shape another model's preprocessing gives: size and grey or colour.

    Of clips, (B, frames, c, s, s), also its number of frames: chosen among these.
    """
    if isinstance(preprocessing, VideoPreprocessing):
        chosen = pixels[:, torch.from_numpy(spread(pixels.shape[1], preprocessing.frames))]
        plain = ImagePreprocessing(preprocessing.size, preprocessing.mode, preprocessing.fill)
        found = resized(chosen.flatten(0, 1), plain)
        return found.reshape(*chosen.shape[:2], *found.shape[1:])
    if pixels.shape[-1] != preprocessing.size:
        edges = (preprocessing.size, preprocessing.size)
        pixels = functional.interpolate(pixels, edges, mode="bilinear", antialias=True).clamp(0.0, 1.0)
    if pixels.shape[1] == 3 and preprocessing.channels == 1:
        luma = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
        return (pixels * luma).sum(dim=1, keepdim=True)
    return pixels.expand(-1, preprocessing.channels, -1, -1)


def _class_numbers(pictures: Pictures) -> Tensor:
    number_of = {name: number for number, name in enumerate(pictures.classes)}
    return torch.tensor([number_of[name] for name in pictures.labels])


@contextmanager
def fixed_threads(count: int) -> Iterator[None]:
    """torch computes with `count` threads inside; results depend on it in the last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
