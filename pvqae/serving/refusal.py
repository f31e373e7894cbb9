"""What a client is told when it gets no scores: always JSON, in the words of our errors, never a traceback."""

import math

from starlette.responses import JSONResponse

from pvqae.errors import PvqaeError


class Refused(PvqaeError):  # noqa: N818 - it names an outcome, not a fault of the code
    """A request that is not served. `reason` is one word for programs and metrics, `retry` seconds until it may be."""

    def __init__(self, status: int, reason: str, message: str, retry: float | None = None) -> None:
        super().__init__(message)
        self.status, self.reason, self.retry = status, reason, retry

    def response(self) -> JSONResponse:
        headers = {} if self.retry is None else {"Retry-After": str(max(1, math.ceil(self.retry)))}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(body(self.reason, str(self)), self.status, headers)


def body(reason: str, message: str) -> dict[str, dict[str, str]]:
    return {"error": {"reason": reason, "message": message}}
