"""Entry point of the command line: arguments, exit codes, and what an error looks like."""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Sequence

from momentumnet.cli import bench, doctor, evaluate, export, finetune, inspect, predict
from momentumnet.cli.errors import CommandError, MachineError
from momentumnet.errors import MomentumNetError, StorageError

EXTRA_MODULES = ("rich", "matplotlib", "sklearn", "safetensors")
DESCRIPTION = """\
Train residual networks with less memory: momentumnet converts them into Momentum ResNets, whose backward pass
computes activations again, bit for bit, instead of storing them."""
EPILOG = """\
examples:
  momentumnet inspect resnet50                    which blocks can be converted, and the memory that this saves
  momentumnet finetune                            fine-tune a converted ResNet-18 on handwritten digits (minutes)
  momentumnet finetune --data photos --compare    the same on a folder of images, beside the unconverted network
  momentumnet evaluate runs/resnet18-digits       accuracy and confusion matrix of what was trained
  momentumnet predict runs/resnet18-digits 7.png  what the network takes an image for
  momentumnet bench depth                         memory and time against depth, with a plot
  momentumnet doctor                              what is installed, which native kernels run, and what is missing

exit status: 0 done, 1 it could not be done (one message says why), 2 options or files that cannot be used, 3 the
machine lacks what is needed (a full disk, a folder that cannot be written to), 130 interrupted"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: Command line without the program's name; None for that of the process.

    Returns:
        The exit status: 0 done, 130 interrupted; 1, 2 and 3 after a message on stderr, as the program's help says.
        Wrong arguments leave through ``SystemExit`` with status 2, as argparse does it.
    """
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning  # type: ignore[assignment]  # only the message matters
            options.run(options)
    except StorageError as error:
        return _fail(str(error), MachineError.status)
    except MomentumNetError as error:
        return _fail(str(error), getattr(error, "status", CommandError.status))
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module not in EXTRA_MODULES:
            raise
        return _fail(f'this command needs {module}, which is not installed: pip install "momentumnet[cli]"')
    except KeyboardInterrupt:
        print("momentumnet: interrupted", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="momentumnet",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in (inspect, finetune, evaluate, predict, export, bench, doctor):
        command.add_parser(commands)
    return parser


def _fail(message: str, status: int = CommandError.status) -> int:
    print(f"momentumnet: error: {message}", file=sys.stderr)
    return status


def _show_warning(message: Warning | str, *_: object) -> None:
    print(f"momentumnet: warning: {message}", file=sys.stderr)
