"""From a model and an example to a measured step."""
