"""Runs the command line: ``python -m momentumnet``."""

import sys

from momentumnet.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
