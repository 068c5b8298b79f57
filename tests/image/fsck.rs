//! What `fsck` finds and what it repairs.
