"""Downloads that go on where they broke off: one file, or all pages of a query.

A busy server is asked again. A `.sha256` stays beside each file: the next download of the same name must give the same
bytes.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from tqdm import tqdm

from crystallm.data.shards import write_atomically

MAX_PAGE_BYTES = 500_000_000
MAX_WAIT_S = 300.0
BUSY = (408, 425, 429, 500, 502, 503, 504)  # worth another try

Row = dict[str, Any]


class DownloadError(RuntimeError):
    """Says which URL, what came, and what was wanted."""


@dataclass(frozen=True)
class Connection:
    """How patiently to ask. The wait doubles with each try; a server's Retry-After is obeyed up to five minutes."""

    headers: Mapping[str, str] = field(default_factory=dict)
    timeout_s: float = 60.0
    attempts: int = 8
    first_wait_s: float = 1.0
    show_progress: bool = True

    def open(self, url: str, headers: Mapping[str, str]) -> http.client.HTTPResponse:
        if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
            raise DownloadError(f"{url}: wanted an http or https address")  # urllib would open file:// too
        request = urllib.request.Request(url, headers={"User-Agent": "crystallm", **self.headers, **headers})
        response: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=self.timeout_s)
        return response

    def persist(self, url: str, attempt: Callable[[], Any]) -> Any:
        """`attempt()` until it succeeds, or fails in a way that waiting does not mend."""
        for number in range(self.attempts):
            wait = min(MAX_WAIT_S, self.first_wait_s * 2**number)
            try:
                return attempt()
            except urllib.error.HTTPError as err:
                with err:
                    if err.code not in BUSY:
                        hint = "; is the API key right?" if err.code in (401, 403) else ""
                        raise DownloadError(f"{url}: {err.code} {err.reason}{hint}") from err
                    problem = f"{err.code} {err.reason}"
                    wait = min(MAX_WAIT_S, _retry_after(err.headers.get("Retry-After")) or wait)
            except (OSError, http.client.HTTPException, _Truncated) as err:  # URLError and timeouts are OSErrors
                problem = f"{type(err).__name__}: {err}"
            if number + 1 < self.attempts:
                time.sleep(wait)
        raise DownloadError(f"{url}: given up after {self.attempts} attempts; the last ended with {problem}")


class _Truncated(Exception):
    pass


def _retry_after(value: str | None) -> float | None:
    """Seconds, from a number or a date."""
    if not value:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):
        return None


# ------------------------------------------------------------------ one file


def download(url: str, path: Path | str, sha256: str | None = None, connection: Connection | None = None) -> Path:
    """The file at `url`, checked. `sha256` where its publisher states one; else that of the first download counts."""
    path, connection = Path(path), connection or Connection()
    path.parent.mkdir(parents=True, exist_ok=True)
    expected = sha256.lower() if sha256 else _recorded_sha256(path)
    if not path.exists():
        part = path.with_name(path.name + ".part")
        connection.persist(url, lambda: _fetch_rest(url, part, connection))
        found = _sha256(part)
        if expected and found != expected:
            part.unlink()
            raise DownloadError(f"{url}: sha256 is {found}, wanted {expected}: the file differs from the one recorded")
        part.replace(path)
        Path(f"{part}.state").unlink(missing_ok=True)
    _check_and_record(path, expected)
    return path


def _fetch_rest(url: str, part: Path, connection: Connection) -> None:
    """Appends what is missing of a partial file, if the server still has the same one; else begins anew."""
    state_file = Path(f"{part}.state")
    state = _read_json(state_file)
    have = part.stat().st_size if part.exists() and state.get("url") == url and state.get("tag") else 0
    ask = {"Range": f"bytes={have}-", "If-Range": state["tag"]} if have else {}
    try:
        response = connection.open(url, ask)
    except urllib.error.HTTPError as err:
        if err.code == 416:  # nothing left to send, or not the file it was: the size decides
            if have and have == state.get("size"):
                return
            part.unlink(missing_ok=True)
            raise _Truncated("the server's file has changed") from err
        raise
    with response:
        if response.status != 206 or not str(response.headers.get("Content-Range", "")).startswith(f"bytes {have}-"):
            have = 0
        length = response.headers.get("Content-Length")
        size = have + int(length) if length else None
        etag = response.headers.get("ETag", "W/")
        tag = response.headers.get("Last-Modified") if etag.startswith("W/") else etag  # weak: perhaps other bytes
        write_atomically(state_file, json.dumps({"url": url, "tag": tag, "size": size}).encode())
        bar = tqdm(
            desc=part.stem, total=size, initial=have, unit="B", unit_scale=True, disable=not connection.show_progress
        )
        with part.open("ab" if have else "wb") as file, bar:
            while block := response.read(1 << 18):
                file.write(block)
                have += len(block)
                bar.update(len(block))
    if size is not None and have != size:
        raise _Truncated(f"the reply ended after {have:,} of {size:,} bytes")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _recorded_sha256(path: Path) -> str | None:
    record = Path(f"{path}.sha256")
    return record.read_text().split()[0] if record.exists() else None


def _check_and_record(path: Path, expected: str | None) -> None:
    found = _sha256(path)
    if expected and found != expected:
        raise DownloadError(f"{path}: sha256 is {found}, wanted {expected}: delete the file to download it again")
    write_atomically(Path(f"{path}.sha256"), f"{found}  {path.name}\n".encode())


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
        return content
    except (OSError, ValueError):
        return {}


# ------------------------------------------------------------------ paged queries


def download_pages(
    first_url: str,
    path: Path,
    read_page: Callable[[str, Row], tuple[list[Row], str | None, int | None]],
    connection: Connection,
) -> Path:
    """Rows of all pages as JSON lines. `read_page(url, reply)` gives the rows, the next page and the expected total.

    The place reached is noted after each page, so a killed download goes on from the page it was at.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part, state_file = path.with_name(path.name + ".part"), path.with_name(path.name + ".part.state")
    if path.exists():
        _check_and_record(path, _recorded_sha256(path))
        return path
    state = _read_json(state_file)
    if state.get("first") != first_url or not part.exists():
        state = {"first": first_url, "next": first_url, "bytes": 0, "rows": 0}
    with part.open("r+b" if part.exists() else "w+b") as file:
        file.truncate(state["bytes"])
        file.seek(state["bytes"])
        bar = tqdm(desc=path.name, initial=state["rows"], unit=" rows", disable=not connection.show_progress)
        with bar:
            while (url := state["next"]) is not None:
                rows, following, bar.total = read_page(url, _fetch_json(url, connection))
                if following == url:
                    raise DownloadError(f"{url}: names itself as the next page")
                file.write(b"".join(json.dumps(row).encode() + b"\n" for row in rows))
                file.flush()
                os.fsync(file.fileno())
                state |= {"next": following, "bytes": file.tell(), "rows": state["rows"] + len(rows)}
                write_atomically(state_file, json.dumps(state).encode())
                bar.update(len(rows))
    part.replace(path)
    state_file.unlink()
    _check_and_record(path, None)
    return path


def _fetch_json(url: str, connection: Connection) -> Row:
    def attempt() -> Row:
        with connection.open(url, {"Accept": "application/json"}) as response:
            data = response.read(MAX_PAGE_BYTES + 1)
            if len(data) > MAX_PAGE_BYTES:
                raise DownloadError(f"{url}: a page of more than {MAX_PAGE_BYTES:,} bytes")
            length = response.headers.get("Content-Length")
        if length and len(data) != int(length):
            raise _Truncated(f"the reply ended after {len(data):,} of {int(length):,} bytes")
        try:
            reply = json.loads(data)
        except ValueError as err:
            raise _Truncated(f"no JSON: {err}") from err
        if not isinstance(reply, dict) or not isinstance(reply.get("data"), list):
            raise DownloadError(f'{url}: wanted an object with a list "data", got {data[:200]!r}')
        return reply

    page: Row = connection.persist(url, attempt)
    return page
