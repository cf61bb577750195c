"""The recipe's reader of ontologies: definitions out of OBO files, as text."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes/bloom-mini"))

from ontologies import FILES, definitions


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ('def: "The  splitting of one cell." [GOC:ai, PMID:1]', "The splitting of one cell."),
        (r'def: "Cells with \"feet\", no\: \"hands\"." []', 'Cells with "feet", no: "hands".'),
        (r'def: "One.\nTwo." []', "One. Two."),
        ('def: "OBSOLETE. Of no use." []', "Of no use."),
        (
            'def: "OBSOLETE (was not defined before being made obsolete)." []',
            "(was not defined before being made obsolete).",
        ),
    ],
)
def test_definitions_are_text(tmp_path, line, text):
    for name in FILES:
        (tmp_path / name).write_text("format-version: 1.2\n", encoding="utf-8")
    (tmp_path / "go.obo").write_text(f'[Term]\nname: def: "a name"\n{line}\nis_a: GO:1 ! "x"\n', encoding="utf-8")
    assert list(definitions(tmp_path)) == [text]


def test_a_folder_without_an_ontology_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"go\.obo"):
        list(definitions(tmp_path))
