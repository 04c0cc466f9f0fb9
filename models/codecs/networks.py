"""Codecs that are networks: what they look like, how they are trained, how they are kept.

The recurrent binary code of BEBR (arXiv 2302.08714), written from its mathematics. x ∈ R^d is L2-normalised:

    b_0     = sgn(W(x))                          W:   R^d → R^m
    f_i     = B_i(b_i) / ||B_i(b_i)||            B_i: R^m → R^d
    d_i     = sgn(R_i(x − f_i))                  R_i: R^d → R^m,   b_{i+1} = b_i + 2^{−(i+1)} d_i,   i = 0..u−1

W, B_i and R_i are networks Linear–BatchNorm–ReLU–(…)–Linear. sgn(0) = +1, because a bit has no third value. Backwards,
sgn lets the gradient pass where |input| ≤ 1 and stops it elsewhere.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.artifact import Manifest, save_artifact
from models.codecs.base import CodecTask, checked, noisy
from models.codecs.codes import Codes, CodeShape
from models.codecs.descent import Descent
from models.codecs.losses import compatible, embedding_to_embedding
from models.errors import UsageError
from models.options import above_zero, at_least

RESIDUALS = ("released", "published")
NOISE = "noise"
"""Tensor of an artifact beside the network's: (u + 1, m) float32, σ of each activation before its sign."""

_CHUNK_ROWS = 8192
_NOISE_ROWS = 4096


class Sign(torch.autograd.Function):
    """sgn with sgn(0) = +1; the gradient passes where |input| ≤ 1."""

    @staticmethod
    def forward(context: Any, activation: Tensor) -> Tensor:
        """±1, of the input's shape."""
        context.save_for_backward(activation)
        return torch.where(activation >= 0, 1.0, -1.0).to(activation.dtype)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        """See the class."""
        (activation,) = context.saved_tensors
        passed: Tensor = gradients[0] * (activation.abs() <= 1)
        return passed


def sign(activation: Tensor) -> Tensor:
    """See `Sign`."""
    found: Tensor = Sign.apply(activation)  # type: ignore[no-untyped-call]
    return found


def mlp(incoming: int, outgoing: int, hidden: int, layers: int) -> nn.Sequential:
    """`layers` times Linear–BatchNorm–ReLU of `hidden` units, then a Linear; only the Linear where `hidden` is 0."""
    parts: list[nn.Module] = []
    for _ in range(layers if hidden else 0):
        parts += [nn.Linear(incoming, hidden), nn.BatchNorm1d(hidden), nn.ReLU(True)]
        incoming = hidden
    parts.append(nn.Linear(incoming, outgoing))
    for part in parts:
        if isinstance(part, nn.Linear):
            nn.init.xavier_normal_(part.weight)
            nn.init.zeros_(part.bias)
    return nn.Sequential(*parts)


class Recurrent(nn.Module):
    """(B, d), L2-normalised -> (B, u + 1, m), the activations whose signs are the code.

    Attributes:
        residual: "released": the reconstruction of the code so far is taken from x itself, as in the authors' code.
            "published": r_0 = x, r_{i+1} = r_i − the reconstruction of d_i alone, the last residual is peeled. Known
            second-hand only; of it the first reconstruction has length 1, as x has, later ones the length they have.
    """

    def __init__(
        self, source_dim: int, width: int, loops: int, hidden: int, layers: int, residual: str = "released"
    ) -> None:
        super().__init__()
        self.residual = residual
        self.first = mlp(source_dim, width, hidden, layers)
        self.back = nn.ModuleList(mlp(width, source_dim, hidden, layers) for _ in range(loops))
        self.again = nn.ModuleList(mlp(source_dim, width, hidden, layers) for _ in range(loops))

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        activations = [self.first(x)]
        code = last = sign(activations[0])
        rest = x
        for place, (back, again) in enumerate(zip(self.back, self.again, strict=True)):
            if self.residual == "released":
                rest = x - functional.normalize(back(code), dim=1)
            else:
                found = back(last)
                rest = rest - (found if place else functional.normalize(found, dim=1))
            activations.append(again(rest))
            last = sign(activations[-1])
            code = code + 2.0 ** -(place + 1) * last
        return torch.stack(activations, dim=1)


def code_of(activations: Tensor) -> Tensor:
    """(B, u + 1, m) activations -> (B, m): b = Σ_j 2^{−j} sgn(a_j). Gradients flow through each sgn."""
    weights = 0.5 ** torch.arange(activations.shape[1], dtype=activations.dtype)
    return torch.einsum("bjm,j->bm", sign(activations), weights)


class NetworkCodec:
    """A `Codec` around a `Recurrent`."""

    def __init__(self, manifest: Manifest, network: Recurrent, noise: Tensor) -> None:
        self.manifest = manifest
        self.shape = CodeShape(manifest.dim, manifest.options["loops"])
        self.network = network.eval().requires_grad_(False)
        self.noise = noise.numpy()
        if noise.shape != (self.shape.bits, self.shape.width):
            raise ValueError(f"the noise of {self.shape} cannot be {tuple(noise.shape)}")

    def encode(self, vectors: np.ndarray) -> Codes:
        """See `models.codecs.base.Codec`."""
        vectors = checked(self.manifest, vectors)
        codes: Codes = np.zeros((len(vectors), self.shape.width), np.uint8)
        for rows, activations in self._activations(vectors):
            for plane in range(self.shape.bits):
                codes[rows] = (codes[rows] << 1) | (activations[:, plane] >= 0)
        return codes

    def expected_flips(self, vectors: np.ndarray) -> np.ndarray:
        """(n,) float32: Σ Φ(−|a| / σ) over all activations a, each with its own σ; see `models.codecs.base.Codec`.

        An own idea, not in the paper. σ is the root mean square of a(anchor) − a(positive) over the pairs of the fit, so a
        term is the chance that a Gaussian difference of that size turns the bit.
        """
        vectors = checked(self.manifest, vectors)
        found = np.zeros(len(vectors), np.float32)
        for rows, activations in self._activations(vectors):
            found[rows] = below(np.abs(activations) / self.noise).sum(axis=(1, 2))
        return found

    def _activations(self, vectors: np.ndarray) -> Any:
        with torch.inference_mode():
            for at in range(0, len(vectors), _CHUNK_ROWS):
                rows = slice(at, at + _CHUNK_ROWS)
                yield rows, self.network(torch.from_numpy(vectors[rows])).numpy()


def below(deviations: np.ndarray) -> np.ndarray:
    """Φ(−z): the chance of a Gaussian value beyond z standard deviations. Any shape, float32 or float64."""
    return torch.erfc(torch.from_numpy(deviations / math.sqrt(2))).numpy() / 2


def fit(
    task: CodecTask,
    descent: Descent,
    *,
    hidden: int,
    layers: int,
    residual: str,
    temperature: float,
    negatives: int,
    old_weight: float,
) -> Manifest:
    """Builds a network, trains it and writes its artifact. The options are those of `models.codecs.recurrent.fit`."""
    from models.training import fixed_threads

    if residual not in RESIDUALS:
        raise UsageError(f"unknown residual {residual!r}: choose one of {', '.join(RESIDUALS)}")
    at_least(0, hidden=hidden, old_weight=old_weight)
    at_least(1, layers=layers, negatives=negatives)
    above_zero(temperature=temperature)
    shape: dict[str, Any] = {"hidden": hidden, "layers": layers, "residual": residual}
    started = time.monotonic()
    anchors, positives = torch.from_numpy(task.anchors), torch.from_numpy(task.positives)
    identities = torch.from_numpy(task.identities)
    old = None if task.old_positives is None else torch.from_numpy(task.old_positives)
    weigh: dict[str, Any] = {"temperature": temperature, "negatives": negatives}
    with fixed_threads(task.threads), torch.random.fork_rng(devices=[]):
        torch.manual_seed(task.seed)
        network = Recurrent(task.anchors.shape[1], task.width, task.loops, **shape).train()

        def loss(first: Tensor, second: Tensor, rows: Tensor) -> Tensor:
            # One pass for both sides: batch norm must see the two as one population, as it will when it is frozen.
            codes = code_of(network(torch.cat([first, second])))
            sides = codes[: len(first)], codes[len(first) :]
            if old is None:
                return embedding_to_embedding(*sides, identities[rows], **weigh)
            return compatible(*sides, old[rows], identities[rows], old_weight=old_weight, **weigh)

        descent.run(network, loss, anchors, positives, task.seed, task.progress)
        noise = _noise(network.eval(), task, descent.noise)
    return save_artifact(
        task.folder,
        {**network.state_dict(), NOISE: noise},
        options={**task.options, **shape},
        training={
            "pairs": len(anchors),
            **descent.record(),
            **weigh,
            **({} if old is None else {"old_weight": old_weight}),
            "seed": task.seed,
            "seconds": round(time.monotonic() - started, 2),
        },
        **task.artifact,
    )


def _noise(network: Recurrent, task: CodecTask, noise: float) -> Tensor:
    """(u + 1, m) float32: root mean square of what activations differ by between the sides of a pair."""
    draw = np.random.default_rng(task.seed)
    rows = draw.permutation(len(task.anchors))[:_NOISE_ROWS]
    first, second = (
        torch.from_numpy(noisy(side[rows], noise, draw)) for side in (task.anchors, task.positives)
    )
    with torch.inference_mode():
        differences: Tensor = network(first) - network(second)
        return differences.square().mean(dim=0).sqrt().clamp(min=1e-6).clone()


def load(manifest: Manifest, tensors: Mapping[str, Tensor]) -> NetworkCodec:
    """The codec of an artifact."""
    options = manifest.options
    network = Recurrent(
        options["source_dim"],
        manifest.dim,
        options["loops"],
        options["hidden"],
        options["layers"],
        options["residual"],
    )
    network.load_state_dict({name: value for name, value in tensors.items() if name != NOISE})
    return NetworkCodec(manifest, network, tensors[NOISE])
