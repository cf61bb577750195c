"""`recipes/bloom-mini/letters.py`: sentences in a language's other alphabet."""

import doctest

import letters
import pytest
from letters import SERBIAN_LATIN, UYGHUR_CYRILLIC, by_letters, serbian_in_latin, uyghur_in_cyrillic


def test_examples():
    assert doctest.testmod(letters).failed == 0


@pytest.mark.parametrize(
    ("arabic", "cyrillic"),
    [
        ("بىر ئەر گىتار چېلىۋاتىدۇ.", "Бир әр гитар челиватиду."),  # as people in Kazakhstan write it
        ("بالىلار سەھنىدە ئۇسسۇل ئويناۋاتىدۇ.", "Балилар сәһнидә уссул ойнаватиду."),
        ("ياخشى؟ ياق، ئەمەس.", "Яхши? Яқ, әмәс."),
    ],
)
def test_uyghur_is_as_people_write_it(arabic, cyrillic):
    assert uyghur_in_cyrillic(arabic) == cyrillic


def test_serbian_digraphs_and_capitals():
    assert serbian_in_latin("Његош, Џон и Ђура једу љуту папричицу.") == "Njegoš, Džon i Đura jedu ljutu papričicu."


def test_all_letters_of_an_alphabet_have_one_in_the_other():
    serbian = "абвгдђежзијклљмнњопрстћуфхцчџш"
    assert not any("\u0400" <= letter <= "\u04ff" for letter in serbian_in_latin(serbian + serbian.upper()))
    uyghur = "ابپتجچخدرزژسشغفقكگڭلمنھوۇۆۈۋېىيەئ"
    assert not any("\u0600" <= letter <= "\u06ff" for letter in uyghur_in_cyrillic(uyghur))


def test_a_row_names_each_alphabet():
    row = {"en": "Good.", "sr": "Добро.", "ug": "ياخشى.", "de": "Gut."}
    written = [*by_letters(row)]
    assert dict(written) == {**row, SERBIAN_LATIN: "Dobro.", UYGHUR_CYRILLIC: "Яхши."}
    assert len(written) == 6
    assert [*by_letters({"sr": "Dobro."})] == [(SERBIAN_LATIN, "Dobro.")]  # is in Latin letters already
