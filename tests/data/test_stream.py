from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.data.class_order import boundaries, class_order
from bench.data.dataset import Dataset
from bench.data.scenario import CLASS_INCREMENTAL, listed
from bench.data.stream import Stream


def made(per_class: list[int], test_per_class: int = 2, key: str = "made") -> Dataset:
    """Every image is one pixel pair that says (its index, its label); labels are interleaved."""
    labels = np.array([c for i in range(max(per_class)) for c, n in enumerate(per_class) if i < n])
    test_labels = np.tile(np.arange(len(per_class)), test_per_class)
    images, test_images = (
        np.stack([np.arange(len(y)) % 251, y % 251], axis=1).astype(np.uint8).reshape(-1, 2, 1, 1)
        for y in (labels, test_labels)
    )
    return Dataset(key, images, labels, test_images, test_labels, tuple(map(str, range(len(per_class)))), "digest")


class Untouchable:
    """Stands for a test split that nobody may look at."""

    def __getattribute__(self, name: str) -> Any:
        raise AssertionError(f"the test split was read ({name})")

    def __len__(self) -> int:
        raise AssertionError("the test split was read")

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise AssertionError("the test split was read")

    def __getitem__(self, index: Any) -> Any:
        raise AssertionError("the test split was read")


@pytest.mark.parametrize("seed", [0, 1, 7, 2**32 - 1])
def test_class_order_is_the_fields_permutation(seed: int) -> None:
    assert class_order(100, seed) == np.random.RandomState(seed).permutation(100).tolist()
    assert sorted(class_order(100, seed)) == list(range(100))


def test_class_order_touches_no_global_generator() -> None:
    np.random.seed(5)  # noqa: NPY002
    expected = np.random.RandomState(5).rand()
    class_order(10, 0)
    assert np.random.rand() == expected  # noqa: NPY002


@pytest.mark.parametrize(
    ("classes", "n_tasks", "sizes"),
    [
        (196, 10, [19, 20, 19, 20, 20, 19, 20, 19, 20, 20]),
        (345, 10, [34, 35, 34, 35, 34, 35, 34, 35, 34, 35]),
        (100, 20, [5] * 20),
        (10, 3, [3, 3, 4]),
        (10, 1, [10]),
        (10, 10, [1] * 10),
    ],
)
def test_boundaries_are_floors(classes: int, n_tasks: int, sizes: list[int]) -> None:
    assert [len(r) for r in boundaries(classes, n_tasks)] == sizes


@given(st.integers(1, 400).flatmap(lambda c: st.tuples(st.just(c), st.integers(1, c))))
def test_every_class_falls_into_exactly_one_task(counts: tuple[int, int]) -> None:
    classes, n_tasks = counts
    ranges = boundaries(classes, n_tasks)
    assert [c for r in ranges for c in r] == list(range(classes))
    assert max(map(len, ranges)) - min(map(len, ranges)) <= 1
    assert min(map(len, ranges)) >= 1


@settings(max_examples=30)
@given(st.integers(1, 13), st.integers(0, 5))
def test_tasks_hold_every_image_once_and_the_right_ones(n_tasks: int, seed: int) -> None:
    data = made([5, 3, 4, 6, 2, 5, 7, 3, 4, 5, 6, 2, 3])
    stream = Stream(data, n_tasks, seed)
    assert [t.t for t in stream.tasks] == list(range(1, n_tasks + 1))
    assert [c for t in stream.tasks for c in t.classes] == class_order(13, seed)
    assert sorted(torch.cat([t.train for t in stream.tasks]).tolist()) == list(range(len(data.train_labels)))
    assert sorted(torch.cat([t.test for t in stream.tasks]).tolist()) == list(range(len(data.test_labels)))
    for task in stream.tasks:
        assert set(data.train_labels[task.train.numpy()]) == set(task.classes)
        assert set(data.test_labels[task.test.numpy()]) == set(task.classes)
        assert set(stream.train_columns[task.train].tolist()) == set(task.columns)
        # Column c is the c-th class to arrive: labels and columns name the same image.
        arrived = np.array(class_order(13, seed))
        np.testing.assert_array_equal(arrived[stream.train_columns[task.train]], data.train_labels[task.train.numpy()])
        np.testing.assert_array_equal(arrived[stream.test_columns[task.test]], data.test_labels[task.test.numpy()])
    np.testing.assert_array_equal(stream.train_images.numpy(), data.train_images)
    assert stream.train_images.dtype == torch.uint8
    assert stream.train_columns.dtype == torch.int64


def test_the_datasets_arrays_are_not_changed_through_the_stream() -> None:
    data = made([4] * 4)
    before = data.train_images.copy(), data.train_labels.copy()
    stream = Stream(data, 2, 0)
    stream.train_images.zero_()
    stream.train_columns.zero_()
    np.testing.assert_array_equal(data.train_images, before[0])
    np.testing.assert_array_equal(data.train_labels, before[1])


def test_read_only_arrays_are_fine() -> None:
    data = made([4] * 4)
    for array in (data.train_images, data.train_labels, data.test_images, data.test_labels):
        array.setflags(write=False)
    assert len(Stream(data, 2, 0).tasks) == 2


# ---- validation ----------------------------------------------------------------------------------------------------
def test_validation_part_is_stratified_and_disjoint_from_what_is_trained_on() -> None:
    per_class = [20, 13, 5, 1, 40, 30]
    data = made(per_class)
    stream = Stream(data, 3, 4, eval_split="val", val_fraction=0.1)
    for task in stream.tasks:
        train, val = set(task.train.tolist()), set(task.val.tolist())
        assert not train & val
        mine = np.flatnonzero(np.isin(data.train_labels, task.classes))
        assert train | val == set(mine.tolist())
        assert torch.equal(task.test, task.val)
        for c in task.classes:
            held = int((data.train_labels[task.val.numpy()] == c).sum())
            assert held == max(1, round(0.1 * per_class[c]))


def test_validation_part_is_the_same_for_all_seeds_task_counts_and_splits() -> None:
    data = made([20] * 10)

    def held(**how: Any) -> set[int]:
        return set(torch.cat([t.val for t in Stream(data, **how).tasks]).tolist())

    first = held(n_tasks=5, class_order_seed=0)
    assert len(first) == 20
    assert first == held(n_tasks=2, class_order_seed=0) == held(n_tasks=5, class_order_seed=9)
    assert first == held(n_tasks=5, class_order_seed=0, eval_split="val")


def test_under_the_test_split_everything_is_trained_on_and_validation_is_part_of_it() -> None:
    data = made([20] * 4)
    for task in Stream(data, 2, 0).tasks:
        assert len(task.train) == 40
        assert set(task.val.tolist()) <= set(task.train.tolist())
        assert len(task.val) == 4


def test_test_images_are_unreachable_while_tuning() -> None:
    data = made([20] * 4)
    blind = replace(data, test_images=Untouchable(), test_labels=Untouchable())
    stream = Stream(blind, 2, 0, eval_split="val")
    assert stream.test_images is stream.train_images
    assert stream.test_columns is stream.train_columns
    with pytest.raises(AssertionError, match="test split was read"):
        Stream(blind, 2, 0, eval_split="test")


# ---- the two seeds -------------------------------------------------------------------------------------------------
def test_content_names_classes_in_order_and_not_the_place_in_the_stream() -> None:
    data = made([6] * 6)
    there = Stream(data, 2, 0)
    order = there.class_order
    back = Stream(data, 2, 0, order_kind=[*order[3:], *order[:3]])
    for here, now in zip(there.tasks, reversed(back.tasks), strict=True):
        assert here.t != now.t
        assert here.content == now.content
        assert torch.equal(here.train, now.train)
        columns = here.columns.start, now.columns.start
        assert torch.equal(there.train_columns[here.train] - columns[0], back.train_columns[now.train] - columns[1])


def test_content_tells_datasets_classes_and_their_order_apart() -> None:
    names = [("a", [1, 2]), ("b", [1, 2]), ("a", [2, 1]), ("a", [12]), ("a", [1])]
    told = {CLASS_INCREMENTAL.content(dataset, listed([classes])[0]) for dataset, classes in names}
    assert len(told) == len(names)
    assert len({t.content for t in Stream(made([6] * 12), 12, 3).tasks}) == 12


def test_the_digest_is_the_datasets() -> None:
    assert Stream(made([6] * 4), 2, 0).digest == "digest"
