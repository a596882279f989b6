"""Five small GPT-2s of one architecture from different seeds, and held-out text: the embedded default. README.md beside this file is their model card."""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).parent
MAX_TOKENS = 300_000  # of its text that a run takes unless told otherwise: a minute or two on two cores


def models() -> list[Path]:
    """The Hugging Face folders of the seeds, in order."""
    return sorted(_HERE.glob("seed-*"))


def tokens() -> Path:
    """The folder of held-out tokens; `pyuniversal.tokens.load_tokens` opens it."""
    return _HERE / "tokens"
