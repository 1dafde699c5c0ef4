"""Couplings beside each other: what each keeps of a pretrained network, takes, and comes to."""
