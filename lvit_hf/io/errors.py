"""Errors as sentences for a user."""


def as_sentence(error: Exception, extra: str | None = None) -> str:
    """What an error says to a user."""
    if isinstance(error, ModuleNotFoundError):
        return f"{error.name} is not installed; this needs pip install 'lvit_hf[{extra}]'."
    if isinstance(error, FileNotFoundError) and error.filename:
        return f"{error.filename} does not exist."
    return str(error)
