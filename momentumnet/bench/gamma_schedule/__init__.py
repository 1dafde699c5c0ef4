"""Fine-tuning while gamma, or Dr2Net's coefficients, change: how far, and over how many steps."""
