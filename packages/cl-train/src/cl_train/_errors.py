"""The one error of what a user hands over: a path, a flag, a size."""


class InputError(ValueError):
    """Something that was handed over cannot be used; the message names it in one line.

    Raised before the first step where that can be known then; later for a file that cannot be decoded or a folder that
    cannot be written any more. A script can print the message and end (see `run_script`) without hiding the traceback
    of a real fault.
    """
