"""The one error of what a user hands over: a path, a flag, a size."""


class InputError(ValueError):
    """Something that was handed over cannot be used; the message names it in one line.

    Raised before the first step, so a script can print the message and end (see `run_script`) without hiding the
    traceback of a real fault.
    """
