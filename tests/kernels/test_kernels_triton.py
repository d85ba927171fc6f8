"""The Triton kernels: their facts under the interpreter and on a card, and their compilation without one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton", reason="the kernels need Triton")

from backcast.kernels import _triton, dense, kron, sjlt  # noqa: E402

FACTS = Path(__file__).with_name("triton_facts.py")


def run_facts(interpret: bool) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    if interpret:
        environment |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", str(FACTS)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\d\d passed", done.stdout), done.stdout


def test_the_facts_under_the_interpreter():
    run_facts(interpret=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_facts_on_the_card():
    run_facts(interpret=False)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kind", ["kron", "sjlt", "dense"])
def test_the_card_agrees_with_the_cpu(kind):
    from backcast.kernels import SketchSpec, sketcher

    X, D = torch.randn(3, 50, 70), torch.randn(3, 50, 90)
    results = []
    for device in ("cpu", "cuda"):
        layer = sketcher(SketchSpec(kind, 256), "layer", 90, 70, device)
        results.append(layer.sketch(layer.keep(X.to(device)), D.to(device)).cpu())
    assert (results[0] - results[1]).norm() < 1e-5 * results[0].norm()


def pointers(**names: str) -> dict[str, str]:
    return {name: f"*{dtype}" for name, dtype in names.items()}


PROJECT = {"FEATURES": 4096, "K": 64}
DENSE = {"K": 4096, "SPAN": 1024, "BLOCK_B": 16, "BLOCK_N": 32}
#: The launches that the ops make: kernel, pointers, constants.
LAUNCHES = {
    "project in bf16": (
        kron._project_kernel,
        pointers(X="bf16", P="bf16", OUT="fp32"),
        PROJECT | {"UPCAST": False, "BLOCK_M": 64, "BLOCK_I": 64, "BLOCK_K": 64},
    ),
    "project in fp32": (
        kron._project_kernel,
        pointers(X="fp32", P="bf16", OUT="fp32"),
        PROJECT | {"UPCAST": True, "BLOCK_M": 32, "BLOCK_I": 32, "BLOCK_K": 32},
    ),
    "gram": (
        kron._gram_kernel,
        pointers(V="fp32", U="fp32", OUT="fp32"),
        {"KO": 128, "KI": 64, "BLOCK_T": 32, "BLOCK_O": 32, "BLOCK_I": 32},
    ),
    "sjlt": (sjlt._sjlt_kernel, pointers(G="fp32", TURNS="i64", PARTIAL="fp32"), {"K": 1000, "BLOCK": 256}),
    "dense_jl in bf16": (
        dense._dense_jl_kernel,
        pointers(G="bf16", PARTIAL="fp32"),
        DENSE | {"UPCAST": False},
    ),
    "dense_jl in fp32": (
        dense._dense_jl_kernel,
        pointers(G="fp32", PARTIAL="fp32"),
        DENSE | {"UPCAST": True},
    ),
    "sum_splits": (_triton._sum_splits_kernel, pointers(PARTIAL="fp32", OUT="fp32"), {"BLOCK": 256}),
}


@pytest.mark.skipif("TRITON_INTERPRET" in os.environ, reason="the interpreter does not compile")
@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("launch", LAUNCHES)
def test_kernels_compile_without_spills(launch, arch, tmp_path, monkeypatch):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    kernel, pointer_types, constants = LAUNCHES[launch]
    names = kernel.arg_names
    types = pointer_types | dict.fromkeys(constants, "constexpr")
    source = ASTSource(
        fn=kernel,
        signature={name: types.get(name, "i64") for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in pointer_types},
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options={"num_warps": 4})
    assert bytes_on_stack(compiled.asm["cubin"], tmp_path / "kernel.cubin") == 0
    if launch == "project in bf16" and arch == 90:
        assert "wgmma" in compiled.asm["ptx"]


def bytes_on_stack(cubin: bytes, path: Path) -> int:
    path.write_bytes(cubin)
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    usage = subprocess.run([tool, "-res-usage", path], capture_output=True, text=True, check=True).stdout
    return sum(map(int, re.findall(r"(?:STACK|LOCAL):(\d+)", usage)))
