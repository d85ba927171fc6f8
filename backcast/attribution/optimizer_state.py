"""What an optimizer remembers of each parameter: read from a file, and told by the parameter's name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from backcast.attribution.checkpoints import read_tensors
from backcast.errors import InputError

#: What Trainer and accelerate call the file in a checkpoint's folder.
STATE_FILES = ("optimizer.pt", "optimizer.bin")
#: What wrappers of a model or of its blocks put into the names.
_WRAPPERS = re.compile(r"^module\.|(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


@dataclass(frozen=True)
class ParameterState:
    """One parameter's.

    Attributes:
        slots: what the optimizer remembers: ``exp_avg``, ``exp_avg_sq`` and ``step`` of Adam, ``momentum_buffer`` of
            SGD; each of the parameter's shape or one number.
        settings: those of its parameter group: ``lr``, ``betas``, ``eps``, ``momentum``, ``weight_decay``, ...
    """

    slots: Mapping[str, Any]
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class AdamState:
    """What Adam or AdamW remembers of one parameter after ``step`` steps.

    Attributes:
        exp_avg: m, of the parameter's shape.
        exp_avg_sq: v, likewise.
        step: the steps made.
        betas: β1 and β2.
        eps: added to √v.
    """

    exp_avg: Tensor
    exp_avg_sq: Tensor
    step: int
    betas: tuple[float, float]
    eps: float


def optimizer_state(path: str | Path, model: nn.Module) -> dict[str, ParameterState]:
    """Each parameter's state by its name in ``model``, in the model's order; of those that have one.

    Read are, always with ``weights_only=True``: the folder of a checkpoint of transformers' Trainer; a torch file of
    an optimizer's state dict, or of a dict with one in it under any name. The states must be named: an optimizer that
    was made from ``model.named_parameters()`` saves names (its groups' ``param_names``), and so does
    `torch.distributed.checkpoint.state_dict.get_optimizer_state_dict`, of FSDP too with ``full_state_dict=True``. A
    Trainer saves numbers, but in an order that follows from the model: decayed parameters, then the others
    (`Trainer.get_decay_parameter_names`), each as `named_parameters` lists them. Names may carry what DDP, FSDP and
    torch.compile put into them.

    Raises:
        InputError: no such file or none of these; states that are numbered in an order unknown; a name that is no
            parameter of the model, or a state of another shape.
    """
    path = Path(path)
    file = _file(path)
    saved = _state_dict(read_tensors(file), file)
    names = _first_names(model)
    parameters = dict(model.named_parameters())
    found: dict[str, ParameterState] = {}
    for group, members in zip(saved["param_groups"], _members(saved, path, model), strict=True):
        settings = {k: v for k, v in group.items() if k not in ("params", "param_names")}
        for written, key in zip(members, group["params"], strict=True):
            name = names.get(_plain(written))
            if name is None:
                raise InputError(
                    f"{file}: {written} is no parameter of this model; take its own optimizer's state"
                )
            if key in saved["state"]:
                slots = saved["state"][key]
                _check_shapes(name, slots, parameters[name], file)
                found[name] = ParameterState(slots, settings)
    return {name: found[name] for name in parameters if name in found}


def adam_state(path: str | Path, model: nn.Module) -> dict[str, AdamState]:
    """Adam's or AdamW's state of each parameter, by name; see `optimizer_state`.

    Raises:
        InputError: besides, no state at all, or that of another optimizer.
    """
    states = optimizer_state(path, model)
    if not states:
        raise InputError(f"{path}: no parameter has a state yet; take a checkpoint after the first step")
    return {name: _adam(name, state, path) for name, state in states.items()}


def _adam(name: str, state: ParameterState, path: str | Path) -> AdamState:
    slots, settings = state.slots, state.settings
    missing = [k for k in ("exp_avg", "exp_avg_sq", "step") if k not in slots] + [
        k for k in ("betas", "eps") if k not in settings
    ]
    if missing or settings.get("amsgrad"):
        what = f"no {missing[0]}" if missing else "amsgrad's maximum"
        raise InputError(f"{path}: {name} has {what}, so this is not the state of torch's Adam or AdamW")
    beta1, beta2 = settings["betas"]
    return AdamState(
        slots["exp_avg"],
        slots["exp_avg_sq"],
        int(slots["step"]),
        (float(beta1), float(beta2)),
        float(settings["eps"]),
    )


def _file(path: Path) -> Path:
    if not path.is_dir():
        return path
    found = [path / name for name in STATE_FILES if (path / name).is_file()]
    if found:
        return found[0]
    if list(path.glob("**/.metadata")):
        raise InputError(
            f"{path}: a distributed checkpoint, whose index is a pickle; make one file of its folder with "
            "'python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER FILE'"
        )
    raise InputError(f"{path}: no optimizer's state in this folder; it needs one of {', '.join(STATE_FILES)}")


def _state_dict(whole: Mapping[Any, Any], file: Path) -> Mapping[str, Any]:
    """The one optimizer's state dict in what was read."""
    found = [
        value
        for value in (whole, *whole.values())
        if isinstance(value, dict)
        and isinstance(value.get("state"), dict)
        and isinstance(value.get("param_groups"), list)
    ]
    if len(found) != 1:
        raise InputError(
            f"{file}: holds the state dicts of {len(found)} optimizers (dicts of state and param_groups), not of one"
        )
    return found[0]


def _members(saved: Mapping[str, Any], path: Path, model: nn.Module) -> list[Sequence[str]]:
    """The parameters' names in each group, in the order of its ``params``."""
    groups = saved["param_groups"]
    for named in ([group.get(key, [None]) for group in groups] for key in ("params", "param_names")):
        if all(isinstance(name, str) for names in named for name in names):
            return named
    if not (path / "trainer_state.json").is_file():
        raise InputError(
            f"{path}: its states are numbered, not named; make the optimizer from model.named_parameters(), or save "
            "torch.distributed.checkpoint.state_dict.get_optimizer_state_dict"
        )
    named = _trainer_groups(model)
    if [len(names) for names in named] != [len(group["params"]) for group in groups]:
        raise InputError(
            f"{path}: its groups have {_sizes(group['params'] for group in groups)} parameters, a Trainer's of this "
            f"model {_sizes(named)}; take the model as it was trained (frozen parameters frozen), or name its states"
        )
    return named


def _trainer_groups(model: nn.Module) -> list[Sequence[str]]:
    """The decayed parameters and the others, as transformers' Trainer orders them."""
    from transformers import Trainer

    decayed = set(Trainer.get_decay_parameter_names(None, model))  # type: ignore[arg-type]
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    return [[n for n in trained if n in decayed], [n for n in trained if n not in decayed]]


def _sizes(groups: Any) -> str:
    return " + ".join(str(len(group)) for group in groups)


def _check_shapes(name: str, slots: Mapping[str, Any], parameter: Tensor, file: Path) -> None:
    for slot, value in slots.items():
        if isinstance(value, Tensor) and value.dim() and value.shape != parameter.shape:
            raise InputError(
                f"{file}: {slot} of {name} has shape {tuple(value.shape)}, the parameter {tuple(parameter.shape)}; "
                "take the state of this model's own optimizer, whole"
            )


def _first_names(model: nn.Module) -> dict[str, str]:
    """Every name of every parameter, without wrappers → its name in `named_parameters`, where a shared one is once."""
    first = {p: name for name, p in model.named_parameters()}
    return {_plain(name): first[p] for name, p in model.named_parameters(remove_duplicate=False)}


def _plain(name: str) -> str:
    return _WRAPPERS.sub("", name)
