"""Languages of evaluation sets: MTEB's codes (`spa-Latn`) to and from the two-letter ones in file names.

A name holds one tag of BCP 47 (`es`, `pt-BR`, `zh-Hant`) or several languages (`es-en`). `langcodes` parses tags.
MTEB's own tables are used. They are not public: they are touched here alone, with a test that notices a change.
"""

from __future__ import annotations

from functools import cache

from lacos_st.errors import LacosError, shown

try:
    import langcodes
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

UNKNOWN = "und"
"""The language of a file whose name has none, as ISO 639 calls it."""

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
def official_task(name: str) -> AbsTask | None:
    """MTEB's task of that name, of any type; None where there is none."""
    if name.lower() in sts_tasks():
        return sts_tasks()[name.lower()]
    try:
        return mteb.get_task(name)
    except KeyError:
        return None


@cache
def script_codes(subset: str) -> list[str]:
    """MTEB's codes (`spa-Latn`) of a subset named by a language (`es`, `pt-BR`) or languages (`es-en`, `en-es-wmt`).

    A script, a region or a variant belongs to the language before it. Two small letters that may be a region or a
    language are a language after `en`, which is paired with all; else they are an error where the region speaks the
    language before it: nobody knows whether `pt-br` is Brazil or Breton.

    Raises:
        LacosError: There is no language in it, or `pt-br`.

    Example:
        >>> script_codes("pt-BR"), script_codes("zh-Hant"), script_codes("en-ar")
        (['por-Latn'], ['zho-Hant'], ['eng-Latn', 'ara-Arab'])
    """
    if subset == UNKNOWN:
        return [f"{UNKNOWN}-Zyyy"]
    tags: list[str] = []
    for part in (subset.lower() if subset.isupper() else subset).replace("_", "-").split("-"):
        language = _hf_lang_to_iso_lang_script(part)
        longer = _subtagged(tags[-1], part) if tags else None
        if longer and language and part.islower():
            if tags[-1] != "en" and _speaks(part, tags[-1]):
                raise LacosError(
                    f"{shown(subset)} in a file's name may be one language or two: write {tags[-1]}-{part.upper()} for "
                    f"the region, {tags[-1]}-{language.split('-')[0]} for the pair."
                )
            longer = None
        if longer:
            tags[-1] = longer
        elif language:
            tags.append(part)
    if not tags:
        raise LacosError(f"{shown(subset)} in a file's name is no language: use ISO codes such as 'en' or 'en-ar'.")
    return list(dict.fromkeys(map(_script_code, tags)))


def _subtagged(tag: str, part: str) -> str | None:
    """The tag with one more subtag (a script, a region, a variant); None where it is none."""
    longer = f"{tag}-{part}"
    valid = langcodes.tag_is_valid(longer)
    return longer if valid and langcodes.Language.get(longer).language == langcodes.Language.get(tag).language else None


def _speaks(region: str, tag: str) -> bool:
    """Whether a region's main language is that of the tag, and the region's code is not that language's as well."""
    language = langcodes.Language.get(tag).language
    return langcodes.Language.get(f"und-{region}").maximize().language == language != region


def _script_code(tag: str) -> str:
    """MTEB's code of a tag: its own script, or the language's."""
    code = str(_hf_lang_to_iso_lang_script(tag.split("-")[0]))
    known = langcodes.Language.get(tag)
    script = known.script or (known.territory and known.maximize().script)
    return f"{code.split('-')[0]}-{script}" if script else code


def languages_of(task: str, subset: str) -> tuple[str, ...]:
    """The two-letter codes of a task's subset; three letters where there are no two.

    Example:
        >>> languages_of("STS17", "es-en"), languages_of("KLUE-STS", "default"), languages_of("local-x", "fr")
        (('en', 'es'), ('ko',), ('fr',))
    """
    official = official_task(task)
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
