"""Enough of a Hugging Face hub to stream one data set, "u/d", from the folder given as argument. Writes its port to stdout."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

ROOT, COMMIT = Path(sys.argv[1]), "a" * 40


def entry(path: Path) -> dict:
    name = path.relative_to(ROOT).as_posix()
    return {"type": "directory" if path.is_dir() else "file", "oid": "b" * 40, "path": name, "size": 0 if path.is_dir() else path.stat().st_size}


class Hub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        pass

    def reply(self, code: int, body: object = b"", **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(code)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), "X-Repo-Commit": COMMIT, **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        paths = json.loads(body)["paths"] if body.startswith("{") else parse_qs(body).get("paths", [])
        self.reply(200, [entry(ROOT / path) for path in paths if (ROOT / path).exists()])

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if re.fullmatch(r"/api/datasets/u/d(/revision/\w+)?", url.path):
            names = [{"rfilename": path.relative_to(ROOT).as_posix()} for path in sorted(ROOT.rglob("*")) if path.is_file()]
            self.reply(
                200,
                {"id": "u/d", "sha": COMMIT, "private": False, "gated": False, "disabled": False, "downloads": 0, "likes": 0, "tags": [], "siblings": names},
            )
        elif tree := re.fullmatch(r"/api/datasets/u/d/tree/\w+/?(.*)", url.path):
            folder = ROOT / tree[1]
            found = folder.rglob("*") if "recursive=true" in url.query.lower() else folder.iterdir()
            self.reply(200, [entry(path) for path in sorted(found)]) if folder.is_dir() else self.reply(404, {}, X_Error_Code="EntryNotFound")
        elif file := re.fullmatch(r"/datasets/u/d/resolve/\w+/(.*)", url.path):
            self.file(ROOT / file[1])
        else:
            self.reply(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")

    def file(self, path: Path) -> None:
        if not path.is_file():
            return self.reply(404, {}, X_Error_Code="EntryNotFound")
        data = path.read_bytes()
        headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "Accept_Ranges": "bytes", "Content_Type": "application/octet-stream"}
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            first, last = int(asked[1]), min(int(asked[2] or len(data)), len(data) - 1)
            return self.reply(206, data[first : last + 1], Content_Range=f"bytes {first}-{last}/{len(data)}", **headers)
        return self.reply(200, data, **headers)


server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
sys.stdout.write(f"{server.server_port}\n")
sys.stdout.flush()
server.serve_forever()
