"""Foreign networks and names of tensors -> ours, where the records say all that it takes."""
