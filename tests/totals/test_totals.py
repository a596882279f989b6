"""Streaming state: update, merge, save, load; laws that hold whatever the chunks, and files that cannot be confused."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch

from pyuniversal import FileError, Histogram, InputError, Moments, Product, Totals
from pyuniversal.totals import Key, SourceInfo, ledger, pack
from pyuniversal.totals.ledger import from_ranges, ranges


def data(tokens: int = 500, neurons: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.nn.functional.gelu(torch.randn(tokens, neurons, generator=torch.Generator().manual_seed(seed)) * 2)


def test_moments_over_nested_sets():
    x = data()
    m = Moments(6, sets=("r", "test", "all"))
    m.update(x[:300], (100, 200, 300))
    m.update(x[300:], (50, 60, 200))
    r = torch.cat([x[:100], x[300:350]]).double().numpy()
    assert (m.count("r"), m.count("test"), m.count("all"), m.count()) == (150, 260, 500, 150)
    np.testing.assert_allclose(m.mean("r"), r.mean(0), rtol=1e-12)
    np.testing.assert_allclose(m.var(), r.var(0), rtol=1e-12)
    np.testing.assert_allclose(m.skew("r"), scipy.stats.skew(r), rtol=1e-10)
    np.testing.assert_allclose(m.kurt("all"), scipy.stats.kurtosis(x.double(), fisher=False), rtol=1e-10)
    np.testing.assert_allclose(m.firing("all"), (x > 0).double().mean(0))


def test_constant_and_empty_neurons_have_no_shape():
    m = Moments(2)
    assert torch.isnan(m.mean()).all()
    m.update(torch.tensor([[1.5, 0.0], [1.5, 1.0]]))
    assert m.var().tolist() == [0.0, 0.25]
    assert torch.isnan(m.skew()).tolist() == [True, False]


@pytest.mark.parametrize("precision", ["float64", "float32", "bf16", "int8"])
def test_product_merge_and_file(tmp_path, precision):
    x, y = data(400, 5, 1), data(400, 7, 2)
    whole = Product(5, 7, precision=precision, seed=3)
    whole.centre = (x.mean(0), y.mean(0))
    for start in range(0, 400, 100):
        whole.update(x[start : start + 100], y[start : start + 100])
    parts = []
    for start in (0, 200):
        part = Product(5, 7, precision=precision, seed=3)
        part.centre = whole.centre
        for s in (start, start + 100):
            part.update(x[s : s + 100], y[s : s + 100], first_token=s)
        part.save(tmp_path / f"{start}.safetensors")
        parts.append(Product.load(tmp_path / f"{start}.safetensors"))
    parts[0].merge(parts[1])
    torch.testing.assert_close(parts[0].total, whole.total, rtol=1e-5, atol=1e-4)
    assert parts[0].tokens == 400
    exact = (x.double() - whole.centre[0]).T @ (y.double() - whole.centre[1])
    spread = {"float64": 1e-10, "float32": 1e-3, "bf16": 1.0, "int8": 20.0}[precision]
    assert (whole.total - exact).abs().max() < spread
    for side, v in enumerate((x, y)):
        added = parts[0].added(side)[0]
        # The rounding adds at most a quarter of a squared step, and something unless there is no step.
        steps = (v.amax(0) - v.amin(0)).double() / 126.5
        assert ((added > 0) & (added < steps**2 / 4)).all() if precision == "int8" else (added == 0).all()


def test_merge_refuses_strangers():
    a, b = Product(2, 3), Product(2, 3)
    a.update(data(10, 2), data(10, 3))
    b.update(data(10, 2, 5), data(10, 3, 5))
    with pytest.raises(InputError, match="different centres: give both the centre of the first"):
        a.merge(b)
    with pytest.raises(InputError, match=r"cannot merge a product of \[2, 4\] neurons in float32 into one of \[2, 3\]"):
        a.merge(Product(2, 4))
    with pytest.raises(InputError, match="x has 10 tokens and y has 9"):
        a.update(data(10, 2), data(9, 3))
    with pytest.raises(InputError, match="cannot merge moments of 4 neurons"):
        Moments(3).merge(Moments(4))
    with pytest.raises(InputError, match="different neurons or edges"):
        Histogram(3).merge(Histogram(3, edges=torch.tensor([0.0])))


def run_totals(chunks: dict[int, torch.Tensor], n_chunks: int = 4, *, precision: str = "float64", centre: float = 0.0, r: int | None = None) -> Totals:
    """Totals of two sources about 0 and 1, moved by `centre`; of each chunk the first `r` tokens are in the set r, half where None."""
    sources = [SourceInfo("a", "mlp.post", (0, 2), 3, "hash-a"), SourceInfo("b", "mlp.post", (1,), 4, "hash-b")]
    centres = [torch.zeros(6) + centre, torch.ones(4) + centre]
    totals = Totals(sources, identity={"tokens": "t", "seed": 0}, n_chunks=n_chunks, centre=centres, precision=precision)
    for number, x in chunks.items():
        add_chunk(totals, number, x, r=r)
    return totals


def add_chunk(totals: Totals, number: int, x: torch.Tensor, keys: list[Key] | None = None, *, r: int | None = None) -> None:
    """Add a chunk, x [tokens, 10], to the moments and products; or to these products alone."""
    packed = []
    for i, side in enumerate((x[:, :6], x[:, 6:])):
        site, pre, histogram = Moments(side.shape[1], sets=("r", "test", "all")), Moments(side.shape[1]), Histogram(side.shape[1])
        site.update(side, (len(x) // 2, len(x) - 1, len(x)) if r is None else (r, len(x), len(x)))
        pre.update(side)
        histogram.update(side)
        if keys is None:
            totals.observe(i, number, site, pre, histogram)
        packed.append(pack(side, totals.centre[i], torch.arange(len(x)), source=i, seed=0, precision=totals.precision))
    for i, layer, j in totals.product_keys() if keys is None else keys:
        block = packed[i].columns(layer * totals.sources[i].width, (layer + 1) * totals.sources[i].width)
        totals.add((i, layer, j), number, (block, block if i == j else packed[j]))


def files_of(ledger: Path) -> set[str]:
    return {part["file"] for part in json.loads(ledger.read_text())["parts"].values()}


def test_totals_merge_save_load(tmp_path):
    chunks = {n: data(50, 10, n) for n in range(4)}
    left, right = run_totals({n: chunks[n] for n in (0, 3)}), run_totals({n: chunks[n] for n in (1, 2)})
    left.save(tmp_path)
    left = Totals.load(tmp_path)
    assert left.missing() == [1, 2]
    left.merge(right)
    assert left.complete
    left.save(tmp_path)
    loaded = Totals.load(tmp_path)
    everything = torch.cat(list(chunks.values()))
    np.testing.assert_allclose(loaded.block(0, 1), everything[:, :6].double().T @ (everything[:, 6:].double() - 1), rtol=1e-12)
    np.testing.assert_allclose(loaded.products[0, 1, 0].total, everything[:, 3:6].double().T @ everything[:, 3:6].double(), rtol=1e-12)
    np.testing.assert_allclose(loaded.pre[1].mean(), everything[:, 6:].double().mean(0), rtol=1e-12)
    assert loaded.site[0].count("r") == 100
    assert loaded.histogram[0].counts.sum().item() == 200 * 6
    # One generation of files alone is left, and it is the one that the ledger names.
    assert {p.name for p in tmp_path.iterdir()} == {*files_of(tmp_path / "ledger.json"), "ledger.json"}


def test_totals_refuse_overlap_and_strangers():
    x = data(50, 10)
    with pytest.raises(InputError, match="both totals hold chunk 1"):
        run_totals({0: x, 1: x}).merge(run_totals({1: x}))
    other = run_totals({2: x})
    other.identity = {"tokens": "u", "seed": 0}
    with pytest.raises(InputError, match="different runs: they differ in tokens"):
        run_totals({0: x}).merge(other)


def test_a_killed_save_leaves_the_old_state(tmp_path, monkeypatch):
    totals = run_totals({0: data(50, 10)})
    totals.save(tmp_path)
    totals.merge(run_totals({1: data(50, 10, 1)}))
    calls = []

    def dies(self, path):
        calls.append(path)
        raise KeyboardInterrupt

    monkeypatch.setattr(Histogram, "save", dies)
    with pytest.raises(KeyboardInterrupt):
        totals.save(tmp_path)
    assert calls
    assert Totals.load(tmp_path).chunks == {0}


def damage(folder: Path, pattern: str) -> None:
    (victim,) = folder.glob(pattern)
    victim.write_bytes(victim.read_bytes()[:-1])


@pytest.mark.parametrize("moment", ["a part", "the ledger", "the ledger before"])
def test_an_interrupted_save_leaves_two_generations(tmp_path, monkeypatch, moment):
    """Whenever a third save is cut off, and whichever file of what it leaves is damaged then, there is a state to go back to."""
    totals = run_totals({0: data(50, 10)})
    totals.save(tmp_path)
    for number in (1, 2):
        add_chunk(totals, number, data(50, 10, number))
        if number == 1:
            totals.save(tmp_path)
    real = ledger.write_json

    def dies(*_, **__):
        raise KeyboardInterrupt

    def write(path: Path, value: object) -> None:
        if path.name == {"the ledger": "ledger.json", "the ledger before": "ledger.previous.json"}[moment]:
            raise KeyboardInterrupt
        real(path, value)

    with monkeypatch.context() as patch:
        if moment == "a part":
            patch.setattr(Histogram, "save", dies)
        else:
            patch.setattr(ledger, "write_json", write)
        with pytest.raises(KeyboardInterrupt):
            totals.save(tmp_path)
    current, before = ({0, 1, 2}, {0}) if moment == "the ledger before" else ({0, 1}, {0})
    assert Totals.load(tmp_path).chunks == current
    damage(tmp_path, f"cross-0-1-1.{max(current) + 1}.*")
    back = Totals.load(tmp_path)
    assert back.chunks == before
    add_chunk(back, 3, data(50, 10, 3))
    back.save(tmp_path)
    again = Totals.load(tmp_path)
    assert again.chunks == {0, 3}
    assert {p.name for p in tmp_path.glob("*.safetensors")} == files_of(tmp_path / "ledger.json") | files_of(tmp_path / "ledger.previous.json")


def test_a_kill_after_the_last_ledger_leaves_no_generation_before(tmp_path, monkeypatch):
    totals = run_totals({0: data(50, 10)}, n_chunks=2)
    totals.save(tmp_path)
    add_chunk(totals, 1, data(50, 10, 1))

    tidy = ledger.Ledger.tidy

    def dies(self, *, final=False):
        if final:
            raise KeyboardInterrupt
        tidy(self)

    with monkeypatch.context() as patch:
        patch.setattr(ledger.Ledger, "tidy", dies)
        with pytest.raises(KeyboardInterrupt):
            totals.save(tmp_path)
    whole = Totals.load(tmp_path)
    assert whole.complete
    whole.open(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {*files_of(tmp_path / "ledger.json"), "ledger.json"}


def test_a_disk_without_room_for_three_generations_keeps_two(tmp_path, monkeypatch):
    totals = run_totals({0: data(50, 10)})
    totals.save(tmp_path)
    add_chunk(totals, 1, data(50, 10, 1))
    totals.save(tmp_path)
    add_chunk(totals, 2, data(50, 10, 2))
    usage, seen = shutil.disk_usage(tmp_path), []
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    monkeypatch.setattr(Moments, "save", lambda self, path: (seen.append({p.name for p in tmp_path.iterdir()}), real(self, path)))
    totals.save(tmp_path)
    kept = {p for p in seen[0] if p.endswith(".safetensors")}
    assert kept == files_of(tmp_path / "ledger.previous.json"), "while the third is written the second alone is there"
    assert "ledger.previous.json" not in seen[0]
    assert Totals.load(tmp_path).chunks == {0, 1, 2}


real = Moments.save


def test_save_leaves_other_files_alone(tmp_path):
    for name in ("model.safetensors", "cross.safetensors", "centre.note"):
        (tmp_path / name).write_text("mine")
    (tmp_path / ".cross-0-1-1.3.safetensors.0a1b2c3d.tmp").write_text("left by a kill")
    totals = run_totals({0: data(50, 10)})
    totals.save(tmp_path)
    totals.save(tmp_path)
    kept = {p.name for p in tmp_path.iterdir()} - files_of(tmp_path / "ledger.json")
    assert kept == {"model.safetensors", "cross.safetensors", "centre.note", "ledger.json", "ledger.previous.json"}


def test_a_refused_merge_changes_nothing():
    mine, other = run_totals({0: data(50, 10)}), run_totals({1: data(50, 10)}, centre=1e-6)
    add_chunk(other, 2, data(50, 10, 2), keys=[(0, 1, 1)])
    before = mine.site[0].state.clone()
    with pytest.raises(InputError, match="the parts have different centres, and products of one hold other chunks than its moments"):
        mine.merge(other)
    assert torch.equal(mine.site[0].state, before)


@pytest.mark.parametrize("precision", ["float64", "float32", "int8"])
def test_parts_about_other_centres_merge_to_the_sums_about_the_first(precision):
    """Sums of (x - c)(y - c') in float64, over tokens half of which were summed about other centres: by a bit, and by half a standard deviation."""
    x = {n: data(50, 10, n) for n in range(4)}
    every = torch.cat([part[:25] for part in x.values()]).double()  # r is the first half of a chunk
    for off in (1e-7, 0.5):
        mine, other = (run_totals({n: x[n][:25] for n in some}, precision=precision, centre=centre, r=25) for some, centre in (((0, 3), 0.0), ((1, 2), off)))
        kept = {key: product.total.clone() for key, product in other.products.items()}
        mine.merge(other)
        assert mine.complete
        for key, product in mine.products.items():
            i, layer, j = key
            sides = every[:, 3 * layer : 3 * layer + 3] if i == 0 else every[:, 6:] - 1, (every[:, :6], every[:, 6:] - 1)[j]
            left, right = sides if i != j else (sides[0], sides[0])
            wrong = (product.total.double() - left.T @ right).abs()
            # int8: six standard errors, a step D = max |x - c| / 126.5 has a variance of D^2 / 4 at most; not of a neuron with itself.
            steps, squares = zip(*(((m.abs().amax(0) + off) ** 2 / 126.5**2 / 4, ((m.abs() + off) ** 2).sum(0)) for m in (left, right)), strict=True)
            error = 6 * (torch.outer(steps[0], squares[1]) + torch.outer(squares[0], steps[1]) + 100 * torch.outer(*steps)).sqrt()
            allowed = {"float64": 1e-11 * torch.ones_like(error), "float32": 1e-4 * torch.ones_like(error)}.get(precision, error)
            assert (wrong <= allowed)[~torch.eye(*wrong.shape, dtype=torch.bool) | (i != j) | (precision != "int8")].all(), (key, off)
            assert all(torch.equal(*both) for both in zip(product.centre, mine.centre_of(key), strict=True))
            assert torch.equal(other.products[key].total, kept[key]), "what is merged stays as it is"


def test_a_refused_update_leaves_no_centre():
    p = Product(3, 2)
    with pytest.raises(InputError):
        p.update(data(50, 4), data(50, 2))
    p.update(data(0, 3), data(0, 2))
    x, y = data(50, 3), data(50, 2)
    p.update(x, y)
    torch.testing.assert_close(p.total, (x - x.mean(0)).T @ (y - y.mean(0)), rtol=1e-5, atol=1e-4)


def test_damaged_files_are_named(tmp_path):
    run_totals({0: data(50, 10)}).save(tmp_path)
    victim = next(tmp_path.glob("cross-0-1-1.*"))
    whole = victim.read_bytes()
    victim.write_bytes(whole[:-9])
    with pytest.raises(FileError, match=rf"{victim.name} is truncated or damaged: it has {len(whole) - 9:,} bytes and the ledger says {len(whole):,}"):
        Totals.load(tmp_path)
    victim.write_bytes(whole[:-9] + bytes([whole[-9] ^ 4]) + whole[-8:])  # one bit of one number
    with pytest.raises(FileError, match=rf"{victim.name} is damaged, or of another run"):
        Totals.load(tmp_path)
    victim.unlink()
    with pytest.raises(FileError, match=rf"cannot read .*{victim.name}"):
        Totals.load(tmp_path)
    (tmp_path / "ledger.json").write_text('{"format": 1')
    with pytest.raises(FileError, match=r"ledger.json is not valid JSON"):
        Totals.load(tmp_path)
    (tmp_path / "ledger.json").write_text('{"format": 9}')
    with pytest.raises(FileError, match="has format 9; this version of pyuniversal reads 3"):
        Totals.load(tmp_path)


def as_ledger_says(folder: Path) -> None:
    """Make the ledger believe what is in the files."""
    ledger = json.loads((folder / "ledger.json").read_text())
    for part in ledger["parts"].values():
        content = (folder / part["file"]).read_bytes()
        part |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / "ledger.json").write_text(json.dumps(ledger))


def test_strangers_with_the_right_hash_are_named(tmp_path):
    run_totals({0: data(50, 10)}).save(tmp_path)
    victim = next(tmp_path.glob("cross-0-1-1.*"))
    Moments(3).save(victim)
    as_ledger_says(tmp_path)
    with pytest.raises(FileError, match=rf"{victim.name} holds a moments, not a product"):
        Totals.load(tmp_path)
    Product(3, 5).save(victim)
    as_ledger_says(tmp_path)
    with pytest.raises(FileError, match=rf"{victim.name} holds \(3, 5\) neurons, not \(3, 4\): it belongs to another run"):
        Totals.load(tmp_path)
    run_totals({0: data(50, 10)}).save(tmp_path)
    victim = next(tmp_path.glob("site-0.*"))
    Moments(Moments.load(victim).neurons, sets=("q", "test", "all")).save(victim)
    as_ledger_says(tmp_path)
    with pytest.raises(FileError, match=rf"{victim.name} is damaged: it holds the token sets q, test, all, not r, test, all"):
        Totals.load(tmp_path)


@pytest.mark.parametrize("name", ["../cross-0-0-1.1.safetensors", "/etc/passwd", "centre.1.safetensors", "cross-0-1-1.1.safetensors", 7])
def test_a_ledger_leads_to_no_other_file(tmp_path, name):
    run_totals({0: data(50, 10)}).save(tmp_path)
    ledger = json.loads((tmp_path / "ledger.json").read_text())
    ledger["parts"]["cross-0-0-1"]["file"] = name
    (tmp_path / "ledger.json").write_text(json.dumps(ledger))
    with pytest.raises(FileError, match="no file of a run is called so; it is damaged, or was tampered with"):
        Totals.load(tmp_path)


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "ledger"])
def test_a_damaged_checkpoint_costs_one_checkpoint(tmp_path, caplog, damage):
    totals = run_totals({0: data(50, 10)})
    totals.save(tmp_path)
    first = {name: part for name, part, _ in Totals.load(tmp_path)._parts()}
    add_chunk(totals, 1, data(50, 10, 1))
    totals.save(tmp_path)
    victim = tmp_path / "ledger.json" if damage == "ledger" else next(tmp_path.glob("cross-0-1-1.2.*"))
    content = victim.read_bytes()
    if damage == "gone":
        victim.unlink()
    else:
        victim.write_bytes(content[:-40] if damage in ("cut", "ledger") else content[:-1] + bytes([content[-1] ^ 1]))
    back = Totals.load(tmp_path)
    assert victim.name in caplog.text
    assert "Going back to the checkpoint before it, which holds 1 of 4 chunks" in caplog.text
    assert back.chunks == {0}
    for name, part, chunks in back._parts():
        assert chunks == {0}
        assert state_of(part) == state_of(first[name])
    # It goes on from there, and the next save is a whole state of its own.
    add_chunk(back, 1, data(50, 10, 1))
    back.save(tmp_path)
    caplog.clear()
    again = Totals.load(tmp_path)
    assert not caplog.text
    assert {name: state_of(part) for name, part, _ in again._parts()} == {name: state_of(part) for name, part, _ in totals._parts()}
    assert {p.name for p in tmp_path.glob("*.safetensors")} == files_of(tmp_path / "ledger.json") | files_of(tmp_path / "ledger.previous.json")


def state_of(part) -> dict[str, bytes]:
    """The bytes of every tensor."""
    return {name: v.numpy().tobytes() for name, v in vars(part).items() if isinstance(v, torch.Tensor)}


def test_only_what_changed_is_written(tmp_path):
    totals = run_totals({0: data(50, 10)})
    totals.save(tmp_path)
    add_chunk(totals, 1, data(50, 10, 1), keys=[(0, 1, 1)])
    totals.save(tmp_path)
    parts = json.loads((tmp_path / "ledger.json").read_text())["parts"]
    assert {name: (part["file"].split(".")[1], part["chunks"]) for name, part in parts.items() if part["chunks"] != "0"} == {
        "cross-0-1-1": ("2", "0-1"),
        "centre": ("1", ""),
    }
    assert totals.missing() == [1, 2, 3]
    assert Totals.load(tmp_path).added[0, 1, 1] == {0, 1}


def test_settled_products_take_no_memory_and_lose_nothing(tmp_path):
    whole, totals = (run_totals({0: data(50, 10)}) for _ in range(2))
    totals.open(tmp_path)
    for number in (1, 2):
        add_chunk(whole, number, data(50, 10, number))
        add_chunk(totals, number, data(50, 10, number))
        totals.settle(totals.product_keys())
        if number == 1:
            totals.save(tmp_path)
    assert Totals.load(tmp_path).chunks == {0, 1}  # what was settled since then counts when it is saved
    totals.save(tmp_path)
    assert {name: state_of(part) for name, part, _ in Totals.load(tmp_path)._parts()} == {name: state_of(part) for name, part, _ in whole._parts()}


def test_ranges_of_chunks():
    assert ranges([7, 0, 2, 1, 9, 10]) == "0-2,7,9-10"
    assert from_ranges("0-2,7,9-10", 11) == {0, 1, 2, 7, 9, 10}
    assert (ranges([]), from_ranges("", 3)) == ("", set())
    for text in ("0-3", "2-1", "-1", "a", "0-99999999999"):
        with pytest.raises(ValueError):  # noqa: PT011
            from_ranges(text, 3)
