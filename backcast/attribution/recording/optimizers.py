"""What torch's optimizers are made of, by parameter name."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from backcast.attribution.recording.recording import OptimizerSpec
from backcast.errors import InputError

#: Of each optimizer, the settings that its recorded groups hold.
SETTINGS = {
    torch.optim.SGD: ("weight_decay", "momentum", "dampening", "nesterov"),
    torch.optim.Adam: ("weight_decay", "betas", "eps"),
    torch.optim.AdamW: ("weight_decay", "betas", "eps"),
}
#: Settings that change a step's formula, and that a replay does not know.
UNKNOWN = ("amsgrad", "maximize")


def optimizer_spec(
    model: nn.Module, optimizer: torch.optim.Optimizer, max_grad_norm: float | None
) -> OptimizerSpec:
    """The optimizer with its parameters' names in ``model``; frozen ones are left out.

    Raises `InputError` for one that is not torch's SGD, Adam or AdamW, or that holds a parameter of another model.
    """
    kind = type(optimizer)
    odd = [name for group in optimizer.param_groups for name in UNKNOWN if group.get(name)]
    if kind not in SETTINGS or odd:
        what = f"{kind.__name__} with {odd[0]}" if odd else f"{kind.__module__}.{kind.__name__}"
        raise InputError(f"a run of {what} cannot be recorded; train with torch.optim's SGD, Adam or AdamW")
    names = {p: name for name, p in model.named_parameters()}
    groups: list[dict[str, Any]] = []
    for group in optimizer.param_groups:
        trained = [p for p in group["params"] if p.requires_grad]
        if foreign := [p for p in trained if p not in names]:
            raise InputError(
                f"the optimizer holds a parameter of shape {tuple(foreign[0].shape)} that is none of this "
                f"{type(model).__name__}'s; make it from model.parameters()"
            )
        groups.append({"names": [names[p] for p in trained]} | {name: group[name] for name in SETTINGS[kind]})
    decoupled = any(group.get("decoupled_weight_decay") for group in optimizer.param_groups)
    return OptimizerSpec(
        kind="adamw" if decoupled else kind.__name__.lower(),
        groups=tuple(groups),
        max_grad_norm=max_grad_norm,
    )


def optimizer_slots(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's present state, ``SLOT/NAME`` → tensor."""
    names: dict[Tensor, str] = {p: name for name, p in model.named_parameters()}
    return {
        f"{slot}/{names[p]}": torch.as_tensor(value)
        for p, slots in optimizer.state.items()
        if p in names
        for slot, value in slots.items()
        if value is not None
    }
