"""Where texts are from, for the benchmarks that train language models: a file of one's own, or what is installed."""

from __future__ import annotations

from importlib import resources
from pathlib import Path


def python_topics() -> str:
    """The language reference that comes with Python for ``help()``: some 465,000 characters, other ones by version.

    Raises:
        OSError: This installation of Python has it not.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise OSError("this Python comes without pydoc_data, the text of help(); give a text with --text") from None
    return "\n".join(topics[name] for name in sorted(topics))


def data_set_descriptions() -> str:
    """What scikit-learn says of its data sets, in files that come with it: 43 kB."""
    folder = resources.files("sklearn.datasets.descr")
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".rst")), key=lambda file: file.name)
    return "\n\n".join(file.read_text(encoding="utf-8") for file in files)


def read_text(path: Path) -> str:
    """A file in UTF-8.

    Raises:
        ValueError: It is not in UTF-8.
        OSError: It cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8: {error}") from error
