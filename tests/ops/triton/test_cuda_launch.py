"""The launch of CUDA kernels: what the driver is given, with another library in its place."""

import ctypes
from contextlib import nullcontext

import pytest
import torch

from bayesmem.ops.triton import cuda_launch, decode_cluster
from bayesmem.ops.triton.device import Device

POINTER, WHOLE = ctypes.c_void_p, ctypes.c_uint


class Driver:
    """Notes what is launched, reads the arguments as a kernel would, and answers with ``answer``."""

    def __init__(self):
        self.seen, self.answer, self.kinds = [], 0, ()
        kind = ctypes.CFUNCTYPE(ctypes.c_int, POINTER, *[WHOLE] * 7, POINTER, ctypes.POINTER(POINTER), POINTER)
        self.cuLaunchKernel = kind(self.launched)

    def launched(self, function, *rest):
        *shape, stream, places, extra = rest
        args = [ctypes.cast(place, ctypes.POINTER(k))[0] for place, k in zip(places, self.kinds, strict=False)]
        self.seen.append((function, shape, stream, args, extra))
        return self.answer

    def cuGetErrorString(self, code, told):
        told._obj.value = b"invalid argument"
        return 0


class Kernel:
    """As PyTorch's."""

    def __init__(self, func):
        self.func, self.called = func, []

    def __call__(self, *given, **named):
        self.called.append((given, named))


@pytest.fixture
def driver(monkeypatch):
    made = Driver()
    monkeypatch.setattr(cuda_launch, "driver", lambda: made)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(cuda_launch, "current_stream", lambda device: 70 + device)
    return made


def test_the_driver_gets_addresses_numbers_shape_and_stream(driver):
    launch = cuda_launch.launcher(Kernel(POINTER(2**40)), 1)
    x, y = torch.zeros(3), torch.zeros(2, dtype=torch.bfloat16)
    driver.kinds = (POINTER, ctypes.c_int, POINTER, ctypes.c_int)
    launch(grid=(5, 1, 1), block=(128, 1, 1), args=[x, 7, y, -2], shared_mem=9)
    launch((6, 1, 1), (64, 1, 1), [y, 8, x, 3])
    assert driver.seen == [
        (2**40, [5, 1, 1, 128, 1, 1, 9], 71, [x.data_ptr(), 7, y.data_ptr(), -2], None),
        (2**40, [6, 1, 1, 64, 1, 1, 0], 71, [y.data_ptr(), 8, x.data_ptr(), 3], None),
    ]


def test_another_device_is_made_the_current_one_meanwhile(driver, monkeypatch):
    now = [1]

    class Within(nullcontext):
        def __init__(self, device):
            super().__init__()
            now.append(device)

        def __exit__(self, *_):
            now.pop()

    monkeypatch.setattr(torch.cuda, "current_device", lambda: now[-1])
    monkeypatch.setattr(torch.cuda, "device", Within)
    cuda_launch.launcher(Kernel(POINTER(8)), 3)((1, 1, 1), (32, 1, 1), [torch.zeros(1)])
    assert [stream for _, _, stream, _, _ in driver.seen] == [73] and now == [1]


def test_what_the_driver_refuses_is_told(driver):
    driver.answer = 1
    with pytest.raises(RuntimeError, match="CUDA error 1 at a kernel's launch: invalid argument"):
        cuda_launch.launcher(Kernel(POINTER(8)), 1)((1, 1, 1), (2048, 1, 1), [torch.zeros(1)])


@pytest.mark.parametrize("lacks", ["driver", "handle"])
def test_kernels_run_as_pytorch_runs_them_where_something_is_missing(driver, monkeypatch, lacks):
    if lacks == "driver":
        monkeypatch.setattr(cuda_launch, "driver", lambda: None)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    kernel = Kernel(POINTER(8) if lacks == "driver" else None)
    cuda_launch.launcher(kernel, 0)(grid=(1, 1, 1), block=(32, 1, 1), args=[])
    assert kernel.called == [((), {"grid": (1, 1, 1), "block": (32, 1, 1), "args": []})] and not driver.seen


def test_a_token_s_launch_is_prepared_once(driver, monkeypatch):
    """By sizes alone, whichever tensors come; another kernel for other sizes, none for what cannot be."""
    made = []

    def compiled(name, sources, settings, device):
        made.append(settings)
        return cuda_launch.launcher(Kernel(POINTER(len(made))), device)

    monkeypatch.setattr(decode_cluster, "compiled", compiled)
    monkeypatch.setattr(decode_cluster, "limits", lambda device: Device((9, 0), 132, 227 * 1024))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    caches = (decode_cluster._kernel, decode_cluster._launch)
    try:
        for cache in caches:
            cache.cache_clear()
        given = ((1, 1, 64, 64), torch.bfloat16, (True, False, False))
        launch = decode_cluster._launch(8, *given, (), 1)
        assert launch is decode_cluster._launch(8, *given, (), 1)
        x = torch.zeros(4)
        launch([x])
        decode_cluster._launch(64, *given, (), 1)([x])
        decode_cluster._launch(8, *given, (("cluster", 2), ("threads", 256)), 1)([x])
        assert [(f, shape) for f, shape, *_ in driver.seen] == [
            (1, [64, 1, 1, 128, 1, 1, 0]),
            (2, [128, 1, 1, 128, 1, 1, 0]),
            (3, [16, 1, 1, 256, 1, 1, 0]),
        ]
        assert len(made) == 3
        for tuning in ((("cluster", 0),), (("num_warps", 4),)):
            assert decode_cluster._launch(8, *given, tuning, 1) is None
        assert decode_cluster._launch(8, given[0], torch.float64, given[2], (), 1) is None
        assert decode_cluster._launch(0, *given, (), 1) is None
    finally:
        for cache in caches:
            cache.cache_clear()
