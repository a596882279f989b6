"""A whole run on a GPU beside the same run on the CPU."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

import pyuniversal
from pyuniversal import Totals, pipeline, zoo
from pyuniversal.streaming import choose_rows
from pyuniversal.streaming.one_pass import PILOT_ROWS

pytestmark = [pytest.mark.backend("cuda"), pytest.mark.xdist_group("runs")]
if not torch.cuda.is_available():
    pytestmark.append(pytest.mark.skip(reason="this machine has no CUDA device"))

OPTIONS = {
    "tokens": zoo.tokens(),
    "max_tokens": 40_000,
    "chunk_tokens": 8192,
    "baseline_draws": 1,
    "null_tokens": 8192,
    "batch_tokens": 2048,
    "progress": False,
}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pyuniversal.Run]:
    folder = tmp_path_factory.mktemp("runs")
    return {device: pyuniversal.run(zoo.models()[:3], out=folder / device, device=device, **OPTIONS) for device in ("cpu", "cuda")}


def test_counts_are_the_same_and_moments_to_the_rounding_of_the_models(both):
    cpu, cuda = (Totals.load(run.path / "totals") for run in both.values())
    for ours, theirs in zip(cpu.site, cuda.site, strict=True):
        assert torch.equal(ours.field("count"), theirs.field("count"))
        spread = (ours.field("M2") / ours.field("count")).sqrt()
        assert ((ours.field("mean") - theirs.field("mean")).abs() <= 1e-4 * spread + 1e-7).all()
        assert torch.allclose(ours.field("M2"), theirs.field("M2"), rtol=1e-3)


def test_correlations_agree_within_the_error_that_both_state(both):
    keys = ["model", "layer", "neuron", "other", "partner_layer", "partner_neuron"]
    cpu, cuda = (run.matches.set_index(keys)[["r", "stderr", "rank"]] for run in both.values())
    joined = cpu.join(cuda, how="inner", rsuffix="_cuda")
    best = joined[joined["rank"] == 0]
    assert len(best) > 0.99 * (cpu["rank"] == 0).sum()
    # Rounding of one activation that differs in its last bit between devices is drawn anew only where it crosses a step: most of the noise is shared.
    z = (best["r"] - best["r_cuda"]) / np.hypot(best["stderr"], best["stderr_cuda"])
    assert z.abs().max() < 5
    assert z.std() < 1.1


def test_the_tables_agree(both):
    cpu, cuda = (run.neurons for run in both.values())
    for name in ("mean", "var", "sparsity", "mean_baseline", "excess_corr"):
        np.testing.assert_allclose(cuda[name], cpu[name], rtol=0.02, atol=2e-3)


def test_a_run_verifies(both):
    assert pipeline.verify(both["cuda"].path, device="cuda", progress=False)["failures"] == []


@pytest.mark.parametrize("storage", ["host", "disk", "sweeps"])
def test_every_storage_leaves_the_products_of_the_resident_one(both, tmp_path, storage, caplog):
    caplog.set_level("INFO", "pyuniversal")
    models = zoo.models()[:3]
    limit = {"memory": torch.cuda.memory_allocated() + 340_000_000} if storage == "sweeps" else {}
    run = pyuniversal.run(models, out=tmp_path, device="cuda", storage=storage, **limit, **OPTIONS)
    told = {"host": "in the host's memory", "disk": "on disk", "sweeps": r"in [2-9]\d* sweeps"}[storage]
    assert re.search(told, caplog.text)
    resident, other = (Totals.load(path / "totals") for path in (both["cuda"].path, run.path))
    for key, product in resident.products.items():
        assert torch.equal(product.total, other.products[key].total), key


def test_a_stopped_pass_goes_on_to_the_same_bytes(both, tmp_path, monkeypatch):
    from pyuniversal.totals import Product

    calls, add = [], Product.add

    def stop(self, *sides):
        calls.append(1)
        if len(calls) == 20:
            raise KeyboardInterrupt
        return add(self, *sides)

    monkeypatch.setattr(Product, "add", stop)
    with pytest.raises(KeyboardInterrupt):
        pyuniversal.run(zoo.models()[:3], out=tmp_path, device="cuda", **OPTIONS)
    run = pyuniversal.run(zoo.models()[:3], out=tmp_path, device="cuda", **OPTIONS)
    resident, resumed = (Totals.load(path / "totals") for path in (both["cuda"].path, run.path))
    for key, product in resident.products.items():
        assert torch.equal(product.total, resumed.products[key].total), key


def test_tf32_changes_r_by_less_than_the_rounding_of_int8(both, tmp_path):
    run = pyuniversal.run(zoo.models()[:3], out=tmp_path, device="cuda", dtype="tf32", **OPTIONS)
    assert run.manifest["models"][0]["weights"] != both["cuda"].manifest["models"][0]["weights"]
    best, tf32 = (r.matches[r.matches["rank"] == 0].set_index(["model", "layer", "neuron", "other"])["r"] for r in (both["cuda"], run))
    stderr = both["cuda"].matches.query("rank == 0")["stderr"].median()
    assert (best - tf32).abs().median() < stderr


@pytest.mark.parametrize("site", ["mlp.post", "mlp.pre"])
def test_a_nan_is_named_and_nothing_is_added_after_it(tmp_path, site):
    # A token that neither the pilot nor the first three chunks meet, so that these go through.
    tokens = pyuniversal.load_tokens(zoo.tokens())

    class Poisoned(pyuniversal.ModelSite):
        def activations(self, ids):
            found = {name: [x.clone() for x in layers] for name, layers in super().activations(ids).items()}
            found[site][1][..., 7][ids == poison] = float("nan")
            return found

    rows = choose_rows(tokens, max_tokens=40_000, seed=0)
    per_chunk = 4096 // tokens.row_tokens
    pilot = np.random.default_rng([0, 1]).choice(rows, size=PILOT_ROWS, replace=False)
    met = {*np.unique(tokens.ids[np.concatenate([rows[: 3 * per_chunk], pilot])])}  # by the pilot and the first three chunks
    poison = int(next(t for t in np.unique(tokens.ids[rows[3 * per_chunk :]]) if t not in met))
    first, second = (pyuniversal.load_model(path, device="cuda") for path in zoo.models()[:2])
    sources = [Poisoned(first), pyuniversal.ModelSite(second)]
    with pytest.raises(pyuniversal.ActivationError, match=rf"{site} of L1\.7 is nan at row"):
        pyuniversal.observe(sources, tokens, out=tmp_path, max_tokens=40_000, chunk_tokens=4096, device="cuda", progress=False)
    kept = Totals.load(tmp_path)
    assert len(kept.chunks) >= 3
    assert all(product.total.isfinite().all() for product in kept.products.values())


def test_the_host_waits_for_nothing_but_the_check_for_nan(tmp_path, monkeypatch):
    from pyuniversal.streaming import one_pass

    def forbidden(function):
        def run(*arguments, **options):
            torch.cuda.set_sync_debug_mode("error")
            try:
                return function(*arguments, **options)
            finally:
                torch.cuda.set_sync_debug_mode("default")

        return run

    for name in ("make_chunk", "_see", "_add"):
        monkeypatch.setattr(one_pass, name, forbidden(getattr(one_pass, name)))
    models = [pyuniversal.load_model(path, device="cuda") for path in zoo.models()[:2]]
    totals = pyuniversal.observe(models, pyuniversal.load_tokens(zoo.tokens()), max_tokens=20_000, chunk_tokens=4096, device="cuda", progress=False)
    assert totals.complete
    assert totals.n_chunks == 5
