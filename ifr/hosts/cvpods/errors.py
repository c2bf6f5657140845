"""Why cvpods cannot be used, and what the user can do about it."""


class CvpodsError(ImportError):
    """cvpods cannot be used; `remedy` says what to do."""

    remedy = "set IFR_HOST=standalone to do without cvpods"

    def __init__(self, message: str, remedy: str | None = None) -> None:
        super().__init__(message)
        if remedy is not None:
            self.remedy = remedy


class CvpodsNotFoundError(CvpodsError):
    """There is no cvpods where it was looked for."""


class CvpodsBrokenError(CvpodsError):
    """cvpods is there and cannot be imported; the cause is the original error."""


class CvpodsTooOldError(CvpodsError):
    """cvpods lacks something that IFR uses."""
