"""What the service refuses, and why it failed: OpenAI's shape for errors.

ServiceError
├── MalformedBodyError   400   no JSON
├── UnauthorisedError    401   no key, or another one
├── UnknownModelError    404
├── NoRouteError         404, 405
├── BodyTooLargeError    413
├── InvalidBodyError     422   JSON, but not what the route takes
├── BusyError            429   with Retry-After
├── ModelFailedError     500   the model itself raised something
└── NotServingError      503   the service ends, or the answer did not come in time
"""

from __future__ import annotations

import msgspec

__all__ = [
    "BodyTooLargeError",
    "BusyError",
    "InvalidBodyError",
    "MalformedBodyError",
    "ModelFailedError",
    "NoRouteError",
    "NotServingError",
    "ServiceError",
    "SlowBodyError",
    "UnauthorisedError",
    "UnknownModelError",
    "error_body",
]


class ServiceError(Exception):
    """Its message says what, which, and the limit.

    Attributes:
        status: of HTTP.
        type: OpenAI's class of errors.
        code: the error's own name, for programs.
        param: the member of the body that is meant, if it is one.
        retry_after: seconds after which asking again makes sense, if it does.
    """

    status = 500
    type = "server_error"
    code = "internal"

    def __init__(self, message: str, *, param: str | None = None, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after = retry_after


class MalformedBodyError(ServiceError):
    status, type, code = 400, "invalid_request_error", "malformed_body"


class UnauthorisedError(ServiceError):
    status, type, code = 401, "authentication_error", "invalid_api_key"


class UnknownModelError(ServiceError):
    status, type, code = 404, "invalid_request_error", "model_not_found"


class NoRouteError(ServiceError):
    """`allowed` are the methods that the path has, if it exists."""

    type = "invalid_request_error"

    def __init__(self, message: str, allowed: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.status = 405 if allowed else 404
        self.code = "method_not_allowed" if allowed else "not_found"
        self.allowed = allowed


class SlowBodyError(ServiceError):
    status, type, code = 408, "invalid_request_error", "slow_body"


class BodyTooLargeError(ServiceError):
    status, type, code = 413, "invalid_request_error", "body_too_large"


class InvalidBodyError(ServiceError):
    status, type, code = 422, "invalid_request_error", "invalid_value"


class BusyError(ServiceError):
    status, type, code = 429, "rate_limit_error", "too_many_requests"


class ModelFailedError(ServiceError):
    status, type, code = 500, "server_error", "model_failed"


class NotServingError(ServiceError):
    status, type, code = 503, "server_error", "unavailable"


def error_body(error: ServiceError) -> bytes:
    """The JSON of `error`."""
    told = {"message": error.message, "type": error.type, "code": error.code, "param": error.param}
    return msgspec.json.encode({"error": told})
