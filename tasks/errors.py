"""The one error that means: the caller's input is wrong, and nothing else is."""


class InputError(ValueError):
    """The caller's input is wrong; the message is one line that names the thing, its value and the remedy.

    The command line turns exactly this error into exit code 2. Any other error is ours, and exits with 1.

    >>> raise InputError("n_triggers = 9 exceeds the 5 tokens of the vocabulary: ask for at most 5")
    Traceback (most recent call last):
        ...
    tasks.errors.InputError: n_triggers = 9 exceeds the 5 tokens of the vocabulary: ask for at most 5
    """
