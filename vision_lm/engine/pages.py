"""Which pages of the key-value cache are whose: handed out, shared by prefix, evicted least recently used first.

A page holds PAGE tokens of one sequence, and many sequences may read it: the keys and values of a token depend
on nothing but the tokens before it, so pages whose whole history is the same are the same page. A full page is
therefore sealed under the hash of everything up to its end (the idea of vLLM's prefix cache), and stays when
nobody uses it any more until its room is needed.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import OrderedDict
from collections.abc import Iterable, Sequence

PAGE = 16  # tokens


class Pages:
    """`count` pages, each free, in use by one or more sequences, or idle: sealed, unused, and kept for a later hit."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._free = list(range(count))  # a heap: low numbers first, so that little memory is ever touched
        self._users = [0] * count
        self._seals: list[bytes | None] = [None] * count
        self._sealed: dict[bytes, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()  # the one to evict first stands first

    @property
    def available(self) -> int:
        """How many pages can be taken now."""
        return len(self._free) + len(self._idle)

    @property
    def used(self) -> int:
        """How many pages some sequence holds."""
        return self.count - self.available

    def take(self, count: int) -> list[int] | None:
        """So many pages to write to, or None and nothing taken if there are fewer."""
        if count > self.available:
            return None
        while len(self._free) < count:
            page, _ = self._idle.popitem(last=False)
            self._forget(page)
            heapq.heappush(self._free, page)
        taken = [heapq.heappop(self._free) for _ in range(count)]
        for page in taken:
            self._users[page] = 1
        return taken

    def find(self, seals: Iterable[bytes]) -> list[int]:
        """The pages sealed under the first of these hashes, up to the first that is not here; one more user each."""
        found = []
        for seal in seals:
            page = self._sealed.get(seal)
            if page is None:
                break
            self._users[page] += 1
            self._idle.pop(page, None)
            found.append(page)
        return found

    def seal(self, page: int, seal: bytes) -> None:
        """This page is full, and this is the hash of all that it and the pages before it hold."""
        if seal not in self._sealed:  # else the same tokens were computed twice at once: one copy is enough
            self._sealed[seal] = page
            self._seals[page] = seal

    def release(self, pages: Sequence[int]) -> None:
        """One user fewer for each. The last pages of a sequence are the first to be evicted."""
        for page in reversed(pages):
            self._users[page] -= 1
            if self._users[page] == 0:
                if self._seals[page] is None:
                    heapq.heappush(self._free, page)
                else:
                    self._idle[page] = None

    def _forget(self, page: int) -> None:
        seal = self._seals[page]
        if seal is not None:
            del self._sealed[seal]
            self._seals[page] = None


def pages_for(tokens: int) -> int:
    """How many pages so many tokens fill."""
    return -(-tokens // PAGE)


def seals(contents: Sequence[bytes], first: int = 0, before: bytes = b"") -> list[bytes]:
    """The hash of each full page of a sequence from page `first` on, whose predecessor's hash is `before`.

    `contents`: one byte string a token, none the beginning of another.
    """
    result = []
    for end in range((first + 1) * PAGE, len(contents) + 1, PAGE):
        digest = hashlib.blake2b(before, digest_size=16)
        digest.update(b"".join(contents[end - PAGE : end]))
        before = digest.digest()
        result.append(before)
    return result
