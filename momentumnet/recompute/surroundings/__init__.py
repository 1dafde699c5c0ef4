"""What holds around a call: generators, autocast, modes, PyTorch's switches, choices made inside."""
