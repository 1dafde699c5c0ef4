"""Masks: on a model, in state dicts, by scores, and how far apart they are."""
