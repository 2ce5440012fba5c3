"""A Hub on loopback: what `huggingface_hub` needs to create, fill and read repositories, over HTTP.

Git is left out: a commit is a name for a set of files. Files that the Hub would keep outside git are uploaded by LFS,
and downloaded through a redirect, as from a content delivery network.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml


@dataclass(frozen=True)
class File:
    content: bytes
    lfs: bool

    @property
    def git_id(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()


@dataclass
class Repository:
    """Files by commit, commits by branch, and who may see them."""

    owner: str
    private: bool = False
    gated: bool = False
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, File]] = field(default_factory=dict)
    variables: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        self.commit("main", {})

    def commit(self, branch: str, files: dict[str, File]) -> str:
        seed = f"{len(self.commits)} {sorted((path, file.git_id) for path, file in files.items())}"
        sha = hashlib.sha1(seed.encode()).hexdigest()
        self.commits[sha] = files
        self.branches[branch] = sha
        return sha


class Refusal(Exception):
    """A status other than success, with the headers by which the client tells errors apart."""

    def __init__(self, status: int, code: str = "", message: str = ""):
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class LoopbackHub:
    """The server, which runs from the start, and all that it keeps.

    Args:
        users: Names of users by their tokens. Every token may write to its user's repositories.
    """

    def __init__(self, users: dict[str, str]):
        self.users = users
        self.port = 0
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.not_understood: list[str] = []
        self.ranges: list[str] = []
        self.break_downloads_after: int | None = None
        self.start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self):
        self.server = ThreadingHTTPServer(("127.0.0.1", self.port), partial(Handler, self))
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()

    @contextmanager
    def unplugged(self) -> Iterator[None]:
        """Nothing listens on the port meanwhile."""
        self.stop()
        try:
            yield
        finally:
            self.start()


REPOSITORY = r"(?:(?P<type>models|spaces|datasets)/)?(?P<name>[\w.-]+/[\w.-]+)"
ROUTES = [
    ("POST", r"/api/repos/create", "create"),
    ("POST", r"/api/validate-yaml", "validate_card"),
    ("GET", r"/api/whoami-v2", "whoami"),
    ("GET", r"/api/agent-harnesses", "list_harnesses"),
    ("POST", rf"/api/{REPOSITORY}/preupload/(?P<revision>[^/]+)", "preupload"),
    ("POST", rf"/api/{REPOSITORY}/commit/(?P<revision>[^/]+)", "commit"),
    ("POST", rf"/api/{REPOSITORY}/variables", "set_variable"),
    ("GET", rf"/api/{REPOSITORY}/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?", "tree"),
    ("GET", rf"/api/{REPOSITORY}(?:/revision/(?P<revision>[^/]+))?", "info"),
    ("POST", rf"/{REPOSITORY}\.git/info/lfs/objects/batch", "lfs_batch"),
    ("PUT", r"/lfs/(?P<oid>\w+)", "lfs_upload"),
    ("POST", r"/lfs/(?P<oid>\w+)", "lfs_verify"),
    ("GET", r"/cdn/(?P<oid>\w+)", "download"),
    ("GET", rf"/{REPOSITORY}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
]


class Handler(BaseHTTPRequestHandler):
    """Answers one request, on a connection of its own, so that nothing is left open when the server stops."""

    def __init__(self, hub: LoopbackHub, *args):
        self.hub = hub
        super().__init__(*args)

    def handle_request(self):
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.hub.requests.append(f"{self.command} {self.path}")
        method = "GET" if self.command == "HEAD" else self.command
        for route_method, pattern, name in ROUTES:
            match = re.fullmatch(pattern, url.path)
            if route_method == method and match:
                arguments = {key: unquote(value) for key, value in match.groupdict().items() if value is not None}
                try:
                    return getattr(self, name)(**arguments)
                except Refusal as refusal:
                    headers = {"X-Error-Code": refusal.code, "X-Error-Message": refusal.message}
                    return self.answer(refusal.status, {"error": refusal.message}, headers)
        self.hub.not_understood.append(f"{self.command} {self.path}")
        self.answer(404, {"error": "no such page"})

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def log_message(self, *_):
        """Tests read `requests` instead."""

    def answer(self, status: int, body: Any = None, headers: dict[str, str] | None = None):
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    # Who asks, and for what

    @property
    def user(self) -> str | None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in self.hub.users:
            raise Refusal(401, message="Invalid credentials in Authorization header")
        return self.hub.users.get(token)

    def find(self, kind: str, name: str, write: bool = False) -> Repository:
        """The repository, if the one who asks may see it, or write to it."""
        user = self.user
        repository = self.hub.repositories.get(f"{kind}/{name}")
        if repository is None or (repository.private and user != repository.owner):
            raise Refusal(404 if user else 401, "RepoNotFound", "Repository not found")
        if write and user != repository.owner:
            raise Refusal(403, message="You have no write access to this repository")
        return repository

    def find_commit(self, repository: Repository, revision: str) -> str:
        sha = repository.branches.get(revision, revision)
        if sha not in repository.commits:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return sha

    def address(self, kind: str, name: str) -> str:
        return f"{self.hub.endpoint}/{'' if kind == 'models' else kind + '/'}{name}"

    # Writing

    def create(self):
        request = json.loads(self.body)
        kind, user = request.get("type", "model") + "s", self.user
        name = f"{request.get('organization') or user}/{request['name']}"
        if user is None:
            raise Refusal(401, message="Invalid username or password.")
        if name.partition("/")[0] != user:
            raise Refusal(403, message=f"You may not create repositories of {name.partition('/')[0]}")
        private = request.get("visibility") == "private" or request.get("private") is True
        known = f"{kind}/{name}" in self.hub.repositories
        self.hub.repositories.setdefault(f"{kind}/{name}", Repository(user, private))
        url = self.address(kind, name)
        self.answer(409 if known else 200, {"url": url})

    def whoami(self):
        if self.user is None:
            raise Refusal(401, message="Invalid username or password.")
        self.answer(200, {"type": "user", "name": self.user, "orgs": []})

    def list_harnesses(self):
        """The `hf` command asks by which programs it may have been called."""
        self.answer(200, {"standardEnvVars": [], "harnesses": {}})

    def validate_card(self):
        card = json.loads(self.body)
        errors = check_card(card["content"], card["repoType"])
        self.answer(400 if errors else 200, {"errors": [{"message": error} for error in errors], "warnings": []})

    def preupload(self, name: str, revision: str, type: str):
        repository = self.find(type, name, write="create_pr" not in self.query)
        present = repository.commits[self.find_commit(repository, revision)]
        files = []
        for entry in json.loads(self.body)["files"]:
            binary = b"\0" in base64.b64decode(entry["sample"])
            mode = "lfs" if binary or entry["path"].endswith(".safetensors") else "regular"
            known = present.get(entry["path"])
            oid = known and (known.sha256 if known.lfs else known.git_id)
            files.append({"path": entry["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.answer(200, {"files": files})

    def lfs_batch(self, name: str, type: str = "models"):
        self.find(type, name)
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            link = {"href": f"{self.hub.endpoint}/lfs/{wanted['oid']}"}
            known = wanted["oid"] in self.hub.objects
            objects.append(wanted if known else {**wanted, "actions": {"upload": link, "verify": link}})
        self.answer(200, {"transfer": "basic", "objects": objects})

    def lfs_upload(self, oid: str):
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refusal(400, message="The content is not what was announced")
        self.hub.objects[oid] = self.body
        self.answer(200, {})

    def lfs_verify(self, oid: str):
        if oid not in self.hub.objects:
            raise Refusal(404, "EntryNotFound", "The object has not arrived")
        self.answer(200, {})

    def commit(self, name: str, revision: str, type: str):
        pull_request = "create_pr" in self.query
        repository = self.find(type, name, write=not pull_request)
        files = dict(repository.commits[self.find_commit(repository, revision)])
        for line in self.body.splitlines():
            operation = json.loads(line)
            key, value = operation["key"], operation["value"]
            if key == "file":
                files[value["path"]] = File(base64.b64decode(value["content"]), lfs=False)
            elif key == "lfsFile":
                files[value["path"]] = File(self.hub.objects[value["oid"]], lfs=True)
            elif key == "deletedFile":
                del files[value["path"]]
        branch = f"refs/pr/{len(repository.branches)}" if pull_request else revision
        sha = repository.commit(branch, files)
        url = self.address(type, name)
        number = branch.rpartition("/")[2]
        request_url = f"{url}/discussions/{number}" if pull_request else None
        self.answer(200, {"commitUrl": f"{url}/commit/{sha}", "commitOid": sha, "pullRequestUrl": request_url})

    def set_variable(self, name: str, type: str):
        variable = json.loads(self.body)
        variables = self.find(type, name, write=True).variables
        variables[variable["key"]] = {"key": variable["key"], "value": variable["value"]}
        self.answer(200, variables)

    # Reading

    def info(self, name: str, type: str, revision: str = "main"):
        repository = self.find(type, name)
        sha = self.find_commit(repository, revision)
        siblings = [{"rfilename": path} for path in repository.commits[sha]]
        private, gated = repository.private, repository.gated and "manual"
        self.answer(200, {"id": name, "sha": sha, "private": private, "gated": gated, "siblings": siblings})

    def tree(self, name: str, revision: str, type: str, path: str = ""):
        repository = self.find(type, name)
        files = repository.commits[self.find_commit(repository, revision)]
        below = {key: file for key, file in files.items() if not path or key.startswith(f"{path}/")}
        if path and not below:
            raise Refusal(404, "EntryNotFound", f"{path} does not exist on {revision}")
        entries = {key: describe(key, file) for key, file in below.items()}
        if self.query.get("recursive") == ["false"]:
            start = len(path) + 1 if path else 0
            folders = {key[: key.index("/", start)] for key in below if "/" in key[start:]}
            entries = {key: entry for key, entry in entries.items() if "/" not in key[start:]}
            entries |= {folder: {"type": "directory", "path": folder, "oid": folder, "size": 0} for folder in folders}
        self.answer(200, [*entries.values()])

    def resolve(self, name: str, revision: str, path: str, type: str = "models"):
        repository = self.find(type, name)
        if repository.gated and self.user != repository.owner:
            raise Refusal(403 if self.user else 401, "GatedRepo", f"Access to {name} is restricted")
        sha = self.find_commit(repository, revision)
        file = repository.commits[sha].get(path)
        headers = {"X-Repo-Commit": sha}
        if file is None:
            headers |= {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
            return self.answer(404, {}, headers)
        if file.lfs:
            headers |= {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(len(file.content))}
            # A host of another name, as a content delivery network is: the client must not show it the token.
            headers["Location"] = f"http://localhost:{self.hub.port}/cdn/{file.sha256}"
            return self.answer(302, b"", headers)
        self.answer(200, file.content, {**headers, "ETag": f'"{file.git_id}"'})

    def download(self, oid: str):
        if "Authorization" in self.headers:
            raise Refusal(400, message="A token was sent to another host than the Hub")
        content, headers, status = self.hub.objects[oid], {"Accept-Ranges": "bytes"}, 200
        if wanted := self.headers.get("Range"):
            self.hub.ranges.append(wanted)
            start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])
            headers["Content-Range"], status = f"bytes {start}-{len(content) - 1}/{len(content)}", 206
            content = content[start:]
        limit, self.hub.break_downloads_after = self.hub.break_downloads_after, None
        if limit is None or self.command == "HEAD":
            return self.answer(status, content, headers)
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[:limit])


def describe(path: str, file: File) -> dict[str, Any]:
    entry = {"type": "file", "path": path, "size": len(file.content), "oid": file.git_id}
    if file.lfs:
        entry["lfs"] = {"oid": file.sha256, "size": len(file.content), "pointerSize": 130}
    return entry


STRINGS = ["library_name", "pipeline_tag", "sdk", "sdk_version", "app_file", "python_version", "title", "pretty_name"]
LISTS_OF_STRINGS = ["tags", "datasets", "metrics", "models", "task_categories", "size_categories"]
COLORS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
LICENSES = {"apache-2.0", "mit", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "other"}
SIZES = {"n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M"}


def check_card(content: str, kind: str) -> list[str]:
    """What is wrong with the front matter of a card: the Hub's rules on the fields that our cards have.

    Args:
        content: The card.
        kind: `"model"`, `"space"` or `"dataset"`.
    """
    match = re.match(r"---\r?\n(.*?)\r?\n---\r?\n", content, re.DOTALL)
    if match is None:
        return ["there is no front matter"]
    data = yaml.safe_load(match[1])
    results = [result for model in data.get("model-index", []) for result in model["results"]]
    rules = {f'"{key}" must be a string': isinstance(data.get(key, ""), str) for key in STRINGS}
    for key in LISTS_OF_STRINGS:
        values = data.get(key, [])
        correct = isinstance(values, list) and all(isinstance(value, str) for value in values)
        rules[f'"{key}" must be an array of strings'] = correct
    rules |= {
        f'"license" must be one of {sorted(LICENSES)}': data.get("license", "other") in LICENSES,
        "a result needs a task, a dataset and metrics": all({"task", "dataset", "metrics"} <= set(r) for r in results),
        f"colors are {sorted(COLORS)}": {data.get("colorFrom", "red"), data.get("colorTo", "red")} <= COLORS,
        '"short_description" has at most 60 characters': len(data.get("short_description", "")) <= 60,
    }
    if kind == "dataset":
        rules |= check_dataset_fields(data)
    return [rule for rule, kept in rules.items() if not kept]


def check_dataset_fields(data: dict[str, Any]) -> dict[str, bool]:
    """Rules and whether they are kept."""
    languages, configs = data.get("language", []), data.get("configs", [])
    files = [entry for config in configs for entry in config.get("data_files", [{}])]
    return {
        '"size_categories" must be among the Hub\'s': set(data.get("size_categories", [])) <= SIZES,
        '"language" must be codes of two or three letters': all(re.fullmatch("[a-z]{2,3}", x) for x in languages),
        '"configs" need a name': all(isinstance(config.get("config_name"), str) for config in configs),
        '"data_files" need a split and a path': all({"split", "path"} == set(entry) for entry in files),
    }
