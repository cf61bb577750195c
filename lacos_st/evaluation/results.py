"""What an evaluation found: a `SetResult` a model and set, an `Evaluation` of many; in memory and on disk.

On disk, under the output directory:

    results/<model>/<revision>/<task>.json          MTEB's own layout, for MTEB's tools and its leaderboard
    details/<model>/<revision>/<task>.<subset>.<split>.safetensors
                                                    the similarity and the gold score of every pair, or the score
                                                    of every query; the set's score, time and languages as metadata
    summary.md, summary.csv, models.json            the tables of the last run, and the order of its models

MTEB keeps the scores of sets alone. A scatter plot, a confidence interval and a paired test need those of pairs and
queries, so they are kept beside them: any two evaluations can be compared later without loading a model again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from lacos_st.errors import LacosError
from lacos_st.evaluation.languages import BLOOM_LANGUAGES
from lacos_st.evaluation.local_sets import is_reported
from lacos_st.evaluation.metrics import SPEARMAN, metric_name
from lacos_st.evaluation.statistics import Difference, bootstrap, bootstrap_mean, interval, paired
from lacos_st.evaluation.tasks import ENGLISH, MULTILINGUAL, OWN
from lacos_st.files import atomic, file_name

MODELS = "models.json"
"""File of an output directory: the models of its last run, in order."""
LEXICAL = "lexical"
"""The baseline's name in tables and directories: character 2-4-gram TF-IDF."""


@dataclass(frozen=True)
class SetResult:
    """One model on one set.

    Attributes:
        model: The model's name.
        revision: Its content fingerprint.
        task: MTEB's task name, or `local-<dataset>`.
        subset: MTEB's subset, `default` where there is one only.
        split: The split.
        languages: Two-letter codes.
        score: Spearman's rho of the cosine x 100; for tasks other than STS, MTEB's main score x 100.
        seconds: Time to encode and score.
        data: Revision of the data: the Hub's, or `local-` and a digest of the files.
        similarity: (pairs,) the model's similarity of each pair; empty for tasks other than STS.
        gold: (pairs,) the annotated similarity.
        metric: What the score is, as MTEB calls it.
        more: Further metrics of a retrieval set -> their values x 100.
        each: (queries,) the score of each query of a retrieval set; empty for other sets.
    """

    model: str
    revision: str
    task: str
    subset: str
    split: str
    languages: tuple[str, ...]
    score: float
    seconds: float
    data: str
    similarity: np.ndarray = field(repr=False)
    gold: np.ndarray = field(repr=False)
    metric: str = SPEARMAN
    more: dict[str, float] = field(default_factory=dict)
    each: np.ndarray = field(default_factory=lambda: np.empty(0), repr=False)

    @property
    def is_sts(self) -> bool:
        """Whether the score is a correlation with annotators: other metrics are never averaged with it."""
        return self.metric == SPEARMAN

    @property
    def count(self) -> int:
        """Pairs or queries, where they are known one by one."""
        return len(self.gold) or len(self.each)

    @property
    def name(self) -> str:
        """The set's name: the task, with the subset where there are several."""
        return self.task if self.subset == "default" else f"{self.task}/{self.subset}"

    @property
    def is_test(self) -> bool:
        """Whether the set is one to report, and not one to choose by."""
        return is_reported(self.task, self.split)

    @property
    def group(self) -> str:
        """The mean that it counts in: English, or multilingual in BLOOM's languages or others; or of its metric."""
        if not self.is_sts:
            return metric_name(self.metric)
        if self.task in ENGLISH:
            return "English"
        return "BLOOM languages" if BLOOM_LANGUAGES.issuperset(self.languages) else "other languages"

    @cached_property
    def samples(self) -> np.ndarray:
        """(resamples,) bootstrap scores; empty where there are no pairs and no queries."""
        if len(self.each):
            return bootstrap_mean(self.each, f"{self.name}/{self.split}")
        if not len(self.gold) or not np.isfinite(self.score):
            return np.empty(0)
        return bootstrap(self.gold, self.similarity, f"{self.name}/{self.split}")

    @property
    def interval(self) -> tuple[float, float]:
        """95 % bootstrap interval of the score; nan where there are no pairs."""
        return interval(self.samples)

    def save(self, directory: Path) -> None:
        """Write to `directory/<model>/<revision>/`, all at once."""
        path = detail_path(directory, self.model, self.revision, self.task, self.subset, self.split)
        path.parent.mkdir(parents=True, exist_ok=True)
        facts = {k: v for k, v in asdict(self).items() if k not in _ARRAYS}
        arrays = {name: np.ascontiguousarray(getattr(self, name)) for name in _ARRAYS}
        with atomic(path) as temporary:
            # not safetensors' own writer, whose files only their owner reads
            temporary.write_bytes(save(arrays, metadata={"result": json.dumps(facts)}))

    @classmethod
    def load(cls, path: Path) -> SetResult:
        """Read what `save` wrote.

        Raises:
            LacosError: If the file is damaged, or holds values of other types.
        """
        try:
            with safe_open(path, framework="numpy") as stored:
                facts = json.loads(stored.metadata()["result"])
                arrays = {key: stored.get_tensor(key) for key in stored.keys() if key in _ARRAYS}  # noqa: SIM118
            found = cls(**{**facts, "languages": tuple(facts["languages"])}, **arrays)
        except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as broken:
            raise LacosError(f"{path} is damaged ({broken}). Delete it and evaluate again.") from broken
        if wrong := found._of_wrong_type():
            raise LacosError(
                f"{path} is damaged ({wrong} {repr(getattr(found, wrong))[:60]}). Delete it and evaluate again."
            )
        return found

    def _of_wrong_type(self) -> str | None:
        """Name the first attribute that is not what `save` writes."""
        right = {
            **{name: is_name(getattr(self, name)) for name in ("model", "revision", "task", "subset", "split", "data")},
            "languages": bool(self.languages) and all(map(is_name, self.languages)),
            "score": _is_number(self.score) and not math.isinf(self.score),
            "seconds": _is_number(self.seconds) and math.isfinite(self.seconds),
            **{name: _is_series(getattr(self, name)) for name in _ARRAYS},
            "metric": is_name(self.metric),
            "more": isinstance(self.more, dict)
            and all(map(is_name, self.more))
            and all(map(_is_number, self.more.values())),
        }
        right["gold"] = right["gold"] and self.gold.shape == self.similarity.shape
        return next((name for name, fits in right.items() if not fits), None)


_ARRAYS = ("similarity", "gold", "each")  # results of before there was retrieval have no `each`


def is_name(value: Any) -> bool:
    """Whether a value is a text that can stand in a table: on one line, without control characters."""
    return isinstance(value, str) and value != "" and value.isprintable()


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_series(value: np.ndarray) -> bool:
    return value.ndim == 1 and value.dtype.kind == "f" and bool(np.isfinite(value).all())


def detail_path(directory: Path, model: str, revision: str, task: str, subset: str, split: str) -> Path:
    """Where the pairs of one set lie."""
    return directory / file_name(model) / file_name(revision) / f"{file_name(f'{task}.{subset}.{split}')}.safetensors"


@dataclass(frozen=True)
class Mean:
    """A mean over sets, with how many there were."""

    group: str
    sets: int
    score: float
    samples: np.ndarray = field(repr=False)

    @property
    def interval(self) -> tuple[float, float]:
        """95 % bootstrap interval of the mean over these sets."""
        return interval(self.samples)


@dataclass
class Evaluation:
    """Results of one or more models on the same sets.

    Attributes:
        models: Names in the order of the tables, one a model and revision.
        sets: Every result, baseline included.
        missing: What a group has but could not be run, with the reason.

    `tables.text` makes tables of it, `tables.markdown` and `tables.csv_rows` their other forms.
    """

    models: list[str] = field(default_factory=list)
    sets: list[SetResult] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def of(self, model: str) -> dict[str, SetResult]:
        """One model's results by set name, in the order of the tables."""
        found = [result for result in self.sets if column(result) == model]
        return {f"{r.name}": r for r in sorted(found, key=_order)}

    @property
    def names(self) -> list[str]:
        """Names of all sets that any model was run on, in order."""
        rows = {result.name: _order(result) for result in self.sets}
        return sorted(rows, key=rows.__getitem__)

    def means(self, model: str) -> list[Mean]:
        """Means over the sets that all models have: English, BLOOM's languages, others, all STS; other metrics."""
        own, models = self.of(model), [self.of(other) for other in self.models]
        common = [
            r
            for name, r in own.items()
            if r.count and all(name in other and other[name].data == r.data for other in models)
        ]
        groups = {
            group: [r for r in common if r.group == group]
            for group in ("English", "BLOOM languages", "other languages")
        }
        others = list(dict.fromkeys(r.group for r in common if not r.is_sts))
        groups["all STS sets" if any(not r.is_sts for r in self.sets) else "all sets"] = [r for r in common if r.is_sts]
        groups |= {group: [r for r in common if r.group == group] for group in others}
        return [mean(group, results) for group, results in groups.items() if results]

    def compare(self, first: str, second: str) -> dict[str, Difference]:
        """Test `second` against `first` on every set that both have, and on the means.

        Args:
            first: A name out of `models`.
            second: Another one.

        Returns:
            Set, or `mean: <group>`, -> `Difference` (paired bootstrap over the same resamples).

        Raises:
            LacosError: If one of them was not evaluated.
        """
        for name in (first, second):
            if name not in self.models:
                raise LacosError(f"{name!r} was not evaluated; there are {', '.join(self.models)}.")
        before, after = self.of(first), self.of(second)
        found = {
            name: paired(after[name].score - before[name].score, before[name].samples, after[name].samples)
            for name in before
            if name in after
            and before[name].data == after[name].data
            and len(before[name].samples)
            and len(after[name].samples)
        }
        pairs = zip(self.means(first), self.means(second), strict=True)
        for old, new in pairs:
            if len(old.samples) and len(new.samples):
                found[f"mean: {old.group}"] = paired(new.score - old.score, old.samples, new.samples)
        return found

    @classmethod
    def load(cls, directories: Iterable[str | Path] | str | Path, split: str | None = None) -> Evaluation:
        """Read evaluations back from their output directories, models in the order of the last run.

        Args:
            directories: One or more directories that `evaluate(..., output=...)` wrote.
            split: `test` or `dev`, which are never shown together. Default: test, or dev where there is no other.

        Raises:
            LacosError: If a directory holds no results or a damaged one.
        """
        given = [directories] if isinstance(directories, str | Path) else list(directories)
        sets: list[SetResult] = []
        order: list[str] = []
        for directory in map(Path, given):
            found = sorted((directory / "details").rglob("[!.]*.safetensors"), key=lambda p: p.stat().st_mtime)
            if not found:
                raise LacosError(
                    f"{directory} holds no evaluation (no details/ in it). Give a directory that was an "
                    "--output of `lacos-st evaluate`."
                )
            sets.extend(SetResult.load(path) for path in found)
            order += _order_of_models(directory / MODELS)
        tested = [result for result in sets if result.is_test]
        chosen = tested if split == "test" or (split is None and tested) else [r for r in sets if not r.is_test]
        if not chosen:
            raise LacosError(f"{', '.join(map(str, given))} holds no results of the {split} split.")
        evaluation = cls.of_sets(chosen)
        place = {name: position for position, name in enumerate(order)}
        evaluation.models.sort(key=lambda name: place.get(name, len(place)))
        return evaluation

    @classmethod
    def of_sets(cls, sets: Sequence[SetResult], missing: Sequence[str] = ()) -> Evaluation:
        """Collect results; the later one counts where a model met a set twice."""
        latest = {(r.model, r.revision, r.task, r.subset, r.split): r for r in sets}
        evaluation = cls(sets=list(latest.values()), missing=list(missing))
        evaluation.models = list(dict.fromkeys(column(r) for r in latest.values() if r.model != LEXICAL))
        return evaluation


def _order_of_models(path: Path) -> list[str]:
    if not path.is_file():
        return []
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        names = None
    if not isinstance(names, list) or not all(map(is_name, names)):
        raise LacosError(f"{path} is damaged: it must be a list of models' names. Delete it, or evaluate again.")
    return names


def column(result: SetResult) -> str:
    """The name of a model's column: `name@revision`, so that two states of one model stand side by side."""
    return LEXICAL if result.model == LEXICAL else f"{result.model}@{result.revision[:8]}"


def mean(group: str, results: Sequence[SetResult]) -> Mean:
    """Average scores, and bootstrap samples one by one (sets are resampled independently)."""
    samples = [r.samples for r in results]
    rounds = min(map(len, samples))
    return Mean(
        group,
        len(results),
        float(np.mean([r.score for r in results])),
        np.mean([s[:rounds] for s in samples], axis=0) if rounds else np.empty(0),
    )


def _order(result: SetResult) -> tuple[int, bool, str, bool, str]:
    known: dict[str, int] = {name: position for position, name in enumerate((*ENGLISH, *MULTILINGUAL))}
    own = result.task.startswith(OWN)
    return (
        known.get(result.task, len(known)),
        own,
        result.task,
        result.group == "other languages",
        result.subset,
    )
