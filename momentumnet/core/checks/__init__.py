"""What backward has reconstructed, compared at its end; what a CUDA graph cannot read."""
