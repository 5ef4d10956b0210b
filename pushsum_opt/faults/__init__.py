"""Who is lost, and the account of its mass: what survivors must know to go on without it."""

from __future__ import annotations

from .ledger import Given, Ledger
from .loss import Loss
from .settlement import Account, Settlement, last_heard, settle, shared, surely_sent

__all__ = ["Account", "Given", "Ledger", "Loss", "Settlement", "last_heard", "settle", "shared", "surely_sent"]
