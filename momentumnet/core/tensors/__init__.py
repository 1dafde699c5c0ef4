"""Tensors that streams carry: found by identity, packed together, under transforms and in inference mode."""
