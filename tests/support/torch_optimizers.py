"""torch's own table of all its optimizers and their settings, as its own tests use it."""

from __future__ import annotations

import sys
import types

__all__ = ["optim_db", "settings_of"]

OPERATORS = "torch.testing._internal.common_methods_invocations"
"""Its table of all operators, and scipy with it: 8 s of a core, for one class that the table of optimizers mentions."""


class DecorateInfo:
    """How torch's own tests treat an optimizer; ours do not look at it."""

    def __init__(self, *args: object, **more: object) -> None:
        pass


if OPERATORS not in sys.modules:
    sys.modules[OPERATORS] = types.ModuleType(OPERATORS)
    sys.modules[OPERATORS].DecorateInfo = DecorateInfo
    try:
        from torch.testing._internal import common_optimizers
    finally:
        del sys.modules[OPERATORS]
else:
    from torch.testing._internal import common_optimizers

optim_db = common_optimizers.optim_db
settings_of = common_optimizers._get_optim_inputs_including_global_cliquey_kwargs
