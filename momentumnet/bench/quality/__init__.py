"""Accuracy, memory and time against depth: residual networks, and Momentum ResNets made of them in several ways."""
