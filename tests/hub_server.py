"""A small model hub on this machine: enough of the hub's HTTP interface to push, list and download repositories."""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"


@dataclass
class Repository:
    """The files at one revision, and how many commits made them."""

    files: dict[str, bytes] = field(default_factory=dict)
    commits: int = 0
    private: bool = False

    @property
    def sha(self) -> str:
        return hashlib.sha1(repr((self.commits, sorted(self.files.items()))).encode()).hexdigest()


class HubServer:
    """The server; its repositories lie in ``repos`` by id, in memory.

    Use it as a context manager; ``url`` is what ``HF_ENDPOINT`` must name.
    """

    def __init__(self, token: str = "hf_test") -> None:
        self.repos: dict[str, Repository] = {}
        self.blobs: dict[str, bytes] = {}
        self.token = token
        self.requests: list[str] = []
        hub = self

        class Handler(_Handler):
            server_state = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def variables(self, home: str) -> dict[str, str]:
        """Environment variables of a process that shall see this hub alone; ``home`` is its cache."""
        return {
            "HF_ENDPOINT": self.url, "HF_TOKEN": self.token, "HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HOME": home, "NO_PROXY": "*", "no_proxy": "*",
        }  # fmt: skip


class _Handler(BaseHTTPRequestHandler):
    server_state: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _send(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        sized = {"Content-Length": str(len(body)), **(headers or {})}
        for name, value in sized.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, value: object, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _refuse(self, code: str, status: int = 404) -> None:
        self._send(status, code.encode(), {"X-Error-Code": code, "X-Error-Message": code})

    def _route(self) -> None:
        hub = self.server_state
        path = unquote(urlsplit(self.path).path)
        hub.requests.append(f"{self.command} {path}")
        body = self._body()
        for method, pattern, function in _ROUTES:
            match = re.fullmatch(pattern, path)
            if match and method in (self.command, "GET" if self.command == "HEAD" else self.command):
                groups = match.groupdict()
                name = groups.pop("repo", None)
                if (
                    self.command in ("POST", "PUT")
                    and name
                    and self.headers.get("Authorization") != f"Bearer {hub.token}"
                ):
                    return self._refuse("Unauthorized", 401)
                if name is not None and name not in hub.repos:
                    return self._refuse("RepoNotFound")
                return function(self, hub.repos.get(name or ""), body, **groups)
        return self._refuse("EntryNotFound")

    do_GET = do_HEAD = do_POST = do_PUT = _route

    def create(self, _: None, body: bytes) -> None:
        hub, wanted = self.server_state, json.loads(body)
        if self.headers.get("Authorization") != f"Bearer {hub.token}":
            return self._refuse("Unauthorized", 401)
        name = f"{wanted.get('organization') or 'someone'}/{wanted['name']}"
        if name in hub.repos:
            return self._json({"url": f"{hub.url}/{name}", "error": "You already created this model repo"}, 409)
        hub.repos[name] = Repository(private=wanted.get("private") is True or wanted.get("visibility") == "private")
        return self._json({"url": f"{hub.url}/{name}", "id": name})

    def validate_yaml(self, _: None, __: bytes) -> None:
        self._json({"errors": [], "warnings": []})

    def preupload(self, _: Repository, body: bytes, revision: str) -> None:
        del revision
        large = (".safetensors", ".parquet")
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(large) else "regular",
                "shouldIgnore": False,
                "oid": None,
            }
            for file in json.loads(body)["files"]
        ]
        self._json({"files": files})

    def lfs_batch(self, _: Repository, body: bytes) -> None:
        objects = []
        for wanted in json.loads(body)["objects"]:
            action = {"upload": {"href": f"{self.server_state.url}/lfs/{wanted['oid']}"}}
            objects.append({**wanted, "actions": action})
        self._json({"transfer": "basic", "objects": objects})

    def lfs_put(self, _: None, body: bytes, oid: str) -> None:
        assert hashlib.sha256(body).hexdigest() == oid
        self.server_state.blobs[oid] = body
        self._send(200)

    def commit(self, repo: Repository, body: bytes, revision: str) -> None:
        del revision
        files = dict(repo.files)
        for line in body.decode().splitlines():
            step = json.loads(line)
            value = step["value"]
            if step["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif step["key"] == "lfsFile":
                files[value["path"]] = self.server_state.blobs[value["oid"]]
            elif step["key"] == "deletedFile":
                del files[value["path"]]
        repo.files, repo.commits = files, repo.commits + 1
        self._json({"commitUrl": f"{self.server_state.url}/x/y/commit/{repo.sha}", "commitOid": repo.sha})

    def info(self, repo: Repository, _: bytes, revision: str | None = None) -> None:
        if revision not in (None, "main", repo.sha):
            return self._refuse("RevisionNotFound")
        siblings = [{"rfilename": name} for name in sorted(repo.files)]
        return self._json({"id": "x/y", "sha": repo.sha, "private": repo.private, "siblings": siblings, "tags": []})

    def tree(self, repo: Repository, _: bytes, revision: str) -> None:
        if revision not in ("main", repo.sha):
            return self._refuse("RevisionNotFound")
        return self._json(
            [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in sorted(repo.files.items())
            ]
        )

    def resolve(self, repo: Repository, _: bytes, revision: str, file: str) -> None:
        if revision not in ("main", repo.sha):
            return self._refuse("RevisionNotFound")
        if file not in repo.files:
            return self._refuse("EntryNotFound")
        data = repo.files[file]
        headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": repo.sha}
        return self._send(200, data, headers)


_ROUTES = (
    ("POST", "/api/repos/create", _Handler.create),
    ("POST", "/api/validate-yaml", _Handler.validate_yaml),
    ("POST", f"/api/models/{REPO}/preupload/(?P<revision>[^/]+)", _Handler.preupload),
    ("POST", f"/{REPO}.git/info/lfs/objects/batch", _Handler.lfs_batch),
    ("PUT", "/lfs/(?P<oid>[0-9a-f]+)", _Handler.lfs_put),
    ("POST", f"/api/models/{REPO}/commit/(?P<revision>[^/]+)", _Handler.commit),
    ("GET", f"/api/models/{REPO}", _Handler.info),
    ("GET", f"/api/models/{REPO}/revision/(?P<revision>[^/]+)", _Handler.info),
    ("GET", f"/api/models/{REPO}/tree/(?P<revision>[^/]+)", _Handler.tree),
    ("GET", f"/{REPO}/resolve/(?P<revision>[^/]+)/(?P<file>.+)", _Handler.resolve),
)
