"""A region, a script or a variant is no language: tags of BCP 47 in the names of evaluation files."""

import mteb
import pytest
from sts_sets import write_set

from lacos_st.errors import LacosError
from lacos_st.evaluation.languages import languages_of, script_codes
from lacos_st.evaluation.tasks import plan


@pytest.mark.parametrize(
    ("subset", "codes"),
    [
        ("pt-BR", ["por-Latn"]),
        ("pt_BR", ["por-Latn"]),
        ("es-419", ["spa-Latn"]),
        ("es-AR", ["spa-Latn"]),
        ("de-CH", ["deu-Latn"]),
        ("en-us", ["eng-Latn"]),
        ("zh-Hant", ["zho-Hant"]),
        ("zh-TW", ["zho-Hant"]),
        ("zh_Hans_CN", ["zho-Hans"]),
        ("sr-Latn", ["srp-Latn"]),
        ("ca-valencia", ["cat-Latn"]),
        ("spa-Latn", ["spa-Latn"]),
        ("es", ["spa-Latn"]),
        ("en-ar", ["eng-Latn", "ara-Arab"]),
        ("EN-FR", ["eng-Latn", "fra-Latn"]),
        ("en-ca", ["eng-Latn", "cat-Latn"]),
        ("ca-es", ["cat-Latn", "spa-Latn"]),
        ("es-es", ["spa-Latn"]),
        ("por-bre", ["por-Latn", "bre-Latn"]),
        ("en-es-wmt", ["eng-Latn", "spa-Latn"]),
    ],
)
def test_tags_and_pairs(subset, codes):
    assert script_codes(subset) == codes


@pytest.mark.parametrize("subset", ["pt-br", "PT-BR", "zh-tw", "de-ch", "es-ar"])
def test_two_letters_that_may_be_a_region_or_a_language_are_an_error(subset):
    with pytest.raises(
        LacosError, match=f"may be one language or two: write {subset[:2].lower()}-{subset[3:].upper()} for"
    ):
        script_codes(subset)


def test_subsets_of_mteb_have_the_languages_that_mteb_says():
    for task in mteb.get_tasks(task_types=["STS"], exclude_superseded=False):
        for subset, codes in task.metadata.eval_langs.items() if task.metadata.is_multilingual else ():
            if subset != "rai":  # Rigsarkivet, an archive
                assert languages_of("local-x", subset) == languages_of(task.metadata.name, subset), (subset, codes)


def test_a_locale_is_among_its_language(tmp_path):
    write_set(tmp_path, "mine.pt-BR.test.jsonl")
    (task,) = plan(None, ["pt"], tmp_path)
    assert task.keep == ["pt-BR"]
    with pytest.raises(LacosError, match="Nothing to evaluate"):
        plan(None, ["br"], tmp_path)
