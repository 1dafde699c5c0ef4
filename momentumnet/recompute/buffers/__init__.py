"""Buffers of a call's modules, and the statistics of batch norms."""
