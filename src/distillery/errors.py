"""The one kind of error that is the user's to mend."""


class UserError(ValueError):
    """Bad input from outside: one line that names the file, the key or row, the value, and what would be right.

    The command line prints that line and exits with code 2; no traceback reaches the user.
    """
