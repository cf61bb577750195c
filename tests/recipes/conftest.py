"""The folder of the recipe's stages, in small."""

import pytest
import recipe_text


@pytest.fixture(scope="module")
def work_dir(tmp_path_factory):
    """What the stages of recipes/bloom-mini find after `teach.py`."""
    return recipe_text.write(tmp_path_factory.mktemp("work"))
