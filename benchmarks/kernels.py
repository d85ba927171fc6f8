"""How near do the GPU kernels come to what the card can do, and how do they compare with their peers?

Times are medians by `triton.testing.do_bench`, with inputs taken in turn from several sets that together are larger
than the L2 cache. ``limit_ms`` is what the op would take at the card's copy bandwidth or its rate of bfloat16 products,
whichever is longer, both measured on this card in the same run; it counts each input and output once. The last rows are
of a Llama of 1.2 billion random weights: the collection of a batch's sketches against a training step's forward and
backward, whose two thirds are its limit.

``--check`` times nothing: it runs every row's code once at small shapes and compares with float64, on a card or, where
there is none, under Triton's interpreter.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from common import DEVICE, Row, write
from torch import Tensor, nn

from backcast.attribution.collect import tracked
from backcast.attribution.gradients.capture import GradientCapture
from backcast.attribution.gradients.opened import opened
from backcast.kernels import KINDS, SketchSpec, sketcher
from backcast.kernels.dense import dense_jl_reference, dense_jl_triton
from backcast.kernels.embedding import embedding_sketch_reference, embedding_sketch_triton
from backcast.kernels.ghost import (
    ghost_dot_reference,
    ghost_dot_triton,
    ghost_norm_reference,
    ghost_norm_triton,
)
from backcast.kernels.kron import (
    factors,
    kron_sketch_reference,
    kron_sketch_triton,
    project_reference,
    project_triton,
)
from backcast.kernels.random import signs
from backcast.kernels.sjlt import sjlt_reference, sjlt_triton
from backcast.kernels.tile import (
    AdamDirection,
    tile_adam_sketch_reference,
    tile_adam_sketch_triton,
    tile_sketch_reference,
    tile_sketch_triton,
)
from backcast.tasks import Batch, CausalLMTask

KEY = 12345
ADAM = AdamDirection.adam(0.9, 0.999, 1e-8, step=100)
#: The most that a kernel's result may differ from float64's, relative to its norm.
TOLERANCE = 1e-5

#: Takes a set of inputs.
Function = Callable[..., Tensor]


@dataclass(frozen=True)
class Shape:
    """B examples of T tokens through an O × I weight, sketched to k numbers."""

    B: int
    T: int
    I: int  # noqa: E741
    O: int  # noqa: E741
    k: int

    def inputs(self, dtype: torch.dtype = torch.bfloat16) -> tuple[Tensor, Tensor]:
        """X (B, T, I) and D (B, T, O)."""
        return normal(self.B, self.T, self.I, dtype=dtype), normal(self.B, self.T, self.O, dtype=dtype)


#: Of the timings, and of ``--check``.
LARGE, SMALL = Shape(8, 1024, 4096, 4096, 8192), Shape(2, 9, 24, 40, 16)


@dataclass(frozen=True)
class Case:
    """An op at one shape.

    Attributes:
        inputs: makes a set of inputs.
        run: the Triton kernel.
        reference: what it must give, from inputs in float64.
        flops: of the products that there are at least.
        peers: name → what makes the peer's function, which takes the same inputs; it raises where the peer cannot run.
    """

    op: str
    shape: str
    inputs: Callable[[], tuple[Tensor, ...]]
    run: Function
    reference: Function
    flops: int
    peers: Mapping[str, Callable[[], Function]] = field(default_factory=dict)


def normal(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(shape, device=DEVICE, dtype=torch.float32).to(dtype)


def cases(s: Shape) -> Iterator[Case]:
    """Every op. Those of flat gradients take the gradients of this shape; the others' sizes are told in the row."""
    B, T, I, O, k = s.B, s.T, s.I, s.O, s.k  # noqa: E741
    layer = f"B={B} T={T} I={I} O={O} k={k}"
    product = 2 * B * T * I * O

    yield Case(
        "tile_sketch",
        layer,
        s.inputs,
        lambda X, D: tile_sketch_triton(X[None], D[None], k, [KEY])[0],
        lambda X, D: tile_sketch_reference(X[None], D[None], k, [KEY])[0],
        product,
        {"torch.bmm": lambda: bmm, "torch.bmm + sjlt": partial(bmm_then_sjlt, s)},
    )
    yield Case(
        "tile_adam_sketch",
        layer,
        lambda: (*s.inputs(), normal(1, O, I), normal(1, O, I).square()),
        lambda X, D, m, v: tile_adam_sketch_triton(X[None], D[None], m, v, k, [KEY], ADAM)[0],
        lambda X, D, m, v: tile_adam_sketch_reference(X[None], D[None], m, v, k, [KEY], ADAM)[0],
        product,
        {"torch.bmm": lambda: bmm, "torch.bmm, then the direction": lambda: bmm_then_direction},
    )

    k_o, k_i = factors(k)
    P_o, P_i = (signs(KEY + side, n, m, DEVICE).bfloat16() for side, n, m in ((0, O, k_o), (1, I, k_i)))
    yield Case(
        "project + kron_sketch",
        layer,
        s.inputs,
        lambda X, D: kron_sketch_triton(project_triton(X, P_i), D, P_o),
        lambda X, D: kron_sketch_reference(project_reference(X, P_i), D, P_o),
        2 * B * T * (I * k_i + O * k_o + k),
        {"torch.matmul": lambda: lambda X, D: (D @ P_o).mT @ (X @ P_i)},
    )

    yield Case(
        "sjlt",
        f"B={B} N={O * I} k={k}",
        lambda: (normal(B, O * I),),
        lambda g: sjlt_triton(g, k, KEY),
        lambda g: sjlt_reference(g, k, KEY),
        0,
        {"sjlt": partial(their_sjlt, O * I, k)},
    )
    batch, n, dim = 4 * B, O * I // 4, k // 4
    yield Case(
        "dense_jl",
        f"B={batch} N={n} k={dim} float16",
        lambda: (normal(batch, n, dtype=torch.float16),),
        lambda g: dense_jl_triton(g, dim, KEY),
        lambda g: dense_jl_reference(g, dim, KEY),
        2 * batch * n * dim,
        {"fast_jl": partial(fast_jl, dim)},
    )

    yield Case(
        "embedding_sketch",
        f"B={B} T={T} E={I} k={k}",
        lambda: (torch.randint(128_000, (B, T), device=DEVICE), normal(B, T, I)),
        lambda ids, D: embedding_sketch_triton(ids, D, k, KEY),
        lambda ids, D: embedding_sketch_reference(ids, D, k, KEY),
        0,
    )
    short = Shape(B, -(-T // 4), I, O, k)
    tokens = f"B={B} T={short.T} I={I} O={O}"
    yield Case(
        "ghost_dot",
        f"A={B} U={short.T} {tokens}",
        lambda: (*short.inputs(), *short.inputs()),
        ghost_dot_triton,
        ghost_dot_reference,
        2 * B * B * short.T**2 * (I + O),
        {"torch.bmm, then G Hᵀ": lambda: lambda X, D, Y, E: bmm(X, D).flatten(1) @ bmm(Y, E).flatten(1).mT},
    )
    yield Case(
        "ghost_norm",
        tokens,
        short.inputs,
        ghost_norm_triton,
        ghost_norm_reference,
        B * short.T**2 * (I + O),  # half of the pairs of tokens
        {"torch.bmm, then its norms": lambda: lambda X, D: bmm(X, D).flatten(1).norm(dim=1)},
    )


# The peers.


def bmm(X: Tensor, D: Tensor, *moments: Tensor) -> Tensor:
    """The gradients (B, O, I), and no sketch of them."""
    return torch.bmm(D.mT, X)


def bmm_then_direction(X: Tensor, D: Tensor, m: Tensor, v: Tensor) -> Tensor:
    return ADAM(bmm(X, D), m, v)


def bmm_then_sjlt(s: Shape) -> Function:
    project = their_sjlt(s.O * s.I, s.k)
    return lambda X, D: project(bmm(X, D).flatten(1))


def their_sjlt(n: int, k: int) -> Function:
    """The `sjlt` package, one bucket a coordinate."""
    from sjlt import SJLTProjection

    return SJLTProjection(original_dim=n, proj_dim=k, c=1, device="cuda")


def fast_jl(k: int) -> Function:
    """TRAK's CUDA projector, in its form for 32 examples."""
    from fast_jl import project_rademacher_32

    multiprocessors = torch.cuda.get_device_properties(DEVICE).multi_processor_count
    return lambda g: project_rademacher_32(g, k, KEY, multiprocessors)


# The timings.


@dataclass(frozen=True)
class Card:
    """What this card reaches, a millisecond: bytes copied, read and written both counted, and bfloat16 operations."""

    bytes_per_ms: float
    flops_per_ms: float

    @classmethod
    def measured(cls) -> Card:
        source, n = torch.empty(2**30, dtype=torch.uint8, device=DEVICE), 8192
        copy = torch.empty_like(source)
        a, b = normal(n, n), normal(n, n)
        return cls(
            2 * source.nbytes / milliseconds(lambda: copy.copy_(source)),
            2 * n**3 / milliseconds(lambda: a @ b),
        )

    def row(self) -> Row:
        return {
            "device": torch.cuda.get_device_name(DEVICE),
            "copy_tb_per_s": self.bytes_per_ms / 1e9,
            "bfloat16_tflop_per_s": self.flops_per_ms / 1e9,
        }


def milliseconds(function: Callable[[], object], repeat_ms: int = 200) -> float:
    from triton.testing import do_bench

    return do_bench(function, warmup=repeat_ms // 4, rep=repeat_ms, return_mode="median")


def rotated(case: Case) -> Iterator[tuple[Tensor, ...]]:
    """Sets of inputs without end; together they are larger than the L2 cache."""
    sets = [case.inputs(), case.inputs()]
    cache = torch.cuda.get_device_properties(DEVICE).L2_cache_size
    sets += [case.inputs() for _ in range(2 * cache // sum(x.nbytes for x in sets[0]))]
    return itertools.cycle(sets)


def rows_of(case: Case, card: Card) -> Iterator[Row]:
    """A row a peer, or one without any."""
    sets = rotated(case)
    ms = milliseconds(lambda: case.run(*next(sets)))
    given = next(sets)
    moved = sum(x.nbytes for x in (*given, case.run(*given)))
    for name, make in case.peers.items() or [(None, None)]:
        peer_ms, note = None, None
        try:
            if make:
                function = make()
                peer_ms = milliseconds(lambda: function(*next(sets)))  # noqa: B023
        except Exception as error:  # whatever keeps a peer from running
            note = f"{name}: {first_line(error)}"
        yield {
            "op": case.op,
            "shape": case.shape,
            "ms": ms,
            "limit_ms": max(moved / card.bytes_per_ms, case.flops / card.flops_per_ms),
            "peer": name,
            "peer_ms": peer_ms,
            "times_peer": ms / peer_ms if peer_ms else None,
            "bandwidth_percent": 100 * moved / ms / card.bytes_per_ms,
            "matrix_percent": 100 * case.flops / ms / card.flops_per_ms,
            "tokens_per_s": None,
            "note": note,
            **card.row(),
        }


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"


# A whole model.


@dataclass(frozen=True)
class Subject:
    """A Llama of random weights, and a batch of random tokens."""

    model: nn.Module
    task: CausalLMTask
    batch: Batch

    @classmethod
    def of(cls, batch: int, tokens: int, dtype: torch.dtype, **config: int) -> Subject:
        # Late, for transformers asks for the Hub's package `kernels` and finds this file beside the script that runs.
        from transformers import LlamaConfig, LlamaForCausalLM

        settings = LlamaConfig(use_cache=False, tie_word_embeddings=True, **config)
        with torch.device(DEVICE):
            model = LlamaForCausalLM(settings).to(dtype).eval()
            ids = torch.randint(settings.vocab_size, (batch, tokens))
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
        return cls(model, CausalLMTask(tokenizer=None), inputs)

    def capture(self, spec: SketchSpec) -> GradientCapture:
        return GradientCapture(self.model, tracked(self.model, self.task), spec)

    def sketches(self, capture: GradientCapture) -> Tensor:
        with capture:
            return capture.sketches(self.task.loss(self.model, self.batch))

    def training_step(self) -> None:
        self.model.zero_grad()
        self.task.loss(self.model, self.batch).sum().backward()


def llama_rows(card: Card, batch: int, tokens: int, k: int) -> Iterator[Row]:
    """Collection by each kind that needs no gradient whole, against a training step, of Llama-3.2-1B's shape."""
    subject = Subject.of(
        batch,
        tokens,
        torch.bfloat16,
        vocab_size=128_256,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
    )
    step = milliseconds(subject.training_step, 4000)
    subject.model.zero_grad()
    for kind in ("kron", "tile"):
        with opened(subject.model):
            capture = subject.capture(SketchSpec(kind, k))
            ms = milliseconds(partial(subject.sketches, capture), 4000)
        yield {
            "op": f"collect, {kind}",
            "shape": f"Llama 1.2B B={batch} T={tokens} k={k}",
            "ms": ms,
            "limit_ms": step * 2 / 3,
            "peer": "training forward + backward",
            "peer_ms": step,
            "times_peer": ms / step,
            "bandwidth_percent": None,
            "matrix_percent": None,
            "tokens_per_s": batch * tokens / ms * 1000,
            "note": None,
            **card.row(),
        }


# The check.


def check() -> bool:
    """Run every row's code at small shapes; whether all results are float64's within `TOLERANCE`."""
    torch.manual_seed(0)
    errors = {case.op: check_case(case) for case in cases(SMALL)}
    errors |= {f"collect, {kind}": check_collection(kind) for kind in sorted(KINDS)}
    for name, error in errors.items():
        print(f"{name:24} {error:.1e}")
    return max(errors.values()) < TOLERANCE


def check_case(case: Case) -> float:
    """The relative error of the kernel; the peers that are part of torch run too."""
    given = case.inputs()
    for name, make in case.peers.items():
        try:
            make()(*given)
        except Exception as error:
            print(f"{case.op} without {name}: {first_line(error)}", file=sys.stderr)
    return relative(
        case.run(*given), case.reference(*(x.double() if x.is_floating_point() else x for x in given))
    )


def check_collection(kind: str) -> float:
    """The error of a small model's sketches against those of the gradients that autograd finds one by one."""
    subject = Subject.of(
        3,
        7,
        torch.float32,
        vocab_size=50,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
    )
    spec = SketchSpec(kind, SMALL.k)
    with opened(subject.model):
        found = subject.sketches(subject.capture(spec))
    subject.training_step()
    weights = {name: module.weight for name, module in tracked(subject.model, subject.task).items()}
    expected = torch.zeros_like(found, dtype=torch.float64)
    for b, loss in enumerate(subject.task.loss(subject.model, subject.batch)):
        gradients = torch.autograd.grad(loss, list(weights.values()), retain_graph=True)
        for name, G in zip(weights, gradients, strict=True):
            layer = sketcher(spec, name, *G.shape, device=DEVICE)
            one = torch.eye(G.shape[1], device=DEVICE, dtype=torch.float64)[None]
            expected[b] += layer.sketch(layer.keep(one), G.mT[None].double())[0]
    return relative(found, expected)


def relative(got: Tensor, expected: Tensor) -> float:
    return float((got.double() - expected).norm() / expected.norm())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a smaller batch for the model")
    parser.add_argument("--json", action="store_true", help="print the results as one JSON object")
    parser.add_argument("--check", action="store_true", help="run everything once at small shapes; no timing")
    chosen = parser.parse_args()
    if chosen.check:
        if DEVICE.type == "cpu" and "TRITON_INTERPRET" not in os.environ:
            os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | {"TRITON_INTERPRET": "1"})
        return 0 if check() else 1
    if DEVICE.type == "cpu":
        print(
            "benchmarks/kernels.py times a CUDA card, and there is none; here it runs with --check",
            file=sys.stderr,
        )
        return 2
    card = Card.measured()
    rows = [row for case in cases(LARGE) for row in rows_of(case, card)]
    rows += llama_rows(card, batch=2 if chosen.quick else 8, tokens=1024, k=8192)
    write("kernels", rows, chosen.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
