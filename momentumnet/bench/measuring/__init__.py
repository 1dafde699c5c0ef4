"""Memory and time of training steps, and the ways to train that are compared."""
