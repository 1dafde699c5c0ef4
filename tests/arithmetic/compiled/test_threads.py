"""Which OpenMP library the CPU kernels share: the one that PyTorch uses, whatever else is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from momentumnet.arithmetic.compiled import libraries

TORCH = Path(torch.__file__).resolve().parent
PACKAGES = TORCH.parent
MAPS = "7f00{number:02}000-7f00{number:02}fff r-xp 00000000 08:01 {number}                    {path}\n"


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the system lists no loaded libraries in /proc")
@pytest.mark.parametrize(
    ("loaded", "first"),
    [
        ([PACKAGES / "scikit_learn.libs/libgomp-1.so", TORCH / "lib/libgomp.so.1"], TORCH / "lib/libgomp.so.1"),
        ([PACKAGES / "a.libs/libgomp.so", PACKAGES / "torch.libs/libgomp.so"], PACKAGES / "torch.libs/libgomp.so"),
        ([PACKAGES / "scikit_learn.libs/libgomp.so", Path("/usr/lib/libgomp.so")], Path("/usr/lib/libgomp.so")),
        ([Path("/home/a user/lib/libiomp5.so")], Path("/home/a user/lib/libiomp5.so")),
    ],
    ids=["of torch", "beside torch", "of the system", "a blank in the path"],
)
def test_the_one_of_pytorch_comes_first(monkeypatch: pytest.MonkeyPatch, loaded: list[Path], first: Path) -> None:
    lines = [MAPS.format(number=number, path=path) for number, path in enumerate([*loaded, "/usr/lib/libc.so"])]
    monkeypatch.setattr(
        Path, "read_text", lambda self: "".join([*lines, "7f0099000-7f0099fff rw-p 00000000 00:00 0\n"])
    )
    found = list(libraries._openmp_libraries())
    assert found[0] == str(first)
    assert sorted(found) == sorted(map(str, loaded))
