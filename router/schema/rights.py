"""What a role must be allowed on a shard, as commands ask for it; `router.postgres.rights` has it for all."""

from router.postgres.rights import PROGRESS, Held, Use, held_rights, missing_rights

__all__ = ["PROGRESS", "Held", "Use", "held_rights", "missing_rights"]
