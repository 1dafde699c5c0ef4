"""Whole channels and blocks that leave a network."""
