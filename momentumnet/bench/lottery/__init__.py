"""Accuracy against sparsity, of lottery tickets and their two controls."""
