"""Languages of evaluation sets: MTEB's codes (`spa-Latn`) to and from the two-letter ones in file names.

MTEB's own tables are used. They are not public: they are touched here alone, with a test that notices a change.
"""

from __future__ import annotations

from functools import cache

from lacos_st.errors import LacosError

try:
    import mteb
except ModuleNotFoundError as missing:  # every module of the evaluation comes past here first
    raise LacosError(f"Evaluation needs {missing.name}: pip install 'lacos-st[eval]'") from missing
from mteb.abstasks import AbsTask
from mteb.languages import ISO_TO_LANGUAGE
from mteb.languages.iso_mappings import _get_iso1_to_iso3, _hf_lang_to_iso_lang_script

# The languages of BLOOM's training data (ROOTS), as listed on the model card of bigscience/bloom.
BLOOM_LANGUAGES = frozenset(
    {"ak", "ar", "as", "bm", "bn", "ca", "en", "es", "eu", "fon", "fr", "gu", "hi", "id", "ig", "ki", "kn"}
    | {"lg", "ln", "ml", "mr", "ne", "nso", "ny", "or", "pa", "pt", "rn", "rw", "sn", "st", "sw", "ta", "te"}
    | {"tn", "ts", "tum", "tw", "ur", "vi", "wo", "xh", "yo", "zh", "zu"}
)

# MTEB names some sets by a member of a macrolanguage (`cmn` for Chinese); two-letter codes name the whole.
_MACRO = {"cmn": "zh", "arb": "ar", "arq": "ar", "ary": "ar", "swh": "sw", "npi": "ne", "ory": "or", "pes": "fa"} | {
    "zsm": "ms",
    "lvs": "lv",
    "ekk": "et",
    "uzn": "uz",
    "azj": "az",
    "als": "sq",
    "nob": "no",
    "khk": "mn",
}


@cache
def sts_tasks() -> dict[str, AbsTask]:
    """Every STS task of MTEB, superseded ones too, by its name in lower case."""
    tasks = mteb.get_tasks(task_types=["STS"], exclude_superseded=False)
    return {task.metadata.name.lower(): task for task in tasks}


@cache
def script_codes(subset: str) -> list[str]:
    """MTEB's codes (`spa-Latn`) of a subset named by language (`es`) or languages (`es-en`, `en-es-wmt`)."""
    parts = dict.fromkeys(code for part in subset.split("-") if (code := _hf_lang_to_iso_lang_script(part)))
    if not parts:
        raise LacosError(f"{subset!r} in a file's name is no language: use ISO codes such as 'en' or 'en-ar'.")
    return list(parts)


def languages_of(task: str, subset: str) -> tuple[str, ...]:
    """The two-letter codes of a task's subset; three letters where there are no two.

    Example:
        >>> languages_of("STS17", "es-en"), languages_of("KLUE-STS", "default"), languages_of("local-x", "fr")
        (('en', 'es'), ('ko',), ('fr',))
    """
    official = sts_tasks().get(task.lower())
    if official is None and subset == "default":
        official = mteb.get_task(task)  # a task of another type
    known = official.metadata.hf_subsets_to_langscripts.get(subset) if official is not None else None
    codes = (code.split("-")[0] for code in known or script_codes(subset))
    return tuple(sorted({two_letters(code) for code in codes}))


def language_name(code: str) -> str:
    """English name of a language.

    Example:
        >>> language_name("es")
        'Spanish'
    """
    return str(ISO_TO_LANGUAGE.get(_get_iso1_to_iso3().get(code, code), code)).split(" (")[0]


def two_letters(code: str) -> str:
    """The two-letter code of a three-letter one, or the code itself where there is none.

    Example:
        >>> two_letters("spa"), two_letters("cmn"), two_letters("fon")
        ('es', 'zh', 'fon')
    """
    return _short().get(code, code)


@cache
def _short() -> dict[str, str]:
    return {three: two for two, three in _get_iso1_to_iso3().items()} | _MACRO
