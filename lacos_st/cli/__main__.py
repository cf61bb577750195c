"""`python -m lacos_st.cli`, which launchers of several processes are given."""

import sys

from lacos_st.cli import main

if __name__ == "__main__":
    sys.exit(main())
