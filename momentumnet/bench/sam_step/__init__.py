"""What a step of SAM costs beside its two passes: time and memory."""
