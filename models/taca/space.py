"""The map P from the new model's dimensions to the old one's: linear, with a small MLP beside it where that is asked for."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_RIDGE = 1e-3
"""Of the least squares that the map starts from, as a share of the mean square of the features."""


class SpaceMap(nn.Module):
    """(B, source_dim) -> (B, dim), neither normalised. The MLP adds nothing at first.

    Args:
        hidden: width of the MLP's hidden layer; 0: no MLP.
    """

    def __init__(self, source_dim: int, dim: int, hidden: int = 0) -> None:
        super().__init__()
        self.linear = nn.Linear(source_dim, dim)
        self.mlp: nn.Module | None = None
        if hidden:
            last = nn.Linear(hidden, dim, bias=False)
            nn.init.zeros_(last.weight)
            self.mlp = nn.Sequential(nn.Linear(source_dim, hidden), nn.GELU(), last)

    def forward(self, features: Tensor) -> Tensor:
        """See the class."""
        mapped: Tensor = self.linear(features)
        return mapped if self.mlp is None else mapped + self.mlp(features)

    def start_from(self, new: Tensor, old: Tensor) -> None:
        """Sets the linear part to the ridge regression of (n, dim) old on (n, source_dim) new embeddings of the same items."""
        mean_new, mean_old = new.mean(0).double(), old.mean(0).double()
        source, target = new.double() - mean_new, old.double() - mean_old
        gram = source.T @ source
        gram += _RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
        weight = torch.linalg.solve(gram, source.T @ target).T
        with torch.no_grad():
            self.linear.weight.copy_(weight)
            self.linear.bias.copy_(mean_old - weight @ mean_new)


def map_parameters(source_dim: int, dim: int, hidden: int = 0) -> int:
    """Parameters of the map: d_n d_o + d_o, and with an MLP of h hidden units d_n h + h + h d_o more."""
    return source_dim * dim + dim + hidden * (source_dim + 1 + dim)
