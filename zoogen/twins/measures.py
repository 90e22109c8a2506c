"""How a twin compares with its parent: agreement of their predictions, distance of their weights, layer sparsity."""

from __future__ import annotations

import numpy as np

from zoogen.core.layout import Layout

TWIN_METRICS: dict[str, str] = {
    "sparsity": "Share of the prunable weights (of convolutions and linear layers) that are removed.",
    "layer_sparsity": "The same for each prunable tensor, in the order of the layout. [tensors]",
    "agreement": "Share of test samples for which twin and parent predict the same class.",
    "kappa": "Cohen's kappa of these predictions: agreement beyond what the class frequencies give by chance.",
    "distance": "L2 distance of all trained parameters to the parent's checkpoint.",
    "cosine_distance": "1 - cosine of the angle between the trained parameters and the parent's.",
    "kl": "KL divergence of all noisy weights from their prior, in nats; variational dropout only.",
}
"""Column -> meaning, beside those of ``zoogen.train.metrics.METRICS``, for every checkpoint of a twin."""


def agreement(predictions_MN: np.ndarray, parents_MN: np.ndarray) -> np.ndarray:
    """Share of equal predictions, float64 [M]; NaN without samples."""
    same_MN = predictions_MN == parents_MN
    return same_MN.mean(axis=1) if same_MN.size else np.full(len(same_MN), np.nan)


def cohens_kappa(predictions_MN: np.ndarray, parents_MN: np.ndarray) -> np.ndarray:
    """(p_o - p_e) / (1 - p_e), float64 [M] (Cohen 1960); 1 where both always predict one and the same class."""
    if not predictions_MN.size:
        return np.full(len(predictions_MN), np.nan)
    classes = int(max(predictions_MN.max(), parents_MN.max())) + 1
    observed = agreement(predictions_MN, parents_MN)
    found = np.ones(len(observed))
    for m, (own, other) in enumerate(zip(predictions_MN, parents_MN, strict=True)):
        shares = np.bincount(own, minlength=classes) / len(own), np.bincount(other, minlength=classes) / len(other)
        expected = float(shares[0] @ shares[1])
        if expected < 1:
            found[m] = (observed[m] - expected) / (1 - expected)
    return found


def distances(weights_MP: np.ndarray, parents_MP: np.ndarray, layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    """L2 and cosine distance of the trained parameters, float64 [M] each; NaN for the angle of a zero vector."""
    own, other = (w[:, : layout.trainable].astype(np.float64) for w in (weights_MP, parents_MP))
    norms = np.linalg.norm(own, axis=1) * np.linalg.norm(other, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        cosines = (own * other).sum(axis=1) / norms
    return np.linalg.norm(own - other, axis=1), 1 - cosines


def layer_sparsities(kept_MW: np.ndarray, layout: Layout) -> np.ndarray:
    """Share of removed weights of every prunable tensor, float64 [M, tensors]."""
    ends = np.cumsum([e.size for e in layout.prunable])[:-1]
    return np.stack([part.mean(axis=1) for part in np.split(~kept_MW, ends, axis=1)], axis=1)
