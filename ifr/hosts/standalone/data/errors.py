"""The error that a data set gives."""


class DatasetError(ValueError):
    """A data set cannot be found or used; the message names the file and the cause."""
