"""What changes the rule of streams over the steps of a training."""
