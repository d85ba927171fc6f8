"""Optimizer states by parameter name, from files that training loops really write."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from attribution_cases import CLASSES, INPUTS, llama, mlp
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.checkpoint import FileSystemWriter, save
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from backcast.attribution import Checkpoint, collect
from backcast.attribution.optimizer_state import adam_state, optimizer_state
from backcast.data import Example, Examples
from backcast.errors import InputError
from backcast.tasks import Batch, Task

VOCAB, STEPS = 13, 3


class Trap:
    """Unpickling this runs code."""

    def __reduce__(self):
        return exec, ("raise SystemError('the state ran code')",)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = STEPS) -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        x, y = torch.randn(8, INPUTS, generator=generator), torch.randint(CLASSES, (8,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


def adamw(model: nn.Module, **settings: Any) -> torch.optim.AdamW:
    """With named parameters in two groups of other settings, the model's order turned around."""
    named = list(model.named_parameters())[::-1]
    groups = [{"params": named[:1], "betas": (0.8, 0.98)}, {"params": named[1:], "eps": 1e-6}]
    return torch.optim.AdamW(groups, lr=1e-3, **settings)


def check(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """The file's states are those in the optimizer's memory, which is keyed by the parameters themselves."""
    found = adam_state(path, model)
    settings = {p: group for group in optimizer.param_groups for p in group["params"]}
    trained = {name: p for name, p in model.named_parameters() if p in optimizer.state}
    assert list(found) == list(trained)
    for name, parameter in trained.items():
        truth = optimizer.state[parameter]
        assert torch.equal(found[name].exp_avg, truth["exp_avg"])
        assert torch.equal(found[name].exp_avg_sq, truth["exp_avg_sq"])
        assert found[name].step == STEPS
        assert (found[name].betas, found[name].eps) == (
            settings[parameter]["betas"],
            settings[parameter]["eps"],
        )


def refusal(path: Path, model: nn.Module, read: Callable[..., Any] = adam_state) -> str:
    with pytest.raises(InputError) as told:
        read(path, model)
    assert "\n" not in str(told.value)
    return str(told.value)


# torch files


def bare(model: nn.Module, optimizer: torch.optim.Optimizer) -> Any:
    return optimizer.state_dict()


def beside_others(model: nn.Module, optimizer: torch.optim.Optimizer) -> Any:
    return {"epoch": 2, "model": model.state_dict(), "optimizer_state_dict": optimizer.state_dict()}


def by_qualified_name(model: nn.Module, optimizer: torch.optim.Optimizer) -> Any:
    return {"optimizer": get_optimizer_state_dict(model, optimizer)}


@pytest.mark.parametrize("form", [bare, beside_others, by_qualified_name])
def test_torch_files(form, tmp_path):
    model = mlp()
    optimizer = adamw(model)
    train(model, optimizer)
    torch.save(form(model, optimizer), tmp_path / "state.pt")
    check(tmp_path / "state.pt", model, optimizer)


def test_the_order_of_groups_and_of_their_parameters_changes_nothing(tmp_path):
    model = mlp()
    optimizer = adamw(model)
    train(model, optimizer)
    saved = optimizer.state_dict()
    for group in saved["param_groups"]:
        group["params"], group["param_names"] = group["params"][::-1], group["param_names"][::-1]
    saved["param_groups"].reverse()
    saved["state"] = dict(reversed(saved["state"].items()))
    torch.save(saved, tmp_path / "state.pt")
    check(tmp_path / "state.pt", model, optimizer)


def test_a_distributed_checkpoint_is_read_once_it_is_one_file(tmp_path):
    """Its index is a pickle, so the folder is refused, with the command that turns it into a file."""
    model = mlp()
    optimizer = adamw(model)
    train(model, optimizer)
    save(by_qualified_name(model, optimizer), storage_writer=FileSystemWriter(tmp_path / "dcp"), no_dist=True)
    assert "format_utils dcp_to_torch FOLDER FILE" in refusal(tmp_path / "dcp", model)
    dcp_to_torch_save(tmp_path / "dcp", tmp_path / "state.pt")
    check(tmp_path / "state.pt", model, optimizer)


@pytest.mark.filterwarnings("ignore")
def test_a_full_state_of_fsdp(tmp_path):
    model = mlp()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        sharded = fully_shard(copy.deepcopy(model), mesh=init_device_mesh("cpu", (1,)))
        optimizer = torch.optim.AdamW(sharded.parameters(), lr=1e-3)
        train(sharded, optimizer)
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        torch.save(get_optimizer_state_dict(sharded, optimizer, options=options), tmp_path / "state.pt")
        truth = {n: optimizer.state[p]["exp_avg"].full_tensor() for n, p in sharded.named_parameters()}
    finally:
        dist.destroy_process_group()
    found = adam_state(tmp_path / "state.pt", model)
    assert list(found) == list(truth)
    assert all(torch.equal(found[name].exp_avg, truth[name]) for name in truth)


def test_wrappers_names_are_seen_through(tmp_path):
    model = mlp()
    wrapped = nn.ModuleDict(
        {"module": torch.compile(model, backend="eager")}
    )  # as DDP around a compiled model
    assert next(iter(dict(wrapped.named_parameters()))).startswith("module._orig_mod.")
    optimizer = adamw(wrapped)
    train(model, optimizer)
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    check(tmp_path / "state.pt", model, optimizer)


def test_any_name_of_a_shared_parameter_will_do(tmp_path):
    model = mlp(hidden=INPUTS)
    model.again = nn.Linear(INPUTS, INPUTS)
    model.again.weight = model[0].weight
    optimizer = torch.optim.AdamW([("again.weight", model.again.weight)])
    model[0].weight.grad = torch.ones(INPUTS, INPUTS)
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    assert list(adam_state(tmp_path / "state.pt", model)) == ["0.weight"]


def test_momentum_of_sgd(tmp_path):
    model = mlp()
    optimizer = torch.optim.SGD(model.named_parameters(), lr=0.1, momentum=0.9)
    train(model, optimizer)
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    found = optimizer_state(tmp_path / "state.pt", model)
    for name, parameter in model.named_parameters():
        assert torch.equal(
            found[name].slots["momentum_buffer"], optimizer.state[parameter]["momentum_buffer"]
        )
        assert (found[name].settings["lr"], found[name].settings["momentum"]) == (0.1, 0.9)
    assert "state.pt: 0.weight has no exp_avg, so this is not the state" in refusal(
        tmp_path / "state.pt", model
    )


# The Trainer's folders


def trained_by_trainer(model: nn.Module, folder: Path) -> torch.optim.Optimizer:
    """The optimizer after a run that writes ``checkpoint-3``."""
    pytest.importorskip("accelerate")
    from transformers import Trainer, TrainingArguments

    rows = [{"input_ids": (row := torch.randint(1, VOCAB, (6,))), "labels": row} for _ in range(12)]
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=STEPS, save_steps=STEPS, per_device_train_batch_size=4, weight_decay=0.1,
        report_to=[], use_cpu=True, disable_tqdm=True, logging_strategy="no",
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=rows)
    trainer.train()
    return getattr(trainer.optimizer, "optimizer", trainer.optimizer)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[nn.Module, Path, torch.optim.Optimizer]:
    model, folder = llama(VOCAB, width=8), tmp_path_factory.mktemp("trainer")
    optimizer = trained_by_trainer(model, folder)
    return model, folder / f"checkpoint-{STEPS}", optimizer


def test_a_trainers_checkpoint(run):
    model, folder, optimizer = run
    saved = torch.load(folder / "optimizer.pt", weights_only=True)
    assert all(isinstance(key, int) for key in saved["state"])  # or this tests nothing of the order
    assert [len(group["params"]) for group in saved["param_groups"]] == [16, 5]
    check(folder, model, optimizer)
    others = {n for n, state in optimizer_state(folder, model).items() if state.settings["weight_decay"] == 0}
    assert others == {n for n, _ in model.named_parameters() if "norm" in n}


def test_a_trainers_checkpoint_of_adapters(tmp_path):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=3, target_modules=["q_proj", "down_proj"], modules_to_save=["lm_head"])
    model = peft.get_peft_model(llama(VOCAB, width=8), config)
    optimizer = trained_by_trainer(model, tmp_path)
    check(tmp_path / f"checkpoint-{STEPS}", model, optimizer)
    found = adam_state(tmp_path / f"checkpoint-{STEPS}", model)
    assert "base_model.model.model.layers.1.mlp.down_proj.lora_A.default.weight" in found
    assert len(found) == 2 * 2 * 2 + 1


class Tokens(Task):
    """The mean loss of a causal model over whole rows of ids."""

    def collate(self, examples: Sequence[Example]) -> Batch:
        return {"ids": torch.tensor([e.fields["ids"] for e in examples])}

    def modules(self, model: nn.Module) -> dict[str, nn.Module]:
        return {name: m for name, m in super().modules(model).items() if "_proj" in name}

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        logits = model(input_ids=batch["ids"]).logits[:, :-1]
        return F.cross_entropy(logits.mT, batch["ids"][:, 1:], reduction="none").mean(1)


def test_directions_from_a_trainers_folder(run, tmp_path):
    """Weights and states are those in the Trainer's memory, where the folder is all that a fresh model is given."""
    model, folder, optimizer = run
    save_file({name: p.detach() for name, p in model.named_parameters()}, tmp_path / "model.safetensors")
    torch.save(get_optimizer_state_dict(model, optimizer), tmp_path / "state.pt")
    memory = Checkpoint(str(tmp_path / "model.safetensors"), 1.0, str(tmp_path / "state.pt"))
    disk = Checkpoint(str(folder), 1.0, str(folder))
    rows = Examples.from_fields([{"text": str(i), "ids": [i, 1, 2, 3]} for i in range(5)])
    first, second = (
        collect(llama(VOCAB, width=8), Tokens(), rows, tmp_path / name, checkpoints=[point], direction="adam")
        for name, point in (("memory", memory), ("disk", disk))
    )
    assert np.array_equal(first.sketches(), second.sketches())
    assert {**first.checkpoints[0], "name": folder.name} == second.checkpoints[0]


def edited(run: Any, folder: Path, edit: Callable[[Any], Any]) -> tuple[Path, nn.Module]:
    """The run's checkpoint with another optimizer.pt."""
    model, checkpoint, _ = run
    saved = torch.load(checkpoint / "optimizer.pt", weights_only=True)
    torch.save(edit(saved) or saved, folder / "optimizer.pt")
    (folder / "trainer_state.json").write_text("{}")
    return folder, model


def test_a_trainers_states_of_swapped_shapes_are_refused(run, tmp_path):
    def swap(saved: Any) -> None:
        state = saved["state"]
        first, other = 1, next(k for k, s in state.items() if s["exp_avg"].shape != state[1]["exp_avg"].shape)
        state[first], state[other] = state[other], state[first]

    folder, model = edited(run, tmp_path, swap)
    assert "optimizer.pt: exp_avg of model.embed_tokens.weight has shape" in refusal(folder, model)


def test_a_trainers_groups_that_are_not_its_own_are_refused(run, tmp_path):
    def merge(saved: Any) -> None:
        decayed, others = saved["param_groups"]
        saved["param_groups"] = [{**decayed, "params": decayed["params"] + others["params"]}]

    folder, model = edited(run, tmp_path, merge)
    assert "its groups have 21 parameters, a Trainer's of this model 16 + 5" in refusal(folder, model)


def test_a_model_that_is_frozen_otherwise_is_refused(run):
    model, folder, _ = run
    frozen = copy.deepcopy(model)
    frozen.model.embed_tokens.weight.requires_grad_(False)
    assert "its groups have 16 + 5 parameters, a Trainer's of this model 15 + 5" in refusal(folder, frozen)


# What is refused


def test_numbers_without_names_are_refused(tmp_path):
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters())
    train(model, optimizer)
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    assert "its states are numbered, not named" in refusal(tmp_path / "state.pt", model)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")  # in a folder that no Trainer wrote
    assert "its states are numbered, not named" in refusal(tmp_path, model)


def state_of(
    model: nn.Module, edit: Callable[[Mapping[str, Any]], None], **settings: Any
) -> Mapping[str, Any]:
    optimizer = adamw(model, **settings)
    train(model, optimizer)
    saved = get_optimizer_state_dict(model, optimizer)
    edit(saved)
    return saved


def swap_shapes(saved: Any) -> None:
    state = saved["state"]
    state["0.weight"], state["2.weight"] = state["2.weight"], state["0.weight"]


def rename(saved: Any) -> None:
    saved["param_groups"][0]["params"][0] = "other.weight"


def nothing(saved: Any) -> None: ...


@pytest.mark.parametrize(
    ("edit", "settings", "line"),
    [
        (swap_shapes, {}, r"state.pt: exp_avg of 2.weight has shape (16, 12), the parameter (5, 16)"),
        (rename, {}, "state.pt: other.weight is no parameter of this model"),
        (nothing, {"amsgrad": True}, "has amsgrad's maximum, so this is not the state of torch's Adam"),
        (lambda saved: saved["state"].clear(), {}, "no parameter has a state yet"),
        (lambda saved: saved["state"]["0.bias"].pop("exp_avg_sq"), {}, "state.pt: 0.bias has no exp_avg_sq"),
        (lambda saved: saved.pop("param_groups"), {}, "holds the state dicts of 0 optimizers"),
    ],
)  # fmt: skip
def test_states_that_do_not_fit_are_refused_in_one_line(edit, settings, line, tmp_path):
    model = mlp()
    torch.save(state_of(model, edit, **settings), tmp_path / "state.pt")
    assert line in refusal(tmp_path / "state.pt", model)


@pytest.mark.filterwarnings("ignore:.*pickle")
def test_other_files_are_refused(tmp_path):
    model = mlp()
    torch.save({"state": {0: Trap()}, "param_groups": []}, tmp_path / "trap.pt")
    assert "trap.pt: not a readable checkpoint" in refusal(tmp_path / "trap.pt", model)
    assert "nowhere: no such checkpoint" in refusal(tmp_path / "nowhere", model)
    assert "no optimizer's state in this folder; it needs one of optimizer.pt" in refusal(tmp_path, model)
    state = adamw(model).state_dict()
    torch.save({"generator": state, "critic": state}, tmp_path / "two.pt")
    assert "two.pt: holds the state dicts of 2 optimizers" in refusal(tmp_path / "two.pt", model)
