"""What the handlers of the control plane are given."""

from typing import Annotated

from fastapi import Depends, Request

from composer.root import Parts
from composer.state import State
from gateway.admin.staging import Uploads
from gateway.auth import LOCAL, PRINCIPAL, Principal


def _parts(request: Request) -> Parts:
    parts: Parts = request.app.state.parts
    return parts


def _state(request: Request) -> State:
    return _parts(request).state


def _principal(request: Request) -> Principal:
    principal: Principal = request.scope.get(PRINCIPAL, LOCAL)
    return principal


def _uploads(request: Request) -> Uploads:
    uploads: Uploads = request.app.state.uploads
    return uploads


PartsOf = Annotated[Parts, Depends(_parts)]
StateOf = Annotated[State, Depends(_state)]
PrincipalOf = Annotated[Principal, Depends(_principal)]
UploadsOf = Annotated[Uploads, Depends(_uploads)]
