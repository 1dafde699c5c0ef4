"""The command line is run in these tests, too."""

from tests.cli.conftest import _no_network_and_an_empty_folder, command, photos

__all__ = ["_no_network_and_an_empty_folder", "command", "photos"]
