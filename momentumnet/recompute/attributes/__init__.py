"""What stands on a call's modules, parameters among it, and what the call leaves there."""
