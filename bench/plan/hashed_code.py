"""Which files of the harness a cell's numbers come from: their hashes say whether a record is stale.

A test walks all that ``run/cell.py`` imports: each file is in one of these lists. Statistics, adapters and heads count
for the cells that use them.
"""

from __future__ import annotations

from bench.config.schema import HeadKind

TRAINING_CODE = (
    "run/train.py", "run/live_step.py", "model/adapters/adapter.py", "model/adapters/frozen.py", "model/split_qkv.py",
    "model/backbone.py", "model/probe.py", "model/heads.py", "model/class_rows.py", "data/stream.py",
    "data/scenario.py", "data/class_order.py", "method/weights.py", "method/api.py", "method/step.py",
    "common/seeds.py", "data/images.py", "data/transforms.py", "data/autoaugment.py",
)  # fmt: skip

MERGING_CODE = (
    "run/cell.py", "run/workbench.py", "run/task_models.py", "run/live_task.py", "run/evaluate.py",
    "run/classifiers/serving.py", "method/chain.py", "method/asking.py", "method/carried.py",
)  # fmt: skip

HEAD_CODE: dict[HeadKind, str] = {
    "refit": "run/classifiers/refit.py",
    "align": "run/classifiers/align.py",
    "ncm": "run/classifiers/ncm.py",
    "ncm_both": "run/classifiers/ncm.py",
    "lda": "run/classifiers/lda.py",
    "ridge": "run/classifiers/ridge.py",
}  #: of cells that are served by a fitted head

REPLAY_CODE = (
    "plan/replayed.py",
    "offline/checkpoints.py",
)  #: of cells whose task models are given, beside the merging

#: reached, but no number depends on it: files and folders, and why
NO_NUMBERS = {
    "common/cache.py": "keeps tensors as they are, under keys of what made them",
    "common/errors.py": "words",
    "common/files.py": "writes and reads bytes as they are",
    "common/installed.py": "where files lie",
    "common/paths.py": "where files lie",
    "common/strict_json.py": "how a record is written",
    "config/": "its results, the resolved configuration, are in names and keys",
    "data/dataset.py": "its results, the prepared arrays, are in keys by their digest",
    "data/download/": "fetches files, which are in names and keys by their content",
    "data/prepare/": "its results, the prepared arrays, are in keys by their digest",
    "data/readers/": "its results, the prepared arrays, are in keys by their digest",
    "method/protect.py": "compares, and changes nothing",
    "model/adapters/__init__.py": "finds the file of a kind, which counts for the cells that use it",
    "model/pretrained_files.py": "finds a file, which is in names and keys by its content",
    "model/published_weights.py": "writes a file, which is in names and keys by its content",
    "plan/cell.py": "names and keys",
    "plan/hashed_code.py": "these lists",
    "records/": "reads and describes what was counted",
    "registry/": "its results, the resolved method, are in names and keys",
    "run/classifiers/kinds.py": "finds the class of a kind, whose file counts for the cells that use it",
    "run/keep_weights.py": "writes what was made",
    "run/resume.py": "writes and reads what was made, bit for bit",
    "run/write_record.py": "writes what was counted",
    "statistics/__init__.py": "a list; each statistic counts for the methods that read it",
    "statistics/named.py": "reads files for merges without data",
}
