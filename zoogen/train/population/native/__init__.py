"""A cohort's network as generated C: one model per vector lane, whole epochs without Python."""
