"""What a page tells a reader to run runs: the Python blocks of each page, in order, in one process, offline."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# The mark of a block that is not run, in the line above it, and the reasons that there may be.
NOT_RUN = re.compile(r"<!-- not run: (.+) -->")
# What a newcomer reads runs always; MOMENTUMNET_PAGES=others runs the rest, in a step of its own in .ci/run.
FIRST = ("README", "index", "convert", "choosing-gamma", "fit-your-gpu", "errors", "coming-from")
EXTRAS = {"transformers": "hf", "timm": "hf", "peft": "hf", "lightning": "lightning", "sklearn": "cli"}

WITHOUT_NETWORK = """
import socket, sys

def refused(*args, **kwargs):
    raise OSError("a page's code asks for the network")

socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refused
page, place = sys.argv[1:]
exec(compile(open(page).read(), place, "exec"), {"__name__": "__main__"})
"""


def blocks(text: str) -> tuple[str, list[str]]:
    """The Python of a page, each line at its place, and the reasons of the blocks that are left out."""
    kept: list[str] = []
    reasons: list[str] = []
    inside: str | None = None
    above = ""
    for line in text.splitlines():
        fence = re.fullmatch(r"\s*```(\w*)", line)
        code = ""
        if fence and inside is None:
            inside = fence[1] or "text"
            mark = NOT_RUN.fullmatch(above)
            if inside == "python" and mark:
                reasons.append(mark[1])
                inside = "left out"
        elif fence:
            inside = None
        elif inside == "python":
            code = line
        kept.append(code)
        above = line.strip() or above
    return "\n".join(kept) + "\n", reasons


def missing(program: str) -> list[str]:
    packages = re.findall(r"^(?:import|from) (\w+)", program, re.MULTILINE)
    return sorted({EXTRAS[name] for name in packages if name in EXTRAS and importlib.util.find_spec(name) is None})


RUNNING = [page for page in PAGES if blocks(page.read_text())[0].strip()]


@pytest.mark.parametrize("page", RUNNING, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_blocks_of_a_page_run(page: Path, tmp_path: Path) -> None:
    chosen = os.environ.get("MOMENTUMNET_PAGES", "first")
    if chosen != ("first" if page.stem in FIRST else "others"):
        pytest.skip(
            f"MOMENTUMNET_PAGES is {chosen!r}: 'first' (the default) runs {', '.join(FIRST)}, 'others' the rest"
        )
    program, _ = blocks(page.read_text())
    extras = missing(program)
    if extras:
        pytest.skip(f"pip install 'momentumnet[{','.join(extras)}]'")
    source = tmp_path / "page.py"
    source.write_text(program)
    quiet = {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-W", "error:::momentumnet", "-c", WITHOUT_NETWORK, str(source), str(page)],
        cwd=tmp_path,
        env={**os.environ, **quiet},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


def test_the_errors_page_shows_errors(tmp_path: Path) -> None:
    """What it says is refused is: a block whose cause has been mended would print nothing, and pass."""
    program = ast.parse(blocks((ROOT / "docs" / "errors.md").read_text())[0])
    shown = [node for node in program.body if isinstance(node, ast.Try)]
    for node in shown:
        node.orelse = ast.parse("raise AssertionError('nothing was refused')").body
    assert len(shown) >= 4
    (tmp_path / "errors.py").write_text(ast.unparse(program))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "errors.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_blocks_that_are_not_run_say_why() -> None:
    """All of them, so that a new one is a decision."""
    reasons = {reason for page in PAGES for reason in blocks(page.read_text())[1]}
    assert reasons <= {
        "needs torchrun; examples/finetune_distributed.py is run by the tests",
        "needs a GPU",
        "code of another package, to be replaced",
    }


def test_lines_of_a_page_keep_their_places() -> None:
    text = "a\n```python\nx = 1\n```\n<!-- not run: for a test -->\n```python\ny = 2\n```\n```bash\nz\n```\n"
    assert blocks(text) == ("\n\nx = 1\n\n\n\n\n\n\n\n\n", ["for a test"])


def test_a_block_that_fails_is_seen(tmp_path: Path) -> None:
    """The check itself: the network is refused, and an error is an error."""
    for program in ("import socket\nsocket.create_connection(('localhost', 9))", "raise ValueError"):
        (tmp_path / "page.py").write_text(program)
        command = [sys.executable, "-c", WITHOUT_NETWORK, str(tmp_path / "page.py"), "page"]
        assert subprocess.run(command, capture_output=True).returncode
