"""Lottery tickets: rounds of training and pruning."""
