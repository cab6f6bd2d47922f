"""A DLRM as people write it: a table per id, a bottom MLP, pairwise dots, a top MLP."""

from itertools import pairwise

import torch
from torch import Tensor, nn


def mlp(*widths: int) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    layers: list[nn.Module] = []
    for width, after in pairwise(widths):
        layers += [nn.Linear(width, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class DLRM(nn.Module):
    """Chance that a user likes a film (Naumov et al. 2019, arXiv:1906.00091)."""

    pairs: Tensor

    def __init__(self, table_sizes: tuple[int, ...], genres: int, dense: int, dim: int = 32) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(size, dim) for size in table_sizes)
        self.genres = nn.Linear(genres, dim, bias=False)
        self.bottom = mlp(dense, 256, 128, dim)
        vectors = len(table_sizes) + 2
        row, column = torch.tril_indices(vectors, vectors, offset=-1)
        self.register_buffer("pairs", row * vectors + column, persistent=False)
        self.top = mlp(dim + len(row), 512, 256, 128, 1)
        for table in self.tables:
            nn.init.normal_(table.weight, std=0.02)  # type: ignore[arg-type]

    def forward(self, ids: Tensor, genres: Tensor, dense: Tensor) -> Tensor:
        """ids: [rows, tables], genres: [rows, genres], dense: [rows, features] → score: [rows]"""
        bottom = torch.relu(self.bottom(dense))
        sparse = [table(ids[:, i]) for i, table in enumerate(self.tables)]
        vectors = torch.stack([bottom, *sparse, self.genres(genres)], dim=1)  # [rows, vectors, dim]
        dots = torch.bmm(vectors, vectors.transpose(1, 2)).flatten(1)  # [rows, vectors * vectors]
        together = torch.cat([bottom, dots.index_select(1, self.pairs)], dim=1)
        return torch.sigmoid(self.top(together)).squeeze(1)
