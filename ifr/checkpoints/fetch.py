"""Turn the path or web address of a checkpoint into a file on this machine."""

from __future__ import annotations

import hashlib
import http.client
import logging
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from ifr.errors import CheckpointError
from ifr.whole_file import cache_folder, whole_file

logger = logging.getLogger(__name__)
_DETECTRON2 = "https://dl.fbaipublicfiles.com/detectron2/"
_MAX_BYTES = 4 * 2**30
_CHUNK = 2**20
_TIMEOUT_SECONDS = 30
# PyTorch names its weights after the first digits of their SHA-256 (torch.hub.load_state_dict_from_url, check_hash).
_PIN = re.compile(r"^sha256=([0-9a-fA-F]{64})$")
_NAMED_AFTER_SHA256 = re.compile(r"^https://download\.pytorch\.org/.*-([0-9a-f]{8,64})\.pth$")


def resolve(path: str | Path) -> Path:
    """Return the local file for a path or an `https://` or `detectron2://` address, which is fetched once.

    Fetched files are kept in the folder `IFR_CACHE`, by default ~/.cache/ifr; you may also put files there by hand. An
    address may end in `#sha256=` and the 64 digits of its file's hash. The SHA-256 of a fetched file is logged, kept
    beside the file, and checked at every use.

    Raises:
        CheckpointError: the address is not supported, or the file cannot be fetched, is too large or has another hash.
    """
    text = str(path)
    if not re.match(r"^[a-zA-Z][a-zA-Z0-9+.-]*://", text):
        return Path(path).expanduser()
    url, _, pin = re.sub(r"^detectron2://", _DETECTRON2, text).partition("#")
    if not url.startswith("https://"):
        raise CheckpointError(text, "only https:// and detectron2:// addresses are fetched")
    pinned = _PIN.match(pin)
    if pin and not pinned:
        raise CheckpointError(text, "an address may end only in #sha256= and 64 hexadecimal digits")
    named = _NAMED_AFTER_SHA256.match(url)
    expected = [match[1].lower() for match in (pinned, named) if match]
    target = cache_file(url)
    if not target.exists():
        _fetch(url, target, expected)
    else:
        noted = _note(target)
        if expected or noted.is_file():
            _check_hash(url, target, [*expected, noted.read_text()[:64]] if noted.is_file() else expected)
    return target


def cache_file(url: str) -> Path:
    """Return the path of an https address's file in the cache; host and path are folders."""
    try:
        parts = urllib.parse.urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise CheckpointError(url, f"not an address ({error})") from error
    if parts.username or parts.query or not parts.hostname:
        raise CheckpointError(url, "an address with a host and a path was expected, without user or query")
    folders = [urllib.parse.unquote(part) for part in parts.path.split("/") if part]
    if not folders or any(part in (".", "..") or "/" in part or "\\" in part or "\0" in part for part in folders):
        raise CheckpointError(url, "an address that names a file was expected")
    host = parts.hostname if port in (None, 443) else f"{parts.hostname}_{port}"
    return cache_folder().joinpath(host, *folders)


class _HttpsOnly(urllib.request.HTTPRedirectHandler):
    """Follows redirections to https only."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        if not newurl.startswith("https://"):
            raise urllib.error.URLError(f"redirected to {newurl}, which is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _fetch(url: str, target: Path, expected: list[str]) -> None:
    logger.info("fetching %s", url)
    digest = hashlib.sha256()
    try:
        with whole_file(target) as file:
            for chunk in _download(url):
                file.write(chunk)
                digest.update(chunk)
            found = digest.hexdigest()
            _compare(url, "what was fetched", found, expected)
            _note(target).write_text(f"{found}  {target.name}\n")  # first, so that no file lacks its note
        logger.info("fetched %s: %d bytes, SHA-256 %s", target, target.stat().st_size, found)
    except CheckpointError:
        raise
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise CheckpointError(
            url,
            f"cannot be fetched ({error}); get it by other means and put it at {target}, or set MODEL.WEIGHTS to the "
            "path of your copy (the environment variable IFR_CACHE moves the cache)",
        ) from error


def _download(url: str) -> Iterator[bytes]:
    opener = urllib.request.build_opener(_HttpsOnly())
    request = urllib.request.Request(url, headers={"User-Agent": "ifr"})
    with opener.open(request, timeout=_TIMEOUT_SECONDS) as response:
        announced = response.headers.get("Content-Length")
        if announced is not None and int(announced) > _MAX_BYTES:
            raise CheckpointError(url, f"{announced} bytes are more than the {_MAX_BYTES} that a checkpoint may have")
        received = 0
        while chunk := response.read(_CHUNK):
            received += len(chunk)
            if received > _MAX_BYTES:
                raise CheckpointError(url, f"longer than the {_MAX_BYTES} bytes that a checkpoint may have")
            yield chunk
        if announced is not None and received != int(announced):
            raise OSError(f"{received} of {announced} bytes arrived")


def _note(target: Path) -> Path:
    """Return the path of the file that holds the hash of another, in the format of sha256sum."""
    return target.with_name(f"{target.name}.sha256")


def _check_hash(url: str, file: Path, expected: list[str]) -> None:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    remedy = f"; delete it and {_note(file).name} to fetch it again"
    _compare(url, str(file), digest.hexdigest(), expected, remedy)


def _compare(url: str, what: str, found: str, expected: list[str], remedy: str = "") -> None:
    """Check that a SHA-256 begins with all expected digits."""
    for digits in expected:
        if not found.startswith(digits):
            raise CheckpointError(url, f"{what} has SHA-256 {found}, which should begin with {digits}{remedy}")
