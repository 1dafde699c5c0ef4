"""GradInit on a deep network without normalisation: how its objective falls, and what an iteration costs."""
