"""An independent judge of the neuron table of small GPT-2 models: float64, plain Hugging Face models and hooks, numpy and scipy.

Nothing of the product is imported here, and every number is computed the long way round: whole activations are kept in memory, correlations
are products of standardised columns, rotated neurons are really rotated, moments come from scipy.stats, histograms from sorted values.
Models run in float32 (float32 activations are kept as they are, which loses nothing) and all arithmetic on activations is float64.

Definitions follow Gurnee et al. 2024 (arXiv 2401.12181) with its defects corrected. Token sets: `all` is every real token, `r` is `all` without
BOS and without the single-token newline. Memory: 4 bytes * tokens * neurons a model, all models at once, and about 1.5 GB of work space.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats

F64 = NDArray[np.float64]
Flags = NDArray[np.bool_]
Rotation = Callable[[int, int, int], ArrayLike]  # (model index, layer, draw) -> [d_mlp, d_mlp], y_rot = R y
Pair = tuple[int, int]

CHUNK = 8192  # tokens a product: five chunks of 2,048 neurons in float64 are 0.7 GB
TOP = 5
PAPER = [
    *("max_corr", "mean_corr", "min_corr", "max_baseline", "min_baseline", "mean_baseline"),
    *("w_in_norm", "input_bias", "w_out_norm", "in_out_sim", "l2_penalty"),
    *("mean", "var", "skew", "kurt", "vocab_mean", "vocab_var", "vocab_skew", "vocab_kurt", "sparsity"),
]


class Oracle(NamedTuple):
    """What `compute` returns.

    Attributes:
        neurons: index (model, layer, neuron); the paper's columns, then excess_corr, universal, universal_strict, universal_loose, mutual,
            constant, and sparsity_legacy, mean_legacy, var_legacy, skew_legacy, kurt_legacy.
        matches: a row for every ordered pair, neuron and rank 0 to 4: model, layer, neuron, other, rank, partner_layer, partner_neuron, r,
            mutual (rank 0 only: each is the other's best), assigned. Missing partners are -1 with r = NaN.
        assignment: a row for every unordered pair and assigned neuron: model, layer, neuron, other, partner_layer, partner_neuron, r.
        depth: model, other, layer, partner_layer, neurons: how many best partners, layer by layer; no rows of zero.
        baselines: model, layer, neuron, other, draw, baseline: the best r among the rotated neurons of `other`.
        r: correlation matrices [neurons of a, neurons of b] by model indices (a, b), a < b.
    """

    neurons: pd.DataFrame
    matches: pd.DataFrame
    assignment: pd.DataFrame
    depth: pd.DataFrame
    baselines: pd.DataFrame
    r: dict[Pair, F64]


def neuron_table(folders: Sequence[str | Path], ids: ArrayLike, lengths: ArrayLike, **options: Any) -> pd.DataFrame:
    """The `neurons` table of `compute`, same arguments."""
    return compute(folders, ids, lengths, **options).neurons


def compute(
    folders: Sequence[str | Path],
    ids: ArrayLike,
    lengths: ArrayLike,
    *,
    rotations: Rotation | None = None,
    draws: int = 1,
    newline: int | None = 199,
    bos: int = 0,
    models: Sequence[int] | None = None,
    baseline_models: Sequence[int] | None = None,
    baseline_neurons: Sequence[int] | None = None,
) -> Oracle:
    """Every table of the study of some GPT-2 folders over some rows of tokens.

    Args:
        folders: Hugging Face GPT-2 folders of one shape; a model is called by its folder's last name.
        ids: token ids [rows, positions], right-padded with anything.
        lengths: real tokens of each row, BOS included [rows].
        rotations: gives R [d_mlp, d_mlp] of a model's layer in a draw; without it the baseline columns are NaN and nothing is universal.
        draws: how many rotations a model and layer; the baseline of a pair is the mean over draws of the best r.
        newline: id of the single-token newline, left out of `r`; None where the tokenizer has none.
        bos: id left out of `r` wherever it stands; position 0 is left out too.
        models: indices of the models to make rows for (all of them); every other model still serves as their partner.
        baseline_models: those of `models` whose baselines are computed (all of them); NaN for the rest.
        baseline_neurons: flat indices (layer * d_mlp + neuron) whose baselines are computed (all of them); NaN for the rest.
    """
    ids, lengths = np.asarray(ids).astype(np.int64), np.asarray(lengths).astype(np.int64)
    wanted = list(range(len(folders)) if models is None else models)
    names = [Path(folder).name for folder in folders]
    kept = set_r(ids, lengths, newline=newline, bos=bos)  # [tokens]
    posts, parts = [], {}
    for index, folder in enumerate(folders):
        model = load(folder)
        pre, post = activations(model, ids, lengths)
        posts.append(post[kept])
        d_mlp = model.transformer.h[0].mlp.c_fc.nf
        if index in wanted:
            parts[index] = pd.concat([weight_columns(model), moment_columns(pre), legacy_columns(pre)], axis=1)
        del pre, post, model
    pairs = [pair for pair in itertools.combinations(range(len(folders)), 2) if set(pair) & set(wanted)]
    r = correlations(posts, pairs)
    matches, assignment = match_tables(r, names, d_mlp, wanted)
    baselines = pd.DataFrame(columns=["model", "layer", "neuron", "other", "draw", "baseline"])
    if rotations is not None:
        rotated = wanted if baseline_models is None else baseline_models
        ordered = [(a, b) for b in range(len(folders)) for a in rotated if a != b]
        baselines = baseline_table(posts, rotations, ordered, names, d_mlp, draws=draws, neurons=baseline_neurons)
    for index, part in parts.items():
        part.insert(0, "constant", is_constant(posts[index]))
        part.index = neuron_index(names[index], d_mlp, len(part))
    neurons = universality(pd.concat([parts[index] for index in wanted]), matches, baselines)
    best = matches[(matches["rank"] == 0) & (matches.partner_layer >= 0)]
    depth = best.groupby(["model", "other", "layer", "partner_layer"], sort=False).size().rename("neurons").reset_index()
    return Oracle(neurons, matches, assignment, depth, baselines, r)


def neuron_index(name: str, d_mlp: int, neurons: int) -> pd.MultiIndex:
    """(model, layer, neuron) of the flat indices of one model."""
    layer, neuron = np.divmod(np.arange(neurons), d_mlp)
    return pd.MultiIndex.from_arrays([[name] * neurons, layer, neuron], names=["model", "layer", "neuron"])


# ---------------------------------------------------------------------------------------------------------------- activations


def load(folder: str | Path) -> Any:
    """The plain Hugging Face model in float32."""
    from transformers import GPT2LMHeadModel

    return GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32).eval()


def set_r(ids: NDArray[np.int64], lengths: NDArray[np.int64], *, newline: int | None, bos: int) -> Flags:
    """Which of the real tokens (row by row) belong to `r` [tokens]."""
    position = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
    member = (position > 0) & (ids != bos)
    if newline is not None:
        member &= ids != newline
    return member[position < lengths[:, None]]


def activations(model: Any, ids: NDArray[np.int64], lengths: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Pre- and post-activations of the real tokens, row by row, each float32 [tokens, layers * d_mlp]."""
    blocks = model.transformer.h
    d_mlp = blocks[0].mlp.c_fc.nf
    pre, post = (np.empty((int(lengths.sum()), len(blocks) * d_mlp), np.float32) for _ in range(2))
    seen: dict[tuple[str, int], torch.Tensor] = {}

    def see_pre(layer: int) -> Callable[..., None]:
        return lambda module, inputs, output: seen.__setitem__(("pre", layer), output)

    def see_post(layer: int) -> Callable[..., None]:
        return lambda module, inputs: seen.__setitem__(("post", layer), inputs[0])

    handles = [block.mlp.c_fc.register_forward_hook(see_pre(layer)) for layer, block in enumerate(blocks)]
    handles += [block.mlp.c_proj.register_forward_pre_hook(see_post(layer)) for layer, block in enumerate(blocks)]
    done = 0
    with torch.inference_mode():
        for start in range(0, len(ids), 32):
            tokens, length = torch.from_numpy(ids[start : start + 32]), torch.from_numpy(lengths[start : start + 32])
            real = torch.arange(ids.shape[1]) < length[:, None]  # [rows, positions]
            model.transformer(tokens, use_cache=False)  # causal: what stands to the right of a row's end cannot reach it
            upto = done + int(real.sum())
            for layer in range(len(blocks)):
                columns = slice(layer * d_mlp, (layer + 1) * d_mlp)
                pre[done:upto, columns] = seen["pre", layer][real].numpy()
                post[done:upto, columns] = seen["post", layer][real].numpy()
            done = upto
    for handle in handles:
        handle.remove()
    return pre, post


def moment_columns(pre: NDArray[np.float32]) -> pd.DataFrame:
    """mean, var, skew, kurt (ddof 0, raw kurtosis) and sparsity = P(pre > 0) of the columns of pre [tokens, neurons]."""

    def of(start: int) -> F64:
        x = np.ascontiguousarray(pre[:, start : start + 16].T, np.float64)  # [neurons, tokens]
        return np.stack([x.mean(1), x.var(1), *shape(x), (x > 0).mean(1)], 1)

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        rows = list(pool.map(of, range(0, pre.shape[1], 16)))
    return pd.DataFrame(np.concatenate(rows), columns=["mean", "var", "skew", "kurt", "sparsity"])


def shape(x: F64) -> tuple[F64, F64]:
    """Skewness and raw kurtosis of every row, ddof 0; NaN for constant rows."""
    varied = x.max(1) > x.min(1)
    skew, kurt = np.full((2, len(x)), np.nan)
    skew[varied], kurt[varied] = stats.skew(x[varied], axis=1), stats.kurtosis(x[varied], axis=1, fisher=False)
    return skew, kurt


def legacy_columns(pre: NDArray[np.float32]) -> pd.DataFrame:
    """The paper's numbers from its 257-bin histogram: bin i holds (edge[i-1], edge[i]]; bins 0 and 256 everything outside."""
    edges = torch.linspace(-10, 15, 256).numpy()  # torch's float32 rounding puts edge 102 at 1.6e-7
    half = 25 / 255 / 2
    centres = np.concatenate([[edges[0] - half], (edges[:-1].astype(np.float64) + edges[1:]) / 2, [edges[-1] + half]])

    def of(neuron: int) -> list[float]:
        below = np.searchsorted(np.sort(pre[:, neuron]), edges, side="right")  # how many values are <= each edge
        counts = np.diff(below, prepend=0, append=len(pre))  # [257]
        share = counts / len(pre)
        mean = share @ centres
        var = share @ (centres - mean) ** 2
        skew, kurt = np.nan, np.nan
        if counts.max() < len(pre):
            skew, kurt = share @ (centres - mean) ** 3 / var**1.5, share @ (centres - mean) ** 4 / var**2
        return [share[102:].sum(), mean, var, skew, kurt]

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        rows = list(pool.map(of, range(pre.shape[1])))
    return pd.DataFrame(rows, columns=["sparsity_legacy", "mean_legacy", "var_legacy", "skew_legacy", "kurt_legacy"])


# -------------------------------------------------------------------------------------------------------------------- weights


def folded(model: Any) -> dict[str, F64]:
    """Weights as TransformerLens processes them: LayerNorms folded in, what writes to or reads from the residual stream centred.

    W_in [layers, d_model, d_mlp], b_in [layers, d_mlp], W_out [layers, d_mlp, d_model], W_U [d_model, d_vocab].
    """

    def f64(parameter: torch.Tensor) -> F64:
        return parameter.detach().double().numpy()

    w_in, b_in, w_out = [], [], []
    for block in model.transformer.h:
        raw = f64(block.mlp.c_fc.weight)  # Hugging Face's Conv1D holds [d_model, d_mlp] already
        scaled = raw * f64(block.ln_2.weight)[:, None]
        w_in.append(scaled - scaled.mean(0))  # a normalised residual sums to 0, so this changes nothing the neuron sees
        b_in.append(f64(block.mlp.c_fc.bias) + f64(block.ln_2.bias) @ raw)
        out = f64(block.mlp.c_proj.weight)
        w_out.append(out - out.mean(1, keepdims=True))
    unembed = f64(model.lm_head.weight).T * f64(model.transformer.ln_f.weight)[:, None]
    unembed = unembed - unembed.mean(0)
    unembed = unembed - unembed.mean(1, keepdims=True)
    return {"W_in": np.stack(w_in), "b_in": np.stack(b_in), "W_out": np.stack(w_out), "W_U": unembed}


def weight_columns(model: Any) -> pd.DataFrame:
    """Norms, bias, cosine of input and output weights, and the moments over the vocabulary of cos(W_U[:, v], w_out)."""
    weights = folded(model)
    w_in = weights["W_in"].transpose(0, 2, 1).reshape(-1, weights["W_in"].shape[1])  # [neurons, d_model]
    w_out = weights["W_out"].reshape(-1, weights["W_out"].shape[2])  # [neurons, d_model]
    in_norm, out_norm = np.linalg.norm(w_in, axis=1), np.linalg.norm(w_out, axis=1)
    with np.errstate(invalid="ignore"):  # a neuron without weights has no direction: NaN
        cosine = (w_in * w_out).sum(1) / (in_norm * out_norm)
        directions = w_out / out_norm[:, None]
    columns = {
        "w_in_norm": in_norm,
        "input_bias": weights["b_in"].ravel(),
        "w_out_norm": out_norm,
        "in_out_sim": cosine,
        "l2_penalty": in_norm**2 + out_norm**2,
    }
    cosines = directions @ (weights["W_U"] / np.linalg.norm(weights["W_U"], axis=0))  # [neurons, d_vocab]
    skew, kurt = shape(cosines)
    return pd.DataFrame({**columns, "vocab_mean": cosines.mean(1), "vocab_var": cosines.var(1), "vocab_skew": skew, "vocab_kurt": kurt})


# --------------------------------------------------------------------------------------------------------------- correlations


def is_constant(post: NDArray[np.floating[Any]]) -> Flags:
    """Columns whose values are all the same [neurons]."""
    return np.asarray(post.max(0) == post.min(0))


def chunks(tokens: int) -> list[slice]:
    """Slices of CHUNK tokens."""
    return [slice(start, start + CHUNK) for start in range(0, tokens, CHUNK)]


def centre_and_scale(post: NDArray[np.floating[Any]]) -> tuple[F64, F64]:
    """Mean and 1 / sqrt(sum of squared deviations) of every column, NaN for constant ones: (x - mean) * scale has unit length."""
    mean = sum((post[part].sum(0, dtype=np.float64) for part in chunks(len(post))), np.zeros(post.shape[1])) / len(post)
    squares = sum((((post[part] - mean) ** 2).sum(0) for part in chunks(len(post))), np.zeros(post.shape[1]))
    scale = np.full(post.shape[1], np.nan)
    varied = ~is_constant(post)
    scale[varied] = squares[varied] ** -0.5
    return mean, scale


def correlations(posts: Sequence[NDArray[np.float32]], pairs: Sequence[Pair]) -> dict[Pair, F64]:
    """Pearson's r of all neurons of a with all neurons of b for pairs (a, b) of models [neurons of a, neurons of b]."""
    r = {(a, b): np.zeros((posts[a].shape[1], posts[b].shape[1])) for a, b in pairs}
    norms = {model: centre_and_scale(posts[model]) for model in sorted(set(itertools.chain(*pairs)))}
    for part in chunks(len(posts[0])):
        z = {model: (posts[model][part] - mean) * scale for model, (mean, scale) in norms.items()}  # [tokens, neurons], float64
        for a, b in pairs:
            r[a, b] += z[a].T @ z[b]
    return r


def baseline_table(
    posts: Sequence[NDArray[np.float32]],
    rotations: Rotation,
    pairs: Sequence[Pair],
    names: Sequence[str],
    d_mlp: int,
    *,
    draws: int = 1,
    neurons: Sequence[int] | None = None,
) -> pd.DataFrame:
    """The best r of neurons of a among the rotated neurons of b, for ordered pairs (a, b): the `baselines` of `Oracle`.

    The activations of b are really multiplied, layer by layer, and correlated afterwards; nothing is taken from covariances.
    """
    chosen = np.arange(posts[0].shape[1]) if neurons is None else np.asarray(neurons)
    norms = {a: tuple(v[chosen] for v in centre_and_scale(posts[a])) for a in {a for a, _ in pairs}}
    best = {(a, b, draw): np.full(len(chosen), -np.inf) for a, b in pairs for draw in range(draws)}
    others = sorted({b for _, b in pairs})
    for b, draw, layer in itertools.product(others, range(draws), range(posts[0].shape[1] // d_mlp)):
        y = posts[b][:, layer * d_mlp : (layer + 1) * d_mlp].astype(np.float64) @ np.asarray(rotations(b, layer, draw), np.float64).T
        y = y[:, np.ptp(y, 0) > 1e-12 * np.abs(y).max(0)]  # a constant, rotated, is constant but for rounding
        mean, scale = centre_and_scale(y)
        y = (y - mean) * scale  # [tokens, d_mlp]
        for a in [a for a, other in pairs if other == b and y.shape[1]]:
            mean, scale = norms[a]
            r = sum((((posts[a][part][:, chosen] - mean) * scale).T @ y[part] for part in chunks(len(y))), np.zeros((len(chosen), y.shape[1])))
            best[a, b, draw] = np.maximum(best[a, b, draw], r.max(1))
    frames = []
    for (a, b, draw), values in best.items():
        frame = neuron_index(names[a], d_mlp, posts[a].shape[1])[chosen].to_frame(index=False)
        frames.append(frame.assign(other=names[b], draw=draw, baseline=np.where(np.isfinite(values), values, np.nan)))
    return pd.concat(frames, ignore_index=True)


# --------------------------------------------------------------------------------------------------------------------- tables


def best_partners(r: F64) -> tuple[NDArray[np.int64], F64]:
    """The TOP partners of every row of r by signed r, best first: indices (-1 where there is none) and r (NaN there)."""
    order = np.argsort(-r, axis=1, kind="stable")[:, :TOP]  # NaN sorts last
    values = np.take_along_axis(r, order, 1)
    return np.where(np.isnan(values), -1, order), values


def assign(r: F64) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The one-to-one assignment of largest total r, constant neurons left out: rows and columns."""
    rows, columns = np.flatnonzero(~np.isnan(r).all(1)), np.flatnonzero(~np.isnan(r).all(0))
    i, j = optimize.linear_sum_assignment(r[np.ix_(rows, columns)], maximize=True)
    return rows[i], columns[j]


def match_tables(r: dict[Pair, F64], names: Sequence[str], d_mlp: int, wanted: Sequence[int]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`matches` of the wanted models and `assignment`, see `Oracle`."""
    frames, assigned_frames = [], []
    for (a, b), matrix in r.items():
        rows, columns = assign(matrix)
        pairs = neuron_index(names[a], d_mlp, len(matrix))[rows].to_frame(index=False).assign(other=names[b])
        assigned_frames.append(pairs.assign(partner_layer=columns // d_mlp, partner_neuron=columns % d_mlp, r=matrix[rows, columns]))
        there, back = best_partners(matrix), best_partners(matrix.T)  # both [neurons, TOP]
        for one, two, m, i, j, (partner, value), back_partner in [
            (a, b, matrix, rows, columns, there, back[0][:, 0]),
            (b, a, matrix.T, columns, rows, back, there[0][:, 0]),
        ]:
            if one not in wanted:
                continue
            found = partner >= 0
            mutual = found & (back_partner[partner] == np.arange(len(m))[:, None]) & (np.arange(partner.shape[1]) == 0)
            in_assignment = np.full(len(m), -2)
            in_assignment[i] = j
            frame = neuron_index(names[one], d_mlp, len(m)).repeat(partner.shape[1]).to_frame(index=False)
            frame = frame.assign(other=names[two], rank=np.tile(np.arange(partner.shape[1]), len(m)))
            layer, neuron = np.where(found, partner // d_mlp, -1), np.where(found, partner % d_mlp, -1)
            frame = frame.assign(partner_layer=layer.ravel(), partner_neuron=neuron.ravel(), r=value.ravel())
            frames.append(frame.assign(mutual=mutual.ravel(), assigned=(partner == in_assignment[:, None]).ravel()))
    if not frames:
        columns_ = ["model", "layer", "neuron", "other", "rank", "partner_layer", "partner_neuron", "r", "mutual", "assigned"]
        return pd.DataFrame(columns=columns_), pd.DataFrame(columns=[c for c in columns_ if c not in ("rank", "mutual", "assigned")])
    return pd.concat(frames, ignore_index=True), pd.concat(assigned_frames, ignore_index=True)


def universality(parts: pd.DataFrame, matches: pd.DataFrame, baselines: pd.DataFrame) -> pd.DataFrame:
    """The neuron table: what the pairs say about every neuron, joined to what its own model says."""
    key = ["model", "layer", "neuron"]
    best = matches[matches["rank"] == 0].groupby(key)
    score = baselines.groupby([*key, "other"])["baseline"].mean().groupby(key)  # the mean over draws first
    table = parts.copy()
    for how in ("max", "mean", "min"):
        table[f"{how}_corr"] = best["r"].agg(how).reindex(table.index).astype(float)
        table[f"{how}_baseline"] = score.agg(how).reindex(table.index).astype(float)
    table.loc[table["constant"], [column for column in table.columns if column.endswith(("_corr", "_baseline"))]] = np.nan
    table["excess_corr"] = table["mean_corr"] - table["mean_baseline"]
    table["universal"] = table["excess_corr"] > 0.5
    table["universal_strict"] = table["min_corr"] - table["max_baseline"] > 0.5
    table["universal_loose"] = table["max_corr"] - table["mean_baseline"] > 0.5
    table["mutual"] = best["mutual"].sum().reindex(table.index).fillna(0).astype(int)
    ours = ["excess_corr", "universal", "universal_strict", "universal_loose", "mutual", "constant"]
    return table[[*PAPER, *ours, *(column for column in table.columns if column.endswith("_legacy"))]]
