"""The momentum step's bandwidth beside that of a plain addition."""
