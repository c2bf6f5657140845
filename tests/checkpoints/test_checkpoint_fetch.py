"""Addresses become files in the cache, once and only over https; no test leaves the loopback."""

import contextlib
import hashlib
import http.server
import io
import shutil
import ssl
import subprocess
import threading
import urllib.error
import urllib.request
from email.message import Message

import pytest
import torch

from ifr.checkpoints import fetch, load_weights, resolve
from ifr.errors import CheckpointError

URL = "https://example.org/models/weights.pth"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("IFR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def web(monkeypatch):
    """A fake web: maps addresses to (body, announced length) and records the requested addresses."""

    class Web(dict):
        asked: list[str] = []  # noqa: RUF012

        def open(self, opener, request, data=None, timeout=None):
            self.asked.append(request.full_url)
            if request.full_url not in self:
                raise urllib.error.URLError("Name or service not known")
            body, length = self[request.full_url]
            response = io.BytesIO(body)
            response.headers = Message()
            if length is not None:
                response.headers["Content-Length"] = str(length)
            return response

    web = Web()
    web.asked = []
    monkeypatch.setattr(urllib.request.OpenerDirector, "open", lambda *args, **kwargs: web.open(*args, **kwargs))
    return web


def test_local_paths_stay(tmp_path, web):
    assert resolve(tmp_path / "a.pth") == tmp_path / "a.pth"
    assert resolve("a.pth").name == "a.pth"
    assert web.asked == []


def test_fetched_once(cache, web):
    web[URL] = (b"weights", 7)
    assert resolve(URL) == resolve(URL) == cache / "example.org/models/weights.pth"
    assert (cache / "example.org/models/weights.pth").read_bytes() == b"weights"
    assert web.asked == [URL]


def test_ports_keep_apart(cache, web):
    for port in (443, 8443):
        web[f"https://example.org:{port}/a.pth"] = (str(port).encode(), None)
        assert resolve(f"https://example.org:{port}/a.pth").read_bytes() == str(port).encode()


def test_detectron2_addresses(cache, web):
    address = "https://dl.fbaipublicfiles.com/detectron2/ImageNetPretrained/MSRA/R-50.pkl"
    web[address] = (b"weights", None)
    resolve("detectron2://ImageNetPretrained/MSRA/R-50.pkl")
    assert web.asked == [address]


def test_a_file_put_into_the_cache_by_hand_serves(cache, web):
    target = cache / "dl.fbaipublicfiles.com/detectron2/ImageNetPretrained/MSRA/R-50.pkl"
    target.parent.mkdir(parents=True)
    target.write_bytes(b"by hand")
    assert resolve("detectron2://ImageNetPretrained/MSRA/R-50.pkl") == target
    assert web.asked == []


def test_without_network_the_error_says_where_to_put_the_file(cache, web):
    with pytest.raises(CheckpointError, match="put it at") as caught:
        resolve("detectron2://ImageNetPretrained/MSRA/R-50.pkl")
    assert str(cache / "dl.fbaipublicfiles.com/detectron2/ImageNetPretrained/MSRA/R-50.pkl") in str(caught.value)
    assert "IFR_CACHE" in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        ((b"half", 8), "4 of 8 bytes"),
        ((b"tiny", 2**50), "more than"),
        ((b"x" * 200, None), "longer than"),
    ],
)
def test_wrong_sizes_leave_nothing(cache, web, monkeypatch, answer, cause):
    monkeypatch.setattr(fetch, "_MAX_BYTES", 100)
    web[URL] = answer
    with pytest.raises(CheckpointError, match=cause):
        resolve(URL)
    assert not [path for path in cache.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    "address",
    [
        "http://example.org/a.pth",
        "file:///etc/passwd",
        "s3://bucket/a.pth",
        "https://example.org",
        "https://example.org/../../a.pth",
        "https://example.org/%2e%2e/a.pth",
        "https://example.org/a%2fb.pth",
        "https://user@example.org/a.pth",
        "https://example.org/a.pth?version=2",
        "https://example.org:99999/a.pth",
    ],
)
def test_other_addresses_are_refused(web, address):
    with pytest.raises(CheckpointError, match="address"):
        resolve(address)
    assert web.asked == []


def test_names_with_a_hash_are_checked(cache, web):
    body = b"resnet"
    digest = hashlib.sha256(body).hexdigest()
    good, bad = (f"https://download.pytorch.org/models/resnet50-{part}.pth" for part in (digest[:8], "0" * 8))
    web.update({good: (body, 6), bad: (body, 6)})
    assert resolve(good).read_bytes() == body
    with pytest.raises(CheckpointError, match="SHA-256"):
        resolve(bad)
    resolve(good).write_bytes(b"changed later")
    with pytest.raises(CheckpointError, match="SHA-256"):
        resolve(good)


def test_the_hash_is_noted_logged_and_checked_at_every_use(cache, web, caplog):
    caplog.set_level("INFO")
    web[URL] = (b"weights", 7)
    file = resolve(URL)
    digest = hashlib.sha256(b"weights").hexdigest()
    assert file.with_name("weights.pth.sha256").read_text() == f"{digest}  weights.pth\n"
    assert f"7 bytes, SHA-256 {digest}" in caplog.text
    file.write_bytes(b"weighty")
    with pytest.raises(CheckpointError, match=r"should begin with .*; delete it and weights\.pth\.sha256 to fetch"):
        resolve(URL)


def test_an_address_can_demand_a_hash(cache, web):
    web[URL] = (b"weights", 7)
    digest = hashlib.sha256(b"weights").hexdigest()
    with pytest.raises(CheckpointError, match="should begin with 0000"):
        resolve(f"{URL}#sha256={'0' * 64}")
    assert not [path for path in cache.rglob("*") if path.is_file()]
    assert resolve(f"{URL}#sha256={digest.upper()}").read_bytes() == b"weights"
    with pytest.raises(CheckpointError, match="should begin with 0000"):  # a file already in the cache is checked too
        resolve(f"{URL}#sha256={'0' * 64}")
    for wrong in ("sha256=12", "md5=" + digest, "sha256"):
        with pytest.raises(CheckpointError, match="#sha256="):
            resolve(f"{URL}#{wrong}")


def test_a_file_has_its_name_only_when_it_is_whole(cache, web, monkeypatch):
    seen = []

    class Slow(io.BytesIO):
        def read(self, size=-1):
            seen.append([path.name for path in cache.rglob("*") if path.is_file()])
            return super().read(3)

    web[URL] = (b"weights", 7)
    monkeypatch.setattr(io, "BytesIO", Slow)
    file = resolve(URL)
    assert len(seen) == 4
    assert all(len(names) == 1 and names[0].startswith(".weights.pth.") for names in seen)
    assert sorted(path.name for path in cache.rglob("*") if path.is_file()) == [file.name, f"{file.name}.sha256"]


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/elsewhere.pth":
            self.send_response(302)
            self.send_header("Location", "http://localhost:9/weights.pth")
            self.end_headers()
            return
        if self.path == "/circle.pth":
            self.send_response(302)
            self.send_header("Location", "/circle.pth")
            self.end_headers()
            return
        if self.path in ("/endless.pth", "/cut.pth"):
            self.send_response(200)
            if self.path == "/cut.pth":
                self.send_header("Content-Length", "5000")
            self.end_headers()
            with contextlib.suppress(OSError):  # the reader hangs up
                for _ in range(1 if self.path == "/cut.pth" else 1000):
                    self.wfile.write(b"x" * 1000)
            return
        known = self.path == "/weights.pth"
        body = self.server.body if known else b""
        self.send_response(200 if known else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """An https server on the loopback with a self-signed certificate that the client trusts; yields its address."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate of the test server, and is not installed")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate]
    subprocess.run([*command, "-days", "2", *subject], check=True, capture_output=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = http.server.HTTPServer(("localhost", 0), _Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    buffer = io.BytesIO()
    torch.save({"model": {"weight": torch.ones(2, 2), "bias": torch.ones(2)}}, buffer)
    server.body = buffer.getvalue()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"https://localhost:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def plain_server():
    """The port of an http server on the loopback."""
    server = http.server.HTTPServer(("localhost", 0), _Handler)
    server.body = b"plain"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_port
    server.shutdown()
    server.server_close()
    thread.join()


def test_over_tls(server, plain_server, cache, monkeypatch):
    model = torch.nn.Linear(2, 2)
    load_weights(model, f"{server}/weights.pth")
    assert model.weight.eq(1).all()
    with pytest.raises(CheckpointError, match="404"):
        resolve(f"{server}/absent.pth")
    with pytest.raises(CheckpointError, match="not https"):
        resolve(f"{server}/elsewhere.pth")
    with pytest.raises(CheckpointError, match="redirect"):
        resolve(f"{server}/circle.pth")
    with pytest.raises(CheckpointError, match="1000 of 5000 bytes"):
        resolve(f"{server}/cut.pth")
    monkeypatch.setattr(fetch, "_MAX_BYTES", 100_000)
    with pytest.raises(CheckpointError, match="longer than the 100000 bytes"):
        resolve(f"{server}/endless.pth")
    with pytest.raises(CheckpointError, match="cannot be fetched"):  # a server that speaks no TLS
        resolve(f"https://localhost:{plain_server}/weights.pth")
    names = {path.name for path in cache.rglob("*") if path.is_file()}
    assert names == {"weights.pth", "weights.pth.sha256"}
    shutil.rmtree(cache)
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(CheckpointError, match="CERTIFICATE_VERIFY_FAILED"):
        resolve(f"{server}/weights.pth")
