"""A stand-in of the Hub's HTTP interface: as much of it as huggingface_hub calls to upload a model and to load one.

Files below 10 KB that are text come inside the commit, larger ones and weights by the LFS protocol, as on the Hub.
Loading goes through `resolve` with the headers that name commit and ETag. Who has no token may read and not write.
"""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_stand_in"


class Handler(BaseHTTPRequestHandler):
    """Routes: (method, pattern of the path) -> function."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def send(self, status, content=b"", **headers):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def missing(self, code, status=404):
        self.send(status, {"error": code}, X_Error_Code=code, X_Error_Message=code)

    def handle_one(self):
        length = int(self.headers.get("Content-Length") or 0)
        if self.headers.get("Transfer-Encoding") == "chunked":
            chunks = []
            while size := int(self.rfile.readline(), 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            self.body = b"".join(chunks)
        else:
            self.body = self.rfile.read(length)
        path = unquote(urlsplit(self.path).path)
        self.server.calls.append(f"{self.command} {path}")
        for method, pattern, write, route in ROUTES:
            found = re.fullmatch(pattern, path)
            if found and self.command in method:
                if write and self.headers.get("Authorization") != f"Bearer {TOKEN}":
                    return self.send(401, {"error": "Invalid username or password."})
                return route(self, **found.groupdict())
        return self.missing("EntryNotFound")

    do_GET = do_HEAD = do_POST = do_PUT = handle_one

    # -- writing -----------------------------------------------------------------------------------------------

    def create(self):
        asked = json.loads(self.body)
        repo = f"{asked['organization'] or 'me'}/{asked['name']}"
        url = f"{self.server.url}/{repo}"
        if repo in self.server.repos:
            return self.send(409, {"error": "You already created this model repo", "url": url})
        self.server.repos[repo] = {}
        return self.send(200, {"url": url, "name": repo, "id": repo})

    def validate(self):
        self.server.cards.append(json.loads(self.body)["content"])
        self.send(200, {"errors": [], "warnings": []})

    def preupload(self, repo):
        def mode(file):
            return "lfs" if file["path"].endswith(".safetensors") or file["size"] > 10_000 else "regular"

        files = json.loads(self.body)["files"]
        told = [{"path": file["path"], "uploadMode": mode(file), "shouldIgnore": False} for file in files]
        self.send(200, {"files": told, "commitOid": self.commit(repo)})

    def batch(self, repo):
        objects = [
            {**item, "actions": {"upload": {"href": f"{self.server.url}/lfs/{item['oid']}"}}}
            for item in json.loads(self.body)["objects"]
        ]
        self.send(200, {"transfer": "basic", "objects": objects})

    def store(self, oid):
        assert hashlib.sha256(self.body).hexdigest() == oid
        self.server.large[oid] = self.body
        self.send(200)

    def commit_files(self, repo):
        for line in self.body.decode().splitlines():
            item = json.loads(line)
            key, value = item["key"], item["value"]
            if key == "file":
                self.server.repos[repo][value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                self.server.repos[repo][value["path"]] = self.server.large[value["oid"]]
            else:
                assert key == "header", key
        commit = self.commit(repo)
        self.send(200, {"success": True, "commitOid": commit, "commitUrl": f"{self.server.url}/{repo}/commit/{commit}"})

    # -- reading -----------------------------------------------------------------------------------------------

    def commit(self, repo):
        content = self.server.repos.get(repo, {})
        return hashlib.sha1(b"".join(name.encode() + content[name] for name in sorted(content))).hexdigest()

    def info(self, repo):
        if repo not in self.server.repos:
            return self.missing("RepoNotFound", 401 if "Authorization" not in self.headers else 404)
        files = [{"rfilename": name} for name in sorted(self.server.repos[repo])]
        commit = self.commit(repo)
        return self.send(200, {"id": repo, "modelId": repo, "sha": commit, "siblings": files, "tags": []})

    def tree(self, repo, folder=""):
        folder = f"{folder}/" if folder else ""
        files = self.server.repos.get(repo, {})
        below = {name: content for name, content in files.items() if name.startswith(folder)}
        if repo not in self.server.repos or (folder and not below):
            return self.missing("RepoNotFound" if repo not in self.server.repos else "EntryNotFound")
        found = [
            {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            for name, content in below.items()
        ]
        return self.send(200, found)

    def resolve(self, repo, name):
        if repo not in self.server.repos:
            return self.missing("RepoNotFound")
        content = self.server.repos[repo].get(name)
        if content is None:
            return self.send(404, b"", X_Error_Code="EntryNotFound", X_Repo_Commit=self.commit(repo))
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        return self.send(200, content, ETag=etag, X_Repo_Commit=self.commit(repo))


_REPO = "(?P<repo>[^/]+/[^/]+)"
ROUTES = [
    ("POST", "/api/repos/create", True, Handler.create),
    ("POST", "/api/validate-yaml", False, Handler.validate),
    ("POST", f"/api/models/{_REPO}/preupload/[^/]+", True, Handler.preupload),
    ("POST", f"/{_REPO}.git/info/lfs/objects/batch", True, Handler.batch),
    ("PUT", "/lfs/(?P<oid>[0-9a-f]+)", False, Handler.store),
    ("POST", f"/api/models/{_REPO}/commit/[^/]+", True, Handler.commit_files),
    ("GET", f"/api/models/{_REPO}(/revision/[^/]+)?", False, Handler.info),
    ("GET", f"/api/models/{_REPO}/tree/[^/]+(/(?P<folder>.+))?", False, Handler.tree),
    ("GET HEAD", f"/{_REPO}/resolve/[^/]+/(?P<name>.+)", False, Handler.resolve),
]


@contextmanager
def hub():
    """A Hub on this machine: `url`, `repos` (name -> files), `calls` and the `cards` that were to be validated."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.url = f"http://127.0.0.1:{server.server_port}"
    server.repos, server.large, server.calls, server.cards = {}, {}, [], []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
