"""All models of a cohort trained as one program, with a model axis M."""
