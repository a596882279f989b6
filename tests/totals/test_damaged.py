"""States whose parts do not fit one another: each is named, with what is wrong. test_fuzz.py has the damage that nobody thought of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from pyuniversal import DyadicHistogram, FileError, Histogram, Moments, Product, TokenSums
from pyuniversal.totals import BatchMoments, PairSums
from pyuniversal.totals._state import check_sources, load_state, save_state

NAN = float("nan")
X = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))


def moments() -> Moments:
    m = Moments(3, sets=("r", "all"))
    m.update(X, (20, 50))
    return m


def product() -> Product:
    p = Product(3, 2)
    p.update(X, X[:, :2])
    return p


def histogram() -> Histogram:
    h = Histogram(3)
    h.update(X)
    return h


def dyadic() -> DyadicHistogram:
    h = DyadicHistogram(3, bins=8)
    h.update(X)
    return h


def sums() -> TokenSums:
    s = TokenSums(5, 3)
    s.update(X, torch.arange(50) % 5)
    return s


def pairs() -> PairSums:
    p = PairSums(torch.tensor([[1], [0], [-1]]), centre_x=torch.zeros(3), centre_y=torch.zeros(2), batches=2)
    p.update(1, X, X[:, :2])
    return p


def batches() -> BatchMoments:
    b = BatchMoments(2, 3)
    b.update(0, X)
    return b


def put(name: str, place: Any, value: float) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    def change(tensors: dict[str, Any], meta: dict[str, Any]) -> None:
        tensors[name][place] = value

    return change


def swap(name: str, f: Callable[[Any], Any]) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    return lambda tensors, meta: tensors.update({name: f(tensors[name])})


def say(**values: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    return lambda tensors, meta: meta.update(values)


DAMAGES = [
    (moments, "moments", put("state", (0, 0, 1), NAN), "counts tokens in numbers that are none"),
    (moments, "moments", put("state", (1, 0, 1), -1.0), "counts tokens in numbers that are none"),
    (moments, "moments", put("state", (1, 0, 1), 0.5), "counts tokens in numbers that are none"),
    (moments, "moments", swap("state", lambda t: t.float()), r"state is torch\.float32 \[2, 8, 3\], not torch\.float64 of 3 axes"),
    (moments, "moments", swap("state", lambda t: t[:, :7]), r"state is \[2, 7, 3\]"),
    (moments, "moments", say(sets=["r"]), r"\[2, 8, 3\], not \[sets, 8, neurons\] for the sets \['r'\]"),
    (moments, "moments", say(sets=["r", "r"]), "for the sets"),
    (moments, "moments", say(sets=["r", 1]), "for the sets"),
    (moments, "moments", say(sets="ra"), "its 'sets' is 'ra', not a list"),
    (product, "product", put("centre_x", 1, NAN), "centres do not fit"),
    (product, "product", swap("centre_y", lambda t: t[:1]), "centres do not fit"),
    (product, "product", swap("rounding_x", lambda t: t[:, :2]), "sums of its rounding do not fit"),
    (product, "product", swap("total", lambda t: t.double()), r"torch\.float64 sums are not of the precision 'float32'"),
    (product, "product", swap("total", lambda t: t.flatten()), r"total is torch\.float32 \[6\]"),
    (product, "product", say(precision="int4"), "not of the precision 'int4'"),
    (product, "product", say(tokens=-1), "its 'tokens' is -1, not a whole number"),
    (product, "product", say(seed=1.5), r"its 'seed' is 1\.5, not an integer"),
    (histogram, "histogram", put("counts", (1, 1), -1), "not those of bins"),
    (histogram, "histogram", put("edges", 3, 100.0), "rising edges"),
    (histogram, "histogram", put("edges", 3, NAN), "rising edges"),
    (histogram, "histogram", swap("edges", lambda t: t[1:]), r"counts \[3, 257\] are not those of bins between 255"),
    (dyadic, "dyadic histogram", put("counts", (1, 1), -1), "are none of a histogram"),
    (dyadic, "dyadic histogram", put("exponent", 1, -127), "are none of a histogram"),
    (dyadic, "dyadic histogram", put("exponent", 1, 1024), "are none of a histogram"),
    (dyadic, "dyadic histogram", swap("counts", lambda t: t[:, :7]), r"counts \[3, 7\]"),
    (dyadic, "dyadic histogram", swap("counts", lambda t: t[:, :2]), r"counts \[3, 2\]"),
    (dyadic, "dyadic histogram", swap("exponent", lambda t: t[:2]), r"exponents \[2\]"),
    (sums, "token sums", put("counts", 1, -1), "or below 0"),
    (sums, "token sums", swap("counts", lambda t: t[:4]), r"sums are \[5, 3\] and its counts \[4\]"),
    (sums, "token sums", swap("sums", lambda t: t.half()), r"sums is torch\.float16"),
    (pairs, "pair sums", put("partner", (0, 0), 2), "partners that are none of 2 neurons"),
    (pairs, "pair sums", put("partner", (0, 0), -2), "partners that are none of 2 neurons"),
    (pairs, "pair sums", put("tokens", 0, -1), "its sums are"),
    (pairs, "pair sums", put("centre_y", 0, NAN), "centres are no numbers"),
    (pairs, "pair sums", swap("sums", lambda t: t[:1]), r"sums are \[1, 3, 1\], not \[2, 3, 1\]"),
    (pairs, "pair sums", swap("centre_x", lambda t: t[:2]), "over 2 neurons"),
    (batches, "moments of batches", put("state", (0, 0, 0), NAN), "counts tokens in numbers that are none"),
    (batches, "moments of batches", swap("state", lambda t: t[:, :2]), r"moments are \[2, 2, 3\]"),
]


@pytest.mark.parametrize(("make", "kind", "damage", "complaint"), DAMAGES)
def test_parts_that_do_not_fit(tmp_path, make, kind, damage, complaint):
    whole, path = make(), tmp_path / "part.safetensors"
    whole.save(path)
    type(whole).load(path)
    tensors, meta = load_state(path, kind)
    save_state(path, kind, tensors, meta)
    type(whole).load(path)
    damage(tensors, meta)
    save_state(path, kind, tensors, meta)
    with pytest.raises(FileError, match=complaint) as caught:
        type(whole).load(path)
    assert "part.safetensors" in str(caught.value)


@pytest.mark.parametrize("name", ["state", "counts", "total"])
def test_a_part_that_is_absent(tmp_path, name):
    kinds = {"state": (moments, "moments"), "counts": (histogram, "histogram"), "total": (product, "product")}
    make, kind = kinds[name]
    make().save(tmp_path / "x")
    tensors, meta = load_state(tmp_path / "x", kind)
    del tensors[name]
    save_state(tmp_path / "x", kind, tensors, meta)
    with pytest.raises(FileError, match=f"x is of an earlier version of pyuniversal, or damaged: {name} is absent"):
        type(make()).load(tmp_path / "x")


SOURCE = {"name": "a", "site": "mlp.post", "layers": [0, 2], "width": 3, "hash": "0"}


@pytest.mark.parametrize(
    ("sources", "complaint"),
    [
        ([SOURCE | {"name": "../a"}], "ledger holds the name '../a'"),
        ([SOURCE | {"layers": [0, 0]}], "its source a has 2 layers of 3 neurons"),
        ([SOURCE | {"layers": []}], "its source a has 0 layers"),
        ([SOURCE | {"layers": [0, True]}], "its source a has 2 layers"),
        ([SOURCE | {"layers": [-1]}], "its source a has 1 layers"),
        ([SOURCE | {"width": 0}], "layers of 0 neurons"),
        ([SOURCE | {"width": 2**31}], "layers of 2147483648 neurons"),
        ([SOURCE | {"more": 1}], "its source a has"),
        ([SOURCE, SOURCE], "it has 2 sources, or two of one name"),
        ([], "it has 0 sources"),
        ({"a": 1}, "its 'sources' is {'a': 1}, not a list"),
        ([{"name": "a"}], "source 0 of ledger is damaged: it has no 'site'"),
    ],
)
def test_sources_of_a_ledger(sources, complaint):
    assert check_sources([SOURCE], "ledger") == [SOURCE | {"layers": (0, 2)}]
    with pytest.raises(FileError) as caught:
        check_sources(sources, "ledger")
    assert complaint in str(caught.value)
