"""Everything Jenga raises on purpose, in one shallow tree.

An error carries what an HTTP answer needs (status, code, param), so a rule is written once, where it is checked, and
reads the same whether the library, the API or the trainer met it. Messages name what was got, what was wanted and what
to do. `assert` is for our own mistakes, these classes for everybody else's.
"""


class JengaError(Exception):
    """Base of all. `status` is the HTTP status, `code` a stable machine word, `param` the offending field or None."""

    status: int = 500
    code: str = "internal_error"

    def __init__(self, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or type(self).code
        self.param = param


class ConfigError(JengaError, ValueError):
    """A setting that cannot be honoured."""

    status, code = 400, "invalid_config"


class UnsupportedModelError(JengaError, ValueError):
    """A model architecture that no row of the architecture table describes."""

    status, code = 400, "unsupported_model"


class DataError(JengaError, ValueError):
    """A training file, or a row of it, that cannot be trained on."""

    status, code = 400, "invalid_training_file"


class NotFoundError(JengaError, LookupError):
    """No such object, or it belongs to another team."""

    status, code = 404, "not_found"


class ConflictError(JengaError):
    """The object is in a state that does not allow this."""

    status, code = 409, "conflict"


class AuthenticationError(JengaError):
    """No API key, or one that does not exist."""

    status, code = 401, "invalid_api_key"


class TooLargeError(JengaError):
    """A body over the cap."""

    status, code = 413, "file_too_large"
