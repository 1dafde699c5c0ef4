"""Making a call again: arguments, generators, buffers and autocast as they were, saved tensors dropped and refilled."""
