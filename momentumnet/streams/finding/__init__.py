"""Streams in a recorded forward, what lies outside of them, and why a block is in none."""
