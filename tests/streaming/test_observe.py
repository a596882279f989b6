"""The pass: its sums against plain hooks and numpy, whatever the batches; resume to the same bytes; what it refuses."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from pyuniversal import ActivationError, InputError, ModelSite, Tokens, Totals, load_model, observe, tokenize
from pyuniversal.streaming import chunks
from pyuniversal.streaming.one_pass import PILOT_ROWS
from pyuniversal.totals import Key

WIDTH, LAYERS = 40, 3


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[Path]:
    return [tiny.gpt2(tmp_path_factory.mktemp("models") / name, seed=seed) for seed, name in enumerate("abc")]


@pytest.fixture(scope="module")
def tokens(tmp_path_factory, folders) -> Tokens:
    return tokenize(tiny.sentences(60), load_model(folders[0]).tokenizer, out=tmp_path_factory.mktemp("tokens"), row_tokens=32, progress=False)


def sites(folders, **options) -> list[ModelSite]:
    return [ModelSite(load_model(f), **options) for f in folders]


def by_hand(folder: Path, tokens: Tokens, rows: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Activations of every real token of some rows, one row at a time, [tokens, columns] in float64; and the tokens' ids."""
    from transformers import GPT2LMHeadModel

    model = GPT2LMHeadModel.from_pretrained(folder).eval()
    seen: dict[str, list[np.ndarray]] = {"pre": [], "post": []}
    caught: dict[str, list[torch.Tensor]] = {"pre": [], "post": []}
    for block in model.transformer.h:
        block.mlp.c_fc.register_forward_hook(lambda _m, _i, out: caught["pre"].append(out[0]))
        block.mlp.c_proj.register_forward_pre_hook(lambda _m, i: caught["post"].append(i[0][0]))
    ids = []
    for row in rows:
        own = torch.tensor(tokens.ids[row, : tokens.lengths[row]].astype(np.int64))
        ids.append(own.numpy())
        caught["pre"], caught["post"] = [], []
        with torch.no_grad():
            model(own[None])
        for name, layers in caught.items():
            seen[name].append(torch.cat(layers, 1).double().numpy())
    return {name: np.concatenate(parts) for name, parts in seen.items()}, np.concatenate(ids)


@pytest.mark.parametrize("batch_tokens", [32, 4096])
def test_sums_are_those_of_plain_hooks(folders, tokens, batch_tokens):
    totals = observe(sites(folders[:2]), tokens, precision="float64", seed=5, chunk_tokens=256, batch_tokens=batch_tokens, progress=False)
    rows = np.flatnonzero(~tokens.held_out(5)[tokens.documents])
    assert 0 < len(rows) < tokens.n_rows
    post, r = [], None
    for i, folder in enumerate(folders[:2]):
        x, ids = by_hand(folder, tokens, rows)
        r = (ids != tokens.bos) & (ids != tokens.newline)
        assert (ids == tokens.newline).any()
        post.append(x["post"][r])
        for name, kept in (("r", r), ("test", ids != tokens.bos), ("all", ids >= 0)):
            assert totals.site[i].count(name) == kept.sum()
            np.testing.assert_allclose(totals.site[i].mean(name), x["post"][kept].mean(0), atol=2e-6)
            np.testing.assert_allclose(totals.site[i].var(name), x["post"][kept].var(0), rtol=1e-4, atol=1e-9)
        np.testing.assert_allclose(totals.pre[i].mean(), x["pre"].mean(0), atol=3e-6)
        np.testing.assert_allclose(totals.pre[i].kurt(), (((x["pre"] - x["pre"].mean(0)) / x["pre"].std(0)) ** 4).mean(0), rtol=1e-4)
        assert totals.histogram[i].counts.sum(1).tolist() == [len(ids)] * (LAYERS * WIDTH)
    centred = [p - c.double().numpy() for p, c in zip(post, totals.centre, strict=True)]
    size = np.linalg.norm(centred[0], axis=0)[:, None] * np.linalg.norm(centred[1], axis=0)
    assert np.abs((totals.block(0, 1).numpy() - centred[0].T @ centred[1]) / size).max() < 1e-5
    own = centred[1][:, WIDTH : 2 * WIDTH]
    np.testing.assert_allclose(totals.products[1, 1, 1].total, own.T @ own, rtol=1e-4, atol=1e-5)
    assert totals.tokens == totals.products[0, 2, 1].tokens == r.sum()


def test_padding_and_batches_change_no_count(folders, tokens):
    one, many = (observe(sites(folders[:1]), tokens, chunk_tokens=256, batch_tokens=b, progress=False) for b in (32, 100_000))
    assert torch.equal(one.site[0].field("count", "all"), many.site[0].field("count", "all"))
    torch.testing.assert_close(one.site[0].state, many.site[0].state, rtol=1e-4, atol=1e-4)


def test_layers_and_site(folders, tokens):
    whole = observe(sites(folders[:2]), tokens, precision="float64", progress=False)
    some = observe(sites(folders[:2], layers=[2, 0]), tokens, precision="float64", progress=False)
    assert some.sources[0].layers == (0, 2)
    assert torch.equal(some.site[1].state[..., WIDTH:], whole.site[1].state[..., 2 * WIDTH :])
    torch.testing.assert_close(some.block(0, 1)[:WIDTH, WIDTH:], whole.block(0, 1)[:WIDTH, 2 * WIDTH :], rtol=1e-12, atol=1e-9)
    pre = observe(sites(folders[:2], site="mlp.pre"), tokens, precision="float64", progress=False)
    torch.testing.assert_close(pre.site[0].field("mean", "all"), whole.pre[0].field("mean"), rtol=1e-12, atol=1e-14)
    assert not torch.equal(pre.site[0].field("mean", "r"), whole.site[0].field("mean", "r"))


@pytest.fixture
def one_pilot():
    """A pilot so small that each model runs once for it, whatever the chunk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pyuniversal.streaming.one_pass.PILOT_ROWS", 4)
        yield


@pytest.mark.parametrize("precision", ["int8", "float32"])
@pytest.mark.parametrize("stop", [0, 3])
def test_a_stopped_pass_resumes_to_the_same_bytes(folders, tokens, tmp_path, monkeypatch, one_pilot, precision, stop):
    options = {"precision": precision, "seed": 2, "chunk_tokens": 128, "progress": False}
    whole = observe(sites(folders), tokens, **options)
    assert whole.n_chunks > stop + 2
    made = []
    real = chunks.gather

    def gather(source, chunk, *rest, **more):
        made.append(source.name)
        if len(made) > len(folders) * (1 + stop) + 1:  # the pilot, `stop` chunks, one model of the next
            raise KeyboardInterrupt
        return real(source, chunk, *rest, **more)

    monkeypatch.setattr("pyuniversal.streaming.one_pass.gather", gather)
    with pytest.raises(KeyboardInterrupt):
        observe(sites(folders), tokens, out=tmp_path, **options)
    monkeypatch.undo()
    if stop:
        assert len(Totals.load(tmp_path).chunks) == stop
    resumed = observe(sites(folders), tokens, out=tmp_path, **options)
    for totals in (resumed, Totals.load(tmp_path)):
        assert_same_bytes(totals, whole)


def assert_same_bytes(a: Totals, b: Totals) -> None:
    for (name, mine, held), (other, theirs, _) in zip(sorted(a._parts(), key=str), sorted(b._parts(), key=str), strict=True):
        assert name == other
        assert held == set(range(a.n_chunks))
        for field, value in vars(theirs).items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(getattr(mine, field), value), (name, field)


def groups_of(keys: list[Key], size: int) -> list[list[Key]]:
    return [keys[start : start + size] for start in range(0, len(keys), size)]


@pytest.mark.parametrize("precision", ["int8", "float32"])
@pytest.mark.parametrize("layout", ["host", "disk", "sweeps", "single sweeps"])
def test_every_layout_gives_the_same_bytes(folders, tokens, tmp_path, precision, layout):
    options = {"precision": precision, "seed": 2, "chunk_tokens": 256, "progress": False}
    whole = observe(sites(folders), tokens, **options)
    how = {"storage": layout} if layout in ("host", "disk") else {"sweeps": groups_of(whole.product_keys(), 4 if layout == "sweeps" else 1)}
    found = observe(sites(folders), tokens, out=tmp_path, **options, **how)
    for totals in (found, Totals.load(tmp_path)):
        assert_same_bytes(totals, whole)
        assert totals.complete


@pytest.mark.parametrize("stop", [1, 5, 12])
def test_layouts_may_change_when_a_pass_resumes(folders, tokens, tmp_path, monkeypatch, one_pilot, stop):
    options = {"precision": "int8", "seed": 2, "chunk_tokens": 256, "progress": False}
    whole = observe(sites(folders), tokens, **options)
    keys = whole.product_keys()
    real, calls = chunks.gather, []

    def gather(source, chunk, *rest, **more):
        calls.append(source.name)
        if len(calls) > 3 + stop:
            raise KeyboardInterrupt
        return real(source, chunk, *rest, **more)

    for how in ({"sweeps": groups_of(keys, 5)}, {"storage": "disk"}, {"sweeps": [keys[8:], keys[:8]]}):
        monkeypatch.setattr("pyuniversal.streaming.one_pass.gather", gather)
        calls.clear()
        with contextlib.suppress(KeyboardInterrupt):
            observe(sites(folders), tokens, out=tmp_path, **options, **how)
        monkeypatch.undo()
    assert stop == 12 or not Totals.load(tmp_path).complete
    assert_same_bytes(observe(sites(folders), tokens, out=tmp_path, **options), whole)


def test_a_finished_pass_is_read_back(folders, tokens, tmp_path, monkeypatch):
    done = observe(sites(folders[:2]), tokens, out=tmp_path, progress=False)
    monkeypatch.setattr("pyuniversal.streaming.one_pass.gather", lambda *_, **__: pytest.fail("a model was run"))
    assert torch.equal(observe(sites(folders[:2]), tokens, out=tmp_path, progress=False).block(0, 1), done.block(0, 1))


def test_max_tokens_takes_whole_rows_and_no_more(tokens):
    for limit in (100, 501, 10**9):
        rows = chunks.choose_rows(tokens, max_tokens=limit, seed=1)
        count = int(tokens.lengths[rows].sum())
        everything = chunks.choose_rows(tokens, max_tokens=None, seed=1)
        assert count <= limit
        assert rows.tolist() == everything[: len(rows)].tolist()
        assert len(rows) == len(everything) or count + tokens.lengths[everything[len(rows)]] > limit
    assert everything.tolist() != sorted(everything.tolist())
    assert chunks.choose_rows(tokens, max_tokens=None, seed=2).tolist() != everything.tolist()
    with pytest.raises(InputError, match="leave fewer than two tokens for the pass"):
        chunks.choose_rows(tokens, max_tokens=1, seed=1)


class Poisoned(ModelSite):
    """A source whose neuron 7 of its second layer is `value` at one site wherever one token id occurs."""

    def __init__(self, model, token: int, value: float, at: str = "mlp.post") -> None:
        super().__init__(model)
        self.token, self.value, self.at = token, value, at

    def activations(self, ids):
        found = {site: [x.clone() for x in layers] for site, layers in super().activations(ids).items()}
        found[self.at][1][..., 7][ids == self.token] = self.value
        return found


@pytest.mark.parametrize(("value", "at"), [(float("nan"), "mlp.post"), (float("inf"), "mlp.post"), (float("-inf"), "mlp.post"), (float("nan"), "mlp.pre")])
def test_nonfinite_activations_name_the_place_and_keep_what_was_done(folders, tokens, tmp_path, monkeypatch, value, at):
    # A token that neither the pilot nor the first two chunks meet, so that these go through.
    monkeypatch.setattr("pyuniversal.streaming.one_pass.PILOT_ROWS", 4)
    rows = chunks.choose_rows(tokens, max_tokens=None, seed=0)
    pilot = np.random.default_rng([0, 1]).choice(rows, size=4, replace=False)
    met = set(np.unique(tokens.ids[np.concatenate([pilot, rows[:8]])]))
    token = next(t for t in np.unique(tokens.ids[rows[8:]]) if t not in met)
    sources = [Poisoned(load_model(folders[0]), int(token), value, at), ModelSite(load_model(folders[1]))]
    with pytest.raises(ActivationError, match=r"Run the model in a wider dtype \(--dtype float32\), leave the layer out with --layers") as caught:
        observe(sources, tokens, out=tmp_path, chunk_tokens=128, progress=False)
    message = str(caught.value)
    assert message.startswith(f"a: {at} of L1.7 is {value} at row ")
    assert "; 1 neurons are affected." in message
    row, document, position = (int(message.split(word)[1].split(end)[0]) for word, end in (("row ", " "), ("document ", ")"), ("position ", ";")))
    assert tokens.ids[row, position] == token
    assert tokens.documents[row] == document
    kept = Totals.load(tmp_path)
    assert len(kept.chunks) >= 2
    whole = observe(sites(folders[:2]), tokens, chunk_tokens=128, progress=False, shard=(0, kept.n_chunks))  # its first chunk
    assert all(torch.isfinite(product.total).all() for product in kept.products.values())
    assert kept.tokens > whole.tokens > 0


def test_a_nan_that_does_not_come_again_is_told_of_all_the_same(folders, tokens):
    class Once(Poisoned):
        def activations(self, ids):
            self.calls = getattr(self, "calls", 0) + 1
            return super().activations(ids) if self.calls == PILOT_ROWS + 6 else ModelSite.activations(self, ids)

    with pytest.raises(ActivationError, match=r"a: mlp.post of L1.7 was NaN or Inf, and is finite when the same tokens run again: this source does not give"):
        observe([Once(load_model(folders[0]), tokens.bos, float("nan"))], tokens, chunk_tokens=128, batch_tokens=32, progress=False)


def test_dead_neurons_pass_through(folders, tokens):
    sources = sites(folders[:2])
    sources[0].model.module.transformer.h[1].mlp.c_fc.weight.data[:, 7] = 0
    totals = observe(sources, tokens, progress=False)
    assert (totals.site[0].field("M2", "r") == 0).nonzero().flatten().tolist() == [WIDTH + 7]
    assert (totals.block(0, 1)[WIDTH + 7].abs() < 1e-3).all()


@pytest.mark.parametrize("precision", ["int8", "float32"])
def test_chunks_of_nothing_but_newlines_add_nothing(folders, tokens, tmp_path, precision):
    model = load_model(folders[0])
    texts = [*tiny.sentences(12), *["\n"] * 40]
    mixed = tokenize(texts, model.tokenizer, out=tmp_path / "mixed", row_tokens=32, progress=False)
    plain = tokenize(texts[:12], model.tokenizer, out=tmp_path / "plain", row_tokens=32, progress=False)
    a, b = (observe(sites(folders[:2]), t, precision=precision, chunk_tokens=32, progress=False) for t in (mixed, plain))
    assert a.tokens == b.tokens
    assert a.site[0].count("test") > b.site[0].count("test")
    assert torch.isfinite(a.block(0, 1)).all()
    spread = (a.site[0].field("M2", "r")[:, None] * a.site[1].field("M2", "r")).sqrt()
    means = [[t.site[i].field("mean", "r") - t.centre[i].double() for i in (0, 1)] for t in (a, b)]
    r = [(t.block(0, 1).double() - t.tokens * m[0][:, None] * m[1]) / spread for t, m in zip((a, b), means, strict=True)]
    assert (r[0] - r[1]).abs().max() < (0.05 if precision == "int8" else 1e-5)
    nothing = tokenize(["\n"] * 40, model.tokenizer, out=tmp_path / "nothing", row_tokens=32, progress=False)
    with pytest.raises(InputError, match="0 tokens are left to correlate when BOS and newlines are out; give more text"):
        observe(sites(folders[:2]), nothing, precision=precision, progress=False)


def test_chunks_too_long_for_int8(folders, tokens):
    with pytest.raises(InputError, match=r"a chunk of \d{3},\d{3} tokens is too long for int8, whose sums are exact up to 133,144; lower --chunk-tokens"):
        observe(sites(folders[:2]), tokens, chunk_tokens=200_000, progress=False)


def test_models_are_sources_too(folders, tokens):
    totals = observe([load_model(f) for f in folders[:2]], tokens, max_tokens=500, progress=False)
    assert [s.name for s in totals.sources] == ["a", "b"]
    assert totals.sources[0].columns == LAYERS * WIDTH


def test_tokens_that_do_not_fit(folders, tokens, tmp_path):
    other = tiny.gpt2(tmp_path / "other", words=["quite", "different"])
    with pytest.raises(InputError, match="were made with another tokenizer than that of other; make them again with `pyuniversal tokens`"):
        observe(sites([other]), tokens, progress=False)
    short = tiny.gpt2(tmp_path / "short", n_positions=16)
    with pytest.raises(InputError, match=r"rows of 32 tokens in .* are longer than the context of short \(16\); make them again with --row-tokens 16"):
        observe(sites([short]), tokens, progress=False)
    small = tokenize(["a"], load_model(folders[0]).tokenizer, out=tmp_path / "small", row_tokens=8, progress=False)
    with pytest.raises(InputError, match="leave fewer than two tokens for the pass"):
        observe(sites(folders[:1]), small, progress=False)


def test_folder_of_another_run(folders, tokens, tmp_path):
    observe(sites(folders[:2]), tokens, out=tmp_path, progress=False)
    with pytest.raises(InputError, match=r"seed \(0 there, 1 asked for\)\. Choose another --out, or --overwrite"):
        observe(sites(folders[:2]), tokens, out=tmp_path, seed=1, progress=False)
    with pytest.raises(InputError, match="differs in models, layers or site"):
        observe(sites(folders[1:]), tokens, out=tmp_path, progress=False)


def test_unknown_layers_and_sites(folders):
    model = load_model(folders[0])
    with pytest.raises(InputError, match=r"a has layers 0 to 2, not all of \[1, 3\]; choose others with --layers"):
        ModelSite(model, layers=[3, 1])
    with pytest.raises(InputError, match="unknown site 'resid'; choose one of mlp"):
        ModelSite(model, site="resid")


def test_a_source_that_changes_its_dtype_or_width_is_refused(folders, tokens):
    for wrong, message in (
        (lambda x: x.half(), r"mlp.pre came as torch.float16 .*, not torch.float32"),
        (lambda x: x[..., :1], r"mlp.pre came as torch.float32 \[\d+, 1\], not"),
    ):
        (site,) = sites(folders)[:1]
        real = site.activations
        site.activations = lambda ids, real=real, wrong=wrong: {name: [layers[0], *map(wrong, layers[1:])] for name, layers in real(ids).items()}
        with pytest.raises(InputError, match=message.replace("mlp.pre", "(mlp.pre|mlp.post)")):
            observe([site], tokens, chunk_tokens=128, progress=False)
