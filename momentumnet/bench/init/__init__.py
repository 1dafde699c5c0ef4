"""How well networks train after one epoch and at best, by how they were initialised."""
