"""Dynamic token normalisation (Shao et al., ICLR 2022): layer norm mixed with statistics over neighbouring tokens.

Per head h with its slice x^h of the channels, gate lambda^h in (0, 1) and P^h, (T, T), whose rows sum to 1:

    mu^h      = lambda^h mu_LN + (1 - lambda^h) P^h x^h
    sigma2^h  = lambda^h sigma2_LN + (1 - lambda^h) [P^h (x^h)^2 - (P^h x^h)^2]
    y         = gamma (x - mu) / sqrt(sigma2 + eps) + beta
    P^h       = softmax over sources of (dx, dy, dx^2 + dy^2) a^h,   (dx, dy) = target - source on the grid

The released module differs from the publication, so each difference is an option; the defaults are as released:
`pre_rms` divides every head's slice of every token by its root mean square first, `gates` two instead of one a head,
`unbiased_var` divides the layer norm's variance by C - 1. As published: False, "one", False.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

LARGEST_GRID = 14
"""Edge of the largest grid that P is computed on; a larger one is average-pooled for the statistics of P."""
_SMALLEST_POOLED = 4
_GATES = ("one", "two")
_ROUNDING = 1e-6
"""How far below zero E[x^2] - E[x]^2 may come out, of a second moment up to 1 and in proportion above; or T' times the
precision's step, where that is more: a sum of T' products may be off by so much."""


class DynamicTokenNorm(nn.Module):
    """(B, T, width) -> the same shape and dtype; T = grid * grid tokens, row by row. Statistics in float32,
    in float64 for tokens of float64 and without `pre_rms`.

    Args:
        width: channels of a token; a multiple of `heads`.
        heads: each has its gates and its P.
        grid: edge of the token grid.
        variance_only: centre by layer norm's mean and mix only the variance; there is no gate of the mean then.
        pre_rms, gates, unbiased_var: see the module.
        eps: added to the mean square and to the variance.

    Raises ValueError for options that cannot be, and in `forward` for tokens that are not that grid.
    """

    offsets: Tensor

    def __init__(
        self,
        width: int,
        heads: int,
        grid: int,
        *,
        variance_only: bool = False,
        pre_rms: bool = True,
        gates: str = "two",
        unbiased_var: bool = True,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"heads {heads} must divide width {width}")
        if gates not in _GATES:
            raise ValueError(f"gates must be one or two a head, not {gates!r}")
        self.heads, self.grid, self.eps = heads, grid, eps
        self.pre_rms, self.correction = pre_rms, int(unbiased_var)
        self.variance_only = variance_only
        self.pool = pool_of(grid)
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.variance_gate = nn.Parameter(torch.zeros(heads))
        two = gates == "two" and not variance_only
        self.mean_gate = nn.Parameter(torch.zeros(heads)) if two else None
        self.position = nn.Linear(3, heads)
        # It shifts all sources alike, so the softmax drops it: there because the released module has it, but not trained,
        # for its gradient is rounding that AdamW would make as large as any other.
        self.position.bias.requires_grad_(False)
        self._start_positions()
        # Integers: a cast of the network to bfloat16 must not round distances.
        self.register_buffer("offsets", grid_offsets(grid // self.pool), persistent=False)
        self._cached: tuple[tuple[object, ...], Tensor] | None = None

    def forward(self, tokens: Tensor) -> Tensor:
        """See the class."""
        if tokens.shape[1] != self.grid**2:
            raise ValueError(self._misfit(tokens.shape[1]))
        with torch.autocast(tokens.device.type, enabled=False):  # differences of squares need the bits
            # Without the division tokens may differ by orders of magnitude: then float32 has too few.
            wide = tokens.float() if self.pre_rms and tokens.dtype != torch.float64 else tokens.double()
            return self._normalised(wide).to(tokens.dtype)

    def weights_of_positions(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """P, (heads, T', T'), rows sum to 1; T' = T, or fewer where the grid is pooled. Carries gradients in training.

        It depends on weights alone: outside of training, without gradients, it is computed once. A weight that is
        changed in place, loaded, moved or cast is noticed; one that is written through `.data` in evaluation is not.
        """
        weight = self.position.weight
        if self.training or torch.is_grad_enabled() or weight.is_inference():
            return self._positions(dtype)
        key = (weight, weight._version, weight.data_ptr(), weight.dtype, weight.device, dtype, self.offsets)
        cached = self._cached  # read once: several threads may encode
        if cached is not None and all(
            a is b if isinstance(a, Tensor) else a == b for a, b in zip(cached[0], key, strict=True)
        ):
            return cached[1]
        with torch.inference_mode(mode=False), torch.no_grad():
            found = self._positions(dtype)
        self._cached = key, found
        return found

    def train(self, mode: bool = True) -> DynamicTokenNorm:
        """Training or evaluation; forgets the cached P."""
        self._cached = None
        super().train(mode)
        return self

    def _start_positions(self) -> None:
        """Heads 1 to floor(sqrt(H))^2 look at the offsets of a square, the rest at random."""
        edge = int(self.heads**0.5)
        nn.init.trunc_normal_(self.position.weight, std=0.02)
        nn.init.zeros_(self.position.bias)
        with torch.no_grad():
            for head in range(edge**2):
                dy, dx = head % edge - (edge - 1) / 2, head // edge - (edge - 1) / 2
                self.position.weight[head] = torch.tensor([2 * dx, 2 * dy, -1.0])

    def _positions(self, dtype: torch.dtype) -> Tensor:
        scores = nn.functional.linear(
            self.offsets.to(dtype), self.position.weight.to(dtype), self.position.bias.to(dtype)
        )
        return scores.permute(2, 0, 1).softmax(dim=2)

    def _normalised(self, tokens: Tensor) -> Tensor:
        B, T, C = tokens.shape
        by_head = tokens.reshape(B, T, self.heads, -1)
        if self.pre_rms:
            by_head = by_head * torch.rsqrt(by_head.square().mean(dim=3, keepdim=True) + self.eps)
        layer_variance, layer_mean = torch.var_mean(
            by_head, dim=(2, 3), correction=self.correction, keepdim=True
        )
        near_mean, near_variance = self._by_position(by_head)
        variance_gate = self._open(self.variance_gate, tokens)
        mean_gate = variance_gate if self.mean_gate is None else self._open(self.mean_gate, tokens)
        mean = layer_mean if self.variance_only else torch.lerp(near_mean, layer_mean, mean_gate)
        variance = torch.lerp(near_variance, layer_variance, variance_gate)
        out = ((by_head - mean) * torch.rsqrt(variance + self.eps)).reshape(B, T, C)
        return torch.addcmul(self.bias.to(out.dtype), out, self.weight.to(out.dtype))

    def _by_position(self, by_head: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance under P of (B, T, heads, D), each of that shape."""
        B, _, H, D = by_head.shape
        # The variance does not change when all tokens of a picture move; its rounding error does.
        middle = by_head.mean(dim=1, keepdim=True)
        moved = by_head - middle
        moments = self._pooled(torch.cat([moved, moved.square()], dim=3))
        columns = moments.permute(2, 1, 0, 3).reshape(H, -1, B * 2 * D)
        near = torch.bmm(self.weights_of_positions(columns.dtype), columns)
        near = self._repeated(near.view(H, -1, B, 2 * D).permute(2, 1, 0, 3))
        mean, second = near[..., :D], near[..., D:]
        variance = second - mean.square()
        rounding = max(_ROUNDING, columns.shape[1] * torch.finfo(columns.dtype).eps)
        assert (torch.add(variance, second.clamp_min(1.0), alpha=rounding).amin() >= 0).item(), (
            "a variance is below zero by more than rounding, or not a number: the tokens diverged"
        )
        return mean + middle, variance

    def _pooled(self, moments: Tensor) -> Tensor:
        """(B, T, heads, D) averaged over squares of `pool` x `pool` tokens."""
        if self.pool == 1:
            return moments
        B, _, H, D = moments.shape
        edge = self.grid // self.pool
        cells = moments.reshape(B, edge, self.pool, edge, self.pool, H, D)
        return cells.mean(dim=(2, 4)).reshape(B, edge * edge, H, D)

    def _repeated(self, moments: Tensor) -> Tensor:
        """What `_pooled` averaged, given to every token of its square."""
        if self.pool == 1:
            return moments
        B, _, H, D = moments.shape
        edge = self.grid // self.pool
        cells = moments.reshape(B, edge, 1, edge, 1, H, D)
        return cells.expand(B, edge, self.pool, edge, self.pool, H, D).reshape(B, self.grid**2, H, D)

    def _misfit(self, count: int) -> str:
        more = (
            " A class token has no place on the grid: append it after the layers with dynamic token normalisation."
            if count == self.grid**2 + 1
            else ""
        )
        return (
            f"dynamic token normalisation was made for a square grid of {self.grid} x {self.grid} = {self.grid**2} tokens, "
            f"not for {count}.{more}"
        )

    @staticmethod
    def _open(gate: Tensor, like: Tensor) -> Tensor:
        return gate.to(like.dtype).sigmoid()[:, None]


def pool_of(grid: int) -> int:
    """Edge of the squares that a grid is pooled by: 1 up to 14 x 14, else the smallest that leaves no more than that.

    Raises ValueError for a grid without such squares, such as 17 x 17.
    """
    if grid < 1:
        raise ValueError(f"a grid of {grid} x {grid} tokens has none")
    pool = next(each for each in range(1, grid + 1) if grid % each == 0 and grid // each <= LARGEST_GRID)
    if pool > 1 and grid // pool < _SMALLEST_POOLED:
        raise ValueError(
            f"a grid of {grid} x {grid} tokens is above {LARGEST_GRID} x {LARGEST_GRID} and cannot be pooled evenly into "
            f"{_SMALLEST_POOLED} to {LARGEST_GRID} squares an edge: choose another patch or size"
        )
    return pool


def grid_offsets(grid: int) -> Tensor:
    """(T, T, 3) int32: (dx, dy, dx^2 + dy^2), the place of token t less that of token s, counted row by row."""
    place = torch.arange(grid * grid)
    x, y = place % grid, place // grid
    dx, dy = x[:, None] - x[None, :], y[:, None] - y[None, :]
    return torch.stack([dx, dy, dx.square() + dy.square()], dim=2).int()


def gates_of(network: nn.Module) -> Iterator[nn.Parameter]:
    """The gates of all dynamic token normalisations in a network: weight decay would pull them to one half."""
    for module in network.modules():
        if isinstance(module, DynamicTokenNorm):
            yield module.variance_gate
            if module.mean_gate is not None:
                yield module.mean_gate


def extra_parameters(heads: int, *, gates: str = "two", variance_only: bool = False) -> int:
    """Parameters of one dynamic token normalisation beyond a layer norm's: 6 a head as released, else 5."""
    return (6 if gates == "two" and not variance_only else 5) * heads


def extra_multiply_adds(width: int, grid: int) -> int:
    """Multiply-adds a picture of one dynamic token normalisation for P x and P x^2: 2 width T'^2.

    T' is the number of tokens, after pooling where the grid is above 14 x 14. Computing P is not in it: in evaluation
    it is done once, in training once a batch (3 heads T'^2).
    """
    return 2 * width * (grid // pool_of(grid)) ** 4
