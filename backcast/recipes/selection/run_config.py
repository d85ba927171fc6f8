"""All that a selection depends on, as a file: ``run.yaml``, or what a manifest tells of its own run."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from glob import glob
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from backcast.data import map_names
from backcast.errors import InputError
from backcast.files import read_json
from backcast.manifests.manifest import portable
from backcast.selectors.budget import EXAMPLES, parse_budget

#: The keys that only a selection in one shot has. The model may stand beside scores too, for its tokenizer.
ONE_SHOT = frozenset(
    ("pool", "target", "columns", "skip_broken", "group_by", "score", "sketch", "batch_size", "trial")
)

#: The keys that only a selection step by step has.
STEPS = frozenset(("scores", "store"))

#: What targets can be grouped by.
SOURCE = "source"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ScoreConfig(_Part):
    """How the pool is scored: a method that works on sketches, and its parameters; see `attribute`."""

    method: str = "tracin"
    params: dict[str, Any] = Field(
        default_factory=lambda chosen: {"cosine": True} if chosen.get("method") == "tracin" else {}
    )


class SketchConfig(_Part):
    """The gradient sketches; see `SketchSpec` and `collect`. Without a kind, the one that suits the device."""

    dim: int = Field(default=4096, ge=1)
    kind: str | None = None
    dtype: str = "float32"


class TrialConfig(_Part):
    """What a method that learns from training tries a subset by; see `Trial`."""

    test: str
    steps: int = Field(default=100, ge=1)
    batch_size: int = Field(default=64, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0)
    seeds: int = Field(default=1, ge=1)


class RunConfig(_Part):
    """All that a selection depends on: the same configuration, weights and data give the same manifest.

    In one shot it names a model, a pool and a target; step by step the file of the pool's scores, and the pool's store
    for the methods that compare examples.

    Attributes:
        model: as `load_task` takes it; beside scores, for its tokenizer alone.
        pool: a data set; see `read_examples`.
        target: a data set, or name → data set: named sets are groups of targets, in the order of their names. A set
            may also be given as ``{data: ..., weight: ...}``, which moves the weight into ``weights``.
        scores, store, parts: files of ``backcast score``, ``collect`` and ``split``.
        signals: name → a file of further scores of the pool.
        out: the manifest to write.
        group_by: ``source``: the sources of the target are its groups.
        budget, method, params, seed, weights, at_least, at_most: see `select`.
        columns, skip_broken: see `read_examples`.
        score, sketch, batch_size: how the pool is scored in one shot.
        trial: for the methods that learn from training, in one shot.
    """

    model: str | None = None
    pool: str | None = None
    target: str | dict[str, str] | None = None
    scores: str | None = None
    store: str | None = None
    parts: str | None = None
    signals: dict[str, str] = {}
    out: str = "subset.jsonl"

    budget: int | str = "5%"
    method: str = "round_robin"
    params: dict[str, Any] = {}
    seed: int = Field(default=0, ge=0)
    group_by: str | None = None
    weights: dict[str, float] = {}
    at_least: dict[str, int | str] = {}
    at_most: dict[str, int | str] = {}

    columns: dict[str, str] | None = None
    skip_broken: bool = False
    score: ScoreConfig = ScoreConfig()
    sketch: SketchConfig = SketchConfig()
    batch_size: int = Field(default=32, ge=1)
    trial: TrialConfig | None = None

    @model_validator(mode="before")
    @classmethod
    def _weights_beside_targets(cls, value: Any) -> Any:
        """``target: {math: {data: ..., weight: 2}}`` as a target and a weight; what ``weights`` says goes before it."""
        target = value.get("target") if isinstance(value, Mapping) else None
        weights = value.get("weights", {}) if isinstance(value, Mapping) else None
        if not (isinstance(target, Mapping) and isinstance(weights, Mapping)):
            return value
        entries = {name: entry for name, entry in target.items() if isinstance(entry, Mapping)}
        for name, entry in entries.items():
            if "data" not in entry or set(entry) - {"data", "weight"}:
                raise ValueError(f"target {name!r}: give a data set, or its data and weight")
        beside = {name: entry["weight"] for name, entry in entries.items() if "weight" in entry}
        data = {name: entry["data"] for name, entry in entries.items()}
        return {**value, "target": {**target, **data}, "weights": {**beside, **weights}}

    @field_validator("pool", mode="before")
    @classmethod
    def _one_name(cls, value: Any) -> Any:
        """Several data sets as one name."""
        return ",".join(map(str, value)) if isinstance(value, list) and value else value

    @field_validator("target", mode="plain")
    @classmethod
    def _a_target(cls, value: Any) -> Any:
        texts = [*value, *value.values()] if isinstance(value, Mapping) else [value]
        if value is not None and not (texts and all(isinstance(text, str) and text for text in texts)):
            raise ValueError("give a data set, or a name and a data set for each of several")
        return dict(sorted(value.items())) if isinstance(value, Mapping) else value

    @field_validator("budget", "at_least", "at_most", mode="before")
    @classmethod
    def _amounts(cls, value: Any) -> Any:
        for amount in value.values() if isinstance(value, Mapping) else [value]:
            parse_budget(amount)
        return value

    @field_validator("group_by")
    @classmethod
    def _by_source(cls, value: str | None) -> str | None:
        if value not in (None, SOURCE):
            raise ValueError(
                f"targets are grouped by {SOURCE!r}, or by naming each of several; not by {value!r}"
            )
        return value

    @classmethod
    def of(cls, values: Mapping[str, Any], file: str = "") -> RunConfig:
        """The configuration with these keys; raises `InputError`, which names the file and the key."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise InputError(f"{file}: {_fault(error)}" if file else _fault(error)) from None

    @classmethod
    def read(cls, path: str | Path) -> RunConfig:
        """The configuration in a YAML file, or that of a manifest's own run, in its ``*.meta.json``.

        Places are looked for from the file's folder first; a name that is not there stays as it is.

        Raises:
            InputError: one line that names the file, and the key, or the line that is no YAML.
        """
        folder = Path(path).resolve().parent
        config = cls.of(_values(Path(path)), str(path))
        named = config.with_places(lambda name: _found_from(folder, name))
        # only where it says so: a manifest's own run names none
        return (
            named.model_copy(update={"out": str(folder / config.out)})
            if "out" in config.model_fields_set
            else named
        )

    def changed(self, options: Mapping[str, Any]) -> RunConfig:
        """With the options that are not None in the place of these keys."""
        given = {key: value for key, value in options.items() if value is not None}
        return type(self).of({**self.model_dump(exclude_unset=True), **given})

    @property
    def given(self) -> frozenset[str]:
        """The keys that say something other than the default."""
        return frozenset(self.model_dump(exclude_defaults=True))

    def check(self) -> None:
        """Raise `InputError` where the keys do not make up a selection."""
        given = self.given
        step_by_step = "scores" in given and not given & ONE_SHOT
        if not (step_by_step or ({"model", "pool", "target"} <= given and not given & STEPS)):
            raise InputError("give either --scores (and --store), or --model with --train and --target")
        if step_by_step and self.model and parse_budget(self.budget).unit == EXAMPLES:
            raise InputError("--model beside --scores counts tokens; the budget is in examples, leave it out")
        if self.group_by and isinstance(self.target, Mapping):
            raise InputError("--group-by: targets with names are groups already; give one target to group")

    def embedded(self, folder: Path) -> dict[str, Any]:
        """What a manifest in ``folder`` tells of its run, as JSON, from which `read` makes it again.

        Defaults are told too, as later ones may be others, and places as `portable` names them.
        """
        run = self.with_places(lambda name: portable(map_names(name, _absolute), folder))
        told = run.model_dump(
            mode="json", exclude_none=True, exclude={"out"} | (ONE_SHOT if self.scores else set())
        )
        return {key: value for key, value in told.items() if value != {}}

    def with_places(self, change: Callable[[str], str]) -> RunConfig:
        """With the names of data sets, of files but ``out``, and of the model changed."""
        places = ("model", "pool", "scores", "store", "parts")
        changed: dict[str, Any] = {key: change(getattr(self, key)) for key in places if getattr(self, key)}
        if self.target:
            changed["target"] = (
                change(self.target)
                if isinstance(self.target, str)
                else {name: change(data) for name, data in self.target.items()}
            )
        if self.trial:
            changed["trial"] = self.trial.model_copy(update={"test": change(self.trial.test)})
        if self.signals:
            changed["signals"] = {name: change(file) for name, file in self.signals.items()}
        return self.model_copy(update=changed)


def _values(path: Path) -> Mapping[str, Any]:
    """The keys in a file."""
    if path.name.endswith(".meta.json"):
        meta = read_json(path)
        run = meta.get("run") if isinstance(meta, dict) else None
        if not isinstance(run, dict):
            raise InputError(
                f"{path}: tells of no run; only 'backcast select' writes how to make a subset again"
            )
        return run
    try:
        value = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; give a run.yaml, or a manifest's .meta.json") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise InputError(
            f"{path}{line}: not valid YAML ({getattr(error, 'problem', None) or error})"
        ) from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: not a mapping of keys; it has {', '.join(RunConfig.model_fields)}")
    return value


def _fault(error: ValidationError) -> str:
    """The first thing that is wrong, as ``key: what``."""
    first = error.errors()[0]
    key = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        parts: dict[Any, type[BaseModel]] = {
            "score": ScoreConfig,
            "sketch": SketchConfig,
            "trial": TrialConfig,
        }
        fields = parts.get(first["loc"][0], RunConfig).model_fields
        return f"{key}: no such key; it has {', '.join(fields)}"
    raised = first.get("ctx", {}).get("error")
    what = str(raised) if isinstance(raised, ValueError) else first["msg"]
    return what if what.startswith(key) else f"{key}: {what}"


def _found_from(folder: Path, name: str) -> str:
    """A name as it is meant in a file in ``folder``: what lies there, else the name itself."""

    def one(part: str) -> str:
        there = str(folder / part)
        stem = there.rpartition(":")[0]
        lies = os.path.exists(there) or (stem and os.path.exists(stem)) or glob(there, recursive=True)
        return os.path.normpath(there) if lies or part.split("/")[0] in (".", "..") else part

    return one(name) if (folder / name).exists() else map_names(name, lambda part: one(part.strip()))


def _absolute(name: str) -> str:
    return str(Path(name).resolve()) if os.path.exists(name) else name
