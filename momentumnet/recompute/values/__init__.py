"""What objects, containers and tensors hold: compared, copied, put back."""
