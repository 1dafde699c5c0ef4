"""Passes through a stream: how they begin, how a block is called on its way, how they are differentiated."""
