"""Memory and time of one training step, for several ways to train the same network."""
