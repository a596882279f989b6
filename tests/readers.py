"""Everything that reads a file, for the fuzz tests: how to make a valid folder, which file of it to damage, how to read it and what a value must satisfy.

`examine` damages one file, reads, puts the file back, and says what came of it. A reader keeps its promise with a PyUniversalError that names the file, or a
value that passes validation; within seconds and without much memory.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import os
import resource
import shutil
import signal
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import damage
import pyarrow as pa
import pyarrow.parquet as pq
import tiny
import torch
from hypothesis import strategies as st

import pyuniversal
from pyuniversal.errors import PyUniversalError
from pyuniversal.totals import Confirmation, SourceInfo
from pyuniversal.totals.batch_moments import BatchMoments
from pyuniversal.totals.pair_sums import PairSums

SECONDS = 20
MOST_BYTES = 1 << 30  # that the process may grow while it reads


@dataclass(frozen=True)
class Reader:
    """One file of a folder: how the folder is made, how the file is damaged and read. `examples`: how many a test takes."""

    name: str
    make: Callable[[Path], None]
    file: str
    damage: Callable[[bytes], st.SearchStrategy[bytes]]
    read: Callable[[Path], Any]
    examples: int = 60


class Damaged(bytes):
    """What a file is replaced by; a failing test need not print all of it."""

    def __repr__(self) -> str:
        return f"<{len(self)} bytes>"


class TooSlow(BaseException):
    """No Exception, so that no reader takes it for damage."""


# --- tokens


def make_tokens(folder: Path) -> None:
    pyuniversal.tokenize(tiny.sentences(30), tiny.tokenizer_object(), out=folder, row_tokens=24, progress=False)


def read_tokens(folder: Path) -> None:
    tokens = pyuniversal.load_tokens(folder)
    assert tokens.ids.shape == (tokens.n_rows, tokens.row_tokens)
    assert len(tokens.documents) == len(tokens.starts) == tokens.n_rows
    assert 0 <= tokens.bos < tokens.d_vocab
    assert tokens.n_documents == len(tokens.held_out(0))
    assert all(value is None or isinstance(value, str) for value in tokens.document_table["subset"])
    tokens.held_out(0)[tokens.documents]
    ids, lengths = tokens.rows(slice(0, 50))
    assert int(ids.max()) < tokens.d_vocab
    assert int(lengths.max()) <= tokens.row_tokens
    pyuniversal.load_tokens(folder, verify=True)


def make_partial(folder: Path) -> None:
    """A tokenisation that was interrupted after two of its three blocks."""
    from pyuniversal.tokens import write

    (folder / "corpus.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in tiny.sentences(30)))
    whole, write.BLOCK_DOCUMENTS = write.BLOCK_DOCUMENTS, 12
    finish = write.Partial.finish
    try:
        write.Partial.finish = lambda self: (_ for _ in ()).throw(KeyboardInterrupt)
        with contextlib.suppress(KeyboardInterrupt):
            pyuniversal.tokenize(folder / "corpus.jsonl", tiny.tokenizer_object(), out=folder / "out", row_tokens=24, progress=False)
    finally:
        write.Partial.finish, write.BLOCK_DOCUMENTS = finish, whole


@cache
def tokenizer() -> Any:
    return tiny.tokenizer_object()


def read_partial(folder: Path) -> None:
    copy = folder / "copy"
    shutil.copytree(folder / "out", copy)
    try:
        tokens = pyuniversal.tokenize(folder / "corpus.jsonl", tokenizer(), out=copy, row_tokens=24, progress=False)
        assert tokens.n_tokens
    except PyUniversalError as error:
        raise type(error)(str(error).replace(str(copy), str(folder / "out"))) from error
    finally:
        shutil.rmtree(copy)


# --- runs


def make_run(folder: Path) -> None:
    models = [tiny.gpt2(folder / "models" / name, seed=seed, n_layer=2, n_inner=12) for seed, name in enumerate("ab")]
    options = {"text": tiny.sentences(30), "row_tokens": 24, "top_k": 3, "baseline_draws": 1, "precision": "float64", "progress": False}
    pyuniversal.run(models, out=folder / "run", **options)
    shutil.copytree(folder / "run", folder / "other")


def read_run(folder: Path) -> None:
    from rich.console import Console

    from pyuniversal.report import render, render_claims

    run = pyuniversal.open_run(folder / "run")
    assert repr(run)
    summary = run.summary()
    json.dumps(summary, allow_nan=False)
    shown = io.StringIO()
    Console(file=shown, width=200).print(render(summary))
    Console(file=shown, width=200).print(render_claims(summary["claims"]))
    assert "\x1b" not in shown.getvalue()
    assert run.neurons.index.names == ["model", "layer", "neuron"]
    assert run.neurons.index.is_unique
    assert run.matches["r"].dtype.kind == run.neurons["mean_corr"].dtype.kind == "f"
    assert run.depth["neurons"].dtype.kind == "i"


def read_claims(folder: Path) -> None:
    read_run(folder)
    run = pyuniversal.open_run(folder / "run")
    if run.claims["claims"]:
        run.figure("claims").savefig(io.BytesIO())


def read_weights(folder: Path) -> None:
    from pyuniversal import results

    table = results.read_table(folder / "run", "weights")
    assert table["w_in_norm"].dtype.kind in "fiu"


def read_difference(folder: Path) -> None:
    from rich.console import Console

    from pyuniversal.report import render_differences

    found = pyuniversal.diff(folder / "other", folder / "run")
    json.dumps(found, allow_nan=False)
    shown = io.StringIO()
    Console(file=shown, width=200).print(render_differences(found))
    assert "\x1b" not in shown.getvalue()


def read_totals(folder: Path) -> None:
    from pyuniversal.files import unsafe

    totals = pyuniversal.Totals.load(folder / "run/totals")
    assert isinstance(totals.complete, bool)
    assert all(0 <= chunk < totals.n_chunks for chunk in totals.chunks)
    assert not any(unsafe(source.name) for source in totals.sources)
    for source, site, pre in zip(totals.sources, totals.site, totals.pre, strict=True):
        assert source.columns == site.neurons == pre.neurons == len(source.layers) * source.width
    from pyuniversal import universality

    if totals.complete:
        universality.matches(totals, top_k=2)


def read_forged_totals(folder: Path) -> None:
    """The ledger's hashes made to fit: against an accident they are enough, against a forger there is what lies behind."""
    path = folder / "run/totals/ledger.json"
    whole = path.read_text()
    ledger = json.loads(whole)
    for entry in ledger["parts"].values():
        data = (path.parent / entry["file"]).read_bytes()
        entry |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    path.write_text(json.dumps(ledger))
    try:
        read_totals(folder)
    finally:
        path.write_text(whole)


# --- states


def make_states(folder: Path) -> None:
    x = torch.randn(200, 5, generator=torch.Generator().manual_seed(0))
    m = pyuniversal.Moments(5, sets=("r", "all"))
    m.update(x, (150, 200))
    m.save(folder / "moments.safetensors")
    p = pyuniversal.Product(5, 3, precision="int8")
    p.update(x, x[:, :3] + 1)
    p.save(folder / "product.safetensors")
    h = pyuniversal.Histogram(5)
    h.update(x)
    h.save(folder / "histogram.safetensors")
    d = pyuniversal.DyadicHistogram(5, bins=16)
    d.update(x)
    d.save(folder / "dyadic.safetensors")
    s = pyuniversal.TokenSums(d_vocab=7, neurons=5)
    s.update(x, torch.arange(200) % 7)
    s.save(folder / "sums.safetensors")
    b = BatchMoments(3, 5)
    pairs = PairSums(torch.tensor([[1, 0], [2, -1]]), centre_x=torch.zeros(2), centre_y=torch.ones(3), batches=3)
    for batch in range(3):
        b.update(batch, x[batch::3])
        pairs.update(batch, x[batch::3, :2], x[batch::3, 2:])
    b.save(folder / "batches.safetensors")
    pairs.save(folder / "pairs.safetensors")


def make_confirmation(folder: Path) -> None:
    x = torch.randn(60, 5, generator=torch.Generator().manual_seed(1))
    sources = [SourceInfo("a", "mlp.post", (0,), 2, "0" * 64), SourceInfo("b", "mlp.post", (1, 2), 1, "1" * 64)]
    state = Confirmation(sources, partners={(0, 1): torch.tensor([[1], [0]])}, centre=[torch.zeros(2), torch.ones(2)], batches=3, identity={"tokens": "t"})
    state.start(folder)
    for batch in range(2):
        for i, moments in enumerate(state.moments):
            moments.update(batch, x[batch::3, 2 * i : 2 * i + 2])
        state.pairs[0, 1].update(batch, x[batch::3, :2], x[batch::3, 2:4])
        state.finish(batch, folder)


def read_moments(folder: Path) -> None:
    m = pyuniversal.Moments.load(folder / "moments.safetensors")
    for name in m.sets:
        assert m.count(name) >= 0
        for statistic in (m.mean, m.var, m.skew, m.kurt, m.firing):
            assert statistic(name).shape == (m.neurons,)
    m.merge(pyuniversal.Moments.load(folder / "moments.safetensors"))
    m.update(torch.zeros(2, m.neurons), [2] * len(m.sets))


def read_product(folder: Path) -> None:
    p = pyuniversal.Product.load(folder / "product.safetensors")
    assert [p.added(side).shape[1] for side in (0, 1)] == list(p.total.shape)
    p.merge(pyuniversal.Product.load(folder / "product.safetensors"))
    p.update(torch.ones(2, p.total.shape[0]), torch.ones(2, p.total.shape[1]))


def read_histogram(folder: Path) -> None:
    h = pyuniversal.Histogram.load(folder / "histogram.safetensors")
    assert h.counts.shape[1] == len(h.edges) + 1
    h.merge(pyuniversal.Histogram.load(folder / "histogram.safetensors"))
    h.update(torch.ones(2, h.counts.shape[0]))


def read_dyadic(folder: Path) -> None:
    h = pyuniversal.DyadicHistogram.load(folder / "dyadic.safetensors")
    for neuron in range(len(h.counts)):
        assert (h.edges(neuron).diff() > 0).all()
    h.merge(pyuniversal.DyadicHistogram.load(folder / "dyadic.safetensors"))
    h.update(torch.ones(2, len(h.counts)))


def read_batches(folder: Path) -> None:
    b = BatchMoments.load(folder / "batches.safetensors")
    assert b.without_each().shape == b.state.shape
    assert len(b.counts) == len(b.state)
    b.merge(BatchMoments.load(folder / "batches.safetensors"))


def read_pairs(folder: Path) -> None:
    p = PairSums.load(folder / "pairs.safetensors")
    assert p.whole().shape == p.partner.shape
    p.merge(PairSums.load(folder / "pairs.safetensors"))
    if len(p.sums):
        p.update(0, torch.ones(2, len(p.centre[0])), torch.ones(2, len(p.centre[1])))


def read_confirmation(folder: Path) -> None:
    state = Confirmation.load(folder)
    assert sorted([*state.missing(), *state.done]) == list(range(state.batches))
    assert all(len(moments.counts) == state.batches for moments in state.moments)
    for (i, j), pairs in state.pairs.items():
        assert pairs.whole().shape == pairs.partner.shape
        assert (len(pairs.centre[0]), len(pairs.centre[1])) == (state.sources[i].columns, state.sources[j].columns)


def read_sums(folder: Path) -> None:
    s = pyuniversal.TokenSums.load(folder / "sums.safetensors")
    assert s.mean().shape == s.sums.shape
    s.merge(pyuniversal.TokenSums.load(folder / "sums.safetensors"))
    if len(s.counts):
        s.update(torch.ones(2, s.sums.shape[1]), torch.zeros(2, dtype=torch.int64))


# --- text

RECORDS = [{"text": f"the word {i} and what", "meta": {"set": f"s{i % 3}"}} for i in range(12)]


def make_text(folder: Path) -> None:
    lines = "".join(json.dumps(record) + "\n" for record in RECORDS)
    (folder / "x.txt").write_text("the naïve word\r\n你好 \U0001f642\n")
    (folder / "x.jsonl").write_text(lines)
    (folder / "x.jsonl.gz").write_bytes(gzip.compress(lines.encode(), mtime=0))
    pq.write_table(pa.Table.from_pylist(RECORDS), folder / "x.parquet")


def make_saved(folder: Path) -> None:
    import datasets

    datasets.Dataset.from_list(RECORDS).save_to_disk(folder / "saved")


def reader_of_text(name: str, subset: str | None) -> Callable[[Path], None]:
    def read(folder: Path) -> None:
        from pyuniversal.tokens.corpus import open_corpus

        corpus = open_corpus(folder / name, split=None, name=None, column="text", subset_column=subset)
        for document in corpus.documents():
            assert isinstance(document.text, str)
            assert document.subset is None or isinstance(document.subset, str)
        json.dumps(corpus.state())

    return read


# --- models


def make_model(folder: Path) -> None:
    tiny.gpt2(folder, n_layer=2, n_inner=12)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config))


def make_shards(folder: Path) -> None:
    from transformers import GPT2LMHeadModel

    tiny.gpt2(folder / "whole", n_layer=2, n_inner=12)
    GPT2LMHeadModel.from_pretrained(folder / "whole").save_pretrained(folder, max_shard_size="10KB")
    tiny.tokenizer(folder)


def read_config(folder: Path) -> None:
    from pyuniversal.models import load_config

    config = load_config(folder)
    assert all(type(n) is int and n > 0 for n in (config.n_layers, config.d_model, config.d_mlp, config.n_heads, config.d_vocab, config.n_ctx, config.n_params))


def read_model(folder: Path) -> None:
    model = pyuniversal.load_model(folder)
    n = min(model.config.n_ctx, 6)
    assert model.logits(torch.zeros(1, n, dtype=torch.int64)).shape == (1, n, model.config.d_vocab)
    assert model.weights().layer(0).W_in.shape == (model.config.d_model, model.config.d_mlp)
    assert len(model.weight_hash) == 64


def read_tokenizer(folder: Path) -> None:
    from pyuniversal.models import load_tokenizer
    from pyuniversal.tokens import tokenizer_hash

    loaded = load_tokenizer(folder)
    assert len(tokenizer_hash(loaded)) == 64
    try:
        tokens = pyuniversal.tokenize(["the word and\n", "what 你好"], loaded, row_tokens=8, progress=False)
    except PyUniversalError as error:
        raise type(error)(f"{error} {folder}") from error  # made of an object, which has no folder
    assert tokens.n_tokens >= 2


def _readers() -> Iterator[Reader]:
    j, p, s = damage.json_changed, damage.parquet_changed, damage.safetensors_changed
    yield Reader("tokens: manifest", make_tokens, "tokens.json", j, read_tokens)
    yield Reader("tokens: rows", make_tokens, "rows.parquet", p, read_tokens)
    yield Reader("tokens: documents", make_tokens, "documents.parquet", p, read_tokens)
    yield Reader("tokens: ids", make_tokens, "tokens.npy", damage.npy_changed, read_tokens)
    yield Reader("tokens: interrupted, ledger", make_partial, "out/.partial/ledger.json", j, read_partial, 40)
    yield Reader("tokens: interrupted, shard", make_partial, "out/.partial/000001.parquet", p, read_partial, 30)
    yield Reader("run: manifest", make_run, "run/manifest.json", j, read_run)
    yield Reader("run: claims", make_run, "run/claims.json", j, read_claims)
    yield Reader("run: neurons", make_run, "run/neurons.parquet", p, read_run, 40)
    yield Reader("run: matches", make_run, "run/matches.parquet", p, read_run, 40)
    yield Reader("run: depth", make_run, "run/depth.parquet", p, read_run, 40)
    yield Reader("run: nulls", make_run, "run/nulls.parquet", p, read_run, 40)
    yield Reader("run: weights", make_run, "run/weights.parquet", p, read_weights)
    yield Reader("diff: manifest", make_run, "run/manifest.json", j, read_difference, 20)
    yield Reader("diff: claims", make_run, "run/claims.json", j, read_difference, 20)
    yield Reader("diff: neurons", make_run, "run/neurons.parquet", p, read_difference, 20)
    yield Reader("diff: matches", make_run, "run/matches.parquet", p, read_difference, 20)
    yield Reader("totals: ledger", make_run, "run/totals/ledger.json", j, read_totals)
    for part in ("centre", "site-0", "pre-1", "histogram-0", "cross-0-0-1", "within-1-0"):
        yield Reader(f"totals: {part}", make_run, f"run/totals/{part}.1.safetensors", s, read_forged_totals, 30)
    yield Reader("confirmation: ledger", make_confirmation, "confirmation.json", j, read_confirmation)
    yield Reader("confirmation: partners", make_confirmation, "pairs.safetensors", s, read_confirmation)
    yield Reader("confirmation: batch", make_confirmation, "batch-1.safetensors", s, read_confirmation)
    states = {"moments": read_moments, "product": read_product, "histogram": read_histogram, "dyadic": read_dyadic, "sums": read_sums}
    for name, read in (states | {"batches": read_batches, "pairs": read_pairs}).items():
        yield Reader(f"state: {name}", make_states, f"{name}.safetensors", s, read)
    yield Reader("text: txt", make_text, "x.txt", damage.bytes_changed, reader_of_text("x.txt", None), 30)
    yield Reader("text: jsonl", make_text, "x.jsonl", damage.lines_changed, reader_of_text("x.jsonl", "meta.set"))
    yield Reader("text: jsonl.gz", make_text, "x.jsonl.gz", damage.gzip_changed, reader_of_text("x.jsonl.gz", "meta.set"))
    yield Reader("text: parquet", make_text, "x.parquet", p, reader_of_text("x.parquet", "meta.set"))
    for file in ("state.json", "dataset_info.json"):
        yield Reader(f"data set: {file}", make_saved, f"saved/{file}", j, reader_of_text("saved", "meta.set"), 20)
    yield Reader("data set: arrow", make_saved, "saved/data-00000-of-00001.arrow", damage.bytes_changed, reader_of_text("saved", "meta.set"), 20)
    yield Reader("model: sizes", make_model, "config.json", j, read_config, 40)
    yield Reader("model: config", make_model, "config.json", j, read_model, 20)
    yield Reader("model: weights", make_model, "model.safetensors", s, read_model, 20)
    yield Reader("model: index", make_shards, "model.safetensors.index.json", j, read_model, 20)
    yield Reader("model: tokenizer", make_model, "tokenizer.json", j, read_tokenizer, 30)
    yield Reader("model: tokenizer_config", make_model, "tokenizer_config.json", j, read_tokenizer, 30)


READERS = {reader.name: reader for reader in _readers()}


def damaged(reader: Reader, folder: Path) -> st.SearchStrategy[Damaged]:
    """Contents for the reader's file."""
    return reader.damage((folder / reader.file).read_bytes()).map(Damaged)


class Outcome(NamedTuple):
    """What came of reading: "read", "refused" or "failed", and of the last what went wrong, in words and with the place."""

    kind: str
    problem: str | None = None


def examine(reader: Reader, folder: Path, data: bytes) -> Outcome:
    """Put `data` in place of the reader's file, read, and put the file back."""
    path = folder / reader.file
    whole = path.read_bytes()
    _replace(path, data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    kind, problem = "read", None
    try:
        with _limited(SECONDS):
            reader.read(folder)
    except PyUniversalError as error:
        kind = "refused"
        if path.name not in str(error) and folder.name not in str(error):  # a model is named by its folder
            problem = f"the message does not name the file: {error}"
    except (Exception, TooSlow) as error:
        problem = f"{type(error).__name__}: {str(error)[:500]}\n{_place(error)}"
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        problem = f"panic: {error}"
    finally:
        _replace(path, whole)
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    if grown > MOST_BYTES:
        problem = f"took {grown / 1e9:.1f} GB; {problem or kind}"
    return Outcome("failed" if problem else kind, problem)


def _replace(path: Path, data: bytes) -> None:
    """As a new file: the old one may still be mapped."""
    new = path.with_name("new-file")
    new.write_bytes(data)
    os.replace(new, path)


@contextlib.contextmanager
def _limited(seconds: int) -> Iterator[None]:
    def ring(*_: Any) -> None:
        raise TooSlow(f"{seconds} s are over")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _place(error: BaseException) -> str:
    """Where it was raised: the last frames, those of the package by their names."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if "/pyuniversal/" in f.filename][-3:]
    return "\n".join(f"  {Path(f.filename).name}:{f.lineno} {f.name}: {f.line}" for f in [*ours, *frames[-1:]])
