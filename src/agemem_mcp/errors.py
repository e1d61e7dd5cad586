"""Every exception this project raises on purpose.

    AgeMemError
    ├── NotFound             no such memory, version or session in the caller's scope
    ├── InvalidOperation     the arguments cannot be carried out as given
    ├── QuotaExceeded        the scope may not hold more
    ├── StoreError           ledger, session store or index failed
    ├── EmbeddingError       texts could not be embedded
    │   └── AssetsMissing    the model or tokenizer files are not on this machine
    ├── ProviderError        an external model endpoint failed
    └── ConfigurationError   settings, files or folders must be changed before it can work

The text of each one is shown to a person or a model: it says what is wrong and what to do.
Adapters translate vendor errors into these once, with ``from``.
"""


class AgeMemError(Exception):
    """Base of all errors raised on purpose; ``str(error)`` is fit to be shown."""


class NotFound(AgeMemError):  # noqa: N818  the tree's names follow the HTTP vocabulary
    """No such memory, version or session in the caller's scope."""


class InvalidOperation(AgeMemError):  # noqa: N818  as above
    """The arguments cannot be carried out as given."""


class QuotaExceeded(AgeMemError):  # noqa: N818  as above
    """The scope may not hold more."""


class StoreError(AgeMemError):
    """Ledger, session store or index failed."""


class EmbeddingError(AgeMemError):
    """Texts could not be embedded."""


class AssetsMissing(EmbeddingError):  # noqa: N818  as above
    """The model or tokenizer files are not on this machine."""


class ProviderError(AgeMemError):
    """An external model endpoint failed."""


class ConfigurationError(AgeMemError):
    """Settings, files or folders must be changed before it can work."""
