"""What residual blocks and streams are, and how they are found."""

from momentumnet.streams.block import ResidualStream
from momentumnet.streams.discover import Discovery, discover, find_streams
from momentumnet.streams.explain import Rejection

__all__ = ["Discovery", "Rejection", "ResidualStream", "discover", "find_streams"]
