"""A stand-in for the Hugging Face hub's HTTP interface, as far as an upload in one commit and a download need it."""

import base64
import hashlib
import http.server
import json
import threading
from urllib.parse import unquote, urlsplit

import yaml

TOKEN = "hf_of_the_test"
SHA = "0123456789" * 4


class Hub(http.server.ThreadingHTTPServer):
    """A hub in this process, with one user, `me`.

    Attributes:
        repositories: {name: {file: content}}.
        private: Names of the repositories that were made private.
        requests: (method, path) of all requests.
        large: Names of files that came by LFS.
        fails: {part of a path: status}: what is refused, and how.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories, self.private, self.requests, self.large = {}, set(), [], set()
        self.fails, self.blobs = {}, {}
        self.endpoint = f"http://127.0.0.1:{self.server_port}"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.shutdown()
        self.server_close()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def answer(self, content, status=200, **headers):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": len(data), "Content-Type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def handle_request(self):
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append((self.command, path))
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))) or self.chunks()
        for part, status in self.server.fails.items():
            if part in path:
                codes = {404: "RepoNotFound"}
                return self.answer({"error": "refused"}, status, **({"X_Error_Code": codes[status]} if status in codes else {}))
        if not path.startswith("/lfs/") and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer({"error": "Invalid username or password."}, 401)
        method = getattr(self, f"{'get' if self.command == 'HEAD' else self.command.lower()}_{kind(path)}")
        return method(path, body)

    def chunks(self):
        """A body in chunks."""
        parts = []
        while self.headers.get("Transfer-Encoding") == "chunked" and (size := int(self.rfile.readline(), 16)):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        if parts:
            self.rfile.readline()
        return b"".join(parts)

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def post_create(self, path, body):
        asked = json.loads(body)
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        if name in self.server.repositories:
            return self.answer({"error": "exists", "url": f"{self.server.endpoint}/{name}"}, 409)
        if not name.startswith("me/"):
            return self.answer({"error": "You don't have the rights"}, 403)
        self.server.repositories[name] = {}
        if asked.get("visibility") == "private" or asked.get("private"):
            self.server.private.add(name)
        return self.answer({"url": f"{self.server.endpoint}/{name}", "name": name})

    def post_yaml(self, path, body):
        _, block, _ = json.loads(body)["content"].split("---\n", 2)
        errors = [] if isinstance(yaml.safe_load(block), dict) else [{"message": "no metadata"}]
        return self.answer({"errors": errors, "warnings": []}, 400 if errors else 200)

    def post_preupload(self, path, body):
        files = [file["path"] for file in json.loads(body)["files"]]
        modes = {name: "lfs" if name.endswith((".safetensors", ".keras")) else "regular" for name in files}
        return self.answer({"files": [{"path": name, "uploadMode": mode, "shouldIgnore": False} for name, mode in modes.items()]})

    def post_batch(self, path, body):
        asked = json.loads(body)
        assert asked["operation"] == "upload"
        assert "basic" in asked["transfers"]
        objects = [
            {**each, "actions": {"upload": {"href": f"{self.server.endpoint}/lfs/{each['oid']}", "header": {}}}}
            for each in asked["objects"]
        ]
        return self.answer({"transfer": "basic", "objects": objects})

    def put_lfs(self, path, body):
        digest = hashlib.sha256(body).hexdigest()
        assert path == f"/lfs/{digest}"
        self.server.blobs[digest] = body
        return self.answer({})

    def post_commit(self, path, body):
        name = path.removeprefix("/api/models/").partition("/commit/")[0]
        files = self.server.repositories[name]
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.blobs[value["oid"]]
                self.server.large.add(value["path"])
        return self.answer({"commitUrl": f"{self.server.endpoint}/{name}/commit/{SHA}", "commitOid": SHA})

    def get_model(self, path, body):
        name = path.removeprefix("/api/models/").partition("/revision/")[0]
        name, tree, _ = name.partition("/tree/")
        if name not in self.server.repositories:
            return self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
        files = self.server.repositories[name]
        if tree:
            return self.answer(
                [{"type": "file", "path": file, "size": len(data), "oid": blob(data)} for file, data in files.items()]
            )
        siblings = [{"rfilename": file, "size": len(data), "blobId": blob(data)} for file, data in files.items()]
        return self.answer({"id": name, "modelId": name, "sha": SHA, "private": False, "tags": [], "siblings": siblings})

    def get_file(self, path, body):
        name, _, rest = path[1:].partition("/resolve/")
        file = rest.partition("/")[2]
        data = self.server.repositories.get(name, {}).get(file)
        if data is None:
            return self.answer({"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound")
        return self.answer(data, ETag=f'"{blob(data)}"', X_Repo_Commit=SHA)


def blob(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def kind(path):
    """What a path asks for."""
    kinds = {"/api/repos/create": "create", "/api/validate-yaml": "yaml"}
    parts = {"/preupload/": "preupload", "/info/lfs/objects/batch": "batch", "/commit/": "commit", "/resolve/": "file"}
    return kinds.get(path) or next(
        (name for part, name in parts.items() if part in path), "lfs" if path.startswith("/lfs/") else "model"
    )
