"""The package's name in each line of its log, also where nobody has set up logging."""

from __future__ import annotations

import logging
import sys


class LastResort(logging.StreamHandler):  # type: ignore[type-arg]
    """Python's handler of last resort writes the message alone; this one, in its place, says whose it is.

    It is silent wherever a handler has been set up, which has a format of its own.
    """

    def __init__(self, logger: logging.Logger) -> None:
        super().__init__()
        self.setLevel(logging.WARNING)
        self.setFormatter(logging.Formatter("%(name)s: %(message)s"))
        self._logger = logger

    def emit(self, record: logging.LogRecord) -> None:
        if not self._others():
            self.setStream(sys.stderr)  # as it is now
            super().emit(record)

    def _others(self) -> bool:
        """Whether another handler gets what the logger is told."""
        logger: logging.Logger | None = self._logger
        while logger is not None:
            if any(handler is not self for handler in logger.handlers):
                return True
            logger = logger.parent if logger.propagate else None
        return False


def name_the_package() -> None:
    """Put a `LastResort` at the package's logger, once."""
    logger = logging.getLogger("momentumnet")
    if not any(isinstance(handler, LastResort) for handler in logger.handlers):
        logger.addHandler(LastResort(logger))
