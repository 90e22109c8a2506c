"""From bytes to tensors, running no code: torch's files, pickles, safetensors, NumPy's matrices."""
