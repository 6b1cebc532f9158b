"""The error of a runtime that cannot store a network."""


class ExportError(ValueError):
    """A model that a runtime cannot export; the text is one line that names the operator or the reason."""
