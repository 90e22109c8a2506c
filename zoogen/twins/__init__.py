"""A parent's checkpoint -> a sparse trajectory: any trainer, started from the parent and read out as sparse weights."""
