"""Writing shards while the next ones are computed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import Queue
from types import TracebackType

import torch
from torch import Tensor

from backcast.attribution.store import SketchStore

#: Shards that may wait for the disk: as many as their sketches' memory is small beside the model's.
WAITING = 4


class ShardWriter:
    """Writes shards in a thread of its own; a context manager that has written all of them when it is left.

    Sketches on a GPU are copied into pinned memory without waiting for them; the thread waits. The queue is bounded,
    so a disk that is too slow for long holds the computation up rather than filling the memory.

    Args:
        store: to write to.
        after: called by the thread with the checkpoint of each shard that has been written.
    """

    def __init__(self, store: SketchStore, after: Callable[[int], None] | None = None) -> None:
        self.store = store
        self._after = after
        self._queue: Queue[tuple[int, int, list[Tensor], torch.cuda.Event | None] | None] = Queue(WAITING)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._write_all, name="shard writer", daemon=True)

    def __enter__(self) -> ShardWriter:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._queue.put(None)
        self._thread.join()
        if error is None:
            self._raise()

    def put(self, checkpoint: int, shard: int, *tensors: Tensor) -> None:
        """Have one shard's (rows, k) sketches, and what else `SketchStore.write` takes, written.

        Raises what went wrong with an earlier one.
        """
        self._raise()
        arrived = None
        host = [_pinned(tensor) if tensor.is_cuda else tensor for tensor in tensors]
        if any(tensor.is_cuda for tensor in tensors):
            arrived = torch.cuda.Event()
            arrived.record()
        self._queue.put((checkpoint, shard, host, arrived))

    def _write_all(self) -> None:
        while (item := self._queue.get()) is not None:
            checkpoint, shard, tensors, arrived = item
            if self._error is None:  # after an error the queue is emptied, so that nobody waits for it
                try:
                    if arrived is not None:
                        arrived.synchronize()
                    self.store.write(checkpoint, shard, *(tensor.numpy() for tensor in tensors))
                    if self._after:
                        self._after(checkpoint)
                except BaseException as error:
                    self._error = error

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error


def _pinned(tensor: Tensor) -> Tensor:
    """A copy in pinned memory, which is still on its way."""
    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return pinned.copy_(tensor, non_blocking=True)
