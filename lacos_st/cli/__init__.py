"""The command line: `parser` says what can be said, `commands` does it, and `main` tells of mistakes.

A user's mistake (`LacosError`, a file that cannot be read) is one line on stderr and exit code 2; Ctrl-C is 130.
Anything else is a bug and keeps its traceback.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from lacos_st.cli.commands import COMMANDS
from lacos_st.cli.parser import PATHS, build_parser
from lacos_st.errors import LacosError, ToldByFirstError
from lacos_st.files import at_home
from lacos_st.quiet import for_command_line, is_first


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: The arguments; default: those of the process.

    Returns:
        The exit code.
    """
    for argument in sys.argv[1:] if argv is None else argv:
        try:
            argument.encode()
        except UnicodeEncodeError:
            print(f"lacos-st: error: the argument {argument!r} is not UTF-8: texts and names of files must be.",
                  file=sys.stderr)  # fmt: skip
            return 2
    arguments = build_parser().parse_args(argv)
    for name in PATHS & set(vars(arguments)):
        setattr(arguments, name, at_home(getattr(arguments, name)))
    for_command_line()
    try:
        COMMANDS[arguments.command](arguments)
    except ToldByFirstError:
        return 2
    except (LacosError, OSError) as error:
        print(f"lacos-st {arguments.command}: error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if error.name not in ("sklearn", "matplotlib"):
            raise
        print(f"lacos-st {arguments.command}: error: needs {error.name}: pip install 'lacos-st[eval]'", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        if is_first():
            print(f"\n{interrupt or 'Interrupted.'}", file=sys.stderr)
        return 130
    return 0
