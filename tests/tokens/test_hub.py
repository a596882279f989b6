"""Data sets by name, streamed from a hub on this machine: splits, columns, resume, the cache, and no hub at all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pyuniversal.tokens import tokenize

HERE = Path(__file__).parent
TEXTS = [f"the of {i}" for i in range(3000)]


def client(*arguments, hub, home, **environment):
    """The answers of hub_client.py."""
    environment = {**os.environ, "HF_ENDPOINT": hub, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", **environment}
    done = subprocess.run([sys.executable, HERE / "hub_client.py", *arguments], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """Address of the hub, the folder of its requests' log."""
    root = tmp_path_factory.mktemp("hub")
    (root / "data").mkdir()
    for name, first, last in (("train-00000-of-00002", 0, 1700), ("train-00001-of-00002", 1700, 3000), ("test-00000-of-00001", 0, 9)):
        rows = [{"text": text, "meta": {"set": "odd" if len(text) % 2 else "even"}} for text in TEXTS[first:last]]
        pq.write_table(pa.Table.from_pylist(rows), root / "data" / f"{name}.parquet", row_group_size=300)
    log = tmp_path_factory.mktemp("log") / "log"
    with log.open("w") as out:
        server = subprocess.Popen([sys.executable, "-u", HERE / "fake_hub.py", str(root)], stdout=out)
        try:
            while not log.read_text().endswith("\n"):
                assert server.poll() is None
            yield f"http://127.0.0.1:{log.read_text().split()[0]}"
        finally:
            server.terminate()
            server.wait()


def test_a_name_on_the_hub(hub, tokenizer, tmp_path):
    local = tokenize(TEXTS, tokenizer, row_tokens=16, progress=False)
    online = client(tokenizer.name_or_path, tmp_path, hub=hub, home=tmp_path / "home")
    assert online["test"] == online["test"] | {"documents": 9, "subsets": ["even"], "from": {"split": "test", "revision": "a" * 40}}
    assert online["train"]["hash"] == local.hash
    assert online["train"]["subsets"] == [None]
    assert online["cut"]["hash"] == tokenize(TEXTS, tokenizer, row_tokens=16, max_tokens=300, progress=False).hash

    assert online["interrupted"]["error"] == "KeyboardInterrupt"
    assert online["resumed"]["hash"] == local.hash
    assert online["texts"] == TEXTS  # each once, in order: nothing was done again

    for key, words in {
        "split": "the data set 'u/d' has no split 'dev'; it has 'train', 'test'",
        "column": "the data set 'u/d' has no column 'body'; it has 'text', 'meta'. Choose with column=",
        "configuration": "the data set 'u/d' (en) cannot be opened: BuilderConfig 'en' not found. Available: ['default']. A configuration is chosen with name=",
        "absent": "'u/absent' is no local file or folder, and the hub has no data set of that name that you may read. Correct it",
    }.items():
        assert online[key]["error"] == "InputError"
        assert words in online[key]["words"]

    gone = client(tokenizer.name_or_path, tmp_path, "u/d", hub="http://127.0.0.1:9", home=tmp_path / "home")
    assert gone["u/d"]["error"] == "InputError"
    assert "'u/d' is no local file or folder, and no hub can be reached" in gone["u/d"]["words"]
    assert "Connect to the network, give a .txt, .jsonl or .parquet file" in gone["u/d"]["words"]
    assert gone["u/d"]["seconds"] < 15  # datasets itself tries for 23 seconds
    assert gone["finished"]["hash"] == local.hash  # finished tokens need no hub


def test_offline_the_cache_is_read(hub, tokenizer, tmp_path):
    home = tmp_path / "home"
    fill = [sys.executable, "-c", "import datasets; datasets.load_dataset('u/d')"]
    subprocess.run(fill, env={**os.environ, "HF_ENDPOINT": hub, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}, check=True, capture_output=True, timeout=300)
    offline = client(tokenizer.name_or_path, tmp_path, "u/d", "u/e", hub=hub, home=home, HF_HUB_OFFLINE="1")
    assert offline["u/d"]["hash"] == tokenize(TEXTS, tokenizer, row_tokens=16, progress=False).hash
    assert "HF_HUB_OFFLINE is set and the data set 'u/e' is not in the cache" in offline["u/e"]["words"]
    assert "unset it, or give a local file or folder" in offline["u/e"]["words"]
