"""What a call saves for backward: dropped, collected in a recompute, compared, filled in; or in host memory."""
