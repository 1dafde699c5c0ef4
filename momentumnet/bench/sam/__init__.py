"""Accuracy and flatness by optimizer, with right labels and with wrong ones."""
