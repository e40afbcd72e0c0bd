"""The pages of the KV cache: which are in use, and which are kept because a later prompt may begin with their text.

A page holds the keys and values of `page_size` positions of one sequence, on every node. Knows ids of pages and tokens;
knows nothing of the memory behind them. After vLLM's block pool; where that compares hashes, this compares tokens.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence

_Key = tuple[int | None, bytes]
"""The page before a page, and its own tokens. Bytes, since a tuple of Python's integers takes six times as much memory,
and anybody could choose tokens whose tuples have equal hashes."""


class PagePool:
    """`n_pages` pages: free, in use (by one sequence or, full ones, by several), or cached (indexed, not in use).

    Full pages are indexed by their parent (the page before them) and their own tokens. A page is found only through its
    parent, so tokens are equal from the first position on. Therefore a page must not leave the index before its
    children.

    The page that was given back last is taken first; then one never used, in order of ids, so that memory that is not
    needed is never touched; then the least recently used of the cached ones. Users of a page are users of all pages
    before it and give them back last page first. So a page is always less recently used than its parent, and the index
    loses children first.
    """

    def __init__(self, n_pages: int, page_size: int) -> None:
        self.page_size = page_size
        self.reset(n_pages)

    def reset(self, n_pages: int) -> None:
        """Begin again with `n_pages` free pages and nothing cached. No page may be in use."""
        self.n_pages = n_pages
        self._indexed: dict[_Key, int] = {}
        self._keys: dict[int, _Key] = {}  # of the indexed pages
        self._users: list[int] = []  # of the pages that have been used, which are 0, 1, 2, ...
        self._free: list[int] = []  # those of them that are free
        self._cached: OrderedDict[int, None] = OrderedDict()  # least recently used first

    @property
    def n_available(self) -> int:
        """Pages that can be taken."""
        return self.n_pages - len(self._users) + len(self._free) + len(self._cached)

    @property
    def n_cached(self) -> int:
        """Pages that are kept only because a later text may begin with what they hold."""
        return len(self._cached)

    @property
    def n_in_use(self) -> int:
        """Pages of sequences, each counted once."""
        return self.n_pages - self.n_available

    def n_pages_of(self, n_positions: int) -> int:
        """The number of pages that hold `n_positions` positions."""
        return -(-n_positions // self.page_size)

    def n_users(self, page: int) -> int:
        """The number of sequences that use a page that has been taken."""
        return self._users[page]

    def take(self) -> int | None:
        """Take a page for one user; its content is overwritten. None if all are in use."""
        if self._free:
            page = self._free.pop()
        elif len(self._users) < self.n_pages:
            page = len(self._users)
            self._users.append(0)
        elif self._cached:
            page, _ = self._cached.popitem(last=False)
            del self._indexed[self._keys.pop(page)]
        else:
            return None
        self._users[page] = 1
        return page

    def find(self, tokens: Sequence[int]) -> list[int]:
        """The pages of the longest cached prefix of `tokens`. Finding does not take them: call `share`."""
        found: list[int] = []
        parent: int | None = None
        for end in range(self.page_size, len(tokens) + 1, self.page_size):
            page = self._indexed.get(_key(parent, tokens[end - self.page_size : end]))
            if page is None:
                break
            found.append(page)
            parent = page
        return found

    def share(self, pages: Iterable[int]) -> None:
        """Add a user to indexed pages."""
        for page in pages:
            if not self._users[page]:
                del self._cached[page]
            self._users[page] += 1

    def release(self, pages: Sequence[int]) -> None:
        """Remove a user of `pages`, given in order of position. Indexed pages stay cached."""
        for page in reversed(pages):
            self._users[page] -= 1
            if self._users[page]:
                continue
            if page in self._keys:
                self._cached[page] = None
            else:
                self._free.append(page)

    def index(self, parent: int | None, tokens: Sequence[int], page: int) -> int:
        """Index a full page of one user, which holds `tokens` after those of the page `parent` (None: at position 0).

        Returns the page to use from here on. If another page holds the same, it is that one, and `page` is released.
        """
        key = _key(parent, tokens)
        indexed = self._indexed.setdefault(key, page)
        if indexed == page:
            self._keys[page] = key
        else:
            self.share([indexed])
            self.release([page])
        return indexed


def _key(parent: int | None, tokens: Sequence[int]) -> _Key:
    return parent, array("i", tokens).tobytes()
