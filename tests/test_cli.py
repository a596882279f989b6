from __future__ import annotations

import functools
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import click
import pytest
import tiny
from click.testing import CliRunner

from pyuniversal import cli, cli_frame, cli_types, load_tokens, pipeline
from pyuniversal.errors import InputError, NotEnoughMemoryError

STAGES = {"run": "run", "observe": "observe_stage", "table": "table_stage", "plan": "plan"}
SUMMARY = {
    "models": {
        label: {
            "layers": 2,
            "neurons": 200,
            "constant": 3,
            "rules": {
                "universal": {"0.45": 11, "0.5": 7, "0.55": 5},
                "universal_strict": dict.fromkeys(("0.45", "0.5", "0.55"), 2),
                "universal_loose": dict.fromkeys(("0.45", "0.5", "0.55"), 9),
            },
            "by_layer": {"0": {"neurons": 100, "universal": 6}, "1": {"neurons": 100, "universal": 1}},
            "mean_corr": 0.375,
            "mean_baseline": 0.125,
            "mean_excess": 0.25,
            "confirmed": {"universal": 5, "undecided": 29},
            "mutual": 41,
            "mutual_everywhere": 17,
        }
        for label in ("one", "two")
    },
    "tokens": {"count": 2000, "correlated": 1234},
    "options": {"precision": "int8", "device": "cpu", "seed": 3, "baseline": "haar", "baseline_draws": 5},
    "timings": {"pass": 61.0, "table": 5.0},
}
PLAN = {
    "sources": [{"name": "models/one[red]", "parameters": 2_000_000, "block_parameters": 1, "layers": 2, "width": 1000}],
    "device": "cpu",
    "precision": "int8",
    "tokens": 5000,
    **{f"{key}_flops": 2e12 for key in ("forward", "product", "baseline")},
    **{f"{key}_bytes": 3.5e9 for key in ("weights", "totals", "chunk", "candidates", "confirm", "nulls", "table", "memory", "available", "disk_available")},
    "disk_bytes": 12e6,
    "storage_words": "some at a time, in 3 sweeps over the tokens",
    "seconds": 5400.0,
    "fits": False,
}


@pytest.fixture
def calls(monkeypatch):
    """Every stage of the pipeline replaced by one that does nothing but note how it was called."""
    noted = []

    def replace(name, result):
        original = getattr(pipeline, name)

        @functools.wraps(original)
        def stage(*args, **options):
            noted.append((name, args, options))
            return result(inspect.signature(original).bind(*args, **options).arguments)

        monkeypatch.setattr(pipeline, name, stage)

    replace("run", lambda given: SimpleNamespace(path=Path(given["out"]), summary=lambda: SUMMARY))
    replace("table_stage", lambda given: SimpleNamespace(path=Path(given["out"]), summary=lambda: SUMMARY))
    replace("open_run", lambda given: SimpleNamespace(path=Path(given["path"]), summary=lambda: SUMMARY))
    replace("observe_stage", lambda given: SimpleNamespace(tokens=1234))
    replace("plan", lambda given: SimpleNamespace(as_dict=lambda: PLAN))
    return noted


def invoke(*words):
    return CliRunner().invoke(cli.main, list(words))


@pytest.mark.parametrize(
    ("written", "number"),
    [("100m", 100_000_000), ("1.5k", 1500), ("2_000", 2000), ("1e6", 1_000_000), ("2B", 2_000_000_000), ("0.000001m", 1), (" 7 ", 7), ("1.1m", 1_100_000)],
)
def test_counts(written, number):
    assert cli_types.Count().convert(written, None, None) == number


@pytest.mark.parametrize("written", ["many", "1.0005k", "0", "-5", "1.5", "k", "", "nan", "inf", "1e-3", "10 m b", "1kk"])
def test_what_is_no_count_is_refused_in_words(calls, written):
    result = invoke("run", "--max-tokens", written)
    assert result.exit_code == 2
    assert f"{written!r} is not a whole number above 0; write it as 100m, 1.5k, 2b, 2_000 or 1e6." in result.stderr
    assert not calls


@pytest.mark.parametrize(("written", "layers"), [("4-8,11", [4, 5, 6, 7, 8, 11]), ("3", [3]), ("5, 0-1", [0, 1, 5]), ("2-2,1-3", [1, 2, 3])])
def test_layers(written, layers):
    assert cli_types.Layers().convert(written, None, None) == layers


@pytest.mark.parametrize(("written", "culprit"), [("8-4", "8-4"), ("1,,2", ""), ("a", "a"), ("1-", "1-"), ("-3", "-3"), ("1,2-x", "2-x"), ("²", "²")])
def test_what_are_no_layers_is_refused_in_words(calls, written, culprit):
    result = invoke("run", f"--layers={written}")
    assert result.exit_code == 2
    words = " ".join(result.stderr.split())
    assert f"{written!r} is no list of layers: {culprit!r} is neither a number nor an ascending range. Write for example 4-8,11." in words
    assert not calls


@pytest.mark.parametrize(("verb", "stage"), STAGES.items())
def test_options_are_the_arguments_of_the_stage_and_defaults_its_own(calls, verb, stage):
    result = invoke(verb, "somewhere")
    assert result.exit_code == 0, result.output
    ((name, args, options),) = calls
    signature = inspect.signature(getattr(pipeline, stage))
    keywords = {p.name: p.default for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY}
    assert name == stage
    assert args == (("somewhere",) if verb == "table" else (["somewhere"],))
    assert options == keywords, "with nothing typed, every argument has the default of the signature"


def test_everything_that_can_be_typed_arrives(calls):
    words = (
        "run a b/c --text corpus.txt --tokens folder --out there --max-tokens 1.5k --dense-tokens 1k --confirm-tokens 500 --null-tokens 2k "
        "--row-tokens 128 --packing joined --split test --name en --column body "
        "--subset-column meta.set --layers 4-5,11 --site mlp.pre --precision float64 --baseline gaussian --baseline-draws 9 --top-k 3 --seed 7 --device cuda:1 "
        "--dtype bfloat16 --batch-tokens 2_048 --chunk-tokens 4k --storage sweeps --memory 1.5GB --legacy --trust-remote-code --overwrite --quiet"
    )
    result = invoke(*words.split())
    assert result.exit_code == 0, result.output
    ((_, args, options),) = calls
    assert args == (["a", "b/c"],)
    assert options == {
        "text": "corpus.txt", "tokens": "folder", "out": "there", "max_tokens": 1500, "row_tokens": 128, "packing": "joined", "split": "test", "name": "en",
        "column": "body", "subset_column": "meta.set", "layers": [4, 5, 11], "site": "mlp.pre", "precision": "float64", "baseline": "gaussian",
        "baseline_draws": 9, "top_k": 3, "null_tokens": 2000, "dense_tokens": 1000, "confirm_tokens": 500, "seed": 7, "device": "cuda:1", "dtype": "bfloat16",
        "batch_tokens": 2048, "chunk_tokens": 4000, "storage": "sweeps", "memory": 1_500_000_000, "legacy": True,
        "trust_remote_code": True, "overwrite": True, "progress": False,
    }  # fmt: skip


def test_no_model_is_the_zoo(calls):
    result = invoke("run")
    assert calls[0][1] == (None,)
    assert "models             the embedded ones" in result.stderr


def test_the_choices_are_those_of_the_library():
    from pyuniversal.models import SITES
    from pyuniversal.models.loading import DTYPES
    from pyuniversal.streaming import STORAGES
    from pyuniversal.tokens.rows import PACKINGS
    from pyuniversal.universality import BASELINES

    choices = {name: tuple(option["type"].choices) for name, option in cli_frame.OPTIONS.items() if isinstance(option.get("type"), click.Choice)}
    assert {name: set(values) for name, values in choices.items()} == {
        "site": set(SITES),
        "dtype": set(DTYPES),
        "packing": set(PACKINGS),
        "baseline": set(BASELINES),
        "precision": {"int8", "bf16", "float32", "float64"},
        "storage": set(STORAGES),
    }


def test_options_are_echoed_to_stderr_before_the_work(calls):
    result = invoke("run", "a", "--seed", "3", "--max-tokens", "100m", "--layers", "0-1")
    lines = result.stderr.splitlines()
    assert lines[:2] == ["pyuniversal run", "  models             a"]
    for line in (
        "max-tokens         100,000,000",
        "layers             0, 1",
        "seed               3",
        "precision          int8",
        "overwrite          no",
        "split              the only one, else test, validation or train",
    ):
        assert f"  {line}" in lines
    assert "pyuniversal run" not in result.stdout


def test_summary_is_the_result(calls):
    result = invoke("run", "a", "--out", "there")
    for words in (
        "│ universal │     7 │     7 │",
        "│           │ 3.50% │ 3.50% │",
        "│ confirmed │     5 │     5 │",
        "0.375",
        "0.125",
        "0: 6  1: 1",
        "1,234 tokens correlated, int8 on cpu, seed 3, haar baseline of 5 draws, 1.1 min",
        "Written to there",
    ):
        assert words in result.stdout
    assert invoke("show", "there").stdout == result.stdout == invoke("table", "there").stdout


@pytest.mark.parametrize(
    ("words", "result"), [("run a --out there", SUMMARY), ("table there", SUMMARY), ("show there", SUMMARY), ("observe a -o there", {"tokens": 1234})]
)
def test_json_alone_is_on_stdout(calls, words, result):
    found = invoke(*words.split(), "--json")
    assert json.loads(found.stdout) == {"path": "there", **result}
    assert found.exit_code == 0


@pytest.mark.parametrize(("text", "size"), [("1GB", 10**9), ("500mb", 5 * 10**8), ("16GiB", 2**34), ("1.5 TB", 15 * 10**11), ("8kb", 8000)])
def test_sizes(calls, text, size):
    assert invoke("plan", "--memory", text).exit_code == 0
    assert calls[0][2]["memory"] == size


@pytest.mark.parametrize("text", ["1", "GB", "0GB", "-1GB", "1G", "nanGB", "1e99GB", "1GBB"])
def test_sizes_that_are_none(calls, text):
    result = invoke("plan", "--memory", text)
    assert result.exit_code == 2
    assert "is no amount of memory; write it as 1GB, 500MB, 1.5TB or 16GiB." in " ".join(result.output.replace("│", " ").split())


def test_plan(calls):
    assert json.loads(invoke("plan", "a", "--json").stdout) == PLAN
    shown = invoke("plan", "a").stdout
    for words in (
        "5,000 tokens",
        "models/one[red]",
        "2 layers of 1,000 neurons, 2.0 M parameters",
        "2.00e+12 operations",
        "3.5 GB",
        "some at a time, in 3 sweeps over the tokens",
        "12.0 MB",
        "1.5 h",
        "no: take fewer models",
    ):
        assert words in shown


def test_quiet_says_nothing(calls):
    for verb in ("run", "observe", "plan"):
        result = invoke(verb, "a", "--quiet")
        assert (result.exit_code, result.output) == (0, "")
    assert calls[0][2]["progress"] is calls[1][2]["progress"] is False


def test_what_libraries_print_does_not_reach_stdout(calls, monkeypatch):
    noisy = pipeline.run

    @functools.wraps(noisy)
    def run(*args, **options):
        sys.stdout.write("noise")
        cli_frame.logger.info("told")
        return noisy(*args, **options)

    monkeypatch.setattr(pipeline, "run", run)
    result = invoke("run", "a", "--json")
    assert json.loads(result.stdout)["tokens"]["correlated"] == 1234
    assert "noise" in result.stderr
    assert "told" in result.stderr
    assert "told" not in invoke("run", "a", "--quiet").stderr
    assert not cli_frame.logger.handlers


def raising(monkeypatch, error, stage="run"):
    original = getattr(pipeline, stage)

    @functools.wraps(original)
    def fail(*args, **options):
        raise error

    monkeypatch.setattr(pipeline, stage, fail)


@pytest.mark.parametrize("error", [InputError("no layer 9 in a: it has 0 to 3"), NotEnoughMemoryError("needs 9 GB: take fewer layers")])
def test_errors_are_told_in_words(monkeypatch, error):
    raising(monkeypatch, error)
    result = invoke("run", "a", "--quiet")
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", f"Error: {error}\n")
    verbose = invoke("run", "a", "--verbose")
    assert verbose.exit_code == 1
    assert "Traceback" in verbose.stderr
    assert verbose.stderr.endswith(f"Error: {error}\n")


def test_what_nobody_expected_goes_up(monkeypatch):
    raising(monkeypatch, ZeroDivisionError("a defect"))
    result = invoke("run", "a")
    assert isinstance(result.exception, ZeroDivisionError)


@pytest.mark.parametrize(
    ("words", "stage", "told"),
    [
        ("run a", "run", "Interrupted. Chunks of the last checkpoint and stages that ended are kept; the same command resumes where it stopped."),
        ("observe a", "observe_stage", "Interrupted. Chunks of the last checkpoint are kept; the same command resumes where it stopped."),
        (
            "run a --overwrite",
            "run",
            "Interrupted. Chunks of the last checkpoint and stages that ended are kept; the same command without --overwrite resumes where it stopped.",
        ),
        ("table there", "table_stage", "Interrupted. The sums are as they were, and tables that are done are whole; the same command makes them all again."),
        ("show there", "open_run", "Interrupted. Nothing was written; the same command begins anew."),
    ],
)
def test_ctrl_c(monkeypatch, words, stage, told):
    raising(monkeypatch, KeyboardInterrupt(), stage)
    result = invoke(*words.split())
    assert result.exit_code == 130
    assert result.stderr.endswith(f"\n{told}\n")


def test_tokens(tmp_path):
    import tiny

    from pyuniversal import load_tokens

    tokenizer = tiny.tokenizer_object()
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    texts = ["the of and to", "in a is that it was for on " * 9]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps({"body": text}) + "\n" for text in texts))
    words = [
        "tokens",
        str(tmp_path / "corpus.jsonl"),
        "--tokenizer",
        str(tmp_path / "tokenizer"),
        "-o",
        str(tmp_path / "out"),
        "--column",
        "body",
        "--row-tokens",
        "16",
    ]
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    rows = sum(-(-len(document) // 15) for document in ids)  # a row is BOS and 15 more
    result = invoke(*words, "--json")
    assert result.exit_code == 0, result.output
    made = load_tokens(tmp_path / "out")
    assert json.loads(result.stdout) == {"path": str(made.path), "hash": made.hash, "documents": 2, "rows": rows, "tokens": sum(map(len, ids)) + rows}
    assert "row-tokens         16" in result.stderr
    assert f"tokens in {rows} rows of 2 documents, written to {made.path}" in invoke(*words).stdout


def test_tokens_of_a_folder_without_tokenizer(tmp_path):
    result = invoke("tokens", "x.txt", "--tokenizer", str(tmp_path), "--out", str(tmp_path / "out"))
    assert result.exit_code == 1
    assert f"Error: --tokenizer {tmp_path} has no tokenizer" in result.stderr
    assert "Pass a folder that holds one (tokenizer.json)" in result.stderr


def test_the_defaults_of_tokens_are_those_of_tokenize():
    from pyuniversal.tokens import tokenize

    signature = inspect.signature(tokenize).parameters
    for option in cli.main.commands["tokens"].params:
        if option.name in signature and option.name not in ("text", "tokenizer", "out"):
            assert option.default == signature[option.name].default, option.name


def test_help_has_defaults_and_examples_that_parse():
    for name, verb in cli.main.commands.items():
        text = invoke(name, "--help").stdout
        examples = [line.split() for line in text.partition("Examples:")[2].splitlines() if line.strip()]
        assert 2 <= len(examples) <= 5
        for words in examples:
            assert words[:2] == ["pyuniversal", name]
            verb.make_context(name, [word for word in words[2:] if word not in (">", "summary.json")])
    wide = CliRunner().invoke(cli.main, ["run", "--help"], terminal_width=200).stdout
    assert "goes on from it.  [default: universal-run]" in wide
    assert "[default: (every layer)]" in wide
    assert list(cli.main.commands) == ["run", "tokens", "plan", "observe", "merge", "table", "confirm", "verify", "show", "diff"]


def test_version(monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", lambda package: {"pyuniversal": "1.2.3"}[package])
    assert invoke("--version").stdout == "pyuniversal, version 1.2.3\n"


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"]])
def test_help_loads_nothing_heavy(words):
    code = (
        "import sys; from pyuniversal.cli import main; main(sys.argv[1:], prog_name='pyuniversal', standalone_mode=False); "
        "print(sorted({'torch', 'numpy', 'pandas', 'transformers', 'matplotlib', 'rich'} & set(sys.modules)), len(sys.modules), file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    assert result.stdout.startswith("Usage: pyuniversal")
    assert result.stderr.startswith("[] ")


def test_python_dash_m():
    result = subprocess.run([sys.executable, "-m", "pyuniversal", "run", "--layers", "x"], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith("Usage: pyuniversal run")


def test_help_of_the_group_keeps_its_examples_on_lines_of_their_own():
    lines = [line.strip() for line in invoke("--help").stdout.splitlines()]
    assert "pyuniversal run A B C --text corpus.txt -o study    your models, your text" in lines
    assert r"\b" not in "".join(lines)


@pytest.mark.parametrize(("asked", "rows"), [((), 64), (("--row-tokens", "20"), 20)])
def test_rows_of_tokens_fit_the_context_that_the_tokenizer_names(tmp_path, asked, rows):
    (tmp_path / "text.txt").write_text(" ".join(tiny.sentences(40)))
    model = tiny.gpt2(tmp_path / "model")
    made = invoke("tokens", str(tmp_path / "text.txt"), "--tokenizer", str(model), "--out", str(tmp_path / "made"), *asked)
    assert made.exit_code == 0, made.output
    assert f"row-tokens         {rows}" in made.stderr
    assert load_tokens(tmp_path / "made").row_tokens == rows


def test_threads_do_not_spin_unless_asked_to(monkeypatch, calls):
    for before, after in ((None, "passive"), ("active", "active")):
        monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
        if before:
            monkeypatch.setenv("OMP_WAIT_POLICY", before)
        invoke("show", "there")
        assert os.environ["OMP_WAIT_POLICY"] == after
