"""Folders that someone else made: their names lead nowhere, their code does not run, their pickles stay shut."""

from __future__ import annotations

import json
import pickle  # noqa: TID251 (to poison folders with)
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from click.testing import CliRunner

import pyuniversal
from pyuniversal import FileError, InputError, cli, pipeline
from pyuniversal.files import check_fields, read_json, reading, safe_name, unsafe, within
from pyuniversal.models import load_config, load_model, load_tokenizer
from pyuniversal.models.loading import LONGEST_LABEL, safe_label
from pyuniversal.sources import ModelSite
from pyuniversal.stages.inputs import unique_names
from pyuniversal.table import write_tables
from pyuniversal.tokens import load_tokens, tokenize

BAD_NAMES = [
    *("", ".", "..", "../x", "../../x", "a/b", "/etc/passwd", "a\\b", "C:x", ".hidden", "-rf", " x", "x ", "x.", "a\0b", "a\nb", "\x1b[2J", "\u202egnp.exe"),
    *("con", "NUL", "aux.csv", "Com1", "lpt9.tar.gz", "x" * 201, "é" * 101, "\ud800", "a*", "a|b", "$x$", None, 5, ["a"], b"a"),
]


class TestNames:
    @pytest.mark.parametrize("name", BAD_NAMES)
    def test_refused(self, name):
        with pytest.raises(FileError, match=r"ledger\.json holds the name .*, which (is|holds|begins).*do not use this folder"):
            safe_name(name, Path("run/ledger.json"))

    @pytest.mark.parametrize(
        "name", ["seed-0", "EleutherAI_pythia-1.4b", "a-2", "modèle", "模型", "_con", "console", "com10", "x" * 200, "a b", "model-00001-of-2.safetensors"]
    )
    def test_accepted(self, name):
        assert safe_name(name, "here") == name

    @pytest.mark.parametrize(
        ("name", "label"),
        [
            *(
                ("a/b", "a_b"),
                ("..", "model"),
                ("", "model"),
                ("../../x", "_.._x"),
                (".hidden", "hidden"),
                ("-rf", "rf"),
                ("con", "_con"),
                ("NUL.v2", "_NUL.v2"),
            ),
            *(("C:\\x y", "C__x_y"), ("é模", "__"), ("a\n\0", "a__"), ("a.", "a"), ("$x$", "_x_"), ("x" * 100, "x" * 100)),
        ],
    )
    def test_labels_are_safe_when_they_are_made(self, name, label):
        assert safe_label(name) == label
        assert unsafe(label) is None

    def test_long_labels_stay_apart(self):
        one, two = safe_label("x" * 300 + "1"), safe_label("x" * 300 + "2")
        assert one != two
        assert len(one) == len(two) == LONGEST_LABEL
        assert one[:91] == two[:91] == "x" * 91

    @pytest.mark.parametrize("name", [name for name in BAD_NAMES if isinstance(name, str)])
    def test_every_label_is_safe(self, name):
        assert unsafe(safe_label(name)) is None

    def test_labels_that_one_file_system_takes_for_one(self):
        assert unique_names(["A", "a", "a", "A-2"]) == ["A", "a-2", "a-3", "A-2-2"]

    def test_names_of_sources(self, tmp_path):
        model = load_model(tiny.gpt2(tmp_path / "m"))
        with pytest.raises(InputError, match=r"a source cannot be called '\.\./x', which holds a separator"):
            ModelSite(model, name="../x")

    def test_tables_of_a_crafted_name(self, tmp_path):
        index = pd.MultiIndex.from_tuples([("good", 0, 0), ("../../x", 0, 0)], names=["model", "layer", "neuron"])
        with pytest.raises(InputError, match=r"no table can be written for the model '\.\./\.\./x'"):
            write_tables(pd.DataFrame({"a": [1, 2]}, index=index), tmp_path / "one/two/tables")
        assert not list(tmp_path.iterdir())

    def test_fields(self):
        kinds = {"n": "a whole number", "t": "text"}
        assert check_fields({"n": 3, "t": "", "more": None}, kinds, "f") == {"n": 3, "t": "", "more": None}
        for value, words in (
            ([], r"f is damaged: it holds \[\], not an object"),
            ({"n": 1}, "f is damaged: it has no 't'"),
            ({"n": True, "t": ""}, "its 'n' is True, not a whole number"),
            ({"n": -1, "t": ""}, "its 'n' is -1, not a whole number"),
            ({"n": 2**53 + 1, "t": ""}, "its 'n' is 9007199254740993, not"),
            ({"n": 1.0, "t": ""}, r"its 'n' is 1\.0, not a whole number"),
            ({"n": 0, "t": None}, "its 't' is None, not text"),
        ):
            with pytest.raises(FileError, match=words):
                check_fields(value, kinds, "f")

    def test_json_that_is_too_deep(self, tmp_path):
        (tmp_path / "x.json").write_text("[" * 100_000)
        with pytest.raises(FileError, match=r"x\.json is not valid JSON"):
            read_json(tmp_path / "x.json")

    def test_what_parsers_raise(self):
        class PanicException(BaseException):
            """As pyo3 has it."""

        for error in (KeyError("a"), AssertionError(), OverflowError("b"), MemoryError(), PanicException("c")):
            with pytest.raises(FileError, match=r"^x is damaged \(.*\); do y$"), reading("x", "do y"):
                raise error
        for error in (InputError("mine"), KeyboardInterrupt(), SystemExit()):
            with pytest.raises(type(error)), reading("x", "do y"):
                raise error


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    models = [tiny.gpt2(root / name, seed=seed, n_layer=1, n_inner=8) for seed, name in enumerate("ab")]
    pyuniversal.run(models, text=tiny.sentences(30), row_tokens=32, baseline_draws=1, top_k=2, out=root / "run", progress=False)
    return root / "run"


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "outer/inner/run")


def everything(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class TestRuns:
    @pytest.mark.parametrize("name", ["../../x", "/tmp/x", "..", "a\x1b[31m"])
    def test_a_label_of_the_manifest(self, run, name):
        manifest = json.loads((run / "manifest.json").read_text())
        manifest["models"][1]["label"] = name
        (run / "manifest.json").write_text(json.dumps(manifest))
        before = everything(run.parents[1])
        for act in (pipeline.open_run, pipeline.table_stage):
            with pytest.raises(FileError, match=r"manifest\.json holds the name"):
                act(run)
        assert everything(run.parents[1]) == before

    @pytest.mark.parametrize("name", ["../../../secret", "tables/../../secret", "/tmp/secret", "tables//tmp/secret", "tables/.."])
    def test_a_table_that_the_manifest_says_is_elsewhere(self, run, name):
        manifest = json.loads((run / "manifest.json").read_text())
        assert set(manifest["tables"]) == {"tables/a.csv", "tables/b.csv", "neurons.parquet", "matches.parquet", "depth.parquet", "claims.json"}
        (run / "manifest.json").write_text(json.dumps(manifest | {"tables": {name: "0" * 64}}))
        with pytest.raises(FileError, match=r"manifest\.json holds the name"):
            pipeline.verify(run, progress=False)

    def test_a_table_that_is_a_link(self, run):
        (run / "claims.json").unlink()
        (run / "claims.json").symlink_to("/dev/zero")  # which nobody would come to the end of
        assert [words.partition(" is not there")[0] for words in pipeline.verify(run, progress=False)["failures"]] == [str(run / "claims.json")]

    def test_a_label_of_the_totals(self, run, monkeypatch):
        """Whatever the ledger's format: the name comes out of `Totals.load`."""
        from dataclasses import replace

        load = pyuniversal.Totals.load

        def crafted(folder, **options):
            totals = load(folder, **options)
            totals.sources[0] = replace(totals.sources[0], name="../../x")
            return totals

        monkeypatch.setattr(pyuniversal.Totals, "load", crafted)
        before = everything(run.parents[1])
        with pytest.raises(FileError, match=r"ledger\.json holds the name '\.\./\.\./x'"):
            pipeline.table_stage(run)
        assert everything(run.parents[1]) == before

    @pytest.mark.parametrize("table", ["neurons", "matches", "depth"])
    def test_a_label_of_a_table(self, run, table):
        column = pd.read_parquet(run / f"{table}.parquet")
        column["model"] = column["model"].astype(str).replace("a", "[/red]../x")
        column.to_parquet(run / f"{table}.parquet", index=False)
        with pytest.raises(FileError, match=rf"{table}\.parquet holds the name '\[/red\]\.\./x'"):
            getattr(pyuniversal.open_run(run), table)

    @pytest.mark.parametrize("name", ["tables", "figures"])
    def test_links_that_lead_out(self, run, name):
        outside = run.parents[1] / "outside"
        outside.mkdir()
        shutil.rmtree(run / name)
        (run / name).symlink_to(outside)
        with pytest.raises(FileError, match=rf"run/{name} is a link that leads out of .*outside; nothing is written there"):
            pipeline.table_stage(run)
        assert not list(outside.iterdir())
        assert within(run, "manifest.json") == run / "manifest.json"

    @pytest.mark.parametrize("field", ["models", "tokens", "options", "timings", "machine"])
    def test_a_manifest_without_what_is_relied_on(self, run, field):
        manifest = json.loads((run / "manifest.json").read_text())
        for broken, complaint in ((None, f"its '{field}' is None, not a"), ("remove", f"it has no '{field}'")):
            content = manifest | {field: broken} if broken is None else {key: value for key, value in manifest.items() if key != field}
            (run / "manifest.json").write_text(json.dumps(content))
            for act in (pipeline.open_run, pipeline.table_stage):
                with pytest.raises(FileError, match=rf"manifest\.json is damaged: {complaint}"):
                    act(run)

    def test_weights_of_another_run(self, run):
        weights = pd.read_parquet(run / "weights.parquet")
        weights[weights["model"] != "a"].to_parquet(run / "weights.parquet", index=False)
        with pytest.raises(FileError, match=r"weights\.parquet holds 0 neurons of a, not 8"):
            pipeline.table_stage(run)

    def test_an_interrupted_tokenisation_names_no_folder_to_delete(self, tmp_path):
        """Its ledger once set any attribute, among them the folder that is removed at the end."""
        victim = tmp_path / "victim"
        victim.mkdir()
        (tmp_path / "x.jsonl").write_text('{"text": ""}\n')
        partial = tmp_path / "out/.partial"
        tokenizer = tiny.tokenizer_object()

        from pyuniversal.tokens.corpus import open_corpus

        corpus = open_corpus(tmp_path / "x.jsonl", split=None, name=None, column="text", subset_column=None)
        recipe = {"text": corpus.label, "identity": corpus.identity, "split": None, "name": None, "column": "text", "subset_column": None}
        recipe |= {"row_tokens": 512, "packing": "documents", "max_tokens": None, "tokenizer_hash": pyuniversal.tokens.write.tokenizer_hash(tokenizer)}
        ledger = {"recipe": recipe, "shards": 0, "documents": 0, "content": 0, "pieces": 0, "complete": True, "state": None, "provenance": {}}
        partial.mkdir(parents=True)
        (partial / "ledger.json").write_text(json.dumps(ledger | {"folder": str(victim)}))
        with pytest.raises(InputError, match="is empty: 0 documents"):
            tokenize(tmp_path / "x.jsonl", tokenizer, out=tmp_path / "out", progress=False)
        assert victim.is_dir()
        assert not partial.exists()


CODE = """
from pathlib import Path
Path({mark!r}).touch()
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
class Config(GPT2Config): pass
class Model(GPT2LMHeadModel): config_class = Config
class Tokenizer(PreTrainedTokenizerFast): pass
def generate(model, **kwargs): return None
"""


@pytest.fixture
def hostile(tmp_path, monkeypatch):
    """A folder with code in every place where transformers looks for some, and the mark that the code leaves."""
    import transformers

    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder, mark = tiny.gpt2(tmp_path / "hostile"), tmp_path / "it-ran"
    maps = {
        "config.json": {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"},
        "tokenizer_config.json": {"AutoTokenizer": [None, "code.Tokenizer"]},
    }
    for file, auto_map in maps.items():
        content = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(content | {"auto_map": auto_map}))
    (folder / "custom_generate").mkdir()
    for file in ("code.py", "custom_generate/generate.py", "modeling_gpt2.py", "__init__.py"):
        (folder / file).write_text(CODE.format(mark=str(mark)))
    return folder, mark


class TestCode:
    """A known model type with code beside it is loaded by transformers' own classes."""

    @pytest.mark.parametrize(
        "act",
        [
            lambda folder: load_config(folder),
            lambda folder: load_tokenizer(folder),
            lambda folder: load_model(folder).logits(torch.zeros(1, 4, dtype=torch.int64)),
            lambda folder: pipeline.plan([folder]),
            lambda folder: pyuniversal.run([folder], text=tiny.sentences(20), row_tokens=16, out=folder.parent / "run", progress=False),
        ],
        ids=["config", "tokenizer", "model", "plan", "run"],
    )
    def test_it_does_not_run(self, hostile, act):
        folder, mark = hostile
        act(folder)
        assert not mark.exists()

    def test_nor_by_the_command_line(self, hostile, tmp_path):
        folder, mark = hostile
        (tmp_path / "x.txt").write_text("the of and to " * 20)
        for words in (["tokens", str(tmp_path / "x.txt"), "--tokenizer", str(folder), "--out", str(tmp_path / "t")], ["plan", str(folder)]):
            assert CliRunner().invoke(cli.main, [*words, "--quiet"]).exit_code == 0
        assert not mark.exists()

    @pytest.mark.parametrize("act", [load_config, load_tokenizer, load_model])
    def test_unless_it_is_trusted(self, hostile, act):
        """And so the mark marks: the code is in the places where it would run."""
        folder, mark = hostile
        act(folder, trust_remote_code=True)
        assert mark.exists()

    def test_a_type_that_only_the_code_knows(self, hostile):
        folder, mark = hostile
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"model_type": "hostile"}))
        for act in (load_config, load_model, lambda f: pipeline.plan([f])):
            with pytest.raises(InputError, match="is of type 'hostile'"):
                act(folder)
        assert not mark.exists()

    def test_kernels_named_by_a_configuration(self, tmp_path, monkeypatch):
        """transformers fetches and runs what attn_implementation names, "someone/kernel" on the hub; ours is named by us."""
        from transformers import PreTrainedModel

        folder = tiny.gpt2(tmp_path / "m")
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"attn_implementation": "someone/kernel", "_attn_implementation": "someone/kernel"}))
        asked, check = set(), PreTrainedModel._check_and_adjust_attn_implementation

        def note(self, attn_implementation, *args, **kwargs):
            asked.add(attn_implementation)
            return check(self, attn_implementation, *args, **kwargs)

        monkeypatch.setattr(PreTrainedModel, "_check_and_adjust_attn_implementation", note)
        load_config(folder)
        load_model(folder)
        assert asked == {"sdpa"}

    @pytest.mark.parametrize(
        ("change", "complaint"),
        [
            ({"quantization_config": {"quant_method": "gptq"}}, "is quantised"),
            ({"n_layer": 10**6}, r"num_hidden_layers is 1000000, not a number from 1 to 1,000"),
        ],
    )
    def test_configurations_that_ask_for_more(self, tmp_path, change, complaint):
        folder = tiny.gpt2(tmp_path / "m")
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | change))
        for act in (load_config, load_model):
            with pytest.raises((InputError, FileError), match=complaint):
                act(folder)

    def test_an_adapter_leads_elsewhere(self, tmp_path):
        folder = tiny.gpt2(tmp_path / "m")
        (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "someone/else"}))
        with pytest.raises(InputError, match=r"holds an adapter of another model.*Merge the two"):
            load_model(folder)


class Touch:
    """Unpickled, it leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


class TestPickles:
    @pytest.fixture
    def mark(self, tmp_path):
        return tmp_path / "it-ran"

    @pytest.fixture
    def poison(self, mark):
        data = pickle.dumps(Touch(mark))
        pickle.loads(data)  # noqa: S301 (the control: it does leave a mark)
        assert mark.exists()
        mark.unlink()
        return data

    @pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "model.pt", "model.pth", "model.ckpt"])
    def test_of_a_model(self, tmp_path, mark, poison, name):
        folder = tiny.gpt2(tmp_path / "m")
        (folder / "model.safetensors").unlink()
        (folder / name).write_bytes(poison)
        with pytest.raises(InputError, match=rf"only pickled weights \({name} in .*convert them once"):
            load_model(folder)
        assert not mark.exists()

    def test_called_safetensors(self, tmp_path, mark, poison):
        folder = tiny.gpt2(tmp_path / "m")
        (folder / "model.safetensors").write_bytes(poison)
        with pytest.raises(FileError, match=r"model\.safetensors is damaged"):
            load_model(folder)
        assert not mark.exists()

    @pytest.mark.parametrize(("file", "complaint"), [("weights.bin", "names files that are no safetensors"), ("../x.safetensors", "holds the name '../x")])
    def test_named_by_an_index(self, tmp_path, mark, poison, file, complaint):
        folder = tiny.gpt2(tmp_path / "m")
        (folder / "model.safetensors").unlink()
        (folder / file).write_bytes(poison)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": {"transformer.wte.weight": file}}))
        with pytest.raises(FileError, match=complaint):
            load_model(folder)
        assert not mark.exists()

    def test_beside_safetensors(self, tmp_path, mark, poison):
        folder = tiny.gpt2(tmp_path / "m")
        for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "scheduler.pt", "vocab.pkl"):
            (folder / name).write_bytes(poison)
        load_model(folder)
        assert not mark.exists()

    def test_of_tokens(self, tmp_path, mark, poison):
        folder = tokenize(["the word"] * 3, tiny.tokenizer_object(), out=tmp_path / "t", row_tokens=4, progress=False).path
        shape = np.load(folder / "tokens.npy").shape
        objects = np.empty(shape, dtype=object)
        objects[:] = Touch(mark)
        np.save(folder / "tokens.npy", objects, allow_pickle=True)
        mark.unlink(missing_ok=True)
        with pytest.raises(FileError, match=r"tokens\.npy is damaged"):
            load_tokens(folder)
        (folder / "tokens.npy").write_bytes(poison)
        with pytest.raises(FileError, match=r"tokens\.npy is damaged"):
            load_tokens(folder)
        np.savez(folder / "tokens.npz", np.zeros(shape, np.uint16))
        (folder / "tokens.npz").replace(folder / "tokens.npy")
        with pytest.raises(FileError, match=r"tokens\.npy is damaged \(it holds no array\)"):
            load_tokens(folder)
        assert not mark.exists()

    def test_of_a_text(self, tmp_path, mark, poison):
        folder = tmp_path / "data"
        folder.mkdir()
        (folder / "x.pkl").write_bytes(poison)
        (folder / "data.py").write_text(CODE.format(mark=str(mark)))  # the script of a data set, by its folder's name
        for text, words in ((folder, "holds no text"), (folder / "x.pkl", "is of no kind that can be read"), (folder / "data.py", "is of no kind")):
            with pytest.raises(InputError, match=words):
                tokenize(text, tiny.tokenizer_object(), progress=False)
        assert not mark.exists()

    @pytest.mark.parametrize(
        ("file", "change"),
        [("state.json", {"_data_files": [{"filename": "../other/data-00000-of-00001.arrow"}]}), ("dataset_dict.json", {"splits": ["../other"]})],
    )
    def test_saved_data_sets_that_lead_out(self, tmp_path, file, change):
        import datasets

        data = datasets.Dataset.from_list([{"text": "the word"}])
        data.save_to_disk(tmp_path / "other")
        (data if file == "state.json" else datasets.DatasetDict({"train": data})).save_to_disk(tmp_path / "d")
        content = json.loads((tmp_path / "d" / file).read_text())
        (tmp_path / "d" / file).write_text(json.dumps(content | change))
        with pytest.raises(FileError, match=rf"{file} holds the name '\.\./other.*holds a separator"):
            tokenize(tmp_path / "d", tiny.tokenizer_object(), progress=False)


class TestSizes:
    """Small files that ask for much memory."""

    def test_a_configuration_larger_than_its_weights(self, tmp_path):
        """transformers would make room for the missing layers, and fill it, before it says that they are missing."""
        block = 2 * 32 + 16 * 48 + 48 + 16 * 16 + 16 + 16 * 40 + 40 + 40 * 16 + 16
        assert [(tiny.D_VOCAB + 64) * 16 + layers * block + 32 for layers in (3, 60)] == [14_120, 155_936]
        folder = tiny.gpt2(tmp_path / "m")
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"n_layer": 60}))
        with pytest.raises(FileError, match=r"the safetensors in .* hold 14,120 numbers, and config\.json describes a model of 155,936\. Copy"):
            load_model(folder)

    def test_a_line_without_end(self, tmp_path, monkeypatch):
        """A compressed file of a few bytes can hold a line that fits in no memory."""
        import gzip

        from pyuniversal.tokens import text_files

        monkeypatch.setattr(text_files, "LONGEST_LINE", 1000)
        fits = json.dumps({"text": "x" * 900}).encode() + b"\n"
        (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(fits + b'{"text": "' + b"x" * 1000 + b'"}\n' + fits))
        with pytest.raises(InputError, match=r"x\.jsonl\.gz, line 2, is a single document of 1,001 characters"):
            tokenize(tmp_path / "x.jsonl.gz", tiny.tokenizer_object(), progress=False)

    def test_rows_that_a_table_only_claims(self, tmp_path):
        """The size stands in the footer, and is looked at before a column is read."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        folder = tokenize(["the word"] * 3, tiny.tokenizer_object(), out=tmp_path / "t", row_tokens=4, progress=False).path
        many = pa.array(np.zeros(5_000_000, np.int32))
        pq.write_table(pa.table(dict.fromkeys(("document", "start", "length"), many)), folder / "rows.parquet")
        assert (folder / "rows.parquet").stat().st_size < 100_000
        before = pa.total_allocated_bytes()
        with pytest.raises(FileError, match=r"rows\.parquet holds 5000000 rows of .*its manifest says"):
            load_tokens(folder)
        assert pa.total_allocated_bytes() - before < 1_000_000
