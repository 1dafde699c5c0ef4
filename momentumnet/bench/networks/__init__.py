"""Networks that benchmarks train and measure."""
