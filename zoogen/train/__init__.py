"""Training: a cohort of jobs in, its checkpoints out. Importing this room or its registries does not import torch."""
