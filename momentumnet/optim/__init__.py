"""Training beside the optimizers of PyTorch."""
