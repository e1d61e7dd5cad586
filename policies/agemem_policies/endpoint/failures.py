"""What a request that is not answered is told, in the form that OpenAI's clients read."""

from __future__ import annotations

from typing import Any

from fastapi.responses import JSONResponse

from agemem_mcp.errors import AgeMemError

SESSION_HEADER = "X-Agemem-Session"
_SERVER_ERROR = 500


class Failure(AgeMemError):  # noqa: N818  as the others of the tree
    """A request is not answered."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        session: str | None = None,
    ) -> None:
        """Say why.

        Args:
            status: of HTTP.
            message: what is wrong and what to do.
            code: the same for a program.
            param: the field of the request that is to blame.
            session: in which it happened.
        """
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.session = session

    @property
    def body(self) -> dict[str, Any]:
        """The error as a JSON object."""
        kind = "server_error" if self.status >= _SERVER_ERROR else "invalid_request_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """The error as an answer of its own."""
        headers = {} if self.session is None else {SESSION_HEADER: self.session}
        return JSONResponse(self.body, status_code=self.status, headers=headers)


def bad_request(message: str, param: str | None = None) -> Failure:
    """The request itself is to blame."""
    return Failure(400, message, param=param)
