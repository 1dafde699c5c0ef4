"""Whole trainings: recipes, loops, optimizers and initialisations."""
