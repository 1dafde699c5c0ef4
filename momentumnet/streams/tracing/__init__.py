"""One forward of a model, recorded and undone."""
