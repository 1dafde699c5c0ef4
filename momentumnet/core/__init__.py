"""The reversible engine: exact arithmetic, the momentum coupling, replay of one call, the tape and its autograd hooks."""
