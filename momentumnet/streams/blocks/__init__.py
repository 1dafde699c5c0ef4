"""Converted blocks: they know their role in a stream."""
