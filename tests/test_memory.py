"""Peak and saved bytes that are measured, against those that can be counted by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.profiler import record_function
from torch.utils.checkpoint import checkpoint

from momentumnet.memory import MemoryReport, format_bytes, measure_memory

FLOAT = 4
LOSS = 2 * FLOAT  # a scalar loss and its gradient


def exponentials(x: torch.Tensor, count: int) -> torch.Tensor:
    for _ in range(count):
        x = x.exp()  # saves its result and nothing else
    return x


def test_linear_tanh_chain_saves_each_tanh_result() -> None:
    batch, width, depth = 8, 32, 5
    chain = nn.Sequential(*[layer for _ in range(depth) for layer in (nn.Linear(width, width), nn.Tanh())])
    x = torch.randn(batch, width)

    report = measure_memory(lambda: chain(x).sum().backward())

    # The linear maps save their inputs, which are the results of tanh or x itself, and weights, which were there.
    assert report.saved_bytes == depth * batch * width * FLOAT + LOSS


def test_memory_freed_during_backward_is_seen_at_once() -> None:
    count, depth = 1000, 10
    x = torch.zeros(count, requires_grad=True)

    report = measure_memory(lambda: exponentials(x, depth).sum().backward())

    assert report.saved_bytes == depth * count * FLOAT + LOSS
    # One gradient more than the saved results: each step of backward makes one and releases one and a saved result.
    assert report.peak_bytes == (depth + 1) * count * FLOAT + LOSS


def test_peak_in_the_middle() -> None:
    def fn() -> torch.Tensor:
        kept = torch.empty(100)
        big = torch.empty(50_000)
        del big
        torch.empty(20_000)
        return kept

    assert measure_memory(fn) == MemoryReport(peak_bytes=50_100 * FLOAT, saved_bytes=100 * FLOAT)


def test_return_value_counts_as_saved_without_backward() -> None:
    assert measure_memory(lambda: torch.empty(10)).saved_bytes == 10 * FLOAT
    assert measure_memory(lambda: [torch.empty(10), {"b": torch.empty(5)}]).saved_bytes == 15 * FLOAT
    assert measure_memory(lambda: torch.empty(10).numel()) == MemoryReport(peak_bytes=10 * FLOAT, saved_bytes=0)


def test_forward_alone_holds_what_backward_needs() -> None:
    x = torch.zeros(1000, requires_grad=True)
    assert measure_memory(lambda: exponentials(x, 3).sum()).saved_bytes == 3 * 1000 * FLOAT + FLOAT
    with torch.no_grad():
        assert measure_memory(lambda: exponentials(x, 3).sum()).saved_bytes == FLOAT


def test_a_range_of_the_users_does_not_begin_the_backward_pass() -> None:
    x = torch.zeros(1000, requires_grad=True)

    def step() -> None:
        with record_function("forward"):
            loss = exponentials(x, 3).sum()
        loss.backward()

    assert measure_memory(step).saved_bytes == 3 * 1000 * FLOAT + LOSS


def test_view_holds_its_storage() -> None:
    assert measure_memory(lambda: torch.empty(10, 100)[0]).saved_bytes == 1000 * FLOAT


def test_view_of_older_memory_is_free() -> None:
    x = torch.empty(1000)
    assert measure_memory(lambda: x.view(10, 100)) == MemoryReport(peak_bytes=0, saved_bytes=0)


def test_resize_in_place() -> None:
    report = measure_memory(lambda: torch.empty(100).resize_(1000))
    assert report == MemoryReport(peak_bytes=1100 * FLOAT, saved_bytes=1000 * FLOAT)


def test_releasing_older_memory_is_not_subtracted() -> None:
    old = [torch.empty(1000)]

    def fn() -> torch.Tensor:
        old.clear()
        return torch.empty(10)

    assert measure_memory(fn) == MemoryReport(peak_bytes=10 * FLOAT, saved_bytes=10 * FLOAT)


def test_releasing_memory_of_an_earlier_measurement_is_not_subtracted() -> None:
    kept: list[torch.Tensor] = []
    measure_memory(lambda: kept.append(torch.empty(1000)))

    def fn() -> torch.Tensor:
        kept.clear()
        return torch.empty(10)

    assert measure_memory(fn).saved_bytes == 10 * FLOAT


def test_workspace_inside_an_operation_is_seen() -> None:
    channels, size, double = 4, 16, 8
    convolution = nn.Conv2d(channels, channels, 3, padding=1, bias=False).double()
    x = torch.randn(1, channels, size, size).double()
    with torch.no_grad():
        report = measure_memory(lambda: convolution(x))
    # In float64 the CPU unfolds the image into a matrix of all 3x3 patches, which no operation returns.
    assert report.saved_bytes == channels * size**2 * double
    assert report.peak_bytes == report.saved_bytes + 9 * channels * size**2 * double


def test_memory_made_in_unpack_is_seen() -> None:
    x = torch.zeros(10, requires_grad=True)

    def fn() -> None:
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: torch.ones(1000).sum() * t):
            y = x.exp()
        y.sum().backward()

    assert measure_memory(fn).peak_bytes >= 1000 * FLOAT
    assert measure_memory(fn).saved_bytes == 10 * FLOAT + LOSS


class Doubled(torch.autograd.Function):
    """Twice the input, with work memory of 1000 floats in forward and 3000 in backward."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: torch.Tensor) -> torch.Tensor:
        torch.empty(1000)
        return x + x

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        torch.empty(3000)
        return gradient + gradient


def test_memory_made_in_a_custom_function_is_seen() -> None:
    x = torch.zeros(10, requires_grad=True)
    assert measure_memory(lambda: Doubled.apply(x)).peak_bytes == 1000 * FLOAT
    # The doubled tensor is gone by then (nothing saves it); the loss and its gradient are alive.
    assert measure_memory(lambda: Doubled.apply(x).sum().backward()).peak_bytes == 3000 * FLOAT + LOSS


def test_checkpoint_saves_the_segment_inputs() -> None:
    count, segments = 1000, 4
    x = torch.zeros(count, requires_grad=True)

    def fn() -> None:
        y = x
        for _ in range(segments):
            y = checkpoint(exponentials, y, 3, use_reentrant=False, preserve_rng_state=False)
        total = y.sum()
        del y
        total.backward()

    report = measure_memory(fn)
    # The first input was there before; the recomputed segment holds its three results and two gradients at most.
    assert report.saved_bytes == (segments - 1) * count * FLOAT + LOSS
    assert (segments + 2) * count * FLOAT <= report.peak_bytes <= (segments + 4) * count * FLOAT + LOSS


def test_first_backward_counts() -> None:
    x = torch.zeros(100, requires_grad=True)

    def fn() -> None:
        exponentials(x, 1).sum().backward()
        exponentials(x, 7).sum().backward()

    assert measure_memory(fn).saved_bytes == 100 * FLOAT + LOSS


def test_autograd_grad_starts_a_backward() -> None:
    x = torch.zeros(100, requires_grad=True)
    report = measure_memory(lambda: torch.autograd.grad(exponentials(x, 4).sum(), x))
    assert report.saved_bytes == 4 * 100 * FLOAT + LOSS


def test_agrees_with_the_saved_tensors_of_a_network() -> None:
    models = pytest.importorskip("torchvision.models")
    model = models.resnet18(weights=None)
    x = torch.randn(2, 3, 32, 32)
    older = {t.untyped_storage().data_ptr() for t in [x, *model.parameters(), *model.buffers()]}
    storages: dict[int, int] = {}

    def pack(t: torch.Tensor) -> torch.Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in older:
            storages[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss = model(x).sum()
    del loss
    report = measure_memory(lambda: model(x).sum().backward())
    assert report.saved_bytes == sum(storages.values()) + LOSS


def test_many_allocations() -> None:
    assert measure_memory(lambda: [torch.empty(2) for _ in range(20_000)]).saved_bytes == 20_000 * 2 * FLOAT


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_and_cpu_are_summed() -> None:
    x = torch.zeros(1000, requires_grad=True)
    y = torch.zeros(1024, device="cuda", requires_grad=True)

    def fn() -> None:
        (x.exp().sum() + y.exp().sum().cpu()).backward()

    fn()
    report = measure_memory(fn)
    # 1024 floats are a multiple of the 512 bytes that CUDA blocks come in; the sums are gone, the loss is on the CPU.
    assert report.saved_bytes == 1000 * FLOAT + 1024 * FLOAT + LOSS


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_agrees_with_the_allocator() -> None:
    model = nn.Sequential(*[nn.Linear(256, 256) for _ in range(4)]).cuda()
    x = torch.randn(64, 256, device="cuda")
    model(x).sum().backward()  # gradients and library workspaces exist from here on

    def fn() -> None:
        model(x).sum().backward()

    report = measure_memory(fn)
    torch.cuda.reset_peak_memory_stats()
    start = torch.cuda.memory_allocated()
    fn()
    assert report.peak_bytes == torch.cuda.max_memory_allocated() - start


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (1536, "1.50 KiB"),
        (10 * 1024**2, "10.0 MiB"),
        (3 * 1024**4, "3.00 TiB"),
    ],
)
def test_format_bytes(count: int, text: str) -> None:
    assert format_bytes(count) == text


def test_report_prints_both_figures() -> None:
    assert str(MemoryReport(2048, 1024)) == "peak 2.00 KiB, held between forward and backward 1.00 KiB"
