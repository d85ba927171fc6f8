"""What a sweep makes: the runs asked for, and what came of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from backcast.data import Examples
from backcast.errors import InputError
from backcast.files import sha256_file
from backcast.manifests import Manifest
from backcast.selectors import parse_budget, select


@dataclass(frozen=True)
class Run:
    """One fine-tune to make: on which examples, and with which seed.

    Attributes:
        selector, budget: what chose the examples, for the table of results.
        rows: positions in the pool.
        seed: of the batches' order and dropout.
        modality: what drives the scores of all of its rows, where that is known: image, text or mixed; for the table.
        manifest, manifest_sha256: the file that names the examples, and its hash; None where there is none.
    """

    selector: str
    budget: str
    rows: tuple[int, ...]
    seed: int
    modality: str | None = None
    manifest: str | None = None
    manifest_sha256: str | None = None

    def __str__(self) -> str:
        return f"{self.selector}, {self.budget}, seed {self.seed}"

    @classmethod
    def on_subset(cls, manifest: Manifest, pool: Examples, seed: int) -> Run:
        """A run on a manifest's rows; raises `InputError` when they are not the pool's."""
        try:
            rows = manifest.positions(pool.index).tolist()
        except InputError:
            raise InputError(
                f"{manifest.path}: does not fit {pool.dataset or 'its pool'}; see 'backcast check'"
            ) from None
        return cls(
            manifest.meta["selector"]["method"],
            str(manifest.meta["budget"]["asked"]),
            tuple(rows),
            seed,
            manifest=str(manifest.path),
            manifest_sha256=sha256_file(manifest.path),
        )

    @classmethod
    def on_all(cls, pool: Examples, seed: int) -> Run:
        """A run on the whole pool, named ``full``."""
        return cls("full", "100%", tuple(range(len(pool))), seed)


@dataclass(frozen=True)
class Outcome:
    """What came of a run.

    Attributes:
        error: why it failed, in one line; None when it did not, and then all else but ``side_by_side`` is known.
        metric, measure: the test set's, and the metric's name.
        seconds: from the first step to the measurement.
        device, threads: what it ran on; on a CPU the number of threads may change a result's last digits.
        versions: of Python and of the packages that it depends on.
        side_by_side: how many runs like this one, itself included, the GPU had room for; None without a GPU.
    """

    error: str | None = None
    metric: float | None = None
    measure: str | None = None
    seconds: float | None = None
    device: str | None = None
    threads: int | None = None
    versions: dict[str, str] | None = None
    side_by_side: int | None = None


def random_runs(pool: Examples, sizes: Sequence[str | int], seeds: int, folder: str | Path) -> list[Run]:
    """Runs on uniformly random subsets: for each seed a subset of every size, and one run on it.

    Subsets of one seed contain each other. Their manifests are written to ``folder``, or read where they are there.

    Args:
        pool: the examples.
        sizes: counts, or percentages of the pool.
        seeds: subsets of each size.
        folder: of the manifests, ``random-SIZE-SEED.jsonl``.

    Raises:
        InputError: a bad size, or a manifest of another pool.
    """
    # The first of two names for one size is the one that the table gets.
    asked = {parse_budget(size).limit(len(pool)): size for size in reversed(sizes)}
    runs = []
    for n in sorted(asked):
        for seed in range(seeds):
            path = Path(folder) / f"random-{n:.0f}-{seed}.jsonl"
            if not path.is_file():
                select(pool.index, asked[n], "random", seed).save(path)
            runs.append(Run.on_subset(Manifest.load(path), pool, seed))
    return runs
