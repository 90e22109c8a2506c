"""Sparse training: which weights are removed (masks), and layers that learn it (variational dropout)."""
