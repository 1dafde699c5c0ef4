"""Gradient error, memory and time beside other reversible libraries."""
