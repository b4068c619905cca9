"""A file on the Hub that is read in parts: HTTP range requests, whose answers are checked and cached."""

import io
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath
from typing import IO, Any, cast

from .hub_errors import explained, require_online
from .range_cache import RangeCache

READ_AHEAD_BYTES = 8 << 10
"""Bytes fetched at once where a table of contents is read, because its parts are close together."""

TAIL_BYTES = 16 << 10
"""Bytes fetched at once near the end of the file, where a zip archive has its table of contents."""

GAP_BYTES = 16 << 10
"""Ranges with a smaller gap are fetched together, because a request takes longer than reading the gap."""

JOINED_BYTES = 4 << 20
"""Largest total size of ranges that are fetched together."""

REQUEST_BYTES = 16 << 20
"""Largest size of one request."""

NUM_CONNECTIONS = 8

NUM_ATTEMPTS = 4


class NeedsWholeFile(ValueError):
    """The file cannot be read in parts and has to be downloaded. The message says why."""


class RemoteFile:
    """
    A file of one commit on the Hub, with the size and SHA-256 that the Hub states, and a cache of the parts that were
    fetched before.
    """

    def __init__(self, repository: str, commit: str, file: str, size: int, sha256: str, cache: RangeCache):
        self.repository, self.commit, self.file = repository, commit, file
        self.size, self.sha256, self.cache = size, sha256, cache

    def __str__(self) -> str:
        return f"{self.repository}/{self.file} (revision {self.commit[:12]})"

    @property
    def name(self) -> str:
        return PurePosixPath(self.file).name

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.file).suffix

    def open(self, mode: str = "rb", buffering: int = -1) -> IO[bytes]:
        """A reader, as `pathlib.Path.open` returns it; with `buffering=0` it fetches exactly the requested bytes."""
        return cast(IO[bytes], RemoteReader(self, ahead=buffering != 0))

    def prefetch(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Fetch the ranges `(start, end)` that are not cached; close ranges are fetched together."""
        missing = [(start, end) for start, end in sorted(ranges) if not self.cache.covers(start, end)]
        if not missing:
            return
        runs = _joined(missing)
        with ThreadPoolExecutor(NUM_CONNECTIONS) as threads:
            for first in range(0, len(runs), NUM_CONNECTIONS):  # memory holds at most one run per connection
                for start, content in threads.map(self._fetched, runs[first : first + NUM_CONNECTIONS]):
                    self.cache.write(start, content)

    def read(self, start: int, end: int, *, up_to: tuple[int, int] | None = None) -> bytes:
        """The bytes from `start` to before `end`. If they are not cached, the range `up_to` is fetched and cached."""
        if (content := self.cache.read(start, end)) is None:
            first, last = up_to or (start, end)
            _, fetched = self._fetched((first, last))
            self.cache.write(first, fetched)
            content = fetched[start - first : end - first]
        return content

    def _fetched(self, wanted: tuple[int, int]) -> tuple[int, bytes]:
        content = bytearray(wanted[1] - wanted[0])
        self.fetch_into(memoryview(content), wanted[0])
        return wanted[0], bytes(content)

    def fetch_into(self, view: memoryview, start: int) -> None:
        """Fetch bytes from `start` on until `view` is full; they are not cached."""
        from huggingface_hub.errors import HfHubHTTPError, HTTPError

        require_online(f"the bytes {start} to {start + len(view) - 1} of {self} were not read before")
        with explained(self.repository, f"{self} cannot be read"):
            for attempt in range(NUM_ATTEMPTS):
                try:
                    return self._request(view, start)
                except HTTPError as error:
                    if isinstance(error, HfHubHTTPError) or attempt == NUM_ATTEMPTS - 1:
                        raise
                    time.sleep(2**attempt)  # the connection broke

    def _request(self, view: memoryview, start: int) -> None:
        from huggingface_hub import constants, hf_hub_url
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_stream_backoff

        last = start + len(view) - 1
        url = hf_hub_url(self.repository, self.file, revision=self.commit)
        headers = build_hf_headers(library_name="sae_posttrain")
        headers |= {"Range": f"bytes={start}-{last}", "Accept-Encoding": "identity"}
        # The caller retries broken connections: `http_stream_backoff` does not retry in the middle of a body.
        with http_stream_backoff(
            "GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT, retry_on_exceptions=()
        ) as response:
            hf_raise_for_status(response)
            if response.status_code != 206 or response.headers.get("Content-Encoding", "identity") != "identity":
                raise NeedsWholeFile(
                    f"The server of {self} does not send parts of files. Download the whole file: `hf download "
                    f"{self.repository} {self.file} --revision {self.commit}`."
                )
            asked, said = f"bytes {start}-{last}/{self.size}", response.headers.get("Content-Range", "")
            if said != asked:
                raise self._lies(f"the range {said[:100]!r} instead of {asked!r}")
            for etag in _linked_etags(response):
                if etag != self.sha256:
                    raise self._lies(f"content of SHA-256 {etag} instead of {self.sha256}")
            done = 0
            for chunk in response.iter_raw():
                if done + len(chunk) > len(view):
                    raise self._lies("more bytes than were asked for")
                view[done : done + len(chunk)] = chunk
                done += len(chunk)
        if done < len(view):
            raise self._lies(f"{done} bytes instead of {len(view)}")

    def _lies(self, what: str) -> ValueError:
        return ValueError(
            f"The server sent {what} for {self}: the file has changed, or a proxy or connection is faulty. "
            f"Try again, or download the whole file: `hf download {self.repository} {self.file}`."
        )


class RemoteReader(io.RawIOBase):
    """A seekable reader of a [`RemoteFile`]; `ahead`: a read fetches a little more than was requested."""

    def __init__(self, file: RemoteFile, *, ahead: bool):
        self._file, self._ahead, self._position = file, ahead, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._file.size}[whence]
        if position < 0:
            raise OSError(f"Cannot seek before the beginning of {self._file}.")
        self._position = position
        return position

    def readinto(self, buffer: Any) -> int:
        size = self._file.size
        start = min(self._position, size)
        end = min(start + min(len(buffer), REQUEST_BYTES), size)
        if start == end:
            return 0
        fetched = (start, end)
        if self._ahead:
            first = min(start, max(0, size - TAIL_BYTES)) if end > size - TAIL_BYTES else start
            fetched = (first, min(max(end, start + READ_AHEAD_BYTES), size) if first == start else size)
        buffer[: end - start] = self._file.read(start, end, up_to=fetched)
        self._position = end
        return end - start


def _joined(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Sorted ranges; ranges with small gaps are joined as long as the result has at most `JOINED_BYTES`."""
    joined: list[tuple[int, int]] = []
    for start, end in ranges:
        if joined and start - joined[-1][1] < GAP_BYTES and end - joined[-1][0] <= JOINED_BYTES:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined


def _linked_etags(response: Any) -> list[str]:
    """SHA-256 of the content, which the Hub states in the answer that redirects to the content."""
    said = [answer.headers.get("X-Linked-Etag", "") for answer in (*response.history, response)]
    return [etag.removeprefix("W/").strip('"') for etag in said if etag]
