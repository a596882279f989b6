"""The study's names for its models (TransformerLens's aliases) and where the Hugging Face hub keeps them. Any other name is a hub name already."""

from __future__ import annotations

# Gurnee et al. 2024, section 3: five seeds each of GPT2-small and GPT2-medium by Stanford CRFM, four of Pythia-160m; the larger Pythias for weights only
ALIASES: dict[str, str] = {
    "stanford-gpt2-small-a": "stanford-crfm/alias-gpt2-small-x21",
    "stanford-gpt2-small-b": "stanford-crfm/battlestar-gpt2-small-x49",
    "stanford-gpt2-small-c": "stanford-crfm/caprica-gpt2-small-x81",
    "stanford-gpt2-small-d": "stanford-crfm/darkmatter-gpt2-small-x343",
    "stanford-gpt2-small-e": "stanford-crfm/expanse-gpt2-small-x777",
    "stanford-gpt2-medium-a": "stanford-crfm/arwen-gpt2-medium-x21",
    "stanford-gpt2-medium-b": "stanford-crfm/beren-gpt2-medium-x49",
    "stanford-gpt2-medium-c": "stanford-crfm/celebrimbor-gpt2-medium-x81",
    "stanford-gpt2-medium-d": "stanford-crfm/durin-gpt2-medium-x343",
    "stanford-gpt2-medium-e": "stanford-crfm/eowyn-gpt2-medium-x777",
    "pythia-160m": "EleutherAI/pythia-160m",
    "pythia-160m-seed1": "EleutherAI/pythia-160m-seed1",
    "pythia-160m-seed2": "EleutherAI/pythia-160m-seed2",
    "pythia-160m-seed3": "EleutherAI/pythia-160m-seed3",
    "pythia-410m": "EleutherAI/pythia-410m",
    "pythia-1b": "EleutherAI/pythia-1b",
    "pythia-1.4b": "EleutherAI/pythia-1.4b",
    "pythia-2.8b": "EleutherAI/pythia-2.8b",
    "pythia-6.9b": "EleutherAI/pythia-6.9b",
}
