"""What can be typed for an option of the command line: whole numbers, amounts of memory, layers, shards."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import Any, ClassVar

import click


class Count(click.ParamType):
    """A whole number as people write it: 100m, 1.5k, 2_000, 1e6."""

    name = "count"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number, or fail with the ways to write one."""
        text = str(value).strip().lower()
        factor = {"k": 10**3, "m": 10**6, "b": 10**9}.get(text[-1:], 1)
        try:
            number = Decimal(text[:-1] if factor > 1 else text) * factor
        except InvalidOperation:
            number = Decimal("NaN")
        if not number.is_finite() or number != number.to_integral_value() or number <= 0:
            self.fail(f"{value!r} is not a whole number above 0; write it as 100m, 1.5k, 2b, 2_000 or 1e6.", param, ctx)
        return int(number)


class Size(click.ParamType):
    """An amount of memory as people write it: 1GB, 500MB, 16GiB."""

    name = "size"
    UNITS: ClassVar[dict[str, int]] = {f"{prefix}{unit}": base**n for unit, base in (("b", 1000), ("ib", 1024)) for n, prefix in enumerate("kmgt", 1)}

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the bytes, or fail with the ways to write them."""
        text = str(value).strip().lower().replace(" ", "")
        number = text.rstrip("kmgtib")
        try:
            size = float(number) * self.UNITS[text[len(number) :]]
        except (KeyError, ValueError):
            size = float("nan")
        if not 0 < size < 2**63:
            self.fail(f"{value!r} is no amount of memory; write it as 1GB, 500MB, 1.5TB or 16GiB.", param, ctx)
        return int(size)


class Layers(click.ParamType):
    """Layers as ranges: 4-8,11."""

    name = "layers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        """Return the layers in ascending order, or fail with the way to write them."""
        layers: set[int] = set()
        for part in str(value).split(","):
            first, dash, last = (word.strip() for word in part.partition("-"))
            numbers = [first, last] if dash else [first]
            if not all(number.isascii() and number.isdigit() for number in numbers) or int(numbers[-1]) < int(first):
                self.fail(f"{value!r} is no list of layers: {part.strip()!r} is neither a number nor an ascending range. Write for example 4-8,11.", param, ctx)
            layers.update(range(int(first), int(numbers[-1]) + 1))
        return sorted(layers)


class Shard(click.ParamType):
    """One of several parts of the work: 0/2 and 1/2."""

    name = "shard"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """Return (which, of how many), or fail with the way to write it."""
        words = str(value).split("/")
        if len(words) != 2 or not all(word.isascii() and word.isdigit() for word in words):
            self.fail(f"{value!r} is no shard; write which and of how many, from 0 on: 0/2 and 1/2 are the two halves.", param, ctx)
        k, n = map(int, words)
        if k >= n:
            self.fail(
                f"there is no shard {value}: of {n} the first is 0/{n} and the last {n - 1}/{n}." if n else f"{value!r} is a shard of nothing.", param, ctx
            )
        return k, n
