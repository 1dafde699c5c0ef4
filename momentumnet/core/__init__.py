"""The reversible engine: exact arithmetic, the momentum coupling, the replay of one call, and the tape."""
