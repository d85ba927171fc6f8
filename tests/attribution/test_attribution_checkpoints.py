"""Files of weights: what is read, what is refused."""

from __future__ import annotations

import json
import pickle

import pytest
import torch
from attribution_cases import llama, mlp
from safetensors.torch import save_file
from torch import nn

from backcast.attribution import Checkpoint
from backcast.attribution.checkpoints import WEIGHT_FILES, load_weights
from backcast.errors import InputError
from backcast.tasks.hashes import weights_hash


class Trap:
    """Unpickling this runs code."""

    def __reduce__(self):
        return exec, ("raise SystemError('the checkpoint ran code')",)


@pytest.mark.parametrize("name", WEIGHT_FILES)
@pytest.mark.parametrize("as_folder", [True, False])
def test_weights_are_read_from_a_file_or_its_folder(name, as_folder, tmp_path):
    weights = mlp(seed=3).state_dict()
    path = tmp_path / name
    save_file(weights, path) if name.endswith(".safetensors") else torch.save(weights, path)
    model = mlp(seed=0)
    load_weights(model, Checkpoint(str(tmp_path if as_folder else path)).weights(), "")
    assert weights_hash(model) == weights_hash(mlp(seed=3))


@pytest.mark.filterwarnings("ignore:.*pickle")
def test_a_checkpoint_is_data_and_never_runs(tmp_path):
    path = tmp_path / "trap.bin"
    torch.save({"0.weight": Trap()}, path)
    with pytest.raises(InputError, match=r"trap\.bin: not a readable checkpoint"):
        Checkpoint(str(path)).weights()
    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(InputError, match=r"trap\.bin: not a readable checkpoint"):
        Checkpoint(str(path)).weights()


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.bin", "weights.pt"])
@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 and then nothing"])
def test_a_broken_file_is_one_line_that_names_it(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"{name}: not a readable checkpoint") as told:
        Checkpoint(str(tmp_path / name)).weights()
    assert "\n" not in str(told.value)


def test_a_cut_file_is_refused(tmp_path):
    whole = tmp_path / "whole.safetensors"
    save_file(mlp().state_dict(), whole)
    (tmp_path / "cut.safetensors").write_bytes(whole.read_bytes()[:-10])
    with pytest.raises(InputError, match=r"cut\.safetensors: not a readable"):
        Checkpoint(str(tmp_path / "cut.safetensors")).weights()


def test_other_things_are_refused(tmp_path):
    with pytest.raises(InputError, match="nowhere: no such checkpoint"):
        Checkpoint(str(tmp_path / "nowhere")).weights()
    with pytest.raises(InputError, match=r"no weights in this folder; it needs one of model\.safetensors"):
        Checkpoint(str(tmp_path)).weights()
    torch.save(torch.ones(3), tmp_path / "tensor.pt")
    with pytest.raises(InputError, match=r"tensor\.pt: holds a Tensor, not a state dict"):
        Checkpoint(str(tmp_path / "tensor.pt")).weights()


def test_the_hash_is_of_names_and_values():
    one, again, other = mlp(seed=0), mlp(seed=0), mlp(seed=1)
    assert weights_hash(one) == weights_hash(again) != weights_hash(other)
    with torch.no_grad():
        again[2].bias[0] = torch.nextafter(again[2].bias[0], torch.tensor(9.0))
    assert weights_hash(one) != weights_hash(again)
    assert weights_hash(one.bfloat16()) != weights_hash(mlp(seed=0))


@pytest.mark.parametrize("as_folder", [True, False])
@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_weights_in_several_files(file, as_folder, tmp_path):
    weights = mlp(seed=3).state_dict()
    shards = {name: file.replace(".", f"-0000{i % 2}.") for i, name in enumerate(weights)}
    for shard in set(shards.values()):
        part = {name: weights[name] for name in weights if shards[name] == shard}
        save_file(part, tmp_path / shard) if file.endswith("safetensors") else torch.save(
            part, tmp_path / shard
        )
    index = tmp_path / f"{file}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": shards}))
    checkpoint = Checkpoint(str(tmp_path if as_folder else index))
    model = mlp(seed=0)
    load_weights(model, checkpoint.weights(), "")
    assert weights_hash(model) == weights_hash(mlp(seed=3))
    (tmp_path / shards["0.weight"]).unlink()
    with pytest.raises(InputError, match=rf"{shards['0.weight']}: no such checkpoint"):
        checkpoint.weights()


def test_what_transformers_saves_in_several_files(tmp_path):
    model = llama(13)
    model.save_pretrained(tmp_path, max_shard_size="4KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    fresh = llama(13)
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.zero_()
    load_weights(fresh, Checkpoint(str(tmp_path)).weights(), "")
    assert weights_hash(fresh) == weights_hash(model)


@pytest.mark.parametrize("content", ["{}", "[]", '{"weight_map": {"0.weight": 3}}', '{"weight_map": []}'])
def test_an_index_of_something_else_is_refused(content, tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(InputError, match=r"model\.safetensors\.index\.json: not an index of weights") as told:
        Checkpoint(str(tmp_path)).weights()
    assert "\n" not in str(told.value)


def adapted(name: str = "default") -> nn.Module:
    """With weights of its own in every adapter."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=3, target_modules=["q_proj"], modules_to_save=["lm_head"])
    return peft.get_peft_model(llama(13, width=8), config, adapter_name=name)


@pytest.mark.parametrize("name", ["default", "mine"])
def test_what_peft_saves_of_an_adapter(name, tmp_path):
    model, fresh = adapted(name), adapted(name)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(1)
    assert weights_hash(fresh) != weights_hash(model)
    model.save_pretrained(tmp_path)
    folder = tmp_path if name == "default" else tmp_path / name
    load_weights(fresh, Checkpoint(str(folder)).weights(), "")
    assert weights_hash(fresh) == weights_hash(model)


def test_an_adapter_is_loaded_whole_and_where_it_belongs(tmp_path):
    model = adapted()
    model.save_pretrained(tmp_path)
    weights = Checkpoint(str(tmp_path)).weights()
    with pytest.raises(InputError, match="not a checkpoint of this model"):
        load_weights(llama(13, width=8), weights, "")
    for nothing in (llama(13, width=8), model):
        with pytest.raises(InputError, match="not a checkpoint of this model"):
            load_weights(nothing, {}, "")
    weights.popitem()
    with pytest.raises(InputError, match="not a checkpoint of this model"):
        load_weights(model, weights, "")
