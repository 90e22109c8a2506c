"""The stacked engine: torch's own operations on tensors with a model axis, for any network that vmap can batch."""
