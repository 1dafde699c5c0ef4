"""What the commands do that train a model and use it: models, data, recipe, training, and the folder of a run."""
