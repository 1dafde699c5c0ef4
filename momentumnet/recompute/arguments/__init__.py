"""The arguments of one call, kept without their history."""
