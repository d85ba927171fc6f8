"""A training run on disk: all that is needed to run it again, step for step.

On disk: ``recording.json`` (the header), ``start.safetensors`` (parameters, buffers and optimizer state before the
first step) and ``steps.jsonl``, a line a step. Where they were asked for, ``sketches/`` and ``shapley/`` hold what was
taken of each example while it was trained on (`Series`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file
from torch import Tensor

from backcast.attribution.recording.series import Series
from backcast.data import Rows
from backcast.errors import InputError
from backcast.files import read_json
from backcast.kernels import SketchSpec

SCHEMA = 1


@dataclass(frozen=True)
class Step:
    """One step of the optimizer.

    The objective is Σ_i scale_i Σ_{r ∈ batch_i} w_r ℓ_r over the step's micro-batches i: a mean over B examples has
    the scale 1/B, a mean over all tokens of losses that are sums has 1/(number of tokens). w_r is 1 in the recorded
    run.

    Attributes:
        batches: the examples of each micro-batch, as positions in the recording's rows.
        scales: of each micro-batch.
        rates: the learning rate of each parameter group.
        seed: what ``torch.manual_seed`` was given before the step's first forward, for dropout.
    """

    batches: tuple[tuple[int, ...], ...]
    scales: tuple[float, ...]
    rates: tuple[float, ...]
    seed: int

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Step:
        return cls(
            batches=tuple(tuple(rows) for rows in value["batches"]),
            scales=tuple(value["scales"]),
            rates=tuple(value["rates"]),
            seed=value["seed"],
        )


@dataclass(frozen=True)
class OptimizerSpec:
    """Which optimizer ran, by parameter name.

    Attributes:
        kind: ``sgd``, ``adam`` or ``adamw``, as torch.optim computes them.
        groups: for each parameter group ``names`` and its settings: ``weight_decay`` and, for SGD ``momentum``,
            ``dampening``, ``nesterov``; for Adam ``betas`` and ``eps``.
        max_grad_norm: gradients are scaled down to this norm in all; None where they are not.
    """

    kind: str
    groups: tuple[Mapping[str, Any], ...]
    max_grad_norm: float | None = None


@dataclass(frozen=True)
class Recording:
    """A recorded training run.

    Attributes:
        path: its folder.
        rows: the n examples that the steps' positions refer to.
        optimizer: which one.
        origin: the model's and the task's type, and the task's settings.
        end: SHA-256 of the final parameters and buffers (`weights_hash`); None while the run is not finished.
        spec: of the sketches that were taken while training, if any.
        layers: what was sketched: modules by name, and their weights' shapes.
        shapley: of the in-run Shapley values, if any: ``targets`` (the g groups' names), ``fingerprint`` of the target
            examples, ``order``, and where there are groups ``groups``, each target's.
    """

    path: Path
    rows: Rows
    optimizer: OptimizerSpec
    origin: Mapping[str, Any] = field(default_factory=dict)
    end: str | None = None
    spec: SketchSpec | None = None
    layers: Mapping[str, Sequence[int]] = field(default_factory=dict)
    shapley: Mapping[str, Any] | None = None

    @classmethod
    def open(cls, path: str | Path) -> Recording:
        """Read a folder that a recorder wrote; raises `InputError` for any other."""
        path = Path(path)
        if not (path / "recording.json").is_file():
            raise InputError(
                f"{path}: not a recorded run (no recording.json); write one with backcast.Recorder"
            )
        value = read_json(path / "recording.json")
        if value.get("schema") != SCHEMA:
            raise InputError(
                f"{path}: recording schema {value.get('schema')!r}, this backcast reads {SCHEMA}; record again"
            )
        optimizer = value["optimizer"]
        return cls(
            path=path,
            rows=Rows.from_json(value["rows"]),
            optimizer=OptimizerSpec(
                optimizer["kind"], tuple(optimizer["groups"]), optimizer["max_grad_norm"]
            ),
            origin=value["origin"],
            end=value["end"],
            spec=SketchSpec.from_json(value["spec"]) if value.get("spec") else None,
            layers=value.get("layers", {}),
            shapley=value.get("shapley"),
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "rows": self.rows.to_json(),
            "optimizer": asdict(self.optimizer),
            "origin": dict(self.origin),
            "end": self.end,
            "spec": self.spec and self.spec.to_json(),
            "layers": {name: list(shape) for name, shape in self.layers.items()},
            "shapley": self.shapley and dict(self.shapley),
        }

    @cached_property
    def steps(self) -> list[Step]:
        """The steps, in order; raises `InputError` where a line is broken."""
        steps = []
        for number, line in enumerate((self.path / "steps.jsonl").read_text().splitlines()):
            try:
                steps.append(Step.from_json(json.loads(line)))
            except (ValueError, KeyError, TypeError):
                raise InputError(
                    f"{self.path}/steps.jsonl: line {number + 1} is broken; record again"
                ) from None
        return steps

    def start(self) -> dict[str, Tensor]:
        """What the run started from: ``weights/NAME`` for each parameter and buffer, ``optimizer/SLOT/NAME``.

        The slots are ``exp_avg``, ``exp_avg_sq`` and ``step`` (one number a parameter) of Adam and
        ``momentum_buffer`` of SGD; one that is not there starts at zero.
        """
        return load_file(self.path / "start.safetensors")

    def sketches(self) -> Iterator[tuple[int, np.ndarray, np.ndarray, tuple[float, ...]]]:
        """(step, rows (B,), sketches (B, k) of the rows' own gradients, the groups' learning rates), step by step.

        Raises `InputError` where none were taken, or a shard is damaged.
        """
        if self.spec is None:
            raise InputError(f"{self.path}: holds no sketches; record with spec=")
        for step, rows, sketches in Series(self.path / "sketches"):
            yield step, rows, sketches, self.steps[step].rates

    def contributions(self) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """(step, rows (B,), in-run Shapley values (B, order, g)), step by step: first and second order's terms.

        Raises `InputError` where none were taken, or a shard is damaged.
        """
        if self.shapley is None:
            raise InputError(f"{self.path}: holds no in-run Shapley values; record with target=")
        for step, rows, values in Series(self.path / "shapley"):
            yield step, rows, values.reshape(len(rows), self.shapley["order"], -1)
