"""What a plan says, saves and draws; from there back to a model, and whether it is the one that it was made for."""
