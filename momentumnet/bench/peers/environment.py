"""Virtual environments for peers: packages of their own, PyTorch from the environment that runs."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import torch

from momentumnet.errors import MomentumNetError

PIP_SECONDS = 600


class NoEnvironmentError(MomentumNetError):
    """A virtual environment could not be made."""


class InstallationError(Exception):
    """A peer's package could not be installed; the message is pip's last word."""


class Environment:
    """A virtual environment in ``folder``, made if there is none.

    It sees the packages of the running environment behind its own, so that nothing big is downloaded, and a package of
    its own of the same name comes first.

    Raises:
        NoEnvironmentError: The environment cannot be made there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()
        windows = sys.platform == "win32"
        self.python = self._folder / ("Scripts/python.exe" if windows else "bin/python")
        if not self.python.exists():
            self._make()

    def _make(self) -> None:
        done = _run([sys.executable, "-m", "venv", str(self._folder)])
        if done.returncode:
            raise NoEnvironmentError(f"no virtual environment could be made in {self._folder}: {_last_line(done)}")
        shared = {str(Path(torch.__file__).parents[1]), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
        (self._packages() / "running-environment.pth").write_text("".join(f"{path}\n" for path in sorted(shared)))

    def _packages(self) -> Path:
        done = _run([str(self.python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"])
        return Path(done.stdout.strip())

    def install(self, requirements: Sequence[str]) -> None:
        """Installs the packages that are not there yet.

        Raises:
            InstallationError: pip failed.
        """
        pip = [str(self.python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements]
        try:
            done = _run(pip, timeout=PIP_SECONDS)
        except subprocess.TimeoutExpired:
            raise InstallationError(f"pip was not done after {PIP_SECONDS} s") from None
        if done.returncode:
            raise InstallationError(_last_line(done))


def _run(command: Sequence[str], timeout: float | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout)


def _last_line(done: subprocess.CompletedProcess[str]) -> str:
    lines = (done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}").splitlines()
    errors = [line for line in lines if line.startswith("ERROR")]
    return (errors or lines)[-1]
