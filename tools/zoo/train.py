"""Train one small GPT-2 of the zoo from a seed, which sets its initialisation and the order of the data.

python tools/zoo/train.py SEED --data FOLDER --out FOLDER/seed-SEED [--tokens 20m] [--device cuda] [--bf16]

FOLDER is what prepare.py wrote. The result is a Hugging Face folder: config, float16 safetensors, tokenizer, and training.json with tokens seen and test loss.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm.auto import tqdm
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

CONTEXT, BATCH, RATE = 128, 16, 3e-3
BOS = "<|endoftext|>"


def new_model(seed: int, d_vocab: int) -> GPT2LMHeadModel:
    """GPT-2 with 4 layers, d_model 128, 4 heads, d_mlp 512, tied embeddings; initialised as Hugging Face does (N(0, 0.02), output projections smaller)."""
    torch.manual_seed(seed)
    size = {"vocab_size": d_vocab, "n_positions": CONTEXT, "n_embd": 128, "n_layer": 4, "n_head": 4}
    no_dropout = {"embd_pdrop": 0.0, "resid_pdrop": 0.0, "attn_pdrop": 0.0}
    config = GPT2Config(**size, **no_dropout, activation_function="gelu_new", bos_token_id=0, eos_token_id=0)
    config._attn_implementation = "eager"  # rows are short: on a CPU in bf16 faster than sdpa, by 14.4 to 10.4 thousand tokens/s a core
    return GPT2LMHeadModel(config)


def loss_of(model: GPT2LMHeadModel, rows: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
    """Cross-entropy of every token but BOS. rows: int64 [rows, positions]."""
    logits = model(rows[:, :-1]).logits  # [rows, positions - 1, d_vocab]
    return F.cross_entropy(logits.flatten(0, 1).float(), rows[:, 1:].flatten(), reduction=reduction)


@torch.no_grad()
def test_loss(model: GPT2LMHeadModel, rows: torch.Tensor) -> float:
    """Mean over all tokens of the rows."""
    model.eval()
    total = sum(loss_of(model, block, "sum").item() for block in rows.split(64))
    model.train()
    return total / rows[:, 1:].numel()


def rate(step: int, share: float) -> float:
    """Learning rate: 200 steps of warm-up, then constant, then over the last 40 % of the tokens down to a fiftieth."""
    return RATE * min(1, (step + 1) / 200) * (1 if share < 0.6 else max(0.02, (1 - share) / 0.4))


def train(seed: int, data: Path, *, budget: int, device: str, bf16: bool) -> tuple[GPT2LMHeadModel, dict[str, float | int]]:
    """Train for `budget` tokens (BOS included), epoch after epoch in fresh orders."""
    rows = np.load(data / "train.npy", mmap_mode="r")  # [rows, 128]
    held_out = torch.from_numpy(np.load(data / "heldout_tokens.npy")[::12].astype(np.int64)).to(device)
    model = new_model(seed, len(PreTrainedTokenizerFast(tokenizer_file=str(data / "tokenizer.json")))).to(device)
    matrices = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim != 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.95), fused=True)
    generator = np.random.default_rng(seed)
    order, at, steps, tokens, began = generator.permutation(len(rows)), 0, 0, 0, time.time()
    with tqdm(total=budget, unit=" tokens", unit_scale=True, desc=f"seed {seed}") as bar:
        while tokens < budget:
            for group in optimizer.param_groups:
                group["lr"] = rate(steps, tokens / budget)
            if at + BATCH > len(order):
                order, at = generator.permutation(len(rows)), 0
            batch = torch.from_numpy(rows[order[at : at + BATCH]].astype(np.int64)).to(device)
            with torch.autocast(device, torch.bfloat16, enabled=bf16):
                loss = loss_of(model, batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            at, steps, tokens = at + BATCH, steps + 1, tokens + batch.numel()
            bar.update(batch.numel())
            if steps % 100 == 0:
                bar.set_postfix(loss=f"{loss.item():.3f}")
    return model, {"seed": seed, "steps": steps, "tokens": tokens, "test_loss": test_loss(model, held_out), "bf16": bf16, "seconds": time.time() - began}


def number(text: str) -> int:
    """9m -> 9,000,000."""
    factor = {"k": 1e3, "m": 1e6, "b": 1e9}.get(text[-1:].lower())
    return math.ceil(float(text[:-1]) * factor) if factor else int(text)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seed", type=int)
    parser.add_argument("--data", type=Path, required=True, help="folder that prepare.py wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder of the model")
    parser.add_argument("--tokens", type=number, default="20m", help="tokens to train on (default %(default)s)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true", help="matrix products in bfloat16, weights in float32 (1.7 times as fast on a CPU with AVX-512 BF16)")
    parser.add_argument("--threads", type=int, help="threads on the CPU")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    model, training = train(arguments.seed, arguments.data, budget=arguments.tokens, device=arguments.device, bf16=arguments.bf16)
    model.half().save_pretrained(arguments.out)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(arguments.data / "tokenizer.json"), bos_token=BOS, eos_token=BOS, pad_token=BOS, model_max_length=CONTEXT
    )
    tokenizer.save_pretrained(arguments.out)
    (arguments.out / "training.json").write_text(json.dumps(training, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(training))


if __name__ == "__main__":
    main()
