"""Strings as TOML, which Flower reads where it takes settings."""

__all__ = ["toml_string"]


def toml_string(text: str) -> str:
    r"""Return a text as a string of TOML, in ASCII.

    Quotes are escaped as \u0022, since Flower splits its command line at quotes before it reads TOML.

    Raises:
        ValueError: the text is none of Unicode, such as a path in another encoding than UTF-8.
    """
    text.encode()
    return f'"{"".join(map(_escaped, text))}"'


def _escaped(character: str) -> str:
    code = ord(character)
    if 0x20 <= code < 0x7F and character not in "\"'\\":
        return character
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
