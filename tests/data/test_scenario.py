"""Kinds of streams: what is cut, which head answers, and what a dataset must say for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.common.errors import UserError
from bench.config.files import load_dataset_config
from bench.config.schema import DatasetConfig
from bench.data.class_order import class_order
from bench.data.dataset import Dataset, load_dataset
from bench.data.prepare.prepare import digest_of
from bench.data.scenario import CLASS_INCREMENTAL, SCENARIOS, scenario_of
from bench.data.stream import Stream
from tests.helpers.domains import FIELDS, OPTIONS, write_letters
from tests.helpers.trees import DOMAINS, config, domainnet345, own, read, touch, write

BY_DOMAIN = SCENARIOS["domain_incremental"]


@pytest.fixture(scope="module")
def letters(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("letters")
    return load_dataset(load_dataset_config(str(write_letters(folder)), []), folder)


def streamed(letters: Dataset, seed: int = 0, **changes: Any) -> Stream:
    return Stream(letters, 3, seed, scenario=BY_DOMAIN, **changes)


# ---- the two kinds --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["mt19937", "pcg64", "identity", [2, 0, 1]])
def test_domains_arrive_in_the_order_that_classes_would(kind: str | list[int]) -> None:
    cuts = BY_DOMAIN.cuts(12, 3, 4, kind)
    assert [cut.domain for cut in cuts] == class_order(3, 4, kind)
    assert all(cut.classes == tuple(range(12)) and cut.columns == range(12) for cut in cuts)


def test_a_listed_order_of_domains_is_checked_in_words_of_domains() -> None:
    with pytest.raises(UserError, match=r"2 domains are listed.*0 to 2 once"):
        BY_DOMAIN.cuts(12, 3, 0, [0, 1])


def test_class_incremental_heads_stand_side_by_side_and_a_shared_head_is_its_latest_form() -> None:
    heads = ["one", "two", "three"]
    assert CLASS_INCREMENTAL.open_heads(heads) == heads
    assert CLASS_INCREMENTAL.goes_on_from(heads) is None
    assert CLASS_INCREMENTAL.by_head(heads) == [["one"], ["two"], ["three"]]
    assert BY_DOMAIN.open_heads(heads) == ["three"]
    assert BY_DOMAIN.goes_on_from(heads) == "three"
    assert BY_DOMAIN.goes_on_from([]) is None
    assert BY_DOMAIN.by_head(heads) == [heads]


def test_a_task_count_other_than_the_domains_is_refused_in_one_line() -> None:
    described = DatasetConfig.model_validate({"key": "letters", **FIELDS})
    assert scenario_of(described) is BY_DOMAIN
    BY_DOMAIN.check(described, 3)
    with pytest.raises(UserError, match=r"5 tasks do not fit 'letters'.*3 domains, one a task; use 3"):
        BY_DOMAIN.check(described, 5)


def test_a_domain_incremental_yaml_names_one_task_count(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"scenario: .*one number under tasks"):
        load_dataset_config(str(write_letters(tmp_path, tasks=[3, 2])), [])


def test_only_the_default_adds_nothing_to_identities() -> None:
    assert CLASS_INCREMENTAL.identity == []
    assert BY_DOMAIN.identity == ["domain_incremental"]
    assert BY_DOMAIN.tag


# ---- what a stream holds --------------------------------------------------------------------------------------------
def test_a_task_has_all_classes_in_one_domain_and_every_image_once(letters: Dataset) -> None:
    stream = streamed(letters, seed=1)
    assert [task.domain for task in stream.tasks] == [letters.domain_names[d] for d in class_order(3, 1)]
    for task, domain in zip(stream.tasks, class_order(3, 1), strict=True):
        assert letters.train_domains is not None
        assert letters.test_domains is not None
        assert (
            set(letters.train_domains[task.train.numpy()]) == set(letters.test_domains[task.test.numpy()]) == {domain}
        )
        assert set(stream.train_columns[task.train].tolist()) == set(range(12))
    assert torch.cat([task.train for task in stream.tasks]).sort().values.tolist() == list(range(360))
    assert torch.cat([task.test for task in stream.tasks]).sort().values.tolist() == list(range(108))
    assert torch.equal(stream.test_columns, torch.from_numpy(np.array(letters.test_labels)))  # labels are columns


def test_a_domains_content_and_images_do_not_depend_on_its_place(letters: Dataset) -> None:
    here, there = ({task.domain: task for task in streamed(letters, seed).tasks} for seed in (0, 1))
    for name, task in here.items():
        assert task.content == there[name].content
        assert torch.equal(task.train, there[name].train)
    assert len({task.content for task in here.values()}) == 3


def test_the_validation_part_is_stratified_within_each_domain(letters: Dataset) -> None:
    stream = streamed(letters, eval_split="val", val_fraction=0.2)
    for task in stream.tasks:
        assert torch.equal(task.val, task.test)
        assert not set(task.val.tolist()) & set(task.train.tolist())
        held = torch.bincount(stream.train_columns[task.val], minlength=12)
        assert held.min() == held.max() == round(0.2 * (len(task.train) + len(task.val)) / 12)


def test_class_incremental_streams_pass_over_domains(letters: Dataset) -> None:
    stream = Stream(letters, 4, 0)
    assert [len(task.columns) for task in stream.tasks] == [3, 3, 3, 3]
    assert all(task.domain is None for task in stream.tasks)


# ---- what the data says ---------------------------------------------------------------------------------------------
def test_glyphs_by_family_are_the_same_drawings(tmp_path: Path, letters: Dataset) -> None:
    plain = {name: value for name, value in OPTIONS.items() if name != "domains"}
    path = write_letters(tmp_path, options=plain, scenario="class_incremental")
    same = load_dataset(load_dataset_config(str(path), []), tmp_path)
    assert np.array_equal(same.train_images, letters.train_images)
    assert same.train_domains is None
    assert same.domain_names == ()
    assert same.digest != letters.digest
    arrays = [same.train_images, same.train_labels, same.test_images, same.test_labels]
    assert same.digest == digest_of(arrays, same.class_names)  # as it was before there were domains
    assert letters.domain_names == ("Sans", "SansMono", "Serif")
    assert letters.train_domains is not None
    per_class = [letters.train_domains[letters.train_labels == c] for c in range(12)]
    assert all(part.tolist() == [0] * 12 + [1] * 6 + [2] * 12 for part in per_class)  # six images a face


def test_other_domains_make_another_digest(letters: Dataset) -> None:
    assert letters.train_domains is not None
    assert letters.test_domains is not None
    images = [letters.train_images, letters.train_labels, letters.test_images, letters.test_labels]
    names = (*letters.class_names, *letters.domain_names)
    assert digest_of([*images, letters.train_domains, letters.test_domains], names) == letters.digest
    assert digest_of([*images, 2 - letters.train_domains, letters.test_domains], names) != letters.digest


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": [4]}, r"tasks: says 4, but the data has 3 domains \(Sans, SansMono, Serif\)"),
        ({"options": {**OPTIONS, "domains": "none"}}, "needs the domain of every image.*options.domains"),
        (
            {"options": {**OPTIONS, "faces_test": ["Sans-Bold", "SansMono", "SansMono-Oblique"]}},
            "test: domain 'Serif' has no image",
        ),
    ],
)
def test_data_without_the_domains_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    described = load_dataset_config(str(write_letters(tmp_path, **changes)), [])
    with pytest.raises(UserError, match=message):
        load_dataset(described, tmp_path)


def test_arrays_that_were_prepared_before_are_held_against_the_yaml_too(letters: Dataset) -> None:
    with pytest.raises(UserError, match="says 2, but the data has 3 domains"):
        Stream(letters, 2, 0, scenario=BY_DOMAIN)


def test_domainnet_by_domain_takes_the_first_folder_of_a_listed_path(tmp_path: Path) -> None:
    found = read(config("domainnet_domains", **domainnet345(tmp_path)), tmp_path)
    assert found.domain_names == DOMAINS
    for files, numbers in ((found.train_files, found.train_domains), (found.test_files, found.test_domains)):
        assert [file.relative_to(tmp_path / "domainnet").parts[0] for file in files] == [DOMAINS[n] for n in numbers]
    assert load_dataset_config("domainnet_domains", []).tasks == [len(DOMAINS)]


def test_a_listed_file_in_no_folder_has_no_domain(tmp_path: Path) -> None:
    touch(tmp_path / "root" / "a.png", tmp_path / "root" / "real" / "b.png")
    write(tmp_path / "train.txt", "real/b.png 0")
    write(tmp_path / "test.txt", "a.png 0")
    described = own("lists", root="root", train=["train.txt"], test=["test.txt"], domains="folder")
    with pytest.raises(UserError, match="lies in no folder"):
        read(described, tmp_path)
