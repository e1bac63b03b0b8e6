"""What people are shown: one printable line, whatever names and files hold."""

_LONGEST = 300


def printable(text: object) -> str:
    """One line that paints no terminal and hides nothing: what cannot be printed is escaped.

    That is every character that `str.isprintable` refuses: controls, ends of lines, marks of
    writing direction, characters without width, spaces other than the common one, and bytes of file
    names that are no UTF-8.
    """
    shown = str(text)
    if shown.isprintable():
        return shown
    return "".join(one if one.isprintable() else _escape(one) for one in shown)


def excerpt(text: object) -> str:
    """Text out of a file for an error: printable, and of bounded length."""
    shown = str(text)
    return printable(shown if len(shown) <= _LONGEST else shown[:_LONGEST] + "...")


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
