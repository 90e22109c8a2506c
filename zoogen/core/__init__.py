"""Records, contracts and registries that every room shares; imports nothing of ours."""
