"""The text of an index page: README.md without pictures of and links into the repository, which lead nowhere there."""

import re
from pathlib import Path

from setuptools import setup

readme = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
readme = re.sub(r"!\[[^\]]*\]\((?!\w+:)[^)]+\)\n*", "", readme)
setup(
    long_description=re.sub(r"\[([^\]]+)\]\((?!\w+:)[^)]+\)", r"`\1`", readme),
    long_description_content_type="text/markdown",
)
