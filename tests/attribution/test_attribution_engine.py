"""The collection engine: checkpointing, compiled models, autocast, packing, and the thread that writes."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import attribution_cases
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from attribution_cases import CLASSES, INPUTS, Classify, contents, examples, mlp
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.checkpoint import checkpoint

from backcast.attribution import SketchStore, collect
from backcast.attribution.collect import tracked
from backcast.attribution.gradients.capture import GradientCapture
from backcast.attribution.store import Header
from backcast.attribution.writer import WAITING, ShardWriter
from backcast.data import Example, Examples
from backcast.errors import InputError
from backcast.kernels import SketchSpec
from backcast.tasks import Batch, CausalLMTask, Task, packed

SPEC = SketchSpec("sjlt", 64)
VOCAB = 23


class Rows(CausalLMTask):
    """A causal LM's task on rows of token ids: no tokenizer."""

    def __init__(self) -> None:
        super().__init__(None)
        self.batches: list[tuple[int, int]] = []

    def length(self, example: Example) -> int:
        return len(example.fields["ids"])

    def collate(self, examples: Sequence[Example]) -> Batch:
        rows = [torch.tensor(e.fields["ids"]) for e in examples]
        pad = partial(nn.utils.rnn.pad_sequence, batch_first=True)
        batch = {"input_ids": pad(rows), "attention_mask": pad([torch.ones_like(r) for r in rows])}
        self.batches.append(tuple(batch["input_ids"].shape))
        return {**batch, "labels": pad(rows, padding_value=-100)}


def token_rows(lengths: Sequence[int]) -> Examples:
    generator = torch.Generator().manual_seed(3)
    ids = [torch.randint(1, VOCAB, (n,), generator=generator).tolist() for n in lengths]
    return Examples.from_fields([{"text": str(row), "ids": row} for row in ids])


def llama(layers: int = 2) -> nn.Module:
    """With weights large enough that gradients differ between tokens."""
    model = attribution_cases.llama(VOCAB, layers=layers)
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            nn.init.normal_(parameter, std=0.3)
    return model


def captured(model: nn.Module, task: Task, rows: Examples, spec: SketchSpec) -> Tensor:
    with GradientCapture(model, tracked(model, task), spec, task.biases) as capture:
        return capture.sketches(task.loss(model, task.collate(rows)))


# Checkpointing


class Block(nn.Module):
    """Ends in a tracked layer, so that the backward's first look back is a hook's."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 32), nn.Linear(32, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x))))


class Deep(nn.Module):
    def __init__(self, depth: int = 4, how: Callable[..., Tensor] | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(Block(INPUTS) for _ in range(depth))
        self.head = nn.Linear(INPUTS, CLASSES)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = self.how(block, x) if self.how else block(x)
        return self.head(x)


class Small(Classify):
    """Norms and biases count too: parts that keep much, and one that runs its module again."""

    biases = True

    def modules(self, model: nn.Module) -> dict[str, nn.Module]:
        return super().modules(model) | {
            n: m for n, m in model.named_modules() if isinstance(m, nn.LayerNorm)
        }


WITHOUT_REENTRY = partial(checkpoint, use_reentrant=False)
REENTRANT = partial(checkpoint, use_reentrant=True)


@pytest.mark.parametrize("kind", ["kron", "sjlt"])
def test_checkpointing_changes_no_sketch(kind):
    rows, spec = examples(6), SketchSpec(kind, 64)
    plain = captured(Deep(), Small(), rows, spec)
    assert torch.equal(captured(Deep(how=WITHOUT_REENTRY), Small(), rows, spec), plain)

    class Fed(Small):
        """What reentrant checkpointing needs: inputs with a gradient."""

        def collate(self, examples: Sequence[Example]) -> Batch:
            batch = super().collate(examples)
            return {**batch, "x": batch["x"].requires_grad_()}

    assert torch.equal(captured(Deep(how=REENTRANT), Fed(), rows, spec), plain)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_reentrant_checkpointing_that_loses_gradients_is_refused():
    """Its blocks would be left out of the sketch, the head alone remaining."""
    with pytest.raises(
        InputError, match=r"layer blocks\.0\.\w+ only ran without gradients.*use_reentrant=False"
    ):
        captured(Deep(how=REENTRANT), Small(), examples(3), SPEC)


def checkpointed(reentrant: bool) -> nn.Module:
    """In training, as transformers checkpoints nothing in evaluation; its models have no dropout by default."""
    model = llama().train()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    return model


OLD_NAME = pytest.mark.filterwarnings(
    "ignore:.*gradient_checkpointing", "ignore:None of the inputs have requires_grad"
)


@OLD_NAME
@pytest.mark.parametrize("kind", ["kron", "sjlt"])
def test_transformers_own_checkpointing(kind):
    task, rows, spec = Rows(), token_rows([9, 7, 8]), SketchSpec(kind, 64)
    plain = captured(llama(), task, rows, spec)
    for reentrant in (False, True):
        assert torch.equal(captured(checkpointed(reentrant), task, rows, spec), plain)
    unfed = checkpointed(reentrant=True)
    unfed.disable_input_require_grads()  # which transformers enables for it
    with pytest.raises(InputError, match=r"only ran without gradients.*use_reentrant=False"):
        captured(unfed, task, rows, spec)


@OLD_NAME
@pytest.mark.parametrize("reentrant", [False, True])
def test_collection_from_a_model_that_checkpoints(reentrant, tmp_path):
    rows = token_rows([9, 7, 8, 5])
    plain = collect(llama(), Rows(), rows, tmp_path / "plain", spec=SPEC)
    model, calls = checkpointed(reentrant), []
    attention = model.model.layers[1].self_attn
    attention.attention_dropout = (
        0.5  # what collection leaves out, although the block around it is checkpointed
    )
    handle = attention.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    store = collect(model.eval(), Rows(), rows, tmp_path / "checkpointed", spec=SPEC)
    handle.remove()
    assert np.array_equal(store.sketches(), plain.sketches())
    assert len(calls) == 4  # a batch, and the check of one row alone, each twice
    assert model.is_gradient_checkpointing
    assert not any(module.training for module in model.modules())


@OLD_NAME
def test_a_block_with_dropout_of_its_own_is_not_checkpointed(tmp_path):
    rows = token_rows([9, 7, 8, 5])
    plain = collect(llama(), Rows(), rows, tmp_path / "plain", spec=SPEC)
    model = checkpointed(False)
    for block in model.model.layers:
        block.dropout = 0.5
    modes: list[bool] = []
    model.model.layers[0].register_forward_pre_hook(lambda block, _: modes.append(block.training))
    store = collect(model, Rows(), rows, tmp_path / "store", spec=SPEC)
    assert modes == [False, False]
    assert np.array_equal(store.sketches(), plain.sketches())


def alive(how: Callable[..., Tensor] | None, kind: str) -> tuple[int, int]:
    """Inputs of tracked layers that are in memory after the forward; how many there were by the backward's end."""
    inputs: list[StorageWeakRef] = []
    model, task = Deep(4, how), Classify()
    layers = tracked(model, task)
    for layer in layers.values():
        layer.register_forward_pre_hook(
            lambda _, given: inputs.append(StorageWeakRef(given[0].untyped_storage()))
        )
    with GradientCapture(model, layers, SketchSpec(kind, 64)) as capture:
        losses = task.loss(model, task.collate(examples(6)))
        left = sum(not storage.expired() for storage in inputs)
        capture.sketches(losses)
    return left, len(inputs)


def test_checkpointing_drops_the_kept_inputs_and_computes_them_again():
    """Two layers in each of four blocks, and the head."""
    assert alive(None, "sjlt") == (9, 9)
    assert alive(WITHOUT_REENTRY, "sjlt") == (1, 9 + 8)
    assert alive(None, "kron")[0] < 9


# Compiled models


@pytest.mark.parametrize("how", ["wrapped", "in place", "a layer wrapped"])
def test_compiled_models_write_the_same_bytes(how, tmp_path):
    rows, compiled = token_rows([9, 7, 8, 5]), llama()
    collect(llama(), Rows(), rows, tmp_path / "plain", spec=SPEC, batch_size=2)
    inner = compiled
    if how == "wrapped":
        compiled = torch.compile(compiled, backend="eager")
    elif how == "in place":
        compiled.compile(backend="eager")
    else:
        compiled.model.layers[1] = torch.compile(compiled.model.layers[1], backend="eager")
    batch = {k: v for k, v in Rows().collate(rows).items() if k != "labels"}
    with torch.no_grad():
        before = compiled(**batch).logits  # compiles it
    collect(compiled, Rows(), rows, tmp_path / "compiled", spec=SPEC, batch_size=2)
    plain, ours = contents(tmp_path / "plain"), contents(tmp_path / "compiled")
    if how == "a layer wrapped":  # its weights have other names, and so another hash
        plain.pop("store.json"), ours.pop("store.json")
        assert (
            SketchStore.open(tmp_path / "compiled").header.layers
            == SketchStore.open(tmp_path / "plain").header.layers
        )
        assert isinstance(inner.model.layers[1], torch._dynamo.OptimizedModule)
    assert ours == plain
    assert (inner._compiled_call_impl is not None) == (how == "in place")
    with torch.no_grad():
        assert torch.equal(compiled(**batch).logits, before)


# Autocast


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


class NormsToo(Rows):
    def modules(self, model: nn.Module) -> dict[str, nn.Module]:
        return super().modules(model) | {n: m for n, m in model.named_modules() if "Norm" in type(m).__name__}


@pytest.mark.parametrize("task", [Rows, NormsToo])
@pytest.mark.parametrize("kind", ["kron", "sjlt", "tile"])
@pytest.mark.parametrize("autocast", ["bfloat16", "float16"])
def test_autocast_is_near_float32(autocast, kind, task, tmp_path):
    rows, spec = token_rows([9, 7, 8, 12]), SketchSpec(kind, 256)
    exact = collect(llama(), task(), rows, tmp_path / "exact", spec=spec)
    store = collect(llama(), task(), rows, tmp_path / "half", spec=spec, autocast=autocast)
    assert not np.array_equal(store.sketches(), exact.sketches())
    assert cosines(store.sketches(), exact.sketches()).min() > 0.99
    norms = np.linalg.norm(store.sketches(), axis=1) / np.linalg.norm(exact.sketches(), axis=1)
    assert abs(norms - 1).max() < 0.1
    assert (store.header.origin["autocast"], exact.header.origin["autocast"]) == (autocast, None)


@pytest.mark.parametrize("autocast", ["bfloat16", "float16"])
def test_autocast_with_modules_that_run_again(autocast):
    """Their inputs and outputs may be of different precision."""

    class Mixed(Classify):
        biases = True

        def modules(self, model: nn.Module) -> dict[str, nn.Module]:
            return {n: m for n, m in model.named_modules() if list(m.parameters(recurse=False))}

        def loss(self, model: nn.Module, batch: Batch) -> Tensor:
            with torch.autocast("cpu", self.dtype, enabled=self.dtype is not None):
                return super().loss(model, batch)

    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv1d(4, 6, 3), nn.GroupNorm(2, 6), nn.Linear(6, 5), nn.LayerNorm(5), nn.BatchNorm1d(6),
        nn.Flatten(), nn.Linear(30, CLASSES),
    ).eval()  # fmt: skip
    task, rows = Mixed(), examples(5, (4, 8))
    task.dtype = None
    exact = captured(model, task, rows, SketchSpec("sjlt", 128))
    task.dtype = getattr(torch, autocast)
    got = captured(model, task, rows, SketchSpec("sjlt", 128))
    assert got.dtype == torch.float32
    assert cosines(got.numpy(), exact.numpy()).min() > 0.99
    with torch.autocast("cpu", task.dtype):  # who sketches inside it has the same
        assert torch.equal(captured(model, task, rows, SketchSpec("sjlt", 128)), got)


class Scaled(Classify):
    """A loss of another size."""

    def __init__(self, size: float) -> None:
        self.size = size

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return super().loss(model, batch) * self.size


@pytest.mark.parametrize("size", [1e-7, 1.0, 30.0, 3e3])
def test_float16_meets_losses_of_any_size(size, tmp_path):
    """Small ones by a scale of their own; where that overflows, by a smaller one."""
    rows = examples(12)
    exact = collect(mlp(), Scaled(size), rows, tmp_path / "exact", spec=SPEC)
    store = collect(mlp(), Scaled(size), rows, tmp_path / "half", spec=SPEC, autocast="float16")
    assert cosines(store.sketches(), exact.sketches()).min() > 0.999
    np.testing.assert_allclose(
        np.linalg.norm(store.sketches(), axis=1), np.linalg.norm(exact.sketches(), axis=1), rtol=0.02
    )


def test_without_the_scale_float16_would_underflow():
    """So that the test above can fail."""
    model, task, rows = mlp(), Scaled(1e-7), examples(12)
    with GradientCapture(model, tracked(model, task), SPEC) as capture:

        def norm(scale: float) -> float:
            with torch.autocast("cpu", torch.float16):
                losses = task.loss(model, task.collate(rows))
            return capture.sketches(losses, scale).norm().item()

        assert norm(1.0) < 0.6 * norm(2.0**16)
        assert not np.isfinite(norm(2.0**40))


# Packing


def test_packed_batches_are_a_partition_within_their_budget_longest_first():
    generator = np.random.default_rng(0)
    for size in (1, 3, 16):
        for _ in range(20):
            lengths = generator.integers(1, 200, generator.integers(1, 40)).tolist()
            packs = packed(lengths, size)
            assert sorted(row for pack in packs for row in pack) == list(range(len(lengths)))
            in_order = [lengths[row] for pack in packs for row in pack]
            assert in_order == sorted(lengths, reverse=True)
            assert all(len(pack) * lengths[pack[0]] <= size * max(lengths) for pack in packs)
            bounded = packed(lengths, size, 90)
            assert [row for pack in bounded for row in pack] == [row for pack in packs for row in pack]
            assert all(len(p) * lengths[p[0]] <= min(90, size * max(lengths)) or len(p) == 1 for p in bounded)
    assert packed([5] * 7, 3) == [[0, 1, 2], [3, 4, 5], [6]]
    assert packed([5] * 7, 3, 10) == [[0, 1], [2, 3], [4, 5], [6]]
    assert packed([], 4) == []


@pytest.mark.parametrize("kind", ["kron", "sjlt"])
def test_rows_of_any_length_are_packed_and_come_back_in_order(kind, tmp_path):
    lengths = [3, 40, 2, 9, 17, 5, 31, 4, 4, 25, 2, 12]
    rows, spec, task = token_rows(lengths), SketchSpec(kind, 64), Rows()
    one = collect(llama(), Rows(), rows, tmp_path / "one", spec=spec, batch_size=1, shard_rows=3)
    many = collect(llama(), task, rows, tmp_path / "many", spec=spec, batch_size=2)
    norms = np.linalg.norm(one.sketches(), axis=1)
    assert np.linalg.norm(many.sketches() - one.sketches(), axis=1).max() <= 1e-5 * norms.min()
    collected = [
        shape for shape in task.batches if shape[0] > 1 or shape[1] != 31
    ]  # without the one that checks
    assert max(b * t for b, t in collected) <= 2 * 40
    assert sum(b * t for b, t in collected) <= 1.3 * sum(lengths) + 40


def test_a_resumed_run_packs_as_a_whole_one(tmp_path):
    rows = token_rows([3, 40, 2, 9, 17, 5, 31, 4, 4, 25])
    for name in ("whole", "resumed"):
        collect(llama(), Rows(), rows, tmp_path / name, spec=SPEC, batch_size=2, shard_rows=4)
    whole = contents(tmp_path / "whole")
    for gone in ("00000", "00002"):
        (tmp_path / "resumed" / "checkpoint-00" / f"shard-{gone}.safetensors").unlink()
    collect(llama(), Rows(), rows, tmp_path / "resumed", spec=SPEC, batch_size=2, shard_rows=4)
    assert contents(tmp_path / "resumed") == whole


# Examples that depend on each other


class Normalized(Classify):
    """Batch statistics, by hand, which evaluation mode cannot still."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        logits = model(batch["x"])
        centred = logits - logits.mean(0) if len(logits) > 1 else logits
        return F.cross_entropy(centred, batch["y"], reduction="none")


class TimeFirst(nn.Module):
    """As many steps as examples in a batch, so that nothing but the values tells the axes apart."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mixed, self.head = nn.Linear(7, 6), nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mixed(x.transpose(0, 1)).tanh().mean(0))


class TokensInTheWrongOrder(TimeFirst):
    """All tokens on one axis, but not an example's beside each other."""

    def forward(self, x: Tensor) -> Tensor:
        T = x.shape[1]
        h = self.mixed(x.transpose(0, 1).flatten(0, 1)).tanh()
        return self.head(h.unflatten(0, (T, len(x))).mean(0))


@pytest.mark.parametrize(
    ("model", "task", "shape"),
    [
        (mlp, Normalized, (INPUTS,)),
        (TimeFirst, Classify, (4, 7)),
        (TokensInTheWrongOrder, Classify, (5, 7)),
    ],
)
def test_gradients_that_depend_on_the_batch_are_refused(model, task, shape, tmp_path):
    with pytest.raises(InputError, match="its gradient alone is another than in a batch") as told:
        collect(model(), task(), examples(8, shape), tmp_path / "s", spec=SPEC, batch_size=4)
    assert "\n" not in str(told.value)
    assert not (tmp_path / "s").exists()
    honest = collect(model(), task(), examples(8, shape), tmp_path / "alone", spec=SPEC, batch_size=1)
    assert np.isfinite(honest.sketches()).all()


def test_the_check_finds_a_batch_of_several_rows(tmp_path):
    """The first row, the longest, is a batch of its own."""

    class FirstAlone(Normalized):
        def length(self, example: Example) -> int:
            return 9 if example.row == 0 else 1

    with pytest.raises(InputError, match="its gradient alone is another than in a batch"):
        collect(mlp(), FirstAlone(), examples(8), tmp_path / "s", spec=SPEC, batch_size=1)


@pytest.mark.parametrize("autocast", [None, "bfloat16", "float16"])
def test_an_honest_task_passes_the_check_in_any_precision(autocast, tmp_path):
    rows = token_rows([3, 40, 2, 9, 17, 5, 31, 4])
    for seed in range(3):
        torch.manual_seed(seed)
        collect(llama(), Rows(), rows, tmp_path / str(seed), spec=SPEC, autocast=autocast)


# The thread that writes


def written(path: Path, shards: int, dim: int = 4) -> SketchStore:
    rows = Examples.from_fields([{"text": str(i)} for i in range(2 * shards)]).index
    header = Header(
        SketchSpec("sjlt", dim), {"layer": [2, 2]}, rows, ({"name": "m", "learning_rate": 1.0, "sha256": "0"},),
        shard_rows=2,
    )  # fmt: skip
    return SketchStore.create(path, header)


class Slow(SketchStore):
    """A disk that stands still until it is told to go on."""

    def __init__(self, store: SketchStore) -> None:
        super().__init__(store.path, store.header)
        self.go = threading.Event()
        self.began = threading.Event()

    def write(self, checkpoint: int, shard: int, sketches: np.ndarray) -> None:
        self.began.set()
        assert self.go.wait(20)
        super().write(checkpoint, shard, sketches)


def test_a_slow_disk_stops_the_computation_only_when_the_queue_is_full(tmp_path):
    store = Slow(written(tmp_path / "s", 12))
    computed: list[int] = []

    def compute() -> None:
        with ShardWriter(store) as writer:
            for shard in range(12):
                computed.append(shard)
                writer.put(0, shard, torch.full((2, 4), float(shard)))

    thread = threading.Thread(target=compute)
    thread.start()
    assert store.began.wait(20)
    most = WAITING + 2  # one is being written, some wait, and one more is computed
    for _ in range(200):
        if len(computed) >= most:
            break
        time.sleep(0.01)
    time.sleep(0.05)
    assert len(computed) == most
    store.go.set()
    thread.join(20)
    assert not thread.is_alive()
    assert SketchStore.open(tmp_path / "s").sketches()[:, 0].tolist() == [float(i // 2) for i in range(24)]


def test_what_goes_wrong_in_the_thread_reaches_the_caller(tmp_path):
    store = written(tmp_path / "s", 40)
    broken = torch.ones(2, 4)
    broken[1, 2] = torch.inf

    def write() -> None:
        with ShardWriter(store) as writer:
            for shard in range(40):  # more than the queue holds: nobody waits for a thread that has failed
                writer.put(0, shard, broken if shard == 1 else torch.ones(2, 4))

    with pytest.raises(InputError, match=f"example {store.rows.ids[3]} is not finite"):
        write()
    assert store.missing()[0] == (0, 1)
    assert not any(thread.name == "shard writer" for thread in threading.enumerate())


def test_an_error_at_the_last_shard_is_not_lost(tmp_path):
    store = written(tmp_path / "s", 1)
    with pytest.raises(InputError, match="not finite"), ShardWriter(store) as writer:
        writer.put(0, 0, torch.full((2, 4), torch.nan))


def test_a_full_disk_reaches_the_caller_as_it_is(tmp_path):
    class Full(SketchStore):
        def write(self, checkpoint: int, shard: int, sketches: np.ndarray) -> None:
            raise OSError(28, "No space left on device")

    store = written(tmp_path / "s", 2)
    with pytest.raises(OSError, match="No space left"), ShardWriter(Full(store.path, store.header)) as writer:
        writer.put(0, 0, torch.ones(2, 4))


class Interrupted(Classify):
    """Ctrl-C in the n-th batch."""

    def __init__(self, at: int) -> None:
        self.left = at

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return super().loss(model, batch)


def test_an_interrupt_leaves_whole_shards_alone_and_the_rest_is_resumed(tmp_path):
    rows = examples(20)
    collect(mlp(), Classify(), rows, tmp_path / "whole", spec=SPEC, batch_size=2, shard_rows=2)
    with pytest.raises(KeyboardInterrupt):
        collect(mlp(), Interrupted(8), rows, tmp_path / "s", spec=SPEC, batch_size=2, shard_rows=2)
    assert not any(thread.name == "shard writer" for thread in threading.enumerate())
    whole, left = contents(tmp_path / "whole"), contents(tmp_path / "s")
    shards = [path for path in left if "shard" in path]
    assert shards == [f"checkpoint-00/shard-{s:05d}.safetensors" for s in range(6)]
    assert all(left[path] == whole[path] for path in shards)
    (tmp_path / "s" / "store.json").write_bytes(whole["store.json"])  # the same task but for its name
    collect(mlp(), Classify(), rows, tmp_path / "s", spec=SPEC, batch_size=2, shard_rows=2)
    assert contents(tmp_path / "s") == whole


# What is tracked


class Named(Classify):
    def __init__(self, *names: str) -> None:
        self.names = names

    def modules(self, model: nn.Module) -> dict[str, nn.Module]:
        return {name: model.get_submodule(name) for name in self.names}


def test_what_a_task_names_in_vain_is_told_with_its_share(tmp_path, caplog):
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.head = nn.Bilinear(160, 160, 12), nn.Linear(INPUTS, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            y = x.repeat(1, 14)[:, :160]
            return self.head(x + self.wide(y, y))

    caplog.set_level(logging.WARNING, "backcast")
    model = Model()
    store = collect(model, Named("wide", "head"), examples(3), tmp_path / "s", spec=SPEC)
    share = (160 * 160 * 12 + 12) / sum(p.numel() for p in model.parameters())
    assert [r.getMessage() for r in caplog.records] == [
        f"wide (Bilinear, {share:.1%} of the parameters) cannot be tracked"
    ]
    assert list(store.header.layers) == ["head"]


def test_of_a_model_that_is_trained_in_part_the_rest_is_left_out(tmp_path, caplog):
    caplog.set_level(logging.WARNING, "backcast")
    model, rows = mlp(), examples(3)
    whole = collect(model, Classify(), rows, tmp_path / "whole", spec=SPEC)
    model[0].requires_grad_(False)
    part = collect(model, Classify(), rows, tmp_path / "part", spec=SPEC)
    model.requires_grad_(False)  # as a model that was loaded to be looked at
    again = collect(model, Classify(), rows, tmp_path / "again", spec=SPEC)
    assert (list(whole.header.layers), list(part.header.layers)) == (["0", "2"], ["2"])
    assert np.array_equal(again.sketches(), whole.sketches())
    assert not caplog.records


def test_a_module_that_shares_a_tracked_weight_comes_with_it(tmp_path):
    model = nn.Sequential(
        nn.Linear(INPUTS, INPUTS), nn.Tanh(), nn.Linear(INPUTS, INPUTS), nn.Linear(INPUTS, CLASSES)
    )
    model[2].weight = model[0].weight
    one = collect(model, Named("0"), examples(4), tmp_path / "one", spec=SPEC)
    both = collect(model, Named("0", "2"), examples(4), tmp_path / "both", spec=SPEC)
    assert list(one.header.layers) == ["0", "2"]
    assert np.array_equal(one.sketches(), both.sketches())
