"""The couplings: the momentum rule, and those whose next x goes by the two before."""
