"""What a model must satisfy before its neurons are read: two identities, checked on a few tokens when it is loaded.

Hook points that are not what they are called (a projection that is bypassed, a write that does not arrive) give numbers that look like a result.
"""

from __future__ import annotations

from contextlib import ExitStack

import torch
from torch import Tensor

from ..errors import ActivationError, InputError
from .base import Model, keep_in, tapped

# Largest difference allowed, as a share of the sum of absolute values of the terms: rounding stays ten times below, a missing bias is far above
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}
TF32_TOLERANCE = 5e-3  # float32 products on CUDA may run in TF32, with the mantissa of float16
REMEDY = "pyuniversal would read wrong neurons from this model. Is it a model of another kind than its configuration says, or was its code changed?"


def check_model(model: Model) -> None:
    """Check that the MLP's output is W_out^T post + b_out in every layer, and that an edit in the middle and in the last layer reaches the logits.

    Costs four forwards of eight tokens.

    Raises:
        InputError: an identity fails; says which, where and by how much.
        ActivationError: NaN or Inf activations already on these tokens; names model, layer and neuron.
    """
    tokens = probe_tokens(model)
    _check_outputs(model, tokens)
    logits = model.logits(tokens)
    if not logits.isfinite().all():
        raise ActivationError(
            f"{model.label}: the logits of eight ordinary tokens are NaN or Inf. Look for them in its weights, or load it in a wider dtype than {model.dtype}."
        )
    for layer in sorted({model.config.n_layers // 2, model.config.n_layers - 1}):
        _check_edit(model, layer, tokens, logits)


def probe_tokens(model: Model) -> Tensor:
    """One row of eight ids spread over the vocabulary, [1, 8]."""
    n = min(8, model.config.n_ctx)
    return (torch.arange(n) * (min(model.config.d_vocab, len(model.tokenizer)) // n))[None]


def _check_outputs(model: Model, tokens: Tensor) -> None:
    outputs: dict[int, Tensor] = {}
    with model.record("mlp.post") as posts, ExitStack() as stack:
        for layer in range(model.config.n_layers):
            stack.enter_context(tapped(model._mlp_output(layer), keep_in(outputs, layer)))
        model.forward(tokens)
    for layer in range(model.config.n_layers):
        post, output = posts.get(("mlp.post", layer)), outputs.get(layer)
        if post is None or output is None:
            missing = "mlp.post" if post is None else "the output of the MLP"
            raise InputError(f"{model.label}, layer {layer}: {missing} is never computed in a forward. {REMEDY}")
        _check_finite(model, layer, post)
        _check_output(model, layer, post[0], output[0])


def _check_output(model: Model, layer: int, post: Tensor, output: Tensor) -> None:
    """Compare one layer; `post` is [positions, d_mlp], `output` [positions, d_model]."""
    device = "cpu" if post.device.type == "mps" else post.device  # Apple's GPUs have no float64
    raw = model._raw_layer(layer)
    post, w_out, output = (x.to(device, torch.float64) for x in (post, raw.w_out, output))
    expected, terms = post @ w_out, post.abs() @ w_out.abs()  # [positions, d_model]
    if raw.b_out is not None:
        b_out = raw.b_out.to(device, torch.float64)
        expected, terms = expected + b_out, terms + b_out.abs()
    tolerance = TOLERANCE[model.dtype]
    if model.device.type == "cuda" and model.dtype == torch.float32:
        tolerance = TF32_TOLERANCE
    worst = float(((output - expected).abs() / terms.clamp(min=1e-30)).max())
    if not worst <= tolerance:
        raise InputError(
            f"{model.label}, layer {layer}: the MLP's output is not W_out^T post + b_out. "
            f"The largest difference is {worst:.3g} of the sum of its terms, {tolerance:.1g} is allowed. {REMEDY}"
        )


def _check_finite(model: Model, layer: int, post: Tensor) -> None:
    bad = (~post.isfinite()).nonzero()  # [count, 3]: row, position, neuron
    if len(bad):
        raise ActivationError(
            f"{model.label}, layer {layer}, neuron {int(bad[0, 2])}: mlp.post is {float(post[tuple(bad[0])])} on eight ordinary tokens. "
            f"Look for NaN or Inf in the weights, or load the model in a wider dtype than {model.dtype}."
        )


def _check_edit(model: Model, layer: int, tokens: Tensor, logits: Tensor) -> None:
    if not model._raw_layer(layer).w_out.any():
        return  # an MLP that writes nothing (zero-initialised, untrained): no edit of it can reach anything
    with model.edit("mlp.post", layer, lambda activations: 1 - activations):
        edited = model.logits(tokens)
    change, scale = float((edited - logits).abs().max()), float(logits.abs().max())
    # the same kernels on the same numbers: without the edit the difference is 0, not rounding
    if not change > 1e-7 * scale:
        raise InputError(
            f"{model.label}, layer {layer}: an edit of mlp.post does not reach the logits. They change by {change:.3g}, their largest is {scale:.3g}. {REMEDY}"
        )
