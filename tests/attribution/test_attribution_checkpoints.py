"""Files of weights: what is read, what is refused."""

from __future__ import annotations

import pickle

import pytest
import torch
from attribution_cases import mlp
from safetensors.torch import save_file

from backcast.attribution import Checkpoint
from backcast.attribution.checkpoints import WEIGHT_FILES, load_weights, weights_hash
from backcast.errors import InputError


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
