"""Predicted and measured memory of planned training steps."""
