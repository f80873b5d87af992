"""The probe: does a store keep to create-only? Else two runs could replace each other's parts."""

import uuid
from typing import Final

from camworker.errors import UsageError
from camworker.storage.store import Store

# Of no recipe: no reader looks there, and once it lies there a probe is one request.
_KEY: Final = "ledger/probe"


def require_conditional_writes(store: Store, where: str) -> None:
    """Create one object twice, each time with other bytes: the second has to be refused.

    Raises UsageError where it is not, and where nothing can be written.
    """
    try:
        for _ in range(2):
            if not store.create(_KEY, uuid.uuid4().hex.encode()):
                return
    except OSError as error:
        raise UsageError(f"cannot write to {where}: {str(error).splitlines()[0]}") from error
    raise UsageError(
        f"the store of {where} replaces objects that it was asked to create only if absent (it ignores "
        "If-None-Match): use another one, or --single-writer if no other run ever writes there"
    )
