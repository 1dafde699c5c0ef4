"""Peak memory, launches, copies and waits of training steps on a CUDA device that is not there.

python benchmarks/hollow_device.py --output benchmarks/results

PyTorch's own CUDA code (dispatcher, caching allocator, streams, events) and the kernels of csrc/cuda.cu run on a CUDA
runtime, driver and cuBLAS whose kernels compute nothing (benchmarks/hollow_device). So the bytes that PyTorch's
allocator hands out are those of a GPU, and what is launched, copied to the host and waited for can be counted on a
machine without one. No time can be measured so, and no value is right. What the engine reads on the host is made up
(`hollow_device_values.py`).

Linux; a PyTorch for CUDA 13, CUDA's compiler nvcc of the same version, and gcc.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path

import torch
from hollow_device_build import FOLDER_VARIABLE, Missing, build, environment
from hollow_device_values import made_up_values
from torch import Tensor, nn

import momentumnet as mn
from momentumnet.arithmetic.compiled import libraries
from momentumnet.bench.measuring import methods as ways
from momentumnet.bench.measuring.probe import step_memory
from momentumnet.bench.measuring.training_step import FAILURES, TrainingStep, reason
from momentumnet.bench.networks.measured import NETWORKS, Network
from momentumnet.bench.reporting.results import Results, Row
from momentumnet.bench.reporting.tables import Table, write_markdown
from momentumnet.bench.step.planned import planned_builds

DEFAULT_NETWORKS, QUICK_NETWORKS = ("resnet50-224", "vit-l-16", "llama-24"), ("resnet50-64", "llama-4")
GAMMA, DTYPE = Fraction(1, 8), torch.bfloat16
COUNTED = ("launches", "copies_to_host", "waits")  # as hollow_counts of runtime.c gives them


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/bench"), help="folder of hollow-device.json and .md")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, metavar="NAME", help=" ".join(DEFAULT_NETWORKS))
    parser.add_argument("--quick", action="store_true", help=f"small networks: {' '.join(QUICK_NETWORKS)}")
    parser.add_argument(
        "--build", type=Path, help="folder to build the device in, and keep it (default: a temporary one)"
    )
    options = parser.parse_args()
    networks = options.networks or (QUICK_NETWORKS if options.quick else DEFAULT_NETWORKS)
    if built := os.environ.get(FOLDER_VARIABLE):
        measure(networks, options.output, Path(built))
        return
    try:
        with tempfile.TemporaryDirectory() as temporary:
            folder: Path = options.build or Path(temporary)
            build(folder)
            command = [sys.executable, *sys.argv]
            sys.exit(subprocess.run(command, env=environment(folder), check=False).returncode)
    except Missing as missing:
        sys.exit(f"hollow_device.py: {missing}")


class Counts:
    """What a step asked of the device.

    Attributes:
        last: launches of kernels, copies to the host, and waits of the host in the last step.
    """

    def __init__(self, step: TrainingStep) -> None:
        self._step, self._library = step, ctypes.CDLL(None)
        self.last: Row = {}

    def __call__(self, network: nn.Module) -> None:
        before = self._read()
        self._step(network)
        self.last = {name: count - before[name] for name, count in self._read().items()}

    def _read(self) -> dict[str, int]:
        counts = (ctypes.c_long * len(COUNTED))()
        self._library.hollow_counts(counts)
        return dict(zip(COUNTED, counts, strict=True))


def measure(names: Sequence[str], output: Path, folder: Path) -> None:
    """Measures the networks on the device, and writes the results."""
    libraries.FOLDER = folder / libraries.FOLDER.name
    torch.backends.cudnn.enabled = False
    torch.backends.cuda.enable_cudnn_sdp(False)
    warnings.simplefilter("ignore")
    settings = {"networks": list(names), "gamma": str(GAMMA), "dtype": str(DTYPE)}
    results = Results.begin(
        output / "hollow-device.json", command="hollow_device", device=torch.device("cuda"), settings=settings
    )
    with made_up_values():
        for name in names:
            torch.manual_seed(0)
            network = NETWORKS[name]
            model, step = network.build().cuda(), TrainingStep(network.example().cuda(), DTYPE)
            for method, build in builds(network).items():
                results.add([{"network": name, "method": method, **figures(model, step, build)}])
                print(f"{name}, {method}", flush=True)
    table = table_of(results)
    write_markdown(output / "hollow-device.md", [table], results.header)
    print(table.markdown())


def builds(network: Network) -> dict[str, ways.Build]:
    """By method, how to make its network."""
    found = {**ways.methods(network, [GAMMA], arithmetics=["exact"], keeping=True), **planned_builds({}, GAMMA)}
    late = {f"{name}, checked in backward": _checked_late(found[name]) for name in list(found) if "momentum" in name}
    return {**found, **late}


def _checked_late(build: ways.Build) -> ways.Build:
    """The same, whose forward reads nothing."""

    def built(model: nn.Module, x: Tensor) -> nn.Module:
        network = build(model, x)
        mn.set_range_check(network, "backward")
        return network

    return built


def figures(model: nn.Module, step: TrainingStep, build: ways.Build) -> Row:
    """What a step of one method takes, or why there is none."""
    counted = Counts(step)
    try:
        with step.autocast():
            network = build(model, step.x)
        memory = step_memory(network, counted)
        fresh = step_memory(network, partial(_afresh, step))
        row: Row = {"peak_bytes": memory.peak_bytes, "saved_bytes": memory.saved_bytes}
        return {**row, "peak_with_gradients": fresh.peak_bytes, **counted.last, "synchronises": _sync(network, step)}
    except FAILURES as error:
        return {"error": reason(error)}
    finally:
        gc.collect()
        torch.cuda.empty_cache()


def _sync(network: nn.Module, step: TrainingStep) -> str | None:
    """What `torch.cuda.set_sync_debug_mode` takes for a mistake in a step; None if nothing is."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(network)
    except RuntimeError as error:
        return str(error).partition("\n")[0]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return None


def _afresh(step: TrainingStep, network: nn.Module) -> None:
    network.zero_grad(set_to_none=True)
    step(network)


NOTES = (
    "No GPU has run this: PyTorch's own CUDA code (dispatcher, caching allocator, streams) and the kernels of "
    "csrc/cuda.cu on a CUDA runtime, driver and cuBLAS whose kernels compute nothing (benchmarks/hollow_device.py). It "
    "tells what PyTorch's allocator hands out and what is launched, copied and waited for. It tells no time, no right "
    "value, and nothing of what libraries allocate for themselves.",
    "cuDNN is off. Convolutions are PyTorch's own, with an unfolded image as work space and a few launches for each "
    "image, so the launches of ResNets are many more than a GPU's with cuDNN; attention is PyTorch's flash kernel. A "
    "product is one launch. What PyTorch gives cuBLASLt as work space counts.",
    "Peak: above what was allocated before the step, in the second of two steps, so that gradients are there before "
    "(as momentumnet bench step counts). With gradients: the same of a step that makes its gradients anew, as the "
    "budgets of plans count. Held: between forward and backward. Launches of kernels, copies to the host, and waits of "
    "the host for the device are those of the second step. Last column: a further step under "
    "torch.cuda.set_sync_debug_mode('error'), which refuses whatever waits for all that the device was asked to do.",
    "Converted networks recompute the modules outside their streams too (others='checkpoint'), but for 'others kept', "
    "the default of convert. What the engine reads on the host is made up, as where all is well: no value outgrows its "
    "scale, nothing differs, a state at rest is as wide as the values for which its scale was chosen, typical values "
    "are as large as the largest. The times by which a plan chooses among the fewest bytes are the host's: from run to "
    "run, and on a GPU, it is another plan.",
)


def table_of(results: Results) -> Table:
    """The rows for people."""
    columns = (
        "network",
        "method",
        "peak",
        "with gradients",
        "held",
        "launches",
        "copies to the host",
        "waits",
        "set_sync_debug_mode",
    )
    rows, failures = [], []
    for row in results.rows:
        name = (row["network"], row["method"])
        if "error" in row:
            rows.append((*name, "fails", *[""] * (len(columns) - 3)))
            failures.append(f"{', '.join(name)}: {row['error']}")
            continue
        bytes_taken = [f"{row[key] / 2**30:.3f} GiB" for key in ("peak_bytes", "peak_with_gradients", "saved_bytes")]
        rows.append((*name, *bytes_taken, *(str(row[key]) for key in COUNTED), row["synchronises"] or "passes"))
    return Table("A training step on a hollow device", columns, rows, (*NOTES, *failures))


if __name__ == "__main__":
    main()
