"""CUDA sources: compiled without a toolkit, and where they cannot be, said and passed over."""

import pytest
from torch.utils import cpp_extension

from bayesmem.ops.triton import cuda_source


def test_no_toolkit_is_needed_for_sources_without_headers(monkeypatch):
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", None)
    with pytest.raises(OSError, match="CUDA_HOME"):
        cpp_extension.include_paths("cuda")  # what PyTorch asks before it compiles
    with cuda_source.without_toolkit():
        assert cpp_extension.include_paths("cuda")
    assert cpp_extension.CUDA_HOME is None
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", "/opt/cuda")
    with cuda_source.without_toolkit():
        assert cpp_extension.CUDA_HOME == "/opt/cuda"
    for source in cuda_source.HERE.glob("*.cu"):
        assert "#include" not in source.read_text()


def test_what_does_not_compile_is_said_and_passed_over(monkeypatch):
    def fails(source, name, compute_capability):
        assert source.startswith("#define K 4\n") and name == "decode_cluster" and cpp_extension.CUDA_HOME is not None
        raise RuntimeError("no such architecture")

    monkeypatch.setattr(cpp_extension, "CUDA_HOME", None)
    monkeypatch.setattr("torch.cuda._compile_kernel", fails)
    monkeypatch.setattr("torch.cuda.device", lambda device: cuda_source.without_toolkit())
    monkeypatch.setattr("bayesmem.ops.triton.cuda_source.limits", lambda device: type("L", (), {"capability": (9, 0)}))
    with pytest.warns(UserWarning, match="decode_cluster did not compile .no such architecture.; the slower Triton"):
        assert cuda_source.compiled("decode_cluster", ("decode_cluster.cu",), {"K": 4}, 0) is None
    assert cpp_extension.CUDA_HOME is None
