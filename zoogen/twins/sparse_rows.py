"""Between the rows that train and the rows that are stored: the parent's layout, removed weights 0, a mask.

A pruned model trains in its parent's layout. Variational dropout trains one more number per weight, log sigma2, so its
rows are longer; a tensor of the parent has the same name in both.

Shape suffixes: M models, P parameters of a row, W prunable weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from zoogen.core.errors import UserError
from zoogen.core.layout import Entry, Layout
from zoogen.train.sparsify.methods import VariationalDropout
from zoogen.train.sparsify.variational import kl_divergence, log_alpha


@dataclass(frozen=True)
class Stored:
    """Rows as they are stored: ``weights`` float32 [M, P], ``kept`` bool [M, W]; of variational dropout also
    ``log_alpha`` float32 [M, W] and ``kl`` float64 [M]."""

    weights: np.ndarray
    kept: np.ndarray
    log_alpha: np.ndarray | None = None
    kl: np.ndarray | None = None


class SparseRows:
    """Translates rows of one cohort.

    Args:
        stored: The parent's layout.
        training: The layout that trains.
        method: Of the cohort.

    Raises:
        UserError: layers with noise of their own share a weight.
    """

    def __init__(self, stored: Layout, training: Layout, method: object) -> None:
        self._stored = stored
        self._training = training
        self._method = method
        self._entries = {e.name: e for e in training.entries}
        self._refuse_tied()
        parts = [np.arange(o.offset, o.offset + o.size) for e in stored.entries if (o := self._float(e)) is not None]
        self._places_P = np.concatenate(parts)

    def _float(self, entry: Entry) -> Entry | None:
        """The entry of the same name in the layout that trains, for a float32 tensor."""
        return self._entries[entry.name] if entry.dtype == "float32" else None

    def _refuse_tied(self) -> None:
        """A weight that one layer removes and another keeps has no one value to store."""
        for alias, name in self._training.aliases.items():
            if alias.endswith("weight") and f"{alias.removesuffix('weight')}log_sigma2" in self._entries:
                raise UserError(
                    f"{alias} and {name} are one tensor, and variational dropout gives each layer noise of its own\n"
                    "prune these models (method.name: magnitude), or choose others with --where"
                )

    def put(self, rows: np.ndarray, weights_MP: np.ndarray) -> np.ndarray:
        """Training rows whose parent's tensors are ``weights_MP``."""
        found = rows.copy()
        found[:, self._places_P] = weights_MP
        return found

    def without_noise(self, rows: np.ndarray) -> np.ndarray:
        """Rows that evaluate as if nothing were ever removed."""
        found = rows.copy()
        for e in self._training.entries:
            if e.name.rpartition(".")[2] in ("log_sigma2", "log_sigma2_bias"):
                found[:, e.offset : e.offset + e.size] = -1e9
        return found

    def weights(self, rows: np.ndarray) -> np.ndarray:
        """The parent's tensors of training rows, float32 [M, P], as they train."""
        return rows[:, self._places_P]

    def read(self, rows: np.ndarray, kept_MW: np.ndarray | None) -> Stored:
        """Training rows as they are stored."""
        weights = self.weights(rows)
        if not isinstance(self._method, VariationalDropout):
            assert kept_MW is not None
            return Stored(weights, kept_MW)
        alphas, kl = [], np.zeros(len(rows))
        for e in self._stored.entries:
            place = slice(e.offset, e.offset + e.size)
            for own in self._alphas(e, rows):
                kl += kl_divergence(own.double()).sum(dim=1).numpy()
                removed = (own >= self._method.threshold).numpy()
                weights[:, place][removed] = 0
                if e in self._stored.prunable:
                    alphas.append(own.numpy())
        # A prunable tensor without noise (the projection inside attention, say) keeps all its weights.
        alpha_MW = np.concatenate(alphas, axis=1)
        return Stored(weights, alpha_MW < self._method.threshold, alpha_MW, kl)

    def _alphas(self, e: Entry, rows: np.ndarray) -> list[torch.Tensor]:
        """Log alpha [M, n] of a stored tensor; for a prunable one without noise, -infinity."""
        owner, _, leaf = e.name.rpartition(".")
        name = f"{owner}.log_sigma2" if owner else "log_sigma2"
        noise = {"weight": self._entries.get(name), "bias": self._entries.get(f"{name}_bias")}.get(leaf)
        own = self._entries[e.name]
        if noise is None:
            return [torch.full((len(rows), e.size), -torch.inf)] if e in self._stored.prunable else []
        assert isinstance(self._method, VariationalDropout)
        linear = own.module == "VariationalLinear"
        bound = self._method.clamp_linear if linear else self._method.clamp_conv
        weight, sigma = (torch.from_numpy(rows[:, x.offset : x.offset + x.size]) for x in (own, noise))
        return [log_alpha(weight, sigma, bound)]
