"""Many trainings from one file: a grid or a list of settings and seeds, on the cores here or on a Ray cluster."""
