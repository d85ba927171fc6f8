"""The peers' side of a benchmark: a worker process for each, in an environment of their own."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import PreTrainedModel

HERE = Path(__file__).parent
PYTHON = HERE.parents[1] / ".venv-peers" / "bin" / "python"


class Peer:
    """A worker that waits for its turns; a context manager around its process.

    ``note`` says what its sketches are, or, where it does not run, why.
    """

    def __init__(self, way: str, folder: Path) -> None:
        with (folder / f"{way}.log").open("w") as log:
            self._process = subprocess.Popen(
                [PYTHON, HERE / "worker.py", way, folder],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=folder,
                env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads()), "HF_HUB_OFFLINE": "1"},
            )
        answer = self._answer()
        self.runs = "note" in answer
        self.note: str = answer["note"] if self.runs else f"does not run: {answer['error']}"

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.communicate()

    def __call__(self) -> float:
        """The seconds of one more pass."""
        assert self._process.stdin is not None
        print("go", file=self._process.stdin, flush=True)
        return self._answer()["seconds"]

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        return json.loads(line) if line else {"error": f"its process ended with code {self._process.wait()}"}


@contextmanager
def peers(ways: Sequence[str], model: PreTrainedModel, job: Mapping[str, Any]) -> Iterator[dict[str, Peer]]:
    """The peers by the names of their ways, each set up and warm, all for the same model and ``job``."""
    with TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        model.save_pretrained(folder)
        (folder / "job.json").write_text(json.dumps(job))
        yield {way: stack.enter_context(Peer(way, folder)) for way in ways}
