"""Files written whole, and checkpoints of a run that may be killed."""
