"""Tiny Hugging Face folders with random weights and a real tokenizer: made in well under a second, without network, the same bytes for the same seed.

The traits that break careless code are on by default: inverse-layer attention scaling (GPT-2), rotary and parallel residual and a vocabulary larger than the
tokenizer's (GPT-NeoX), grouped queries, RMS norm and a gate (Llama), d_mlp other than 4 d_model, norm weights away from 1 and every bias away from 0.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

BOS = "<|endoftext|>"
N_CTX = 64
WORDS = (  # noqa: SIM905
    "the of and to in a is that it was for on are with as his they be at one have this from by hot word but what some "
    "we can out other were all your when up use how said an each she"
).split()
Folder = str | os.PathLike[str]


def tokenizer_object(*, words: list[str] | None = None, n_ctx: int = N_CTX) -> PreTrainedTokenizerFast:
    """Byte-level BPE: id 0 is <|endoftext|> (bos, eos and pad), ids 1 to 256 are the bytes (the newline is one), then the prefixes of " word" for each word.

    Another list of `words` gives another vocabulary. Not loaded from a folder: see `tokenizer` for one that is.
    """
    vocabulary = {BOS: 0} | {symbol: i for i, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()), start=1)}
    merges = []
    for word in WORDS if words is None else words:
        for i in range(1, len(word) + 1):
            left, right = ("Ġ" + word)[:i], word[i - 1]
            if left + right not in vocabulary:
                vocabulary[left + right] = len(vocabulary)
                merges.append((left, right))
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=core, bos_token=BOS, eos_token=BOS, pad_token=BOS, model_max_length=n_ctx
    )


def tokenizer(folder: Folder, **options: Any) -> Path:
    """Save `tokenizer_object(**options)` to `folder`; AutoTokenizer.from_pretrained(folder) loads it."""
    tokenizer_object(**options).save_pretrained(folder)
    return Path(folder)


D_VOCAB = len(tokenizer_object())


def randomise(model: PreTrainedModel, seed: int) -> None:
    """Fill every parameter: matrices N(0, 1/fan-in), embeddings N(0, 0.5^2), norm weights 1 + N(0, 0.3^2), biases N(0, 0.2^2)."""
    generator = torch.Generator().manual_seed(seed)
    embeddings = {id(model.get_input_embeddings().weight), id(getattr(getattr(model.base_model, "wpe", None), "weight", None))}
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if id(parameter) in embeddings:
            value = 0.5 * noise
        elif parameter.ndim == 2:
            fan_in = parameter.shape[0] if type(model).__name__.startswith("GPT2") and "lm_head" not in name else parameter.shape[1]  # Conv1D is [in, out]
            value = noise / fan_in**0.5
        elif name.endswith("bias"):
            value = 0.2 * noise
        else:
            value = 1 + 0.3 * noise
        parameter.data.copy_(value)


def save(
    model_class: type[PreTrainedModel], config: Any, folder: Folder, *, seed: int, dtype: torch.dtype = torch.float32, words: list[str] | None = None
) -> Path:
    """Save a random `model_class(config)` in `dtype` with the tokenizer of `words` beside it; the global random state stays as it was."""
    with torch.random.fork_rng(devices=[]):
        model = model_class(config)
    randomise(model, seed)
    model.to(dtype=dtype).save_pretrained(folder)
    tokenizer(folder, words=words)
    return Path(folder)


def gpt2(folder: Folder, seed: int = 0, *, dtype: torch.dtype = torch.float32, words: list[str] | None = None, **overrides: Any) -> Path:
    """GPT-2, 3 layers, d_model 16, d_mlp 40, tied embeddings, attention scaled by the inverse layer. `overrides`: fields of GPT2Config."""
    fields = {
        "vocab_size": len(tokenizer_object(words=words)), "n_positions": N_CTX, "n_embd": 16, "n_layer": 3, "n_head": 2, "n_inner": 40,
        "scale_attn_by_inverse_layer_idx": True, "bos_token_id": 0, "eos_token_id": 0, "embd_pdrop": 0.1, "resid_pdrop": 0.1, "attn_pdrop": 0.1,
    } | overrides  # fmt: skip
    return save(GPT2LMHeadModel, GPT2Config(**fields), folder, seed=seed, dtype=dtype, words=words)


def neox(folder: Folder, seed: int = 0, *, dtype: torch.dtype = torch.float32, words: list[str] | None = None, **overrides: Any) -> Path:
    """GPT-NeoX (Pythia), 3 layers, d_model 16, d_mlp 40, rotary, parallel residual, 27 rows beyond the tokenizer. `overrides`: fields of GPTNeoXConfig."""
    fields = {
        "vocab_size": len(tokenizer_object(words=words)) + 27, "max_position_embeddings": N_CTX, "hidden_size": 16, "num_hidden_layers": 3,
        "num_attention_heads": 2, "intermediate_size": 40, "rotary_pct": 0.25, "use_parallel_residual": True, "tie_word_embeddings": False,
        "bos_token_id": 0, "eos_token_id": 0,
    } | overrides  # fmt: skip
    return save(GPTNeoXForCausalLM, GPTNeoXConfig(**fields), folder, seed=seed, dtype=dtype, words=words)


def llama(folder: Folder, seed: int = 0, *, dtype: torch.dtype = torch.float32, words: list[str] | None = None, **overrides: Any) -> Path:
    """Llama, 3 layers, d_model 16, d_mlp 36, 4 heads over 2 key-value heads, RMS norm, gated MLP. `overrides`: fields of LlamaConfig."""
    fields = {
        "vocab_size": len(tokenizer_object(words=words)), "max_position_embeddings": N_CTX, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 36, "tie_word_embeddings": False, "bos_token_id": 0, "eos_token_id": 0,
    } | overrides  # fmt: skip
    return save(LlamaForCausalLM, LlamaConfig(**fields), folder, seed=seed, dtype=dtype, words=words)


FAMILIES = {"gpt2": gpt2, "gpt_neox": neox, "llama": llama}


def sentences(count: int = 20, *, seed: int = 0) -> list[str]:
    """Documents of 5 to 60 random words, a newline after about one in eight: text that the tokenizer's merges and its newline token both see."""
    generator = torch.Generator().manual_seed(seed)
    documents = []
    for _ in range(count):
        length = int(torch.randint(5, 61, (), generator=generator))
        picks = torch.randint(0, len(WORDS), (length,), generator=generator).tolist()
        breaks = torch.rand(length, generator=generator).lt(0.125).tolist()
        documents.append("".join(("\n" if new else " ") + WORDS[i] for i, new in zip(picks, breaks, strict=True)).strip())
    return documents


def token_rows(rows: int = 4, positions: int = 24, *, seed: int = 0) -> torch.Tensor:
    """Rows of BOS and then random ids of the tokenizer, int64 [rows, positions]."""
    ids = torch.randint(1, D_VOCAB, (rows, positions), generator=torch.Generator().manual_seed(seed))
    ids[:, 0] = 0
    return ids


def bridge(folder: Folder, *, processed: bool) -> Any:
    """A TransformerBridge (TransformerLens 4) over the folder, with raw weights or processed as HookedTransformer's are."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TransformerLens's own
        from transformer_lens.model_bridge import TransformerBridge

        made = TransformerBridge.boot_transformers(str(folder), device="cpu", dtype=torch.float32)
        if processed:
            made.enable_compatibility_mode(disable_warnings=True)
    return made


def hooked(folder: Folder, *, processed: bool) -> Any:
    """A HookedTransformer (TransformerLens 3) with the folder's weights, raw or processed as from_pretrained does, which itself knows no folders."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TransformerLens's own
        from transformer_lens import HookedTransformer, HookedTransformerConfig
        from transformer_lens.pretrained import weight_conversions

        source = AutoModelForCausalLM.from_pretrained(folder)
        c = source.config
        heads, kind = c.num_attention_heads, c.model_type
        fields = {
            "n_layers": c.num_hidden_layers, "d_model": c.hidden_size, "n_ctx": c.max_position_embeddings, "n_heads": heads, "d_head": c.hidden_size // heads,
            "d_vocab": c.vocab_size, "normalization_type": "LN", "device": "cpu", "original_architecture": type(source).__name__, "init_weights": False,
        }  # fmt: skip
        if kind == "gpt2":
            fields |= {"d_mlp": c.n_inner, "act_fn": c.activation_function, "scale_attn_by_inverse_layer_idx": True, "eps": c.layer_norm_epsilon}
        else:
            fields |= {"d_mlp": c.intermediate_size, "act_fn": c.hidden_act, "positional_embedding_type": "rotary", "rotary_adjacent_pairs": False}
        if kind == "gpt_neox":
            fields |= {"parallel_attn_mlp": c.use_parallel_residual, "rotary_dim": c.hidden_size // heads // 4, "eps": c.layer_norm_eps}
        if kind == "llama":
            fields |= {"normalization_type": "RMS", "final_rms": True, "gated_mlp": True, "n_key_value_heads": c.num_key_value_heads, "eps": c.rms_norm_eps}
            fields |= {"rotary_dim": c.hidden_size // heads}
        made = HookedTransformer(HookedTransformerConfig(**fields), tokenizer=AutoTokenizer.from_pretrained(folder))
        convert = {"gpt2": "convert_gpt2_weights", "gpt_neox": "convert_neox_weights", "llama": "convert_llama_weights"}[kind]
        state = getattr(weight_conversions, convert)(source, made.cfg)
        made.load_and_process_state_dict(
            state, fold_ln=processed, center_writing_weights=processed and kind != "llama", center_unembed=processed, fold_value_biases=processed
        )
    return made
