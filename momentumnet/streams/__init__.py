"""What residual blocks and streams are, and how they are found."""

from momentumnet.streams.blocks.block import ResidualStream
from momentumnet.streams.finding.discover import Discovery, discover, find_streams
from momentumnet.streams.finding.explain import Rejection

__all__ = ["Discovery", "Rejection", "ResidualStream", "discover", "find_streams"]
