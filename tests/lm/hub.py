"""A small Hub on loopback: as much of the protocol as huggingface_hub asks for to list and fetch a model."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


def commit_of(revision: str) -> str:
    return hashlib.sha1(revision.encode()).hexdigest()


@dataclass
class Hub:
    """`repositories`: "owner/name" → revision → folder. `served`: the paths of files given out."""

    repositories: Mapping[str, Mapping[str, Path]]
    endpoint: str = ""
    served: list[str] = field(default_factory=list)

    def folder(self, repository: str, revision: str) -> tuple[str, Path] | None:
        """The commit and the files of a revision, which may be given by name or by commit."""
        for name, folder in self.repositories[repository].items():
            if revision in (name, commit_of(name)):
                return commit_of(name), folder
        return None


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            parts = unquote(urlsplit(self.path).path).strip("/").split("/")
            if parts[:2] == ["api", "models"]:
                self._api("/".join(parts[2:4]), parts[4:])
            elif len(parts) > 4 and parts[2] == "resolve":
                self._resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
            else:
                self._fail(404, "EntryNotFound")

        def _api(self, repository: str, rest: list[str]) -> None:
            revision = rest[1] if len(rest) > 1 else "main"
            if (found := self._find(repository, revision)) is None:
                return
            commit, folder = found
            files = [
                {"type": "file", "path": p.relative_to(folder).as_posix(), "oid": _etag(p), "size": p.stat().st_size}
                for p in sorted(folder.rglob("*"))
                if p.is_file()
            ]
            if rest[:1] == ["tree"]:
                self._json(files)
            else:
                siblings = [{"rfilename": file["path"]} for file in files]
                self._json({"id": repository, "modelId": repository, "sha": commit, "siblings": siblings})

        def _resolve(self, repository: str, revision: str, name: str) -> None:
            if (found := self._find(repository, revision)) is None:
                return
            commit, folder = found
            file = folder / name
            if not file.is_file():
                self._fail(404, "EntryNotFound")
                return
            data, status, extra = file.read_bytes(), 200, {}
            wanted = self.headers.get("Range", "")
            if wanted.startswith("bytes=") and self.command == "GET":
                first, _, last = wanted.removeprefix("bytes=").partition("-")
                end = min(int(last) if last else len(data) - 1, len(data) - 1)
                extra = {"Content-Range": f"bytes {first}-{end}/{len(data)}"}
                data, status = data[int(first) : end + 1], 206
            if self.command == "GET":
                hub.served.append(f"{repository}/{name}@{commit}")
            headers = {"ETag": f'"{_etag(file)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes", **extra}
            self._send(status, data, headers)

        def _find(self, repository: str, revision: str) -> tuple[str, Path] | None:
            if repository not in hub.repositories:
                self._fail(404, "RepoNotFound")
            elif (found := hub.folder(repository, revision)) is None:
                self._fail(404, "RevisionNotFound")
            else:
                return found
            return None

        def _json(self, value: object) -> None:
            self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

        def _fail(self, status: int, code: str) -> None:
            self._send(status, b"", {"X-Error-Code": code, "X-Error-Message": f"{code}: {self.path}"})

        def _send(self, status: int, data: bytes, headers: Mapping[str, str]) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

    return Handler


def _etag(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()


@contextmanager
def running(repositories: Mapping[str, Mapping[str, Path]]) -> Iterator[Hub]:
    """The Hub, up inside the block and gone behind it."""
    hub = Hub(repositories)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
