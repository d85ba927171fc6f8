"""The one exception a user is meant to read."""


class InputError(ValueError):
    """Bad input: one line that says what is wrong, where, and how to mend it.

    The command line prints the message as it is and exits with code 2.
    """
