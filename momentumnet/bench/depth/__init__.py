"""Memory and time against depth, for several ways to train the same blocks."""
