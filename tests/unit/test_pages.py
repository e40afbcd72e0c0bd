"""Pages: who uses them, which are found by what they hold, and which are lost first."""

from __future__ import annotations

from dllama_zmq.root.pages import PagePool


def pool_with(*texts: str, n_pages: int = 8, page_size: int = 2) -> PagePool:
    """A pool that has cached the full pages of texts (their characters are the tokens), the first text first."""
    pool = PagePool(n_pages, page_size)
    for text in texts:
        pool.release(filled(pool, text))
    return pool


def find(pool: PagePool, text: str) -> list[int]:
    return pool.find([ord(character) for character in text])


def filled(pool: PagePool, text: str) -> list[int]:
    """The pages of one user that has computed `text`."""
    pages: list[int] = []
    for start in range(0, len(text), pool.page_size):
        taken = pool.take()
        assert taken is not None
        tokens = [ord(character) for character in text[start : start + pool.page_size]]
        if len(tokens) == pool.page_size:
            taken = pool.index(pages[-1] if pages else None, tokens, taken)
        pages.append(taken)
    return pages


def test_the_page_given_back_last_is_taken_first_and_then_one_never_used() -> None:
    pool = PagePool(8, 2)
    assert [pool.take() for _ in range(4)] == [0, 1, 2, 3]
    pool.release([1, 2])
    assert [pool.take() for _ in range(3)] == [1, 2, 4]


def test_a_pool_whose_pages_are_all_in_use_gives_none() -> None:
    pool = PagePool(2, 2)
    assert [pool.take() for _ in range(3)] == [0, 1, None]
    assert (pool.n_in_use, pool.n_available) == (2, 0)


def test_the_longest_prefix_of_full_pages_is_found() -> None:
    pool = pool_with("abcde")
    assert find(pool, "abcdxx") == [0, 1]
    assert find(pool, "abcd") == [0, 1]
    assert find(pool, "abc") == [0]
    assert find(pool, "abxxcd") == [0]
    assert find(pool, "xxcd") == []
    assert find(pool, "a") == []


def test_a_page_is_found_only_after_the_tokens_it_was_computed_after() -> None:
    pool = pool_with("aazz", "bbzz")
    assert find(pool, "aazz") == [0, 1]
    assert find(pool, "bbzz") == [2, 3]
    assert find(pool, "zz") == []


def test_a_page_with_equal_content_is_given_back_for_the_one_that_is_indexed() -> None:
    pool = PagePool(8, 2)
    first, second = filled(pool, "abcd"), filled(pool, "abcx")
    assert first == [0, 1]
    assert second[0] == 0
    assert (pool.n_users(0), pool.n_users(1)) == (2, 1)
    assert pool.n_in_use == 3


def test_shared_pages_stay_in_use_until_their_last_user_has_released_them() -> None:
    pool = pool_with("abcd")
    assert (pool.n_in_use, pool.n_cached) == (0, 2)
    for _ in range(2):
        pool.share(find(pool, "abcd"))
    assert (pool.n_in_use, pool.n_cached) == (2, 0)
    pool.release([0, 1])
    assert pool.n_in_use == 2
    pool.release([0, 1])
    assert (pool.n_in_use, pool.n_cached) == (0, 2)
    assert find(pool, "abcd") == [0, 1]


def test_the_least_recently_used_text_is_lost_first_and_its_end_before_its_beginning() -> None:
    pool = pool_with("aabb", "ccdd", n_pages=4)
    again = find(pool, "aabb")
    pool.share(again)
    pool.release(again)
    assert pool.take() == 3
    assert (find(pool, "ccdd"), find(pool, "aabb")) == ([2], [0, 1])
    assert pool.take() == 2
    assert pool.take() == 1
    assert (find(pool, "ccdd"), find(pool, "aabb")) == ([], [0])


def test_cached_pages_are_kept_while_there_are_free_ones() -> None:
    pool = pool_with("aabb", n_pages=4)
    assert [pool.take(), pool.take()] == [2, 3]
    assert find(pool, "aabb") == [0, 1]
    assert pool.take() == 1


def test_a_reset_pool_has_the_new_number_of_pages_and_finds_nothing() -> None:
    pool = pool_with("aabb", n_pages=4)
    pool.reset(3)
    assert find(pool, "aabb") == []
    assert [pool.take() for _ in range(4)] == [0, 1, 2, None]
