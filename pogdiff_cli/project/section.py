"""What all sections of the configuration have in common, and what a key may be marked as."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict
from pydantic.config import JsonDict

#: Marks a key that changes how a stage runs but not what it makes: it never makes an artifact stale.
OPERATIONAL: JsonDict = {"operational": True}
#: Marks a key whose value is never shown, because a secret may have been written there by mistake.
SECRET: JsonDict = {"secret": True}


class Section(BaseModel):
    """A frozen group of keys; an unknown key or a value of another type is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)
