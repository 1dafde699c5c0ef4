"""The peers, and the runs of their scripts in processes of their own."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from momentumnet import memory
from momentumnet.bench.peers.environment import Environment, InstallationError
from momentumnet.bench.reporting.results import Row

SCRIPTS = Path(__file__).with_name("scripts")
NOT_FINITE = "the gradient is not finite"
SECONDS = 1800  # a peer that is not done by then is ended

Run = tuple[int, float | None]


@dataclass(frozen=True)
class Peer:
    """A way to train without stored activations.

    Attributes:
        name: In tables and plots.
        script: Builds its networks; see `momentumnet.bench.peers.scripts.worker`.
        rule: "momentum", or "additive", which has no gamma.
        requirements: What pip installs for it; empty for what runs in this environment.
    """

    name: str
    script: Path
    rule: str
    requirements: tuple[str, ...] = ()


PEERS = (
    Peer("this package", SCRIPTS / "run_momentumnet.py", "momentum"),
    Peer("torch.utils.checkpoint", SCRIPTS / "run_checkpoint.py", "momentum"),
    Peer("momentumnet 0.10", SCRIPTS / "run_momentumnet.py", "momentum", ("momentumnet==0.10",)),
    Peer("revlib, momentum_net", SCRIPTS / "run_revlib_momentum_net.py", "momentum", ("revlib==1.7.2",)),
    Peer("revlib, coupling of its README", SCRIPTS / "run_revlib_coupling.py", "momentum", ("revlib==1.7.2",)),
    Peer("revlib, additive", SCRIPTS / "run_revlib_additive.py", "additive", ("revlib==1.7.2",)),
    Peer("memcnn, additive", SCRIPTS / "run_memcnn.py", "additive", ("memcnn==1.5.2",)),
)


@contextmanager
def environment_for(peers: Sequence[Peer], folder: Path | None) -> Iterator[Environment | None]:
    """An environment for those of the peers that need one, in ``folder`` or for this context only; None if none does.

    Raises:
        NoEnvironmentError: It cannot be made.
    """
    if not any(peer.requirements for peer in peers):
        yield None
    elif folder is not None:
        yield Environment(folder)
    else:
        with tempfile.TemporaryDirectory(prefix="momentumnet-peers-") as temporary:
            yield Environment(Path(temporary, "venv"))


def runs_of(peer: Peer, depths: Sequence[int], gammas: Sequence[float]) -> list[Run]:
    """The networks that a peer is measured on; one without a gamma runs once at each depth."""
    if peer.rule == "additive":
        return [(depth, None) for depth in depths]
    return [(depth, gamma) for gamma in gammas for depth in depths]


def measure(peer: Peer, runs: Sequence[Run], settings: Mapping[str, Any], environment: Environment | None) -> list[Row]:
    """One row for each run of a peer: what the worker measured, or ``error``.

    Args:
        peer: The peer.
        runs: Depth and gamma of each network.
        settings: Further settings of the worker.
        environment: Where its requirements are installed; None runs it in the present one.
    """
    python = sys.executable
    if environment is not None:
        try:
            environment.install(peer.requirements)
        except InstallationError as error:
            return _rows(peer, runs, {}, missing=f"could not be installed: {error}")
        python = str(environment.python)
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "rows.jsonl")
        values = {
            **settings,
            "script": str(peer.script),
            "memory": memory.__file__,
            "output": str(output),
            "runs": runs,
        }
        missing = _process(python, values, Path(folder), own=environment is None)
        lines = output.read_text().splitlines() if output.exists() else []
    found = {(row.pop("depth"), row.pop("gamma")): row for row in map(json.loads, lines)}
    return _rows(peer, runs, found, missing=missing)


def _process(python: str, settings: Mapping[str, Any], folder: Path, *, own: bool) -> str:
    """Runs the worker to its end; returns why there may be rows missing."""
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if own:
        # A peer of this environment sees what this process sees; one of another must not find this package first.
        variables["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    command = [python, str(SCRIPTS / "worker.py"), json.dumps(settings)]
    try:
        done = subprocess.run(
            command, cwd=folder, env=variables, capture_output=True, text=True, check=False, timeout=SECONDS
        )
    except subprocess.TimeoutExpired:
        return f"was not done after {SECONDS} s"
    last = (done.stderr.strip().splitlines() or [""])[-1]
    return f"ended with status {done.returncode}: {last}"


def _rows(peer: Peer, runs: Sequence[Run], found: Mapping[Run, Row], *, missing: str) -> list[Row]:
    rows = []
    for depth, gamma in runs:
        row = found.get((depth, gamma), {"error": missing})
        rows.append({"peer": peer.name, "rule": peer.rule, "depth": depth, "gamma": gamma, **_finite(row)})
    return rows


def _finite(row: Row) -> Row:
    """The row with None for NaN and infinity, which JSON does not know; a gradient that is not finite is an error."""
    values = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()
    }
    if "error" not in row and values["gradient_error"] is None:
        values["error"] = NOT_FINITE
    return values
