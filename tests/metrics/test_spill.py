"""A list on disk is a list."""

from __future__ import annotations

import itertools
import tracemalloc

from crystallm.metrics import novelty
from crystallm.metrics.novelty import UNKNOWN, compare_rows
from crystallm.metrics.spill import SpilledList


def test_it_gives_back_what_was_appended_in_order():
    for n in (0, 1, 7, 8, 9, 40):
        spilled, plain = SpilledList[tuple[int, str]](chunk=8), []
        for k in range(n):
            spilled.append((k, "x" * k))
            plain.append((k, "x" * k))
        assert len(spilled) == n and list(spilled) == plain and list(spilled) == plain
    assert list(zip(spilled, itertools.islice(spilled, 3, None), strict=False)) == list(
        zip(plain, plain[3:], strict=False)
    )


def test_appending_goes_on_after_reading():
    spilled = SpilledList[int](chunk=4)
    for k in range(10):
        spilled.append(k)
        assert list(spilled) == list(range(k + 1))


def test_memory_does_not_grow_with_it():
    spilled = SpilledList[str](chunk=64)
    tracemalloc.start()
    for k in range(2000):
        spilled.append(f"{k}" * 200)
    assert sum(map(len, spilled)) > 1_000_000
    assert tracemalloc.get_traced_memory()[1] < 500_000
    tracemalloc.stop()


def test_buckets_on_disk_do_not_change_the_answer(monkeypatch):
    template = "data_{}\n_crystallm_primitive_formula_units 1\n_symmetry_space_group_name_H-M P1\n"
    texts = [template.format(name) for name in "ABCADBEC"] + ["", template.format("A")]
    reference = [template.format(name) for name in "BXD"] + [""]
    monkeypatch.setattr(novelty, "unique_texts", lambda texts, workers: {text: text for text in texts})
    one = compare_rows(texts, reference, len(texts))
    assert one.first.tolist() == [0, 1, 2, 0, 4, 1, 6, 2, UNKNOWN, 0]
    assert one.novel.tolist() == [1, 0, 1, 1, 0, 0, 1, 1, UNKNOWN, 1]
    monkeypatch.setattr(novelty, "BUCKET_ROWS", 2)
    many = compare_rows(texts, reference, len(texts))
    assert many.first.tolist() == one.first.tolist() and many.novel.tolist() == one.novel.tolist()
    assert compare_rows(texts, None, len(texts)).novel is None
