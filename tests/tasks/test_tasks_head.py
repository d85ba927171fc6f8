"""Losses without logits, against a plain cross-entropy of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from backcast.tasks import head as head_module
from backcast.tasks.head import IGNORE, token_losses

VOCAB = 40
SIZES = {
    "vocab_size": VOCAB, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 1, "pad_token_id": 0,
}  # fmt: skip


def llama(bias: bool = False, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES))
    if bias:
        model.lm_head = nn.Linear(16, VOCAB)
    return grown(model, dtype)


def grown(model: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """With logits that are far from uniform, and a frozen head."""
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    model.get_output_embeddings().requires_grad_(False)
    return model.to(dtype).eval()


def batch(n: int = 5, length: int = 9) -> tuple[dict[str, Tensor], Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, VOCAB, (n, length), generator=generator)
    labels = torch.randint(VOCAB, (n, length), generator=generator)
    labels[:, :2], labels[1, 4:] = IGNORE, IGNORE
    return {"input_ids": ids}, labels


def plain(model: Any, inputs: dict[str, Tensor], labels: Tensor) -> Tensor:
    logits = model(**inputs).logits
    return F.cross_entropy(logits.mT, labels, ignore_index=IGNORE, reduction="none")


def gradients(model: Any, losses: Tensor) -> Tensor:
    """By all that is trainable, of a sum in which no two tokens count alike."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    weights = torch.linspace(0.5, 2, losses.numel(), dtype=losses.dtype).view_as(losses)
    return torch.cat([g.flatten() for g in torch.autograd.grad((losses * weights).sum(), trainable)])


@pytest.fixture
def runs(monkeypatch) -> list[int]:
    """The tokens of each loss that was taken without logits."""
    seen: list[int] = []
    apply = head_module._FrozenHead.apply

    def counted(hidden: Tensor, *others: Any) -> Tensor:
        seen.append(len(hidden))
        return apply(hidden, *others)

    monkeypatch.setattr(head_module._FrozenHead, "apply", counted)
    return seen


@pytest.mark.parametrize("blocks", [1, 4])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-5), (torch.bfloat16, 3e-2)]
)
def test_values_and_gradients_are_those_of_the_logits(bias, blocks, dtype, tolerance, runs, monkeypatch):
    """Llama's norms are float32 throughout, whence the tolerance for float64."""
    monkeypatch.setattr(head_module, "LEAST", 1)
    monkeypatch.setattr(head_module, "BLOCK", VOCAB * (100 if blocks == 1 else 8))
    model, (inputs, labels) = llama(bias, dtype), batch()
    expected = plain(model, inputs, labels)
    losses = token_losses(model, inputs, labels)
    assert runs == [int((labels != IGNORE).sum())]
    assert losses.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert (losses[labels == IGNORE] == 0).all()
    assert (losses - expected).norm() <= tolerance * expected.norm()
    exact = gradients(model, expected).double()
    assert (gradients(model, losses).double() - exact).norm() <= tolerance * exact.norm()
    with torch.no_grad():
        assert torch.equal(token_losses(model, inputs, labels), losses)
    assert not model.lm_head._forward_hooks
    assert not model.lm_head._forward_pre_hooks


@pytest.mark.parametrize(
    "make",
    [
        lambda: Gemma2ForCausalLM(Gemma2Config(**SIZES, head_dim=8, final_logit_softcapping=5.0)),
        lambda: CohereForCausalLM(CohereConfig(**SIZES, logit_scale=0.3)),
        lambda: GraniteForCausalLM(GraniteConfig(**SIZES, logits_scaling=3.0)),
    ],
    ids=["capped", "scaled up", "scaled down"],
)
def test_logits_that_are_not_the_heads_output_are_taken_as_they_are(make: Callable[[], nn.Module], runs):
    torch.manual_seed(0)
    model, (inputs, labels) = grown(make()), batch()
    expected = plain(model, inputs, labels)
    by_parameters = gradients(model, plain(model, inputs, labels))
    raw = model.get_output_embeddings()(model.model(**inputs).last_hidden_state)
    assert (raw - model(**inputs).logits).abs().max() > 0.1
    for _ in range(2):  # the second time it is known
        losses = token_losses(model, inputs, labels)
        torch.testing.assert_close(losses, expected)
        torch.testing.assert_close(gradients(model, losses), by_parameters)
    assert runs == []


@pytest.mark.parametrize("trained", ["weight", "bias"])
def test_a_head_that_is_trained_has_its_gradient(trained, runs):
    model, (inputs, labels) = llama(bias=True), batch()
    parameter = getattr(model.lm_head, trained).requires_grad_(True)
    (expected,) = torch.autograd.grad(plain(model, inputs, labels).sum(), parameter)
    (got,) = torch.autograd.grad(token_losses(model, inputs, labels).sum(), parameter)
    torch.testing.assert_close(got, expected)
    assert runs == []
    with torch.no_grad():  # nothing is trained here
        token_losses(model, inputs, labels)
    assert len(runs) == 1


def test_a_head_that_is_watched_is_run(runs):
    model, (inputs, labels) = llama(), batch()
    seen: list[torch.Size] = []
    model.lm_head.register_forward_hook(lambda module, arguments, output: seen.append(output.shape))
    token_losses(model, inputs, labels)
    assert seen == [(*labels.shape, VOCAB)]
    assert runs == []


def test_without_any_label_losses_are_zero_and_so_are_gradients():
    model, (inputs, labels) = llama(), batch()
    losses = token_losses(model, inputs, torch.full_like(labels, IGNORE))
    assert torch.equal(losses, torch.zeros(labels.shape))
    assert gradients(model, losses).abs().max() == 0


def test_a_model_without_an_output_head_is_run_as_it_is(runs):
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = llama()

        def forward(self, **inputs: Tensor) -> Any:
            return self.inner(**inputs)

    model, (inputs, labels) = Bare(), batch()
    torch.testing.assert_close(token_losses(model, inputs, labels), plain(model, inputs, labels))
    assert runs == []


@pytest.mark.parametrize("in_place", [False, True])
def test_a_compiled_model_is_run_as_it_is(in_place, runs):
    """Hooks that come after it was compiled may not be called."""
    model, (inputs, labels) = llama(), batch()
    expected = plain(model, inputs, labels)
    if in_place:
        model.compile(backend="eager")
    else:
        model = torch.compile(model, backend="eager")
    for _ in range(2):
        torch.testing.assert_close(token_losses(model, inputs, labels), expected)
    with torch.no_grad():
        torch.testing.assert_close(token_losses(model, inputs, labels), expected)
    assert runs == []


@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16])
def test_autocast_changes_values_and_gradients_but_little(autocast):
    model, (inputs, labels) = llama(bias=True), batch()
    expected = plain(model, inputs, labels)
    with torch.autocast("cpu", autocast):
        losses = token_losses(model, inputs, labels)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, expected, rtol=0.1, atol=0.1)
    exact, got = gradients(model, expected), gradients(model, losses)
    assert F.cosine_similarity(exact, got, 0) > 0.995


def test_tokens_that_are_all_but_certain_keep_their_gradient_in_float16():
    """Their gradients, of the size of their losses, are below what float16 can hold."""
    model, (inputs, _) = llama(bias=True), batch(32, 32)
    with torch.no_grad():
        model.lm_head.weight.mul_(0.04)
        model.lm_head.bias[7] += 16
    labels = torch.full((32, 32), 7)
    losses = plain(model, inputs, labels)
    certain = (losses > 1e-6) & (losses < 3e-5)
    assert certain.sum() >= 5
    labels[~certain] = IGNORE
    scale = 2.0**16
    exact = gradients(model, plain(model, inputs, labels))
    with torch.autocast("cpu", torch.float16):
        losses = token_losses(model, inputs, labels)
    got = gradients(model, losses * scale) / scale
    assert F.cosine_similarity(exact, got, 0) > 0.97
