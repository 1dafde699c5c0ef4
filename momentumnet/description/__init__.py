"""What a converted model is, as plain data."""
