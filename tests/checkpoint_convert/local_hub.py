"""A server that answers as the Hugging Face Hub does, as far as an upload and a download of models need it."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_local"
# What the Hub would store outside git.
_LARGE = (".safetensors",)


class LocalHub(ThreadingHTTPServer):
    """Repositories in memory, and the paths of all requests.

    Attributes:
        repositories: by name, the files of the newest commit.
        private: names of the private ones.
        requests: method and path of each request.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.large: dict[str, bytes] = {}
        self.requests: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def commit(self, name: str) -> str:
        """The commit of the files: 40 hexadecimal digits."""
        content = json.dumps({path: _oid(body) for path, body in sorted(self.repositories[name].items())})
        return hashlib.sha1(content.encode()).hexdigest()


@contextmanager
def local_hub() -> Iterator[LocalHub]:
    """A server on a free port."""
    server = LocalHub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def _oid(body: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: LocalHub

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self, status: int, value: Any = None, headers: dict[str, str] | None = None) -> None:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _begin(self) -> tuple[list[str], bytes]:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"{self.command} {path}")
        length = int(self.headers.get("Content-Length") or 0)
        return path.strip("/").split("/"), self.rfile.read(length)

    def _missing(self, code: str) -> None:
        self._answer(404, {"error": code}, {"X-Error-Code": code})

    def _authorised(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def do_POST(self) -> None:
        parts, body = self._begin()
        if parts == ["api", "validate-yaml"]:
            self._answer(200, {"errors": [], "warnings": []})
        elif not self._authorised():
            self._answer(401, {"error": "Invalid credentials"})
        elif parts == ["api", "repos", "create"]:
            self._create(json.loads(body))
        elif parts[-2] == "preupload":
            files = [file["path"] for file in json.loads(body)["files"]]
            self._answer(200, {"files": [_mode(path) for path in files]})
        elif parts[-1] == "batch":
            self._answer(200, {"objects": [self._upload_of(item) for item in json.loads(body)["objects"]]})
        elif parts[-2] == "commit":
            self._commit("/".join(parts[2:4]), body)
        else:
            self._missing("EntryNotFound")

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
        self.server.repositories.setdefault(name, {})
        if asked.get("private") or asked.get("visibility") == "private":
            self.server.private.add(name)
        self._answer(200, {"url": f"{self.server.address}/{name}"})

    def _upload_of(self, item: dict[str, Any]) -> dict[str, Any]:
        action = {"upload": {"href": f"{self.server.address}/large/{item['oid']}", "header": {}}}
        return {"oid": item["oid"], "size": item["size"], "actions": action}

    def _commit(self, name: str, body: bytes) -> None:
        files = self.server.repositories[name]
        for line in body.decode().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.server.large[value["oid"]]
        commit = self.server.commit(name)
        address = f"{self.server.address}/{name}/commit/{commit}"
        self._answer(200, {"success": True, "commitOid": commit, "commitUrl": address})

    def do_PUT(self) -> None:
        parts, body = self._begin()
        assert parts[0] == "large"
        assert hashlib.sha256(body).hexdigest() == parts[1]
        self.server.large[parts[1]] = body
        self._answer(200, b"")

    def do_GET(self) -> None:
        parts, _ = self._begin()
        name = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
        if name not in self.server.repositories or (name in self.server.private and not self._authorised()):
            self._missing("RepoNotFound")
        elif parts[0] == "api" and parts[4:5] == ["tree"]:
            self._answer(200, [_entry(path, body) for path, body in self.server.repositories[name].items()])
        elif parts[0] == "api":
            self._describe(name, parts[5] if len(parts) > 5 else "main")
        else:
            self._send(name, "/".join(parts[4:]))

    do_HEAD = do_GET

    def _describe(self, name: str, revision: str) -> None:
        if revision not in ("main", self.server.commit(name)):
            self._missing("RevisionNotFound")
            return
        files = [{"rfilename": path} for path in self.server.repositories[name]]
        self._answer(200, {"id": name, "sha": self.server.commit(name), "siblings": files})

    def _send(self, name: str, path: str) -> None:
        body = self.server.repositories[name].get(path)
        if body is None:
            self._missing("EntryNotFound")
            return
        found = {"ETag": f'"{_entry(path, body).get("lfs", {}).get("oid") or _oid(body)}"'}
        self._answer(200, body, found | {"X-Repo-Commit": self.server.commit(name)})


def _mode(path: str) -> dict[str, Any]:
    return {"path": path, "uploadMode": "lfs" if path.endswith(_LARGE) else "regular", "shouldIgnore": False}


def _entry(path: str, body: bytes) -> dict[str, Any]:
    found: dict[str, Any] = {"type": "file", "path": path, "size": len(body), "oid": _oid(body)}
    if path.endswith(_LARGE):
        found["lfs"] = {"oid": hashlib.sha256(body).hexdigest(), "size": len(body), "pointerSize": 100}
    return found
