"""The command `python -m cl_augment.preview PATH...`; `cl_augment.preview` is the function that it calls."""

import sys

from cl_augment._preview_command import main

if __name__ == "__main__":
    sys.exit(main())
else:
    # An imported module becomes an attribute of its package, in place of the function of this name.
    raise ImportError("this file is a command, `python -m cl_augment.preview`; import the function from `cl_augment`.")
