"""Whose rows a layer sees, where their order does not tell.

A vision tower sees all of a batch's images along one axis: of one example several, of another none. Its task says
before a forward which example each row belongs to, and whoever needs the examples' gradients looks it up here.
"""

from __future__ import annotations

from collections.abc import Iterable
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

_owners: WeakKeyDictionary[nn.Module, Owners] = WeakKeyDictionary()


class Owners:
    """Which of a batch's B examples each of N rows belongs to.

    Args:
        owner: (N,) int64, ascending.
        examples: B.
        alike: whether a layer may split the rows, each into as many.
    """

    def __init__(self, owner: Tensor, examples: int, alike: bool = True) -> None:
        self.owner = owner
        self.examples = examples
        self.alike = alike
        self._places: dict[
            int, tuple[Tensor, Tensor, int]
        ] = {}  # of a count of rows: asked for by every layer

    def __len__(self) -> int:
        return len(self.owner)

    def gather(self, rows: Tensor) -> Tensor:
        """(B, n, ...) the rows (R, ...) by example, zeros where one has fewer than n.

        R is N, or a multiple of it where the rows are alike, or that of runs of as many rows of one example.

        Raises:
            ValueError: R rows cannot be told apart.
        """
        if len(rows) not in self._places:
            self._places[len(rows)] = self._place(len(rows))
        owner, place, most = self._places[len(rows)]
        return rows.new_zeros(self.examples, most, *rows.shape[1:]).index_put_((owner, place), rows)

    def _place(self, count: int) -> tuple[Tensor, Tensor, int]:
        """Of ``count`` rows the example (count,), the place among that example's (count,), and the most of one."""
        owner = self._of(count)
        first = torch.searchsorted(owner, torch.arange(self.examples, device=owner.device))
        place = torch.arange(count, device=owner.device) - first[owner]
        return owner, place, int(place.max()) + 1

    def _of(self, count: int) -> Tensor:
        owner, N = self.owner, len(self)
        if self.examples == 1:
            return owner.new_zeros(count)
        if N and (count == N or (self.alike and count % N == 0)):
            return owner.repeat_interleave(count // N)
        if N and N % count == 0:
            merged = owner.view(count, -1)
            if (merged == merged[:, :1]).all():
                return merged[:, 0].contiguous()
        raise ValueError(f"{count} rows of {N}")


#: What is known of the rows of a module whose owners were told for a batch that is over.
_NOBODY = Owners(torch.empty(0, dtype=torch.int64), 0)


def belong(modules: Iterable[nn.Module], owners: Owners) -> None:
    """Say whose rows the modules will see in the forward that comes next."""
    for module in modules:
        _owners[module] = owners


def forget(modules: Iterable[nn.Module]) -> None:
    """The batch is over: whose rows those of the next are must be said anew, of modules of which it was said."""
    for module in modules:
        if module in _owners:
            _owners[module] = _NOBODY


def owners_of(module: nn.Module) -> Owners | None:
    """What was said last of a module; None where nothing ever was, and row b is example b's."""
    return _owners.get(module)
