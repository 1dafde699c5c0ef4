"""Fitting a training step into a budget of bytes: what each part takes is measured, how each is kept is chosen."""
