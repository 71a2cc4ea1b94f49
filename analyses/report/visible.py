"""Tokens made visible: spaces, line ends and control characters as symbols."""

import unicodedata

_SYMBOLS = {" ": "␣", "\n": "↵", "\t": "⇥", "\r": "␍", "\u00a0": "⍽"}
_INVISIBLE = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs")


def visible(token: str) -> str:
    r"""A token as it can be shown to a reader: whatever has no shape of its own gets one.

    >>> visible(" "), visible("a\nb"), visible("\x00"), visible("\u202e")
    ('␣', 'a↵b', '␀', '⟨U+202E⟩')
    """
    return "".join(_shape(character) for character in token)


def _shape(character: str) -> str:
    if character in _SYMBOLS:
        return _SYMBOLS[character]
    if ord(character) < 0x20:
        return chr(0x2400 + ord(character))
    if unicodedata.category(character) in _INVISIBLE:
        return f"⟨U+{ord(character):04X}⟩"
    return character
